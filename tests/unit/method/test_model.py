from dataclasses import replace

import pytest
import torch
from torch import Generator, nn

from mvmae.config.model import ModelConfig
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.patches import masking_from_noise, patchify, take_rows, unpatchify

SMALL = ModelConfig(
    encoder="vit_pico", image_size=(8, 16), patch_size=4, decoder_dim=32, decoder_depth=1
)


def make_model(config: ModelConfig = SMALL, **changes) -> MaskedAutoencoder:
    """An autoencoder whose every weight counts; untrained ones have biases of 0."""
    model = MaskedAutoencoder(replace(config, **changes))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def inputs(rows: int = 4, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, channels, 8, 16), torch.rand(rows, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_has_an_embedding_and_the_hidden_patches(channels):
    images, noise = inputs(channels=channels)
    view = make_model(in_channels=channels)(images, noise)
    assert view.embedding.shape == (4, 64)
    assert view.prediction.shape == view.target.shape == (4, 7, 16 * channels)
    hidden = noise.argsort(dim=1)[:, 1:]
    assert torch.equal(view.target, take_rows(patchify(images, 4), hidden))


def test_hidden_patches_are_rebuilt_as_when_all_are():
    model, (images, noise) = make_model(mask_ratio=0.5), inputs()
    hidden, every = model(images, noise), model(images, noise, rebuild="all")
    assert torch.equal(every.target, patchify(images, 4))
    ids = masking_from_noise(noise, 4).ids_hidden
    torch.testing.assert_close(take_rows(every.prediction, ids), hidden.prediction)
    assert torch.equal(take_rows(every.target, ids), hidden.target)
    assert torch.equal(every.embedding, hidden.embedding)


def test_without_rebuilding_there_is_the_same_embedding_and_no_prediction():
    model, (images, noise) = make_model(), inputs()
    view = model(images, noise, rebuild="none")
    assert view.prediction is view.target is None
    assert torch.equal(view.embedding, model(images, noise).embedding)


def test_computing_activations_again_changes_no_gradient():
    model, (images, noise) = make_model(), inputs()
    gradients = []
    for model.recompute in (False, True):
        model.zero_grad()
        view = model(images, noise)
        (view.embedding.square().mean() + view.prediction.square().mean()).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_computing_activations_again_keeps_fewer_of_them():
    images, noise = inputs()
    kept = []
    for recompute in (False, True):
        model, sizes = make_model(), []
        model.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(
            lambda saved, sizes=sizes: sizes.append(saved.numel()) or saved, lambda saved: saved
        ):
            model(images, noise)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


def test_two_views_in_one_pass_are_two_passes():
    model, (images, noise) = make_model(), inputs()
    together = model(images, noise)
    for rows in (slice(0, 2), slice(2, 4)):
        apart = model(images[rows], noise[rows])
        torch.testing.assert_close(apart.embedding, together.embedding[rows])
        torch.testing.assert_close(apart.prediction, together.prediction[rows])


def test_predictions_stay_in_place_whatever_the_order_of_the_visible_patches():
    model, (images, noise) = make_model(mask_ratio=0.5), inputs()
    view = model(images, noise, rebuild="all")
    mask = masking_from_noise(noise, 4).mask
    others = torch.where(mask == 1, 2 - noise, 1 - noise)  # both orders turned, same mask
    turned = model(images, others, rebuild="all")
    assert torch.equal(masking_from_noise(others, 4).mask, mask)
    torch.testing.assert_close(turned.prediction, view.prediction)
    torch.testing.assert_close(turned.embedding, view.embedding)


def test_the_decoder_gets_each_visible_token_at_its_own_place():
    # Behind a decoder that passes on what it gets, each visible patch shows its own token.
    model, (images, noise) = make_model(mask_ratio=0.5), inputs()
    model.decoder_blocks = nn.ModuleList()
    model.decoder_norm, model.decoder_pred = nn.Identity(), nn.Identity()
    model.decoder_pos_embed.zero_()
    masking = masking_from_noise(noise, 4)
    tokens = model.encoder(images, masking.ids_keep)
    decoded = model.decode(tokens, masking)
    shown = take_rows(decoded, masking.ids_keep)
    torch.testing.assert_close(shown, model.decoder_embed(tokens[:, 1:]))
    hidden = decoded[masking.mask == 1]
    assert torch.equal(hidden, model.mask_token[0].expand_as(hidden))


@pytest.mark.parametrize("latent", ["mean", "cls"])
def test_what_is_contrasted_is_the_pooled_token(latent):
    model, (images, noise) = make_model(latent=latent), inputs()
    tokens = model.encoder(images, masking_from_noise(noise, 1).ids_keep)
    expected = tokens[:, 0] if latent == "cls" else tokens[:, 1:].mean(dim=1)
    torch.testing.assert_close(model(images, noise).embedding, expected)


def test_a_head_makes_128_numbers_of_the_latent():
    images, noise = inputs()
    model = make_model(head="mlp")
    embedding = model(images, noise).embedding
    assert embedding.shape == (4, 128)
    latent = model.encoder(images, masking_from_noise(noise, 1).ids_keep)[:, 1:].mean(dim=1)
    first, _, last = model.projection_head
    torch.testing.assert_close(embedding, last(nn.functional.gelu(first(latent))))


def test_the_keys_are_maes():
    block = [
        *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias"),
        *("attn.proj.weight", "attn.proj.bias", "norm2.weight", "norm2.bias"),
        *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
    ]
    expected = {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed"}
    for layer in ("patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred"):
        expected |= {f"{layer}.weight", f"{layer}.bias"}
    expected |= {f"blocks.{number}.{name}" for number in range(4) for name in block}
    expected |= {f"decoder_blocks.0.{name}" for name in block}
    assert MaskedAutoencoder(SMALL).state_dict().keys() == expected


def test_weights_come_back_from_their_state_dict():
    model, other = make_model(head="mlp"), MaskedAutoencoder(replace(SMALL, head="mlp"))
    images, noise = inputs()
    state = model.state_dict()
    keys = set(state)
    other.load_state_dict(state)
    assert set(state) == keys
    for ours, theirs in zip(model(images, noise), other(images, noise), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_come_back_inside_another_module_too():
    outer, other = (nn.ModuleDict({"part": model}) for model in (make_model(), make_model()))
    state = outer.state_dict()
    assert "part.blocks.0.norm1.weight" in state
    assert not [key for key in state if "encoder." in key]
    other.load_state_dict(state)
    for name, parameter in outer.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter)


def test_a_missing_key_is_noticed():
    model = MaskedAutoencoder(SMALL)
    state = model.state_dict()
    del state["cls_token"]
    with pytest.raises(RuntimeError, match="cls_token"):
        model.load_state_dict(state)


def test_initial_weights_follow_the_generator():
    first, again, other = (
        MaskedAutoencoder(SMALL, Generator().manual_seed(seed)).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["mask_token"], other["mask_token"])
    assert not torch.equal(first["decoder_pred.weight"], other["decoder_pred.weight"])


def test_a_frozen_decoder_is_what_the_embedding_does_not_need():
    model, (images, noise) = make_model(head="mlp"), inputs()
    model(images, noise).embedding.sum().backward()
    without_gradient = {p for p in model.parameters() if p.grad is None}
    assert model.mask_token in without_gradient
    model.freeze_decoder()
    assert {p for p in model.parameters() if not p.requires_grad} == without_gradient


def test_under_bfloat16_the_target_stays_exact():
    model, (images, noise) = make_model(), inputs()
    exact = model(images, noise)
    with torch.autocast("cpu", torch.bfloat16):
        view = model(images, noise)
    assert view.prediction.dtype == torch.bfloat16
    assert torch.equal(view.target, exact.target)
    torch.testing.assert_close(view.prediction.float(), exact.prediction, rtol=0.1, atol=0.2)


def test_a_share_of_the_hidden_patches_is_rebuilt_and_the_rest_is_not_looked_at():
    model, (images, noise) = make_model(decoded_share=0.5), inputs()
    view = model(images, noise)
    chosen = noise.argsort(dim=1)[:, 1:5]  # of 7 hidden ones
    assert view.prediction.shape == (4, 4, 48)
    assert torch.equal(view.target, take_rows(patchify(images, 4), chosen))

    patches = patchify(images, 4)
    left_out = noise.argsort(dim=1)[:, 5:]
    other = patches.scatter(1, left_out[..., None].expand(-1, -1, 48), 7.0)
    again = model(unpatchify(other, 4, SMALL.grid), noise)
    assert torch.equal(again.prediction, view.prediction)
    assert torch.equal(again.target, view.target)
    assert torch.equal(again.embedding, view.embedding)


def test_each_hidden_patch_is_rebuilt_equally_often():
    model = make_model(decoded_share=0.3)  # 2 of 7
    places = torch.arange(8.0).repeat_interleave(16 * 3).view(1, 8, 48)
    images = unpatchify(places.expand(4000, -1, -1).contiguous(), 4, SMALL.grid)
    with torch.no_grad():
        rebuilt = model(images, torch.rand(4000, 8)).target[..., 0].long()
    counts = torch.bincount(rebuilt.flatten(), minlength=8)
    assert rebuilt.shape == (4000, 2)
    expected = torch.full((8,), 1000.0)
    assert ((counts - expected).square() / expected).sum() < 24.3  # chi-squared, 7 degrees, 0.1 %


def test_what_is_decoded_later_is_still_every_patch():
    model, (images, noise) = make_model(decoded_share=0.5), inputs()
    every = model(images, noise, rebuild="all")
    assert every.prediction.shape == (4, 8, 48)


@pytest.mark.parametrize(("share", "count"), [(1.0, 7), (0.5, 4), (0.3, 2), (0.01, 1)])
def test_how_many_are_rebuilt(share, count):
    assert replace(SMALL, decoded_share=share).num_decoded == count
