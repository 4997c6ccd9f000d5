"""UperNet (Xiao et al. 2018) on a plain Vision Transformer, as in BEiT, and its loss.

Shapes: B images, C channels, D width of a map, E width of a head, K classes, h x w positions of a
map.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from mvmae.data.annotations.mask_values import IGNORED
from mvmae.dense.backbone import Backbone, MultiScale
from mvmae.method.vit import Encoder

POOL_SCALES = (1, 2, 3, 6)
MAP_DEPTHS = (1 / 3, 1 / 2, 2 / 3, 1)  # share of the encoder's blocks before each map is taken
SCORE_STD = 0.01  # of the initial weights of the layer that scores classes


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that uses its running statistics where a channel has a single value.

    This happens to the pool of scale 1 in a batch of one image, where the variance is 0 and torch
    raises an error.
    """

    def forward(self, input: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Normalise each channel over batch and positions."""
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(input)


def conv_norm_relu(width: int, out: int, side: int) -> nn.Sequential:
    """Build a convolution of `side` x `side`, batch norm and ReLU."""
    convolution = nn.Conv2d(width, out, side, padding=side // 2, bias=False)
    return nn.Sequential(convolution, BatchNorm(out), nn.ReLU())


def resize(x: Float[Tensor, "B D h w"], size: Sequence[int]) -> Float[Tensor, "B D H W"]:
    """Resize a map to a height and width, without the shift of aligned corners."""
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def scorer(width: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Build dropout of whole channels, then a score for each class at each position."""
    layers: dict[str, nn.Module] = {
        "dropout": nn.Dropout2d(dropout),
        "scores": nn.Conv2d(width, num_classes, 1),
    }
    return nn.Sequential(OrderedDict(layers))


class UPerHead(nn.Module):
    """Pyramid pooling of the coarsest map, a feature pyramid over all four, and scores.

    Args:
        width: D, of all four maps.
        num_classes: K.
        channels: E.
        dropout: Probability of dropping a channel before the scores.
    """

    def __init__(self, width: int, num_classes: int, *, channels: int, dropout: float) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), *conv_norm_relu(width, channels, 1))
            for scale in POOL_SCALES
        )
        self.bottleneck = conv_norm_relu(width + len(POOL_SCALES) * channels, channels, 3)
        self.lateral = nn.ModuleList(conv_norm_relu(width, channels, 1) for _ in range(3))
        self.smooth = nn.ModuleList(conv_norm_relu(channels, channels, 3) for _ in range(3))
        self.fuse = conv_norm_relu(4 * channels, channels, 3)
        self.scorer = scorer(channels, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "B K rows columns"]:
        """Return scores at the size of the first map, the finest."""
        *finer, last = maps
        pooled = [resize(pool(last), last.shape[2:]) for pool in self.pools]
        levels = [lateral(x) for lateral, x in zip(self.lateral, finer, strict=True)]
        levels.append(self.bottleneck(torch.cat([last, *pooled], dim=1)))
        for at in (2, 1, 0):  # from coarse to fine
            levels[at] = levels[at] + resize(levels[at + 1], levels[at].shape[2:])
        smoothed = [smooth(x) for smooth, x in zip(self.smooth, levels[:3], strict=True)]
        resized = [resize(x, smoothed[0].shape[2:]) for x in (*smoothed, levels[3])]
        return self.scorer(self.fuse(torch.cat(resized, dim=1)))


def fcn_head(width: int, num_classes: int, *, channels: int, dropout: float) -> nn.Sequential:
    """Build the auxiliary head: one convolution and scores, at the size of its map."""
    layers: dict[str, nn.Module] = {
        "convolution": conv_norm_relu(width, channels, 3),
        "scorer": scorer(channels, num_classes, dropout),
    }
    return nn.Sequential(OrderedDict(layers))


class Scores(NamedTuple):
    """Output of a segmenter."""

    main: Float[Tensor, "B K h w"]
    """Coarser than the images, to whose size they are resized in fp32."""

    auxiliary: Float[Tensor, "B K rows columns"] | None
    """Scores of the auxiliary head, in training only."""


class Segmenter(nn.Module):
    """Encoder, four of its maps at four scales, UperNet and an auxiliary head.

    Args:
        encoder: Encoder whose weights are used, not copied.
        num_classes: K.
        channels: E of UperNet's head.
        auxiliary_channels: E of the auxiliary head; None: no such head.
        dropout: Probability of dropping a channel before the scores.
        drop_path: Probability of skipping a branch of the last block; it rises linearly from 0.
        recompute: Whether to recompute the blocks' activations in the backward pass.
        generator: Source of randomness for all weights but the encoder's.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        channels: int,
        auxiliary_channels: int | None,
        dropout: float = 0.1,
        drop_path: float = 0.0,
        recompute: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.map_blocks = map_blocks(encoder.size.depth)
        out_blocks = sorted(set(self.map_blocks))  # a shallow encoder has some maps twice
        self.backbone = Backbone(
            encoder, out_blocks=out_blocks, drop_path=drop_path, recompute=recompute
        )
        # The maps are taken before the last norm, and DistributedDataParallel rejects unused
        # parameters.
        encoder.norm.requires_grad_(False)
        width = encoder.embed_dim
        self.scales = MultiScale(width, BatchNorm)
        self.head = UPerHead(width, num_classes, channels=channels, dropout=dropout)
        self.auxiliary = (
            fcn_head(width, num_classes, channels=auxiliary_channels, dropout=dropout)
            if auxiliary_channels
            else None
        )
        for part in (self.scales, self.head, self.auxiliary):
            if part is not None:
                initialise_weights(part, generator)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Scores:
        """Return the scores of each class at each position of the finest map."""
        by_block = dict(zip(self.backbone.out_blocks, self.backbone(images), strict=True))
        maps = self.scales([by_block[block] for block in self.map_blocks])
        if self.auxiliary is None or not self.training:
            return Scores(self.head(maps), None)
        return Scores(self.head(maps), self.auxiliary(maps[2]))


def map_blocks(depth: int) -> tuple[int, ...]:
    """Return the blocks (from 0) whose maps are used: 3, 5, 7 and 11 of 12, as in BEiT."""
    return tuple(max(1, round(share * depth)) - 1 for share in MAP_DEPTHS)


def initialise_weights(module: nn.Module, generator: Generator | None) -> None:
    """Draw He-normal convolutions and near-zero scores; norms start as the identity."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(
                part.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    # After all others: the order of the draws decides which weights a seed gives.
    for name, part in module.named_modules():
        if name.endswith("scorer.scores"):
            initialise_scores(part, generator)


def initialise_scores(layer: Any, generator: Generator | None) -> None:
    """Initialise near zero, so that the first predictions are uniform."""
    nn.init.normal_(layer.weight, std=SCORE_STD, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def pixel_loss(
    scores: Float[Tensor, "B K h w"], classes: Int[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """Cross-entropy of scores resized to the masks, in fp32; `IGNORED` pixels add nothing.

    The sum is divided by the number of all pixels, ignored ones included, as in BEiT and
    mmsegmentation: a crop that is half padding has half the weight.
    """
    resized = resize(scores.float(), classes.shape[1:])
    total = F.cross_entropy(resized, classes, ignore_index=IGNORED, reduction="sum")
    return total / classes.numel()


class FrozenMap(nn.Module):
    """Last map of a frozen encoder, after its last norm.

    Args:
        encoder: Encoder whose weights are used, not copied, and set to need no gradient.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.backbone = Backbone(encoder, out_blocks=(encoder.size.depth - 1,))
        self.requires_grad_(False)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Return normalised patch tokens as a map, in training mode as well."""
        with torch.no_grad():
            (x,) = self.backbone(images)
            return self.backbone.encoder.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LinearSegmenter(nn.Module):
    """Batch norm and a linear layer on the last map of a frozen encoder.

    Args:
        encoder: Encoder whose weights are used, not copied.
        num_classes: K.
        generator: Source of randomness for the linear layer.
    """

    def __init__(
        self, encoder: Encoder, num_classes: int, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.map = FrozenMap(encoder)
        self.norm = BatchNorm(encoder.embed_dim)
        self.scores = nn.Conv2d(encoder.embed_dim, num_classes, 1)
        initialise_scores(self.scores, generator)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Scores:
        """Return the scores of each class for each patch."""
        return Scores(self.scores(self.norm(self.map(images))), None)
