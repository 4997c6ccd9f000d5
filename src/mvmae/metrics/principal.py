"""Colours of patch tokens by their first principal components.

Two patches that an encoder holds for alike get like colours, whichever images they are in, as in
the figures of DINOv2 (Oquab et al. 2023, section 7.5), though nothing is cut away here: there the
first component is thresholded to part thing from background.
Shapes: B images, N patch tokens, D width, T tokens of all images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

TAIL = 0.01  # of the tokens at either end, which share the ends' colours
PIECE = 65_536  # tokens taken to float64 at a time
FLAT = 1e-10  # of the first component's variance: what varies less is rounding
ROUNDING = 1e-6  # of the largest number: what varies less is float32's rounding, or bf16's sums
GRAY = 0.5


class Basis(NamedTuple):
    """What turns tokens into colours."""

    mean: Float[Tensor, " D"]
    components: Float[Tensor, "3 D"]
    """Of length 1, of the largest variance first; zeros where the tokens vary in fewer ways."""

    low: Float[Tensor, " three"]
    """Quantiles of the projections that are drawn as 0."""

    high: Float[Tensor, " three"]
    """And as 1."""

    explained: Float[Tensor, " three"]
    """Share of the tokens' variance in each component."""


def principal_colors(tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N 3"]:
    """Red, green and blue in [0, 1] of every token, by one basis for all images."""
    return colors(tokens, principal_basis(tokens))


def principal_basis(tokens: Float[Tensor, "B N D"]) -> Basis:
    """The first three principal components of all tokens.

    The sign of a component is set so that its largest number is positive, as scikit-learn does:
    the same tokens have the same colours each time. Tokens that are not finite count for nothing.
    """
    flat = tokens.detach().flatten(0, 1)
    flat = flat[flat.isfinite().all(dim=1)]
    mean, covariance = _moments(flat)
    variances, vectors = torch.linalg.eigh(covariance)  # in rising order
    variances = variances.clamp(min=0)
    largest = flat.abs().max().double() if len(flat) else variances.new_zeros(())
    floor = torch.maximum(FLAT * variances[-1], (ROUNDING * largest) ** 2)
    components = vectors.new_zeros(3, len(mean))
    shares = vectors.new_zeros(3)
    for number in range(min(3, len(mean))):
        place = len(mean) - 1 - number
        if variances[place] > floor:
            components[number] = _turned(vectors[:, place])
            shares[number] = variances[place] / variances.sum()
    low, high = _ends(flat, mean, components)
    return Basis(mean.float(), components.float(), low, high, shares.float())


def colors(tokens: Float[Tensor, "B N D"], basis: Basis) -> Float[Tensor, "B N 3"]:
    """Colours of tokens in a basis, which may be of other images; 0.5 where nothing varies."""
    projected = (tokens.float() - basis.mean) @ basis.components.T
    span = basis.high - basis.low
    scaled = (projected - basis.low) / torch.where(span > 0, span, 1)
    scaled = torch.where((span > 0) & scaled.isfinite(), scaled, GRAY)
    return scaled.clamp(0, 1)


def _moments(flat: Float[Tensor, "T D"]) -> tuple[Tensor, Tensor]:
    """Mean and covariance in float64, over pieces that fit the memory."""
    width = flat.shape[1]
    total = torch.zeros(width, dtype=torch.float64, device=flat.device)
    for piece in _pieces(flat):
        total += piece.sum(dim=0)
    mean = total / max(1, len(flat))
    covariance = torch.zeros(width, width, dtype=torch.float64, device=flat.device)
    for piece in _pieces(flat):
        centred = piece - mean
        covariance += centred.T @ centred
    return mean, covariance / max(1, len(flat) - 1)


def _pieces(flat: Float[Tensor, "T D"]) -> Iterator[Float[Tensor, "t D"]]:
    for begin in range(0, len(flat), PIECE):
        yield flat[begin : begin + PIECE].double()


def _turned(vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    """The vector or its opposite."""
    return vector * torch.sign(vector[vector.abs().argmax()])


def _ends(flat: Tensor, mean: Tensor, components: Tensor) -> tuple[Tensor, Tensor]:
    """The quantiles between which colours run."""
    if not len(flat):
        return components.new_zeros(3).float(), components.new_zeros(3).float()
    projected = torch.cat([(piece - mean) @ components.T for piece in _pieces(flat)])
    # torch.quantile takes no more than 16 million numbers.
    ends = np.quantile(projected.cpu().numpy(), (TAIL, 1 - TAIL), axis=0)
    low, high = torch.from_numpy(ends).to(flat.device).float()
    return low, high
