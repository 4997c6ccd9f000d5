"""Feature maps of several scales from the single-stride maps of a plain Vision Transformer.

Shapes: B images, D width, h x w positions of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

SCALES = (4.0, 2.0, 1.0, 0.5)  # size of each level relative to the backbone's maps
Norm = Callable[[int], nn.Module]


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Normalise each position."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def rescaling_layers(width: int, scale: float, norm: Norm, shrink: int = 1) -> list[nn.Module]:
    """Return layers that resize a map to `scale` times its side.

    Args:
        width: D, channels of the map.
        scale: One of `SCALES`.
        norm: Norm between two deconvolutions.
        shrink: Divisor of the channels at each deconvolution.
    """
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
    """Bring four maps of one stride to the four `SCALES`, as Li et al. 2021 and BEiT do."""

    def __init__(self, width: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(*rescaling_layers(width, scale, norm)) for scale in SCALES
        )

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> list[Tensor]:
        """Return maps from finest to coarsest, all with D channels."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]
