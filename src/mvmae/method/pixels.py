"""From what a decoder predicts back to pixels.

Shapes: B images, C channels, N patches, P = p * p * C numbers in a patch.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Statistics = Literal["visible", "target"]


def denormalized_patches(
    prediction: Float[Tensor, "B N P"],
    target: Float[Tensor, "B N P"],
    mask: Float[Tensor, "B N"],
    grid: tuple[int, int],
    statistics: Statistics,
) -> Float[Tensor, "B N P"]:
    """Undo the normalisation of target patches, as far as that can be known.

    A model trained on normalised patches predicts their pattern, not their brightness and
    contrast. These are estimated from the visible patches around each hidden one, or taken from
    the hidden patch itself: the pictures of the literature do the latter, which shows the model
    something that it never saw.

    Args:
        prediction: Normalised patches.
        target: Patches as they are.
        mask: 1 where a patch was hidden.
        grid: Rows and columns of patches.
        statistics: `visible` or `target`.
    """
    mean, deviation = target.mean(-1), (target.var(-1) + 1e-6).sqrt()
    if statistics == "visible":
        mean, deviation = (_from_visible(values, mask, grid) for values in (mean, deviation))
    return prediction * deviation[..., None] + mean[..., None]


def _from_visible(
    values: Float[Tensor, "B N"], mask: Float[Tensor, "B N"], grid: tuple[int, int]
) -> Float[Tensor, "B N"]:
    """A value for each patch: its own where visible, else the visible ones' by nearness.

    The weight falls with the fourth power of the distance, so that the nearest patches decide.
    """
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).to(values)
    nearness = 1 / torch.cdist(places, places).clamp_min(1e-3) ** 4  # itself: 1e12, it decides
    visible = 1 - mask
    weighted = (nearness * (values * visible)[:, None]).sum(-1)
    return weighted / (nearness * visible[:, None]).sum(-1)
