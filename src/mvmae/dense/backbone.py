"""Vision Transformer backbone for dense tasks: windowed attention, and maps of several scales.

Follows Li et al. 2021 (arXiv 2111.11429) and ViTDet (Li et al. 2022, arXiv 2203.16527): most blocks
attend within windows, a few over the whole image. The blocks keep timm's parameter names.
Shapes: B images, C channels, D width, h x w patches, N tokens, W windows per image, P prefix
tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvmae.method.patches import patchify
from mvmae.method.vit import Encoder

SCALES = (4.0, 2.0, 1.0, 0.5)  # size of each level of a pyramid relative to the backbone's maps
Norm = Callable[[int], nn.Module]


class RelativePositions(nn.Module):
    """Decomposed relative position bias (MViTv2, ViTDet).

    Each row distance and each column distance has a learnt vector; its product with the query is
    added to the attention logits. The vectors start at zero, so that an encoder pre-trained without
    them first computes what it always did.
    """

    def __init__(self, head_width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.rows = nn.Parameter(torch.zeros(2 * grid[0] - 1, head_width))
        self.columns = nn.Parameter(torch.zeros(2 * grid[1] - 1, head_width))

    def forward(
        self, q: Float[Tensor, "B heads N d"], grid: tuple[int, int]
    ) -> Float[Tensor, "B heads N N"]:
        """Bias to add to the attention logits of queries on a grid of tokens."""
        h, w = grid
        q = q.unflatten(2, grid)
        by_row = torch.einsum("bnhwd,hkd->bnhwk", q, self._table(self.rows, h).to(q.dtype))
        by_column = torch.einsum("bnhwd,wkd->bnhwk", q, self._table(self.columns, w).to(q.dtype))
        bias = by_row[..., :, None] + by_column[..., None, :]
        return bias.flatten(4).flatten(2, 3)

    @staticmethod
    def _table(distances: Tensor, side: int) -> Float[Tensor, "side side d"]:
        """Vector for each pair of positions, interpolated if the grid has a different side."""
        count = 2 * side - 1
        if len(distances) != count:
            distances = F.interpolate(distances.T[None], size=count, mode="linear")[0].T
        positions = torch.arange(side, device=distances.device)
        return distances[positions[:, None] - positions[None, :] + side - 1]


class Backbone(nn.Module):
    """Encoder that returns maps of its patch tokens after the chosen blocks.

    Args:
        encoder: Encoder whose weights are used, not copied. Without windows its prefix tokens stay;
            with windows they are dropped, since they belong to no window.
        out_blocks: Blocks (from 0, ascending) whose output is returned.
        window: Side of a window in patches; None: every block attends over the whole image.
        global_blocks: Blocks (from 0) that attend over the whole image despite `window`.
        relative_positions: Whether blocks learn decomposed relative positions. Requires windows or
            an encoder without prefix tokens.
        drop_path: Probability of skipping a branch of the last block; it rises linearly from 0.
        recompute: Whether to recompute activations in the backward pass: less memory, a third more
            time.

    Raises:
        ValueError: Relative positions were requested for an encoder that keeps prefix tokens.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        out_blocks: Sequence[int],
        window: int | None = None,
        global_blocks: Sequence[int] = (),
        relative_positions: bool = False,
        drop_path: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.out_blocks = encoder, tuple(out_blocks)
        self.windows = [
            None if window is None or number in global_blocks else window
            for number in range(len(encoder.blocks))
        ]
        self.keeps_prefix = window is None
        self.recompute = recompute
        # Plain numbers, also where the model is built on the meta device.
        rates = torch.linspace(0, drop_path, len(encoder.blocks), device="cpu").tolist()
        for block, rate in zip(encoder.blocks, rates, strict=True):
            block.drop_path = rate
        self.relative = nn.ModuleList()
        if relative_positions:
            if self.keeps_prefix and encoder.num_prefix:
                raise ValueError("relative positions need windows, which drop the prefix tokens")
            head_width = encoder.size.width // encoder.size.num_heads
            self.relative.extend(
                RelativePositions(head_width, (side, side) if side else encoder.grid)
                for side in self.windows
            )

    def forward(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B D h w"]]:
        """Return the patch tokens after each of `out_blocks`, before the last norm, as maps.

        Height and width may be any multiple of the patch size.
        """
        patch = self.encoder.patch_size
        grid = images.shape[2] // patch, images.shape[3] // patch
        x = self.encoder.patch_embed(patchify(images, patch)) + self._positions(grid)
        prefix = self._prefix(x)
        maps = []
        for number, block in enumerate(self.encoder.blocks):
            step = partial(self._block, block, number, grid=grid)
            if self.recompute and self.training:
                prefix, x = checkpoint(step, prefix, x, use_reentrant=False)
            else:
                prefix, x = step(prefix, x)
            if number in self.out_blocks:
                maps.append(x.transpose(1, 2).unflatten(2, grid).contiguous())
        return maps

    def _positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 N D"]:
        """Position embeddings for a grid: bicubic in two dimensions, as when loading an encoder."""
        positions = self.encoder.pos_embed[:, int(self.encoder.variant.cls_token) :]
        if grid == self.encoder.grid:
            return positions
        image = positions.transpose(1, 2).unflatten(2, self.encoder.grid)
        image = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
        return image.flatten(2).transpose(1, 2)

    def _prefix(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B P D"]:
        encoder = self.encoder
        tokens = [x[:1, :0]]  # without prefix tokens, an empty tensor of the right width
        if self.keeps_prefix and encoder.variant.cls_token:
            tokens.append(encoder.cls_token + encoder.pos_embed[:, :1])
        if self.keeps_prefix and encoder.variant.num_registers:
            tokens.append(encoder.reg_token)
        return torch.cat([token.to(x.dtype).expand(len(x), -1, -1) for token in tokens], dim=1)

    def _block(
        self,
        block: Any,
        number: int,
        prefix: Tensor,
        x: Tensor,
        *,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Apply one `Block` to prefix and patches; its attention may be windowed."""
        whole = torch.cat([prefix, x], dim=1)
        y = block.norm1(whole)
        side = self.windows[number]
        relative = self.relative[number] if len(self.relative) else None
        if side is None:
            bias = partial(relative, grid=grid) if relative else None
            y = block.attn(y, bias)
        else:
            windows = to_windows(y.unflatten(1, grid), side)
            bias = partial(relative, grid=(side, side)) if relative else None
            y = from_windows(block.attn(windows, bias), side, grid).flatten(1, 2)
        whole = whole + block.drop_branch(block.ls1(y))
        whole = whole + block.drop_branch(block.ls2(block.mlp(block.norm2(whole))))
        return whole[:, : prefix.shape[1]], whole[:, prefix.shape[1] :]


def to_windows(x: Float[Tensor, "B h w D"], side: int) -> Float[Tensor, "BW N D"]:
    """Cut a map into square windows; zero padding is attended to, as in ViTDet."""
    h, w = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # B rows side columns side D
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(
    windows: Float[Tensor, "BW N D"], side: int, grid: tuple[int, int]
) -> Float[Tensor, "B h w D"]:
    """Invert `to_windows`, dropping the padding."""
    rows, columns = -(-grid[0] // side), -(-grid[1] // side)
    x = windows.unflatten(0, (-1, rows, columns)).unflatten(3, (side, side))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : grid[0], : grid[1]]


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
