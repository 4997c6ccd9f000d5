"""The backbone of dense tasks and its pyramids."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mvmae.config.model import ENCODERS, Size
from mvmae.dense.backbone import (
    Backbone,
    ChannelNorm,
    RelativePositions,
    from_windows,
    to_windows,
)
from mvmae.dense.detect.model import FpnPyramid, SimplePyramid
from mvmae.encoders.open import finetuning_copy
from mvmae.method.vit import Encoder, Variant, initialize
from mvmae.training.optim import layer_groups

SIZE = Size(width=32, depth=4, num_heads=2)


def make_encoder(image_size=(32, 48), patch_size=4, **variant) -> Encoder:
    encoder = Encoder(
        SIZE, image_size=image_size, patch_size=patch_size, variant=Variant(**variant)
    )
    initialize(encoder, torch.Generator().manual_seed(0))
    for parameter in encoder.parameters():  # otherwise biases are 0 and norms are the identity
        parameter.data += 0.05 * torch.randn_like(parameter)
    return encoder.eval()


@given(h=st.integers(1, 9), w=st.integers(1, 9), side=st.integers(1, 5), batch=st.integers(1, 2))
def test_from_windows_inverts_to_windows(h, w, side, batch):
    x = torch.randn(batch, h, w, 3)
    windows = to_windows(x, side)
    assert windows.shape == (batch * -(-h // side) * -(-w // side), side * side, 3)
    assert torch.equal(from_windows(windows, side, (h, w)), x)


def test_a_window_contains_neighbouring_patches():
    x = torch.arange(16.0).reshape(1, 4, 4, 1)
    assert to_windows(x, 2)[..., 0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_windows_as_large_as_the_image_equal_the_plain_encoder():
    encoder = make_encoder((32, 32), cls_token=False)
    images = torch.randn(2, 3, 32, 32)
    plain = encoder.forward_intermediates(images, [1, 3])
    windowed = Backbone(encoder, out_blocks=[1, 3], window=8).eval()(images)
    for one, other in zip(windowed, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 2])
def test_no_windows_equal_the_plain_encoder_with_its_prefix(registers):
    encoder = make_encoder(num_registers=registers)
    images = torch.randn(2, 3, 32, 48)
    plain = encoder.forward_intermediates(images, [0, 3])
    maps = Backbone(encoder, out_blocks=[0, 3]).eval()(images)
    for one, other in zip(maps, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_only_global_blocks_see_beyond_their_window():
    encoder = make_encoder((32, 32), cls_token=False)
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[:, :, 16:, 16:] += 1  # the last of four windows

    def change(global_blocks):
        backbone = Backbone(encoder, out_blocks=[3], window=4, global_blocks=global_blocks).eval()
        return (backbone(images)[0] - backbone(changed)[0]).abs()[..., :4, :4].max().item()

    assert change(()) == 0
    assert change((2,)) > 0


def test_images_of_another_size_get_interpolated_positions():
    encoder = make_encoder((32, 32))
    (maps,) = Backbone(encoder, out_blocks=[3])(torch.randn(1, 3, 48, 64))
    assert maps.shape == (1, 32, 12, 16)
    from mvmae.encoders import resize_encoder

    images = torch.randn(1, 3, 48, 64)
    (wanted,) = resize_encoder(encoder, (48, 64)).eval().forward_intermediates(images, [3])
    (maps,) = Backbone(encoder, out_blocks=[3]).eval()(images)
    torch.testing.assert_close(maps, wanted, rtol=0, atol=1e-5)


def test_relative_positions_equal_a_loop_over_all_pairs():
    h, w, d = 3, 4, 5
    relative = RelativePositions(d, (h, w))
    nn.init.normal_(relative.rows)
    nn.init.normal_(relative.columns)
    q = torch.randn(2, 2, h * w, d)
    bias = relative(q, (h, w))
    for i in range(h * w):
        for j in range(h * w):
            row, column = i // w - j // w + h - 1, i % w - j % w + w - 1
            wanted = q[:, :, i] @ relative.rows[row] + q[:, :, i] @ relative.columns[column]
            torch.testing.assert_close(bias[:, :, i, j], wanted)


def test_relative_positions_of_another_grid_are_interpolated_linearly():
    relative = RelativePositions(2, (4, 4))
    relative.rows.data = torch.linspace(-3, 3, 7)[:, None].expand(7, 2).clone()
    bias = relative(torch.ones(1, 1, 49, 2), (7, 7)).reshape(7, 7, 7, 7)
    distances = F.interpolate(
        torch.linspace(-3, 3, 7)[None, None], size=13, mode="linear", align_corners=False
    )[0, 0]
    torch.testing.assert_close(bias[5, 0, 1, 0], 2 * distances[5 - 1 + 6])


def test_learnt_relative_positions_change_the_maps():
    encoder = make_encoder((32, 32), cls_token=False)
    images = torch.randn(1, 3, 32, 32)
    plain = Backbone(encoder, out_blocks=[3], window=4, global_blocks=[3]).eval()
    with_positions = Backbone(
        encoder, out_blocks=[3], window=4, global_blocks=[3], relative_positions=True
    ).eval()
    torch.testing.assert_close(plain(images)[0], with_positions(images)[0], rtol=0, atol=1e-5)
    with_positions.relative[3].rows.data.normal_()
    assert (plain(images)[0] - with_positions(images)[0]).abs().max() > 1e-3
    assert with_positions.relative[0].grid == (4, 4)
    assert with_positions.relative[3].grid == (8, 8)


def test_relative_positions_with_a_prefix_are_rejected():
    with pytest.raises(ValueError, match="drop the prefix tokens"):
        Backbone(make_encoder(), out_blocks=[3], relative_positions=True)


@pytest.mark.parametrize("window", [None, 4])
def test_recomputing_changes_no_gradient(window):
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        encoder = make_encoder((32, 32))
        backbone = Backbone(encoder, out_blocks=[1, 3], window=window, recompute=recompute).train()
        for block in encoder.blocks:
            block.drop_path = 0.5
        torch.manual_seed(1)
        sum(maps.square().sum() for maps in backbone(images)).backward()
        gradients.append([p.grad for p in encoder.blocks.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, ChannelNorm])
def test_fpn_returns_five_scales_of_the_same_width(norm):
    maps = [torch.randn(2, 32, 6, 8) for _ in range(4)]
    pyramid = FpnPyramid(32, 16, norm)(maps)
    assert {name: tuple(one.shape) for name, one in pyramid.items()} == {
        "0": (2, 16, 24, 32),
        "1": (2, 16, 12, 16),
        "2": (2, 16, 6, 8),
        "3": (2, 16, 3, 4),
        "pool": (2, 16, 2, 2),
    }


def test_simple_pyramid_reads_only_the_last_map():
    torch.manual_seed(0)
    pyramid = SimplePyramid(32, 16)
    maps = [torch.randn(1, 32, 4, 4) for _ in range(4)]
    made = pyramid(maps)
    assert [tuple(one.shape[2:]) for one in made.values()] == [
        (16, 16),
        (8, 8),
        (4, 4),
        (2, 2),
        (1, 1),
    ]
    assert {one.shape[1] for one in made.values()} == {16}
    again = pyramid(maps[-1:])
    assert all(torch.equal(made[name], again[name]) for name in made)


def test_channel_norm_normalises_each_position():
    x = ChannelNorm(8)(5 + 3 * torch.randn(2, 8, 4, 4))
    torch.testing.assert_close(x.mean(dim=1), torch.zeros(2, 4, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std(dim=1, correction=0), torch.ones(2, 4, 4), rtol=0, atol=1e-3)


def test_layer_decay_covers_the_backbone_but_not_the_pyramid():
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone(
                finetuning_copy(make_encoder()),
                out_blocks=[3],
                window=4,
                relative_positions=True,
            )
            self.pyramid = FpnPyramid(32, 16)  # also has inner_blocks

    whole = Whole()
    names = {id(p): name for name, p in whole.named_parameters()}
    groups = layer_groups(whole, weight_decay=0.1, layer_decay=0.5)
    share = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert share.keys() == set(names.values())
    assert share["backbone.encoder.patch_embed.proj.weight"] == 0.5**5
    assert share["backbone.encoder.pos_embed"] == 0.5**5
    assert share["backbone.encoder.blocks.0.attn.qkv.weight"] == 0.5**4
    assert share["backbone.relative.0.rows"] == 0.5**4
    assert share["backbone.encoder.blocks.3.mlp.fc1.bias"] == 0.5
    assert share["pyramid.fpn.inner_blocks.0.0.weight"] == 1
    assert decay["backbone.encoder.pos_embed"] == decay["pyramid.scales.levels.0.0.bias"] == 0
    assert decay["backbone.encoder.blocks.3.mlp.fc1.weight"] == 0.1


def test_every_encoder_can_be_a_backbone():
    for name, size in ENCODERS.items():
        with torch.device("meta"):
            make = partial(Encoder, size, image_size=(224, 224), patch_size=16)
            (maps,) = Backbone(make(), out_blocks=[size.depth - 1], window=7)(
                torch.zeros(1, 3, 224, 224)
            )
        assert maps.shape == (1, size.width, 14, 14), name
