"""Attention weights are what the encoder mixes with, and heat lies where they lie, to the pixel."""

import numpy as np
import pytest
import torch
from drawn import cells
from PIL import Image
from torch import Generator, nn

from mvmae.config.figures import AttentionConfig
from mvmae.config.model import Size
from mvmae.encoders.attention import (
    attention_rollout,
    attention_weights,
    class_attention,
    patch_similarity,
)
from mvmae.errors import UserError
from mvmae.inspect import attention as figure
from mvmae.inspect.attention import Maps, Model, compute_heat
from mvmae.inspect.model_pictures import (
    EVEN,
    heat_picture,
    limits,
    overlay,
    shared_limits,
)
from mvmae.inspect.model_pictures import peak as peak_in_words
from mvmae.method.vit import PLAIN, Encoder, Variant, initialize

ROWS, COLUMNS, PATCH = 4, 6, 4
VARIANTS = {
    "plain": PLAIN,
    "no class token": Variant(cls_token=False),
    "registers": Variant(num_registers=4),
    "registers alone": Variant(cls_token=False, num_registers=2),
    "layer scale": Variant(layer_scale=True, num_registers=1),
}
each_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def shaken(variant: Variant = PLAIN, depth: int = 3) -> Encoder:
    """An encoder whose attention is far from even."""
    encoder = Encoder(
        Size(32, depth, 4), image_size=(ROWS * PATCH, COLUMNS * PATCH), patch_size=PATCH,
        variant=variant,
    )  # fmt: skip
    initialize(encoder, Generator().manual_seed(0))
    generator = Generator().manual_seed(1)
    for parameter in encoder.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return encoder.eval()


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(
        count, 3, ROWS * PATCH, COLUMNS * PATCH, generator=Generator().manual_seed(2)
    )


def numpys(encoder: Encoder) -> list[np.ndarray]:
    """The weights of each block in float64."""
    with torch.no_grad():
        return [one.double().numpy() for one in attention_weights(encoder, images())]


# weights


@each_variant
def test_weights_are_those_the_fused_kernel_mixes_the_values_with(variant):
    encoder = shaken(variant)
    inputs, outputs = [], []

    def keep(_, given, made) -> None:
        inputs.append(given[0])
        outputs.append(made)

    for block in encoder.blocks:
        block.attn.register_forward_hook(keep)
    with torch.no_grad():
        encoder(images())
        weights = attention_weights(encoder, images())
    # attention_weights runs all blocks but the last
    for block, x, expected, weight in zip(encoder.blocks, inputs, outputs, weights, strict=False):
        B, N, D = x.shape
        v = block.attn.qkv(x)[..., 2 * D :].reshape(B, N, 4, D // 4).transpose(1, 2)
        mixed = block.attn.proj((weight @ v).transpose(1, 2).reshape(B, N, D))
        torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(weight.sum(-1), torch.ones(B, 4, N))
    assert len(weights) == 3


def test_blocks_are_kept_in_the_order_asked():
    encoder = shaken()
    every = attention_weights(encoder, images())
    assert torch.equal(every[0], attention_weights(encoder, images(), [0])[0])
    last, first = attention_weights(encoder, images(), [-1, 0])
    torch.testing.assert_close(last, every[2])
    torch.testing.assert_close(first, every[0])
    assert attention_weights(encoder, images(), []) == []
    with pytest.raises(IndexError):
        attention_weights(encoder, images(), [3])


def test_blocks_behind_those_kept_are_not_run():
    encoder = shaken()
    encoder.blocks[1].mlp.forward = None  # type: ignore[method-assign]
    attention_weights(encoder, images(), [0, 1])
    with pytest.raises(TypeError):
        attention_weights(encoder, images(), [2])


# rollout and what is read of it


@each_variant
def test_rollout_is_the_product_of_the_blocks_in_plain_numpy(variant):
    encoder = shaken(variant)
    blocks, first = numpys(encoder), encoder.num_prefix
    for number in range(2):
        flow = np.eye(ROWS * COLUMNS + first)
        for block in blocks:
            flow = (0.5 * block[number].mean(0) + 0.5 * np.eye(len(flow))) @ flow
        read = flow[0] if variant.cls_token else flow[first:].mean(0)
        expected = read[first:] / read[first:].sum()
        found = attention_rollout(encoder, images())[number]
        assert found.shape == (ROWS, COLUMNS)
        np.testing.assert_allclose(found.detach().numpy().ravel(), expected, rtol=1e-4, atol=1e-7)


@each_variant
def test_rollout_is_a_share_of_each_patch(variant):
    heat = attention_rollout(shaken(variant), images())
    assert (heat >= 0).all()
    torch.testing.assert_close(heat.sum((1, 2)), torch.ones(2))
    assert heat.std() > 1e-3


@each_variant
def test_class_attention_is_the_row_of_the_class_token_or_of_the_mean_patch(variant):
    encoder = shaken(variant)
    first = encoder.num_prefix
    for block, weights in enumerate(numpys(encoder)):
        rows = weights[:, :, 0] if variant.cls_token else weights[:, :, first:].mean(2)
        found = class_attention(encoder, images(), block).detach().numpy()
        assert found.shape == (2, 4, ROWS, COLUMNS)
        np.testing.assert_allclose(found.reshape(2, 4, -1), rows[..., first:], rtol=1e-5)


def test_even_attention_is_1_in_multiples_of_even():
    encoder = shaken(Variant(num_registers=3))
    for block in encoder.blocks:
        nn.init.zeros_(block.attn.qkv.weight)
        nn.init.zeros_(block.attn.qkv.bias)
    for kind, maps in (("rollout", 1), ("last", 1), ("heads", 4)):
        heat = compute_heat(encoder, images(), AttentionConfig(encoder="any", kind=kind))
        assert heat.shape == (2, maps, ROWS, COLUMNS)
        np.testing.assert_allclose(heat, 1, rtol=1e-5)


# one patch's kin


def test_similarity_is_the_cosine_to_one_patch():
    tokens = torch.randn(2, 5, 8)
    unit = (tokens / tokens.norm(dim=-1, keepdim=True)).numpy()
    found = patch_similarity(tokens, 3).numpy()
    np.testing.assert_allclose(found, np.einsum("bnd,bd->bn", unit, unit[:, 3]), atol=1e-6)
    np.testing.assert_allclose(found[:, 3], 1, atol=1e-6)


# heads that look at one patch, from the weights to the pixels of the figure


def looking(variant: Variant = PLAIN) -> Encoder:
    """Two heads: the first looks at what is red, the second at what is green; tokens stay."""
    encoder = Encoder(
        Size(16, 2, 2), image_size=(ROWS * PATCH, COLUMNS * PATCH), patch_size=PATCH,
        variant=variant,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.pos_embed.zero_()
        for channel in (0, 1):
            encoder.patch_embed.proj.weight[channel, channel] = 1.0
        for block in encoder.blocks:
            block.norm1.weight.fill_(1.0)
            for head in (0, 1):
                block.attn.qkv.bias[8 * head] = 4.0  # every query
                block.attn.qkv.weight[16 + 8 * head, head] = 4.0  # keys of red, and of green
    return encoder.eval()


RED, GREEN = (1, 4), (3, 0)


def spot() -> torch.Tensor:
    """A red patch and a green one on black."""
    image = torch.zeros(1, 3, ROWS * PATCH, COLUMNS * PATCH)
    for channel, (row, column) in enumerate((RED, GREEN)):
        image[0, channel, PATCH * row :, PATCH * column :][:PATCH, :PATCH] = 1.0
    return image


def peak(picture: np.ndarray) -> tuple[int, int]:
    """The brightest pixel."""
    light = picture.mean(-1) if picture.ndim == 3 else picture
    row, column = np.unravel_index(light.argmax(), light.shape)
    return int(row), int(column)


@pytest.mark.parametrize("kind", ["no class token", "plain", "registers"])
def test_each_head_looks_at_its_patch(kind):
    heads = class_attention(looking(VARIANTS[kind]), spot())[0].detach().numpy()
    assert peak(heads[0]) == RED
    assert peak(heads[1]) == GREEN
    both = attention_rollout(looking(VARIANTS[kind]), spot())[0].flatten().topk(2).indices.tolist()
    assert {divmod(place, COLUMNS) for place in both} == {RED, GREEN}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("place", [RED, GREEN, (0, 0), (3, 5)])
def test_the_brightest_pixels_lie_in_the_patch_looked_at(place, channels):
    heat = np.full((ROWS, COLUMNS), 0.1, dtype=np.float32)
    heat[place] = 3.0
    height, width = 100, 150
    image = np.full((height, width, channels), 0.9, dtype=np.float32)
    for picture in (heat_picture(heat, height, width), overlay(image, heat)):
        assert picture.shape == (height, width, 3)
        assert 0 <= picture.min() < picture.max() <= 1
    row, column = peak(heat_picture(heat, height, width))
    assert (row // 25, column // 25) == place
    # over a bright image what is not looked at stays gray, and the patch turns yellow
    colourful = np.ptp(overlay(image, heat), axis=2)
    row, column = peak(colourful)
    assert (row // 25, column // 25) == place


def test_overlay_shows_the_image_in_gray_where_nobody_looks():
    image = np.random.default_rng(0).random((64, 96, 3), dtype=np.float32)
    heat = np.zeros((ROWS, COLUMNS), dtype=np.float32)
    heat[0, 0] = 1.0
    shown = overlay(image, heat)[32:, 48:].mean(2).ravel()
    gray = np.asarray(Image.fromarray((255 * image).astype(np.uint8)).convert("L"))[32:, 48:]
    assert np.corrcoef(shown, gray.ravel())[0, 1] > 0.999


def test_scale_is_robust_and_a_flat_map_has_no_pattern():
    heat = np.linspace(1, 2, 400, dtype=np.float32).reshape(20, 20)
    heat[3, 3] = 1000.0
    assert limits(heat)[1] < 2.1
    flat = heat_picture(np.full((4, 4), 0.7, dtype=np.float32), 16, 16)
    assert np.ptp(flat, axis=(0, 1)).max() == 0
    noise = 0.7 + 1e-8 * np.random.default_rng(0).random((4, 4))
    np.testing.assert_array_equal(heat_picture(noise, 16, 16), flat)


# the figure


def model(heading: str, place: tuple[int, int], strength: float = 5.0) -> Model:
    heat = np.full((1, ROWS, COLUMNS), 0.5, dtype=np.float32)
    heat[0][place] = strength
    image = np.full((96, 144, 3), 0.3, dtype=np.float32)
    return Model(heading, [image], [Maps("heat map", heat)])


def draw(models: list[Model], **options) -> list[np.ndarray]:
    png = figure.draw(models, names=["a.jpg"], title="title", note="note", **options)
    return cells(png, ROWS / COLUMNS)


def test_drawn_heat_and_overlay_peak_where_the_map_does():
    original, heat, over, other_heat, other_over = draw([model("a", RED), model("b", GREEN)])
    assert np.ptp(original) <= 2
    for picture, place in ((heat, RED), (over, RED), (other_heat, GREEN), (other_over, GREEN)):
        row, column = peak(picture.astype(float))
        share = (row * ROWS / len(picture), column * COLUMNS / picture.shape[1])
        assert (int(share[0]), int(share[1])) == place


def test_one_scale_a_row_shows_a_weak_map_dark_and_own_scales_do_not():
    weak = model("weak", GREEN, 0.6)
    together = draw([model("strong", RED), weak])
    alone = draw([model("strong", RED), weak], shared_scale=False)
    assert together[1].max() > 240
    assert together[3].max() < 120
    assert alone[3].max() > 240


def test_nearly_even_attention_is_drawn_nearly_even():
    rng = np.random.default_rng(0)
    heat = rng.normal(1, 0.02, (1, ROWS, COLUMNS)).astype(np.float32)
    image = [np.full((96, 144, 3), 0.6, dtype=np.float32)]
    even = [Model("even", image, [Maps("heat map", heat)])]
    for picture in draw(even)[1:]:
        assert np.ptp(picture[8:-8, 8:-8].astype(float), axis=(0, 1)).max() < 40
    assert np.ptp(draw(even, shared_scale=False)[1].astype(float), axis=(0, 1)).max() > 150


def test_a_shared_scale_reaches_from_half_to_twice_even_or_farther():
    weak, strong = np.array([0.9, 1.1]), np.array([0.1, 5.0])
    assert shared_limits([weak]) == EVEN
    low, high = shared_limits([weak, strong])
    assert low < 0.2
    assert high > 4.5
    assert peak_in_words(strong) == "peak 5.0x even"


def test_heads_are_overlays_in_columns_of_their_own():
    heat = np.random.default_rng(0).random((1, 5, ROWS, COLUMNS)).astype(np.float32)
    maps = [Maps(f"head {number}", heat[:, number]) for number in range(5)]
    shown = [Model("a", [np.full((96, 144, 1), 0.3, dtype=np.float32)], maps)]
    assert len(draw(shown, heat_column=False)) == 6


def test_another_shape_of_image_is_shown_beside_its_maps():
    tall = Model("tall", [np.full((144, 96, 3), 0.6, dtype=np.float32)], model("", RED).maps)
    wide = draw([model("wide", RED), tall])
    assert len(wide) == 6


# settings


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"count": 201}, "count must be at most 200"),
        ({"seed": -1}, "seed must be"),
        ({"data": ()}, "DATA is empty"),
        ({"data": ("",)}, "DATA is empty"),
        ({"against": ("",)}, "--against is empty"),
        ({"against": ("run",)}, "names an encoder twice"),
        ({"against": tuple("abcdefghijkl")}, "names 12: a figure has room for 11"),
        ({"channels": (1, 2)}, "1 channel, drawn gray, or 3"),
        ({"channels": (0,)}, "counted from 1"),
    ],
    ids=str,
)
def test_setting_that_cannot_work_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        AttentionConfig(encoder="run", **changes)
