"""The whole autoencoder against transformers' ViTMAE, which takes the masking noise from outside.

Its positions are zero when it is built from a config (transformers 5.23), so ours are copied too;
they are compared with lightly's in test_positions_lightly.py.
"""

import pytest
import torch
from objective import named_losses
from torch import Tensor, nn

from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import ObjectiveConfig
from mvmae.method.losses import reconstruction_loss
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.patches import masking_from_noise, patchify

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")

OURS = ModelConfig(
    encoder="vit_pico",
    image_size=32,
    patch_size=8,
    mask_ratio=0.75,
    decoder_dim=64,
    decoder_depth=2,
)


def vitmae(config: ModelConfig, *, norm_pix_loss: bool) -> nn.Module:
    size, dim = config.size, config.decoder_dim
    return transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.num_heads,
            intermediate_size=4 * size.width,
            image_size=config.image_size,
            patch_size=config.patch_size,
            num_channels=config.in_channels,
            decoder_hidden_size=dim,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=dim // 32,
            decoder_intermediate_size=4 * dim,
            mask_ratio=config.mask_ratio,
            norm_pix_loss=norm_pix_loss,
            layer_norm_eps=1e-6,
        )
    ).eval()


ENDS = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed": "decoder.decoder_embed",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}
STACKS = {"blocks": "vit.layers", "decoder_blocks": "decoder.decoder_layers"}
PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def in_their_words(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under transformers' names."""
    renamed = {}
    for key, value in state.items():
        stack, _, rest = key.partition(".")
        if stack in STACKS:
            number, _, rest = rest.partition(".")
            part, _, kind = rest.rpartition(".")
            layer = f"{STACKS[stack]}.{number}"
            if part == "attn.qkv":
                for name, third in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"{layer}.attention.{name}_proj.{kind}"] = third
            else:
                renamed[f"{layer}.{PARTS[part]}.{kind}"] = value
        elif key in ENDS:
            renamed[ENDS[key]] = value
        else:
            part, _, kind = key.rpartition(".")
            renamed[f"{ENDS[part]}.{kind}"] = value
    return renamed


@pytest.fixture
def model() -> MaskedAutoencoder:
    """An autoencoder whose every weight counts; untrained ones have biases of 0."""
    model = MaskedAutoencoder(OURS)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def test_masking_patches_and_loss_are_transformers():
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    theirs = vitmae(OURS, norm_pix_loss=False)(images, noise=noise)
    masking = masking_from_noise(noise, OURS.num_visible)
    assert torch.equal(masking.mask, theirs.mask)
    assert torch.equal(masking.ids_restore, theirs.ids_restore)
    ours = reconstruction_loss(theirs.logits, patchify(images, 8), masking.mask)
    torch.testing.assert_close(ours, theirs.loss)


@pytest.mark.parametrize("normalize_targets", [True, False])
def test_the_whole_model_predicts_and_loses_what_transformers_does(model, normalize_targets):
    reference = vitmae(OURS, norm_pix_loss=normalize_targets)
    reference.load_state_dict(in_their_words(model.state_dict()), strict=True)
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    theirs = reference(images, noise=noise)

    objective = ObjectiveConfig(contrastive_weight=0.0, normalize_targets=normalize_targets)
    loss = named_losses(model(images, noise), objective)["loss"]
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=1e-5)
    every = model(images, noise, rebuild="all").prediction
    torch.testing.assert_close(every, theirs.logits, rtol=1e-5, atol=1e-5)


def test_the_whole_model_learns_what_transformers_does(model):
    reference = vitmae(OURS, norm_pix_loss=True)
    reference.load_state_dict(in_their_words(model.state_dict()))
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    reference(images, noise=noise).loss.backward()
    named_losses(model(images, noise), ObjectiveConfig(contrastive_weight=0.0))["loss"].backward()

    ours = {
        name.removeprefix("encoder."): parameter.grad
        for name, parameter in model.named_parameters()
    }
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, gradient in in_their_words(ours).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_encoder_makes_the_latents_that_transformers_does(model):
    reference = vitmae(OURS, norm_pix_loss=True)
    reference.load_state_dict(in_their_words(model.state_dict()))
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    tokens = reference.vit(images, noise=noise).last_hidden_state
    torch.testing.assert_close(
        model(images, noise).embedding, tokens[:, 1:].mean(dim=1), rtol=1e-5, atol=1e-5
    )
