"""Images to patches and back, random masking, and predictions to pixels.

Shapes: B images, C channels, H and W pixels, N patches, K kept and M hidden patches, P = p * p * C.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Statistics = Literal["visible", "target"]


def patchify(images: Shaped[Tensor, "B C H W"], patch_size: int) -> Shaped[Tensor, "B N P"]:
    """Cut images into non-overlapping square patches, row by row; channels run fastest (MAE).

    H and W must be multiples of `patch_size`.
    """
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
    """Place of each patch after shuffling; undoes the shuffle."""

    mask: Float[Tensor, "B N"]
    """1 for a hidden patch, 0 for a visible one."""


def masking_from_noise(noise: Float[Tensor, "B N"], num_visible: int) -> Masking:
    """Keep the `num_visible` patches of each image with the smallest noise, as MAE does."""
    # Noise comes from the reading process, so that the masks are the same on every device and for
    # any number of processes.
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)  # the argsort of a permutation is its inverse
    ids_keep, ids_hidden = ids_shuffle[:, :num_visible], ids_shuffle[:, num_visible:]
    return Masking(ids_keep, ids_hidden, ids_restore, (ids_restore >= num_visible).float())


def take_rows(x: Shaped[Tensor, "B N D"], ids: Int[Tensor, "B K"]) -> Shaped[Tensor, "B K D"]:
    """Select K of the N rows (patches or tokens, D numbers each) of each image by its indices."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


def denormalize_patches(
    prediction: Float[Tensor, "B N P"],
    target: Float[Tensor, "B N P"],
    mask: Float[Tensor, "B N"],
    grid: tuple[int, int],
    statistics: Statistics,
) -> Float[Tensor, "B N P"]:
    """Undo `normalize_patches`, exactly or by an estimate.

    A model trained on normalised patches predicts their pattern, not their brightness and
    contrast. These are estimated from the visible patches around each hidden one, or taken from
    the hidden patch itself. Published pictures do the latter, which adds information that the
    model never saw.

    Args:
        prediction: Normalised patches.
        target: Patches of the input.
        mask: 1 where a patch was hidden.
        grid: Rows and columns of patches.
        statistics: Where brightness and contrast come from: `visible` patches or the `target`.
    """
    # As in `normalize_patches`: unbiased variance, with 1e-6 under the root.
    mean, deviation = target.mean(-1), (target.var(-1) + 1e-6).sqrt()
    if statistics == "visible":
        mean, deviation = (_from_visible(values, mask, grid) for values in (mean, deviation))
    return prediction * deviation[..., None] + mean[..., None]


def _from_visible(
    values: Float[Tensor, "B N"], mask: Float[Tensor, "B N"], grid: tuple[int, int]
) -> Float[Tensor, "B N"]:
    """Estimate the values of hidden patches by a weighted mean of the visible; those keep theirs.

    The weights fall with the fourth power of the distance, so that the nearest patches decide.
    """
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).to(values)
    # A visible patch keeps its own value, because its weight for itself is 1e12.
    nearness = 1 / torch.cdist(places, places).clamp_min(1e-3) ** 4
    visible = 1 - mask
    weighted = (nearness * (values * visible)[:, None]).sum(-1)
    return weighted / (nearness * visible[:, None]).sum(-1)
