"""A Vision Transformer as backbone of dense tasks: large images, windowed attention, feature maps.

After Li et al. 2021 (arXiv 2111.11429) and ViTDet (Li et al. 2022, arXiv 2203.16527): most blocks
attend within windows, a few over the whole image. Parameter names of the blocks stay timm's.
Shapes: B images, C channels, D width, h x w patches, W windows, s side of a window in patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvmae.method.patches import patchify
from mvmae.method.vit import Block, Encoder


class RelativePositions(nn.Module):
    """Decomposed relative positions (MViTv2, ViTDet).

    A learnt vector for each row and column distance, whose product with the query is added to the
    logits. They begin at zero.
    """

    def __init__(self, head_width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.rows = nn.Parameter(torch.zeros(2 * grid[0] - 1, head_width))
        self.columns = nn.Parameter(torch.zeros(2 * grid[1] - 1, head_width))

    def forward(
        self, q: Float[Tensor, "B heads N d"], grid: tuple[int, int]
    ) -> Float[Tensor, "B heads N N"]:
        """What is added to the logits of queries over a grid of tokens."""
        h, w = grid
        q = q.unflatten(2, grid)
        rows = self._table(self.rows, h).to(q.dtype)
        columns = self._table(self.columns, w).to(q.dtype)
        by_row = torch.einsum("bnhwd,hkd->bnhwk", q, rows)
        by_column = torch.einsum("bnhwd,wkd->bnhwk", q, columns)
        bias = by_row[..., :, None] + by_column[..., None, :]
        return bias.flatten(4).flatten(2, 3)

    @staticmethod
    def _table(distances: Tensor, side: int) -> Float[Tensor, "side side d"]:
        """The vector for each pair of places, resampled where the grid has another side."""
        wanted = 2 * side - 1
        if len(distances) != wanted:
            resampled = F.interpolate(distances.T[None], size=wanted, mode="linear")
            distances = resampled[0].T
        places = torch.arange(side, device=distances.device)
        return distances[places[:, None] - places[None, :] + side - 1]


class Backbone(nn.Module):
    """An encoder that gives maps of patch tokens after some of its blocks.

    Args:
        encoder: Its weights are used, not copied. Without windows its prefix tokens stay; with
            them they are left out, as a window has no place for them.
        out_blocks: Blocks, from 0, whose output is given, in rising order.
        window: Side of a window in patches; none: every block sees the whole image.
        global_blocks: Blocks, from 0, that see the whole image all the same.
        relative_positions: Whether blocks learn decomposed relative positions; needs windows or an
            encoder without prefix tokens.
        recompute: Whether blocks keep no activations for the backward pass (less memory, a third
            more time).
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        out_blocks: Sequence[int],
        window: int | None = None,
        global_blocks: Sequence[int] = (),
        relative_positions: bool = False,
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
        self.relative = nn.ModuleList()
        if relative_positions:
            if self.keeps_prefix and encoder.num_prefix:
                raise ValueError("relative positions need windows, which leave the prefix out")
            head_width = encoder.size.width // encoder.size.num_heads
            self.relative.extend(
                RelativePositions(head_width, (side, side) if side else encoder.grid)
                for side in self.windows
            )

    @property
    def width(self) -> int:
        """Width of the maps."""
        return self.encoder.embed_dim

    @property
    def stride(self) -> int:
        """Pixels between two places of a map."""
        return self.encoder.patch_size

    def forward(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B D h w"]]:
        """Maps of the patch tokens after `out_blocks`, before the last norm.

        Images may have any size that the patch divides.
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
        """Positions of the patches for a grid: bicubic in two dimensions, as when loading."""
        own = self.encoder.pos_embed[:, int(self.encoder.variant.cls_token) :]
        if grid == self.encoder.grid:
            return own
        image = own.transpose(1, 2).unflatten(2, self.encoder.grid)
        image = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
        return image.flatten(2).transpose(1, 2)

    def _prefix(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B P D"]:
        encoder = self.encoder
        tokens = []
        if self.keeps_prefix and encoder.variant.cls_token:
            tokens.append(encoder.cls_token + encoder.pos_embed[:, :1])
        if self.keeps_prefix and encoder.variant.num_registers:
            tokens.append(encoder.reg_token)
        if not tokens:
            return x[:, :0]
        return torch.cat([token.to(x.dtype).expand(len(x), -1, -1) for token in tokens], dim=1)

    def _block(
        self, block: nn.Module, number: int, prefix: Tensor, x: Tensor, *, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """One block on the prefix and on the patches, in windows where it has them."""
        assert isinstance(block, Block)
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
        whole = whole + block.dropped(block.ls1(y))
        whole = whole + block.dropped(block.ls2(block.mlp(block.norm2(whole))))
        return whole[:, : prefix.shape[1]], whole[:, prefix.shape[1] :]


def to_windows(x: Float[Tensor, "B h w D"], side: int) -> Float[Tensor, "BW N D"]:
    """Cut a map into square windows; zeros fill the last ones, and are attended to (ViTDet)."""
    h, w = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # B rows side columns side D
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(
    windows: Float[Tensor, "BW N D"], side: int, grid: tuple[int, int]
) -> Float[Tensor, "B h w D"]:
    """Undo `to_windows`."""
    rows, columns = -(-grid[0] // side), -(-grid[1] // side)
    x = windows.unflatten(0, (-1, rows, columns)).unflatten(3, (side, side))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : grid[0], : grid[1]]
