import math

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from mvmae.config.model import ENCODERS, Size
from mvmae.method.patches import patchify
from mvmae.method.vit import (
    Encoder,
    PatchEmbed,
    attend,
    initialize,
    pool_tokens,
    sincos_positions,
)


@pytest.fixture
def encoder() -> Encoder:
    """An encoder of 3 x 4 patches whose every weight counts."""
    encoder = Encoder(ENCODERS["vit_pico"], image_size=(12, 16), patch_size=4)
    initialize(encoder, Generator().manual_seed(0))
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


IMAGES = torch.rand(2, 3, 12, 16, generator=Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_patches_are_embedded_as_by_the_convolution(channels):
    embed, images = PatchEmbed(4, channels, 32), torch.randn(2, channels, 12, 16)
    expected = embed.proj(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(patchify(images, 4)), expected)


def test_tokens_are_the_class_token_and_every_patch(encoder):
    assert encoder(IMAGES).shape == (2, 1 + 12, 64)
    assert encoder.embed_dim == 64


def test_all_patches_in_their_order_are_the_whole_image(encoder):
    everything = torch.arange(12).expand(2, -1)
    torch.testing.assert_close(encoder(IMAGES, everything), encoder(IMAGES))


def test_visible_patches_keep_their_positions_in_any_order(encoder):
    ids = torch.tensor([[7, 2, 11], [0, 5, 4]])
    tokens = encoder(IMAGES, ids)
    turned = encoder(IMAGES, ids.flip(1))
    torch.testing.assert_close(turned[:, 1:], tokens[:, 1:].flip(1))
    torch.testing.assert_close(turned[:, 0], tokens[:, 0])


def test_positions_tell_equal_patches_apart(encoder):
    tokens = encoder(torch.full((1, 3, 12, 16), 0.5))[0, 1:]
    distances = torch.cdist(tokens, tokens) + torch.eye(12)
    assert distances.min() > 0.01


def test_images_do_not_see_each_other(encoder):
    torch.testing.assert_close(encoder(IMAGES)[1:], encoder(IMAGES[1:]))


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 16, 12), (1, 12, 16)])
def test_images_of_another_shape_are_refused_with_the_right_one(encoder, shape):
    with pytest.raises(ValueError, match=r"images are .*, this encoder takes \(3, 12, 16\)"):
        encoder(torch.zeros(1, *shape))


def test_pooling_takes_the_mean_of_the_patches_or_the_class_token(encoder):
    tokens = torch.arange(12.0).reshape(1, 3, 4)
    assert pool_tokens(tokens, "cls").tolist() == [[0, 1, 2, 3]]
    assert pool_tokens(tokens, "mean").tolist() == [[6, 7, 8, 9]]
    assert torch.equal(encoder.embed(IMAGES), encoder(IMAGES)[:, 1:].mean(1))
    assert torch.equal(encoder.embed(IMAGES, "cls"), encoder(IMAGES)[:, 0])


def test_intermediate_maps_are_the_patch_tokens_before_the_norm(encoder):
    first, last = encoder.forward_intermediates(IMAGES, [0, 3])
    assert first.shape == last.shape == (2, 64, 3, 4)
    tokens = encoder.norm(last.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens, encoder(IMAGES)[:, 1:])
    assert not torch.allclose(first, last)
    (negative,) = encoder.forward_intermediates(IMAGES, [-1])
    assert torch.equal(negative, last)


def test_positions_are_sines_and_cosines_of_column_and_row():
    positions = sincos_positions(8, (2, 3)).reshape(2, 3, 8)
    for row in range(2):
        for column in range(3):
            angles = [place * rate for place in (column, row) for rate in (1, 0.01)]
            expected = [
                *(math.sin(angles[0]), math.sin(angles[1])),
                *(math.cos(angles[0]), math.cos(angles[1])),
                *(math.sin(angles[2]), math.sin(angles[3])),
                *(math.cos(angles[2]), math.cos(angles[3])),
            ]
            assert positions[row, column].tolist() == pytest.approx(expected, abs=1e-6)


def test_positions_are_fixed_and_nothing_for_the_class_token(encoder):
    assert "pos_embed" not in dict(encoder.named_parameters())
    assert "pos_embed" in encoder.state_dict()
    assert not encoder.pos_embed[:, 0].any()
    assert torch.equal(encoder.pos_embed[0, 1:], sincos_positions(64, (3, 4)))


def initial_weights(seed: int, size: Size = ENCODERS["vit_nano"]) -> dict[str, torch.Tensor]:
    encoder = Encoder(size, image_size=(32, 32), patch_size=8)
    initialize(encoder, Generator().manual_seed(seed))
    return dict(encoder.named_parameters())


def test_matrices_begin_xavier_uniform_by_their_flat_shape():
    weights = initial_weights(0)
    for name, (rows, columns) in {
        "blocks.0.attn.qkv.weight": (384, 128),
        "blocks.3.mlp.fc1.weight": (512, 128),
        "patch_embed.proj.weight": (128, 3 * 8 * 8),  # not a convolution's fan
    }.items():
        bound = math.sqrt(6 / (rows + columns))
        weight = weights[name]
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_biases_begin_at_0_norms_at_1_and_the_class_token_near_0():
    weights = initial_weights(0)
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
    assert weights["cls_token"].std().item() == pytest.approx(0.02, rel=0.2)


def test_initial_weights_are_a_function_of_the_seed_alone():
    first, other = initial_weights(0), initial_weights(1)
    torch.manual_seed(99)  # modules draw from torch's own generator when they are built
    again = initial_weights(0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("name", "millions"),
    # ViT's published sizes without classifier and positions, patches of 16.
    [("vit_tiny", 5.49), ("vit_small", 21.59), ("vit_base", 85.65), ("vit_large", 303.10)],
)
def test_the_named_encoders_have_vits_sizes(name, millions):
    with torch.device("meta"):
        encoder = Encoder(ENCODERS[name], image_size=(224, 224), patch_size=16)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert round(count / 1e6, 2) == millions


def test_attention_mixes_by_softmax_of_scaled_products(encoder):
    attention, x = encoder.blocks[0].attn, torch.randn(1, 5, 64)
    q, k, v = attention.qkv(x)[0].split(64, dim=1)
    heads = []
    for head in (slice(0, 32), slice(32, 64)):
        weights = F.softmax(q[:, head] @ k[:, head].T / math.sqrt(32), dim=1)
        heads.append(weights @ v[:, head])
    expected = attention.proj(torch.cat(heads, dim=1))
    torch.testing.assert_close(attention(x)[0], expected)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_is_torchs_own_to_its_rounding(masked):
    generator = Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 17, 32, generator=generator)
    mask = torch.randn(2, 4, 17, 17, generator=generator) if masked else None
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, mask), exact, rtol=1e-6, atol=1e-6)
    half = [None if one is None else one.bfloat16() for one in (q, k, v, mask)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*half)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.03)
