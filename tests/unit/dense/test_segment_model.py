"""UperNet compared with a direct implementation, and its edge cases."""

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, nn

from mvmae.config.model import Size
from mvmae.dense.segment.model import (
    BatchNorm,
    FrozenMap,
    LinearSegmenter,
    Segmenter,
    UPerHead,
    fcn_head,
    map_blocks,
)
from mvmae.method.vit import Encoder, initialize


def make_encoder(depth: int = 4, patch: int = 4) -> Encoder:
    made = Encoder(Size(32, depth, 2), image_size=(32, 32), patch_size=patch)
    initialize(made, Generator().manual_seed(0))
    return made


def make_segmenter(**options) -> Segmenter:
    options = {"channels": 12, "auxiliary_channels": 8, "dropout": 0.0} | options
    return Segmenter(make_encoder(), 5, generator=Generator().manual_seed(1), **options)


def make_maps(batch: int = 2, width: int = 6) -> list[torch.Tensor]:
    sides = ((16, 24), (8, 12), (4, 6), (2, 3))
    return [torch.randn(batch, width, *side) for side in sides]


def apply_unit(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Convolution, batch norm with running statistics, ReLU."""
    convolution, norm = layers[0], layers[1]
    x = F.conv2d(x, convolution.weight, padding=convolution.kernel_size[0] // 2)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    return (x * scale[:, None, None] + shift[:, None, None]).clamp(min=0)


def test_head_equals_a_direct_implementation():
    head = UPerHead(6, 5, channels=4, dropout=0.1).eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
    first, second, third, last = given = make_maps()

    def up(x, other):
        return F.interpolate(x, other.shape[2:], mode="bilinear")

    pooled = [
        up(apply_unit(pool[1:], F.adaptive_avg_pool2d(last, scale)), last)
        for pool, scale in zip(head.pools, (1, 2, 3, 6), strict=True)
    ]
    p4 = apply_unit(head.bottleneck, torch.cat([last, *pooled], 1))
    p3 = apply_unit(head.lateral[2], third) + up(p4, third)
    p2 = apply_unit(head.lateral[1], second) + up(p3, second)
    p1 = apply_unit(head.lateral[0], first) + up(p2, first)
    levels = [apply_unit(smooth, p) for smooth, p in zip(head.smooth, (p1, p2, p3), strict=True)]
    whole = torch.cat([up(level, first) for level in (*levels, p4)], 1)
    scorer = head.scorer.scores
    wanted = F.conv2d(apply_unit(head.fuse, whole), scorer.weight, scorer.bias)

    torch.testing.assert_close(head(given), wanted)
    assert head(given).shape == (2, 5, 16, 24)


def test_head_has_as_many_parameters_as_in_beit():
    """Width 768, 768 channels, 150 classes: counted from mmsegmentation's layers."""
    width = channels = 768
    bn = 2 * channels
    wanted = 4 * (width * channels + bn)  # pools
    wanted += 9 * (width + 4 * channels) * channels + bn  # bottleneck
    wanted += 3 * (width * channels + bn) + 3 * (9 * channels * channels + bn)
    wanted += 9 * 4 * channels * channels + bn + 150 * (channels + 1)
    with torch.device("meta"):
        head = UPerHead(width, 150, channels=channels, dropout=0.1)
        auxiliary = fcn_head(width, 150, channels=256, dropout=0.1)
    assert sum(p.numel() for p in head.parameters()) == wanted
    assert sum(p.numel() for p in auxiliary.parameters()) == 9 * width * 256 + 512 + 150 * 257


def test_map_blocks_are_those_of_beit_or_spread():
    assert map_blocks(12) == (3, 5, 7, 11)
    assert map_blocks(24) == (7, 11, 15, 23)
    assert map_blocks(4) == (0, 1, 2, 3)
    for depth in range(1, 40):
        taken = map_blocks(depth)
        assert list(taken) == sorted(taken)
        assert taken[0] >= 0
        assert taken[-1] == depth - 1


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_shallow_encoder_uses_a_map_twice(depth):
    model = Segmenter(make_encoder(depth), 5, channels=8, auxiliary_channels=None)
    assert model(torch.randn(2, 3, 32, 32)).main.shape == (2, 5, 32, 32)


def test_auxiliary_scores_are_returned_only_in_training():
    model = make_segmenter()
    images = torch.randn(2, 3, 32, 48)
    scores = model(images)
    assert scores.main.shape == (2, 5, 32, 48)
    assert scores.auxiliary is not None
    assert scores.auxiliary.shape == (2, 5, 8, 12)
    assert model.eval()(images).auxiliary is None
    assert make_segmenter(auxiliary_channels=None).train()(images).auxiliary is None


def test_a_batch_of_one_image_can_be_trained_on():
    model = make_segmenter().train()
    scores = model(torch.randn(1, 3, 32, 32))
    (scores.main.sum() + scores.auxiliary.sum()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.isfinite().all() for p in model.state_dict().values())


def test_batch_norm_of_one_value_uses_running_statistics_unchanged():
    norm = BatchNorm(3).train()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.randn(1, 3, 1, 1)
    wanted = (x - norm.running_mean[:, None, None]) / (1 + norm.eps) ** 0.5
    torch.testing.assert_close(norm(x), wanted)
    assert norm.running_mean.tolist() == [1, 2, 3]
    norm(torch.randn(2, 3, 1, 1))
    assert norm.running_mean.tolist() != [1, 2, 3]


def test_recomputing_changes_no_gradient():
    images, grads = torch.randn(2, 3, 32, 32), []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = make_segmenter(recompute=recompute, drop_path=0.3).train()
        model(images).main.square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_weights_depend_on_the_generator_alone():
    first, again = make_segmenter().state_dict(), make_segmenter().state_dict()
    assert all(first[key].equal(again[key]) for key in first)
    other = Segmenter(
        make_encoder(), 5, channels=12, auxiliary_channels=8, generator=Generator().manual_seed(2)
    ).state_dict()
    assert not first["head.fuse.0.weight"].equal(other["head.fuse.0.weight"])


def test_all_parameters_but_the_last_norm_are_trained():
    """Maps are taken before it, and DistributedDataParallel rejects unused parameters."""
    model = make_segmenter().train()
    scores = model(torch.randn(2, 3, 32, 32))
    (scores.main.sum() + scores.auxiliary.sum()).backward()
    unused = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert not unused
    assert frozen == {"backbone.encoder.norm.weight", "backbone.encoder.norm.bias"}


def test_frozen_map_equals_the_patch_tokens():
    own = make_encoder().eval()
    images = torch.randn(2, 3, 32, 32)
    wanted = own(images)[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(FrozenMap(own)(images), wanted)


def test_linear_segmenter_trains_only_its_layer_and_norm():
    model = LinearSegmenter(make_encoder(), 5)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["norm.weight", "norm.bias", "scores.weight", "scores.bias"]
    assert model(torch.randn(2, 3, 32, 40)).main.shape == (2, 5, 8, 10)
