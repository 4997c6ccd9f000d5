"""Images to patches and back, and random masking.

Shapes: B images, C channels, H and W pixels, N patches, K kept and M hidden patches, P = p * p * C.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int, Shaped
from torch import Tensor


def patchify(images: Shaped[Tensor, "B C H W"], patch_size: int) -> Shaped[Tensor, "B N P"]:
    """Cut images into non-overlapping square patches, row by row; channels run fastest (MAE)."""
    B, C, H, W = images.shape
    p = patch_size
    grid = images.reshape(B, C, H // p, p, W // p, p)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // p) * (W // p), p * p * C)


def unpatchify(
    patches: Shaped[Tensor, "B N P"], patch_size: int, grid: tuple[int, int]
) -> Shaped[Tensor, "B C H W"]:
    """Undo `patchify` for a grid of (rows, columns) patches."""
    B = len(patches)
    p, (h, w) = patch_size, grid
    return patches.reshape(B, h, w, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(B, -1, h * p, w * p)


class Masking(NamedTuple):
    """Which patches of each image the encoder sees."""

    ids_keep: Int[Tensor, "B K"]
    """Indices of the visible patches, in the order of their noise."""

    ids_hidden: Int[Tensor, "B M"]
    """Indices of the others, in the order of their noise."""

    ids_restore: Int[Tensor, "B N"]
    """Where each patch sits after shuffling; undoes the shuffle."""

    mask: Float[Tensor, "B N"]
    """1 where a patch is hidden."""


def masking_from_noise(noise: Float[Tensor, "B N"], num_visible: int) -> Masking:
    """Show each image's `num_visible` patches that drew the smallest noise, as MAE does."""
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    ids_keep, ids_hidden = ids_shuffle[:, :num_visible], ids_shuffle[:, num_visible:]
    return Masking(ids_keep, ids_hidden, ids_restore, (ids_restore >= num_visible).float())


def take_rows(x: Shaped[Tensor, "B N D"], ids: Int[Tensor, "B K"]) -> Shaped[Tensor, "B K D"]:
    """The rows of each image at its own indices."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))
