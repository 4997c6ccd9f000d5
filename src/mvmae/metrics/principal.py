"""Colour patch tokens by their first three principal components.

Patches with similar tokens get similar colours, in all images, as in the figures of DINOv2 (Oquab
et al. 2023, section 7.5). Unlike there, the first component is not thresholded to remove the
background.

Shapes: B images, N patch tokens, D width, T tokens of all images.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

TAIL = 0.01  # share of tokens at each end that are clipped to the end's colour
PIECE = 65_536  # tokens converted to float64 at a time
FLAT = 1e-10  # share of the largest variance below which a component is rounding
ROUNDING = 1e-6  # share of the largest number below which a deviation is float32 rounding
GRAY = 0.5


class Basis(NamedTuple):
    """A linear map from tokens to colours."""

    mean: Float[Tensor, " D"]
    components: Float[Tensor, "3 D"]
    """Unit vectors, largest variance first; zeros if the tokens vary in fewer directions."""

    low: Float[Tensor, " three"]
    """Quantiles of the projections that become 0."""

    high: Float[Tensor, " three"]
    """Quantiles of the projections that become 1."""

    explained: Float[Tensor, " three"]
    """Share of the tokens' variance in each component."""


def principal_colors(tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N 3"]:
    """Red, green and blue in [0, 1] of every token, in one basis for all images."""
    return colors(tokens, principal_basis(tokens))


def principal_basis(tokens: Float[Tensor, "B N D"]) -> Basis:
    """Compute the first three principal components of all tokens.

    A component's sign is set so that its entry of largest magnitude is positive, as in
    scikit-learn, so that the same tokens always get the same colours. Tokens that are not finite
    are ignored.
    """
    flat = tokens.detach().flatten(0, 1)
    flat = flat[flat.isfinite().all(dim=1)]
    mean, covariance = _moments(flat)
    variances, vectors = torch.linalg.eigh(covariance)  # in ascending order
    variances = variances.clamp(min=0)
    largest = flat.abs().max().double() if len(flat) else variances.new_zeros(())
    floor = torch.maximum(FLAT * variances[-1], (ROUNDING * largest) ** 2)
    components = vectors.new_zeros(3, len(mean))
    shares = vectors.new_zeros(3)
    for number in range(min(3, len(mean))):
        place = len(mean) - 1 - number
        if variances[place] > floor:
            vector = vectors[:, place]
            components[number] = vector * torch.sign(vector[vector.abs().argmax()])
            shares[number] = variances[place] / variances.sum()
    low, high = _color_range(flat, mean, components)
    return Basis(mean.float(), components.float(), low, high, shares.float())


def colors(tokens: Float[Tensor, "B N D"], basis: Basis) -> Float[Tensor, "B N 3"]:
    """Colours of tokens in a basis, possibly of other images; 0.5 where nothing varies."""
    projected = (tokens.float() - basis.mean) @ basis.components.T
    span = basis.high - basis.low
    scaled = (projected - basis.low) / torch.where(span > 0, span, 1)
    scaled = torch.where((span > 0) & scaled.isfinite(), scaled, GRAY)
    return scaled.clamp(0, 1)


def _moments(flat: Float[Tensor, "T D"]) -> tuple[Tensor, Tensor]:
    """Mean and covariance in float64, in pieces to save memory."""
    width = flat.shape[1]
    total = torch.zeros(width, dtype=torch.float64, device=flat.device)
    for piece in flat.split(PIECE):
        total += piece.double().sum(dim=0)
    mean = total / max(1, len(flat))
    covariance = torch.zeros(width, width, dtype=torch.float64, device=flat.device)
    for piece in flat.split(PIECE):
        centred = piece.double() - mean
        covariance += centred.T @ centred
    return mean, covariance / max(1, len(flat) - 1)


def _color_range(flat: Tensor, mean: Tensor, components: Tensor) -> tuple[Tensor, Tensor]:
    """Quantiles of the projections that become the ends of the colour range."""
    if not len(flat):
        return components.new_zeros(3).float(), components.new_zeros(3).float()
    projected = torch.cat([(piece.double() - mean) @ components.T for piece in flat.split(PIECE)])
    # torch.quantile accepts at most 16 million numbers.
    ends = np.quantile(projected.cpu().numpy(), (TAIL, 1 - TAIL), axis=0)
    low, high = torch.from_numpy(ends).to(flat.device).float()
    return low, high
