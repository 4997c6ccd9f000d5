"""Feature pyramids for torchvision's detectors, on the maps of a plain Vision Transformer.

Both return a dict of five maps, "0" to "3" and "pool", of strides 1/4, 1/2, 1, 2 and 4 times the
backbone's. Shapes: B images, D width, h x w positions of a map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mvmae.dense.pyramid import SCALES, ChannelNorm, MultiScale, Norm, rescaling_layers


class FpnPyramid(nn.Module):
    """Four maps through `MultiScale` and a feature pyramid network (Li et al. 2021)."""

    def __init__(self, width: int, out_channels: int = 256, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.scales = MultiScale(width, norm)
        self.fpn = FeaturePyramidNetwork(
            [width] * len(SCALES), out_channels, LastLevelMaxPool(), norm_layer=norm
        )

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> OrderedDict[str, Tensor]:
        """Return five maps of `out_channels` channels."""
        return self.fpn(OrderedDict((str(i), x) for i, x in enumerate(self.scales(maps))))


class SimplePyramid(nn.Module):
    """Four rescaled copies of the last map alone (ViTDet).

    Each is followed by a 1x1 and a 3x3 convolution with layer norms over the channels.
    """

    def __init__(self, width: int, out_channels: int = 256) -> None:
        super().__init__()
        self.out_channels = out_channels
        widths = {4.0: width // 4, 2.0: width // 2, 1.0: width, 0.5: width}
        self.levels = nn.ModuleList()
        for scale in SCALES:
            self.levels.append(
                nn.Sequential(
                    *rescaling_layers(width, scale, ChannelNorm, shrink=2),
                    nn.Conv2d(widths[scale], out_channels, 1, bias=False),
                    ChannelNorm(out_channels),
                    nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                    ChannelNorm(out_channels),
                )
            )
        self.pool = LastLevelMaxPool()

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> OrderedDict[str, Tensor]:
        """Return five maps of `out_channels` channels; only the last of `maps` is read."""
        levels = [level(maps[-1]) for level in self.levels]
        names = [str(i) for i in range(len(levels))]
        levels, names = self.pool(levels, levels, names)
        return OrderedDict(zip(names, levels, strict=True))
