"""Feature pyramids from the maps of a plain Vision Transformer, all of one stride.

Shapes: B images, D width, h x w places of a map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

SCALES = (4.0, 2.0, 1.0, 0.5)  # of the maps in a pyramid, over the backbone's
Norm = Callable[[int], nn.Module]


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Normalise each place."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def rescaled(width: int, scale: float, norm: Norm, shrink: int = 1) -> list[nn.Module]:
    """Layers that bring a map to `scale` times its side; each deconvolution divides its width."""
    half, quarter = width // shrink, width // shrink**2
    layers: dict[float, list[nn.Module]] = {
        4.0: [
            nn.ConvTranspose2d(width, half, 2, 2),
            norm(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        ],
        2.0: [nn.ConvTranspose2d(width, half, 2, 2)],
        1.0: [nn.Identity()],
        0.5: [nn.MaxPool2d(2, 2)],
    }
    return layers[scale]


class MultiScale(nn.Module):
    """Four maps of one stride to four scales, as Li et al. 2021 and BEiT.

    Two deconvolutions, one, none, and max pooling.
    """

    def __init__(self, width: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(*rescaled(width, scale, norm)) for scale in SCALES
        )

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> list[Tensor]:
        """Maps from the finest to the coarsest; all have the backbone's width."""
        return [level(one) for level, one in zip(self.levels, maps, strict=True)]


class FpnPyramid(nn.Module):
    """Four maps through `MultiScale` and a feature pyramid network (Li et al. 2021).

    Gives a dict of maps, as torchvision's detectors take it: "0" to "3" and "pool".
    """

    def __init__(self, width: int, out_channels: int = 256, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.scales = MultiScale(width, norm)
        self.fpn = FeaturePyramidNetwork(
            [width] * len(SCALES), out_channels, LastLevelMaxPool(), norm_layer=norm
        )

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> OrderedDict[str, Tensor]:
        """Five maps of strides 1/4, 1/2, 1, 2 and 4 times the backbone's."""
        named = OrderedDict((str(i), one) for i, one in enumerate(self.scales(maps)))
        return self.fpn(named)


class SimplePyramid(nn.Module):
    """Four maps from the last one alone (ViTDet).

    Rescaled, then a 1x1 and a 3x3 convolution, each with a layer norm over channels. Gives a dict
    of maps, as torchvision's detectors take it: "0" to "3" and "pool".
    """

    def __init__(self, width: int, out_channels: int = 256) -> None:
        super().__init__()
        self.out_channels = out_channels
        widths = {4.0: width // 4, 2.0: width // 2, 1.0: width, 0.5: width}
        self.levels = nn.ModuleList()
        for scale in SCALES:
            self.levels.append(
                nn.Sequential(
                    *rescaled(width, scale, ChannelNorm, shrink=2),
                    nn.Conv2d(widths[scale], out_channels, 1, bias=False),
                    ChannelNorm(out_channels),
                    nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                    ChannelNorm(out_channels),
                )
            )
        self.pool = LastLevelMaxPool()

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> OrderedDict[str, Tensor]:
        """Five maps of strides 1/4, 1/2, 1, 2 and 4 times the backbone's, from the last map."""
        made = [level(maps[-1]) for level in self.levels]
        names = [str(i) for i in range(len(made))]
        made, names = self.pool(made, made, names)
        return OrderedDict(zip(names, made, strict=True))
