"""UperNet (Xiao et al. 2018) on a plain Vision Transformer, as BEiT has it.

Shapes: B images, C channels, D width of a map, E of a head, K classes, h x w places of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from mvmae.dense.backbone import Backbone
from mvmae.dense.pyramid import MultiScale
from mvmae.method.vit import Encoder

POOL_SCALES = (1, 2, 3, 6)
DEPTHS = (1 / 3, 1 / 2, 2 / 3, 1)  # of the encoder, after which a map is taken: 3, 5, 7, 11 of 12
HEAD_STD = 0.01  # of the weights that make scores


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes its running figures where a channel has one value alone.

    That is so for the pool of scale 1 in a batch of one image: its variance is 0.
    """

    def forward(self, input: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Normalise each channel over the batch and the places."""
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(input)


def conv_norm_relu(width: int, out: int, side: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(width, out, side, padding=side // 2, bias=False)
    return nn.Sequential(convolution, BatchNorm(out), nn.ReLU())


def resize_like(x: Float[Tensor, "B D h w"], other: Tensor) -> Float[Tensor, "B D rows columns"]:
    """A map at the size of another."""
    size = [other.shape[2], other.shape[3]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Scorer(nn.Module):
    """Drops whole channels in training, then scores each place."""

    def __init__(self, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.scores = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B K h w"]:
        """A score for each class at each place."""
        return self.scores(self.dropout(x))


class UPerHead(nn.Module):
    """Pyramid pooling of the coarsest map, a feature pyramid over all four, and scores.

    Args:
        width: D, of all four maps.
        num_classes: K.
        channels: E.
        dropout: Of channels, before the scores.
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
        self.scorer = Scorer(channels, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "B K rows columns"]:
        """Scores at the size of the first map, the finest."""
        *finer, last = maps
        pooled = [resize_like(pool(last), last) for pool in self.pools]
        levels = [lateral(one) for lateral, one in zip(self.lateral, finer, strict=True)]
        levels.append(self.bottleneck(torch.cat([last, *pooled], dim=1)))
        for at in (2, 1, 0):
            levels[at] = levels[at] + resize_like(levels[at + 1], levels[at])
        smoothed = [smooth(one) for smooth, one in zip(self.smooth, levels[:3], strict=True)]
        whole = [resize_like(one, smoothed[0]) for one in (*smoothed, levels[3])]
        return self.scorer(self.fuse(torch.cat(whole, dim=1)))


class FcnHead(nn.Module):
    """One convolution and scores."""

    def __init__(self, width: int, num_classes: int, *, channels: int, dropout: float) -> None:
        super().__init__()
        self.convolution = conv_norm_relu(width, channels, 3)
        self.scorer = Scorer(channels, num_classes, dropout)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B K h w"]:
        """Scores at the size of the map."""
        return self.scorer(self.convolution(x))


class Scores(NamedTuple):
    """What a segmenter makes of images."""

    main: Float[Tensor, "B K h w"]
    """Coarser than the images: `at_size` brings them there."""

    auxiliary: Float[Tensor, "B K rows columns"] | None
    """Of the auxiliary head, in training."""


class Segmenter(nn.Module):
    """An encoder, four of its maps at four scales, UperNet and an auxiliary head.

    Args:
        encoder: Its weights are used, not copied.
        num_classes: K.
        channels: Of UperNet's head.
        auxiliary_channels: Of the auxiliary head; none: no such head.
        dropout: Of channels, before the scores.
        drop_path: Probability of skipping a branch of the last block; rises in a line from 0.
        recompute: Whether blocks keep no activations for the backward pass.
        generator: Draws the weights of all but the encoder.
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
        self.places = map_blocks(encoder.size.depth)
        self.backbone = Backbone(encoder, out_blocks=sorted(set(self.places)), recompute=recompute)
        encoder.norm.requires_grad_(False)  # maps are taken before it
        rates = torch.linspace(0, drop_path, encoder.size.depth).tolist()
        for block, rate in zip(encoder.blocks, rates, strict=True):
            block.drop_path = rate
        width = encoder.embed_dim
        self.scales = MultiScale(width, BatchNorm)
        self.head = UPerHead(width, num_classes, channels=channels, dropout=dropout)
        self.auxiliary = (
            FcnHead(width, num_classes, channels=auxiliary_channels, dropout=dropout)
            if auxiliary_channels
            else None
        )
        for part in (self.scales, self.head, self.auxiliary):
            if part is not None:
                initialise_weights(part, generator)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Scores:
        """Scores of each class at each place of the finest map."""
        given = self.backbone(images)
        by_block = dict(zip(self.backbone.out_blocks, given, strict=True))
        maps = self.scales([by_block[place] for place in self.places])
        if self.auxiliary is None or not self.training:
            return Scores(self.head(maps), None)
        return Scores(self.head(maps), self.auxiliary(maps[2]))


def map_blocks(depth: int) -> tuple[int, ...]:
    """Blocks, from 0, whose maps are used: 3, 5, 7 and 11 of 12, and as far up in others."""
    return tuple(max(1, round(share * depth)) - 1 for share in DEPTHS)


def initialise_weights(module: nn.Module, generator: Generator | None) -> None:
    """He-normal convolutions, scores near 0, norms that change nothing."""
    for one in module.modules():
        if isinstance(one, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(
                one.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
            if one.bias is not None:
                nn.init.zeros_(one.bias)
    for one in module.modules():
        if isinstance(one, Scorer):
            initialise_scores(one.scores, generator)


def initialise_scores(layer: nn.Conv2d, generator: Generator | None) -> None:
    """So small that the first scores are even."""
    nn.init.normal_(layer.weight, std=HEAD_STD, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def resize_scores(
    scores: Float[Tensor, "B K h w"], size: tuple[int, int]
) -> Float[Tensor, "B K H W"]:
    """Scores at the size of an image, bilinear, in fp32."""
    return F.interpolate(scores.float(), size=list(size), mode="bilinear", align_corners=False)


class FrozenMap(nn.Module):
    """The last map of an encoder that is not trained, after its last norm.

    Args:
        encoder: Its weights are used, not copied, and set to need no gradient.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.backbone = Backbone(encoder, out_blocks=(encoder.size.depth - 1,))
        self.requires_grad_(False)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Normalised patch tokens, whatever the mode of the module."""
        with torch.no_grad():
            (x,) = self.backbone(images)
            return self.backbone.encoder.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LinearSegmenter(nn.Module):
    """Batch norm and a linear layer on the last map of a frozen encoder.

    Args:
        encoder: Its weights are used, not copied.
        num_classes: K.
        generator: Draws the linear layer.
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
        """Scores of each class for each patch."""
        return Scores(self.scores(self.norm(self.map(images))), None)


def pixel_loss(
    scores: Float[Tensor, "B K h w"], classes: Int[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """Cross-entropy of scores brought to the masks' size, in fp32; classes below 0 do not count.

    The sum is divided by all pixels, those included that do not count: so do BEiT and
    mmsegmentation, and a crop that is half padding weighs half.
    """
    size = list(classes.shape[1:])
    whole = F.interpolate(scores.float(), size=size, mode="bilinear", align_corners=False)
    total = F.cross_entropy(whole, classes, ignore_index=-1, reduction="sum")
    return total / classes.numel()
