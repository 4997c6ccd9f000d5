"""The numbers that a user of the paper relies on (items 1 to 8 and 10 of our fidelity list).

Everything here is compared with a number worked out by hand, with loops that follow the printed
equations, or with torch's own layers; nothing with a value that this code once gave.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from objective import named_losses
from pixel_source import PixelSource
from scipy.stats import chi2
from torch import nn

from mvmae.config.model import ModelConfig, num_visible
from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.data.reading.loader import Batch, ViewsDataset
from mvmae.method.losses import embedding_terms, normalize_patches, nt_xent
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.patches import masking_from_noise, patchify
from mvmae.method.pretrain import learning_rate, training_step
from mvmae.recipes import named
from mvmae.training.optim import adamw
from mvmae.training.plan import Plan

SMALL = ModelConfig(
    encoder="vit_pico", image_size=16, patch_size=4, decoder_dim=32, decoder_depth=2
)
CONTRAST_ONLY = ObjectiveConfig(reconstruction_weight=0.0)
RECONSTRUCTION_ONLY = ObjectiveConfig(contrastive_weight=0.0)


class Noise(PixelSource):
    """A source of images that are nothing but noise, each another."""

    name = "noise"

    def __len__(self) -> int:
        return 400

    def read(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8, generator=generator)


def images_and_noise(rows: int, **options) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 3, 16, 16, **options), torch.rand(rows, 16)


# 1. NT-Xent


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def nt_xent_by_loops(z: list[torch.Tensor], partner: list[int], temperature: float) -> float:
    """Equations 4 to 6 as written, with the exponential that equation 4 leaves out."""
    total = 0.0
    for i, j in enumerate(partner):
        numerator = math.exp(cosine(z[i], z[j]) / temperature)
        denominator = sum(
            math.exp(cosine(z[i], z[k]) / temperature) for k in range(len(z)) if k != i
        )
        total += -math.log(numerator / denominator)
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent_equals_the_loops_of_equations_4_to_6(temperature):
    z1, z2 = torch.randn(2, 4, 6, dtype=torch.float64)
    expected = nt_xent_by_loops([*z1, *z2], [4, 5, 6, 7, 0, 1, 2, 3], temperature)
    assert nt_xent(z1, z2, temperature=temperature).item() == pytest.approx(expected, abs=1e-6)


def test_nt_xent_is_the_same_in_concatenated_and_in_interleaved_order():
    z1, z2 = torch.randn(2, 4, 6, dtype=torch.float64)
    interleaved = [row for pair in zip(z1, z2, strict=True) for row in pair]
    expected = nt_xent_by_loops(interleaved, [1, 0, 3, 2, 5, 4, 7, 6], 0.07)
    assert nt_xent(z1, z2).item() == pytest.approx(expected, abs=1e-6)


def test_the_contrast_of_several_views_is_the_mean_of_all_pairs_loops():
    views = torch.randn(4, 3, 6, dtype=torch.float64)
    pairs = [(a, b) for a in range(4) for b in range(a)]
    loops = [nt_xent_by_loops([*views[a], *views[b]], [3, 4, 5, 0, 1, 2], 0.07) for a, b in pairs]
    found = embedding_terms(views.flatten(0, 1), ObjectiveConfig(), 4)["contrastive"].value
    assert len(pairs) == 6
    assert found.item() == pytest.approx(sum(loops) / 6, abs=1e-6)


def test_nt_xent_does_not_change_when_embeddings_grow():
    z1, z2 = torch.randn(2, 4, 6, dtype=torch.float64)
    factors = torch.tensor([[0.01], [1.0], [7.0], [1000.0]], dtype=torch.float64)
    torch.testing.assert_close(nt_xent(z1 * factors, z2 * 3), nt_xent(z1, z2))


# 2. NT-Xent where it is known in closed form


def test_nt_xent_of_equal_embeddings_is_the_log_of_the_candidates():
    z = torch.ones(256, 16)
    assert nt_xent(z, z).item() == pytest.approx(math.log(2 * 256 - 1), abs=1e-5)
    assert math.log(2 * 256 - 1) == pytest.approx(6.2364, abs=1e-4)


def test_nt_xent_of_orthogonal_images_with_identical_views_is_almost_nothing():
    z = torch.eye(256, dtype=torch.float64)
    expected = math.log(1 + 510 * math.exp(-1 / 0.07))
    assert expected == pytest.approx(3.19e-4, abs=1e-6)
    assert nt_xent(z, z, temperature=0.07).item() == pytest.approx(expected, rel=1e-6)


# 3. Without contrast it is MAE


def torch_block(state: dict[str, torch.Tensor], prefix: str, heads: int) -> nn.Module:
    """Torch's own Transformer layer with the weights of one of our blocks."""
    ours = {
        key.removeprefix(f"{prefix}."): value
        for key, value in state.items()
        if key.startswith(f"{prefix}.")
    }
    dim = len(ours["norm1.weight"])
    layer = nn.TransformerEncoderLayer(
        *(dim, heads, 4 * dim),
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=True,
    )
    renamed = {
        "self_attn.in_proj_weight": ours["attn.qkv.weight"],
        "self_attn.in_proj_bias": ours["attn.qkv.bias"],
    }
    names = {
        "self_attn.out_proj": "attn.proj",
        "linear1": "mlp.fc1",
        "linear2": "mlp.fc2",
        "norm1": "norm1",
        "norm2": "norm2",
    }
    for theirs, name in names.items():
        renamed |= {f"{theirs}.{kind}": ours[f"{name}.{kind}"] for kind in ("weight", "bias")}
    layer.double().load_state_dict(renamed)
    return layer


def mae_loss(model: MaskedAutoencoder, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """MAE's loss as its paper tells it, image by image: convolve, add positions, drop, decode."""
    config, state = model.config, model.state_dict()
    width, dim, p = config.size.width, config.decoder_dim, config.patch_size
    errors = []
    for image, draw in zip(images, noise, strict=True):
        embedded = F.conv2d(
            image[None], state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=p
        )
        tokens = embedded[0].flatten(1).T + state["pos_embed"][0, 1:]
        order = sorted(range(len(draw)), key=draw.tolist().__getitem__)
        visible = sorted(order[: config.num_visible])
        cls = state["cls_token"][0] + state["pos_embed"][0, :1]
        x = torch.cat([cls, tokens[visible]])[None]
        for number in range(config.size.depth):
            x = torch_block(state, f"blocks.{number}", config.size.num_heads)(x)
        x = F.layer_norm(x, (width,), state["norm.weight"], state["norm.bias"], 1e-6)

        x = F.linear(x, state["decoder_embed.weight"], state["decoder_embed.bias"])[0]
        full = state["mask_token"][0].repeat(len(draw), 1)
        full[visible] = x[1:]
        x = (torch.cat([x[:1], full]) + state["decoder_pos_embed"][0])[None]
        for number in range(config.decoder_depth):
            x = torch_block(state, f"decoder_blocks.{number}", dim // 32)(x)
        x = F.layer_norm(x, (dim,), state["decoder_norm.weight"], state["decoder_norm.bias"], 1e-6)
        prediction = F.linear(x, state["decoder_pred.weight"], state["decoder_pred.bias"])[0, 1:]

        columns = image.shape[2] // p
        for number in set(range(len(draw))) - set(visible):
            row, column = p * (number // columns), p * (number % columns)
            pixels = image[:, row : row + p, column : column + p].permute(1, 2, 0).flatten()
            wanted = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            errors.append((prediction[number] - wanted).square().mean())
    return torch.stack(errors).mean()


@pytest.fixture
def model() -> MaskedAutoencoder:
    """An autoencoder whose every weight counts; untrained ones have biases of 0."""
    model = MaskedAutoencoder(SMALL)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def test_one_view_without_contrast_is_mae(model):
    images, noise = images_and_noise(3, dtype=torch.float64)
    losses = named_losses(model.double()(images, noise), RECONSTRUCTION_ONLY)
    expected = mae_loss(model, images, noise)
    assert losses["loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert losses.keys() == {"loss", "reconstruction"}


def test_the_reconstruction_of_two_views_is_the_mean_of_two_maes(model):
    images, noise = images_and_noise(6, dtype=torch.float64)
    together = named_losses(model.double()(images, noise), ObjectiveConfig())["reconstruction"]
    apart = [mae_loss(model, images[rows], noise[rows]) for rows in (slice(3), slice(3, 6))]
    assert together.item() == pytest.approx(torch.stack(apart).mean().item(), abs=1e-6)


def test_the_loss_is_the_weighted_sum_of_equation_7(model):
    images, noise = images_and_noise(8)
    view = model(images, noise)
    objective = ObjectiveConfig(
        reconstruction_weight=0.5, contrastive_weight=3.0, temperature=0.2, normalize_targets=False
    )
    losses = named_losses(view, objective)
    reconstruction = F.mse_loss(view.prediction, view.target)
    contrastive = nt_xent(view.embedding[:4], view.embedding[4:], temperature=0.2)
    torch.testing.assert_close(losses["reconstruction"], reconstruction)
    torch.testing.assert_close(losses["contrastive"], contrastive)
    torch.testing.assert_close(losses["loss"], 0.5 * reconstruction + 3 * contrastive)


def test_every_patch_counts_where_equation_3_is_taken_at_its_word(model):
    images, noise = images_and_noise(4)
    view = model(images, noise, rebuild="all")
    assert torch.equal(view.target, patchify(images, 4))
    objective = ObjectiveConfig(contrastive_weight=0.0, reconstruct="all", normalize_targets=False)
    torch.testing.assert_close(
        named_losses(view, objective)["loss"], F.mse_loss(view.prediction, view.target)
    )


def test_a_loss_of_weight_0_is_not_computed(model):
    images, noise = images_and_noise(4)
    losses = named_losses(model(images, noise, rebuild="none"), CONTRAST_ONLY)
    assert losses.keys() == {"loss", "contrastive"}
    torch.testing.assert_close(losses["loss"], 2 * losses["contrastive"])


# 4. Masks


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"),
    [
        (196, 0.50, 98),
        (196, 0.75, 49),
        (196, 0.80, 39),
        (196, 0.90, 19),
        (196, 0.95, 9),
        (25, 0.80, 5),  # int(25 * (1 - 0.8)) is 4
        (100, 0.80, 20),
    ],
)
def test_so_many_patches_stay_visible(patches, ratio, visible):
    assert num_visible(patches, ratio) == visible
    masking = masking_from_noise(torch.rand(2, patches), num_visible(patches, ratio))
    assert masking.ids_keep.shape == (2, visible)
    assert (masking.mask == 0).sum(dim=1).tolist() == [visible, visible]


@pytest.fixture
def masks(tiny) -> torch.Tensor:
    """Masks of 400 images as the loader draws them: images x views x patches."""
    dataset = ViewsDataset(Noise(), tiny)
    noise = torch.stack([dataset[0, index].noise for index in range(400)])
    return masking_from_noise(noise.flatten(0, 1), 3).mask.reshape(400, 2, 16)


def test_every_view_of_every_image_has_a_mask_of_its_own(masks):
    equal = (masks[:, 0] == masks[:, 1]).all(dim=1).float().mean()
    assert equal < 0.02  # one in C(16, 3) = 560 by chance
    assert len(masks.flatten(0, 1).unique(dim=0)) > 300


def test_a_mask_repeats_no_patch(masks):
    assert ((masks == 0) | (masks == 1)).all()
    assert ((masks == 0).sum(dim=2) == 3).all()


def test_every_patch_is_hidden_equally_often(masks):
    visible = (masks == 0).sum(dim=(0, 1)).double()
    expected = 800 * 3 / 16
    # Draws within a mask exclude each other, which makes counts more even than a free choice.
    statistic = ((visible - expected).square() / expected).sum().item() / (1 - 3 / 16) * 15 / 16
    low, high = chi2.ppf([0.001, 0.999], df=15)
    assert low < statistic < high


# 5. Who sees what


def hidden_patches(noise: torch.Tensor) -> torch.Tensor:
    """The patches that the model of this file does not see."""
    return masking_from_noise(noise, SMALL.num_visible).mask == 1


def change_pixels(images: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Images with other pixels in the patches where the mask is true."""
    pixels = where.reshape(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.where(pixels, torch.randn_like(images), images)


def test_the_embedding_never_sees_hidden_pixels(model):
    images, noise = images_and_noise(3)
    before = model(images, noise)
    after = model(change_pixels(images, hidden_patches(noise)), noise)
    assert not torch.equal(before.target, after.target)
    assert torch.equal(before.embedding, after.embedding)
    assert torch.equal(before.prediction, after.prediction)


def test_the_targets_of_hidden_patches_do_not_depend_on_visible_pixels(model):
    images, noise = images_and_noise(3)
    before = model(images, noise)
    after = model(change_pixels(images, ~hidden_patches(noise)), noise)
    assert not torch.equal(before.embedding, after.embedding)
    assert torch.equal(normalize_patches(before.target), normalize_patches(after.target))


# 6. Who is trained by what


def gradients(model: MaskedAutoencoder, objective: ObjectiveConfig) -> dict[str, torch.Tensor]:
    """The gradient of each parameter that one of the losses reaches."""
    images, noise = images_and_noise(8)
    named_losses(model(images, noise), objective)["loss"].backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


def test_the_contrast_trains_encoder_and_head_alone():
    reached = gradients(MaskedAutoencoder(replace(SMALL, head="mlp")), CONTRAST_ONLY)
    assert not [name for name in reached if "decoder" in name or name == "mask_token"]
    assert {"projection_head.0.weight", "projection_head.2.weight"} <= reached.keys()
    assert {"encoder.blocks.0.attn.qkv.weight", "encoder.patch_embed.proj.weight"} <= reached.keys()


def test_the_reconstruction_trains_encoder_and_decoder_and_not_the_head():
    reached = gradients(MaskedAutoencoder(replace(SMALL, head="mlp")), RECONSTRUCTION_ONLY)
    assert not [name for name in reached if "head" in name]
    assert {"mask_token", "decoder_pred.weight", "decoder_embed.weight"} <= reached.keys()
    assert {"encoder.blocks.0.attn.qkv.weight", "encoder.patch_embed.proj.weight"} <= reached.keys()


@pytest.mark.parametrize("objective", [CONTRAST_ONLY, RECONSTRUCTION_ONLY])
def test_both_views_are_learnt_from(model, objective):
    images, noise = images_and_noise(8)
    images.requires_grad_()
    named_losses(model(images, noise), objective)["loss"].backward()
    assert images.grad.flatten(1).any(dim=1).all()


# 7. Sizes


@pytest.mark.parametrize(("depth", "expected"), [(4, 99_046_144), (8, 111_655_680)])
def test_the_papers_model_has_so_many_trainable_parameters(depth, expected):
    with torch.device("meta"):
        model = MaskedAutoencoder(ModelConfig(decoder_depth=depth))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


# 8. One target


def test_one_target_gives_equal_targets_and_different_masks(tiny):
    views = ViewsConfig(targets="one", crop_scale=(0.5, 1.0))
    dataset = ViewsDataset(Noise(), replace(tiny, views=views))
    for index in range(20):
        sample = dataset[0, index]
        assert torch.equal(sample.views[0], sample.views[1])
        assert not torch.equal(sample.noise[0], sample.noise[1])


def test_two_targets_differ(tiny):
    dataset = ViewsDataset(Noise(), tiny)
    for index in range(20):
        views = dataset[0, index].views
        assert not torch.equal(views[0], views[1])


def make_batch(noise: torch.Tensor) -> Batch:
    """A step's input with the given noise, views x images x patches; all its views are alike."""
    crops = torch.randint(0, 256, (noise.shape[1], 3, 16, 16), dtype=torch.uint8)
    return Batch(crops.expand(len(noise), -1, -1, -1, -1), noise, [], is_whole=True)


def take_step(config: PretrainConfig, noise: torch.Tensor) -> dict[str, torch.Tensor]:
    model = MaskedAutoencoder(config.model)
    optimizer = adamw(model, lr=1e-3, betas=config.betas, weight_decay=0.0)
    return training_step(model, optimizer, make_batch(noise), config, torch.device("cpu"))[1]


def test_one_target_with_equal_masks_is_refused(tiny):
    config = replace(tiny, views=ViewsConfig(targets="one"))
    noise = torch.rand(2, 8, 16)
    assert take_step(config, noise)["loss"].isfinite()
    with pytest.raises(ValueError, match="draw noise for each view"):
        take_step(config, noise[:1].expand(2, -1, -1).contiguous())


# 10. The optimiser


@pytest.mark.parametrize("batch_size", [256, 512, 4096])
def test_the_learning_rate_after_warmup_is_scaled_by_the_batch(batch_size):
    config = replace(named("pretrain", "paper"), batch_size=batch_size)
    plan = Plan(
        per_epoch=5,
        total=5 * config.epochs,
        batch_size=batch_size,
        fingerprint="",
        eval_every=1,
    )
    rates = [learning_rate(step, plan, config) for step in range(plan.total + 1)]
    assert rates[40 * 5] == max(rates) == pytest.approx(1.5e-4 * batch_size / 256)
    assert rates[20 * 5] == pytest.approx(rates[40 * 5] / 2)
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_the_optimizer_is_the_papers_adamw():
    config = named("pretrain", "paper")
    model = MaskedAutoencoder(replace(SMALL, head="mlp"))
    optimizer = adamw(model, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    assert isinstance(optimizer, torch.optim.AdamW)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        is_bias_or_norm = name.endswith("bias") or "norm" in name
        assert decay.pop(parameter) == (0.0 if is_bias_or_norm else 0.05), name
    assert not decay
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}
    assert {group["lr"] for group in optimizer.param_groups} == {1.5e-4}


def test_a_step_updates_each_matrix_by_adamw(tiny):
    config = replace(tiny, weight_decay=0.05)
    model = MaskedAutoencoder(config.model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model, lr=1e-3, betas=config.betas, weight_decay=config.weight_decay)
    training_step(model, optimizer, make_batch(torch.rand(2, 8, 16)), config, torch.device("cpu"))
    for name, parameter in model.named_parameters():
        decayed = before[name] * (1 - 1e-3 * (0.05 if parameter.ndim > 1 else 0))
        # The first step of Adam is the sign of the gradient, its averages being that gradient.
        gradient = parameter.grad
        expected = decayed - 1e-3 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)


def test_a_step_forgets_the_gradients_of_the_step_before(tiny):
    model = MaskedAutoencoder(tiny.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = make_batch(torch.rand(2, 8, 16))
    gradients = []
    for _ in range(2):
        training_step(model, optimizer, batch, tiny, torch.device("cpu"))
        gradients.append(model.mask_token.grad.clone())
    assert torch.equal(*gradients)


def test_gradients_are_clipped_together_where_that_is_asked_for(tiny):
    batch, norms = make_batch(torch.rand(2, 8, 16)), []
    for clip_grad in (None, 0.01):
        model = MaskedAutoencoder(tiny.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        config = replace(tiny, clip_grad=clip_grad)
        training_step(model, optimizer, batch, config, torch.device("cpu"))
        norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_a_step_in_bfloat16_computes_its_losses_in_full_precision(tiny):
    config, model = replace(tiny, precision="bf16"), MaskedAutoencoder(tiny.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = make_batch(torch.rand(2, 8, 16))
    view, losses = training_step(model, optimizer, batch, config, torch.device("cpu"))
    assert view.prediction.dtype == torch.bfloat16
    exact = view._replace(prediction=view.prediction.float(), embedding=view.embedding.float())
    for name, loss in named_losses(exact, config.objective).items():
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], loss, rtol=1e-6, atol=0)
