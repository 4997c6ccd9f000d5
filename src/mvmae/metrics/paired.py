"""Means over seeds, and differences between runs that share them.

Shapes: S seeds.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Spread(NamedTuple):
    """A figure over seeds."""

    mean: float
    sd: float | None
    """Standard deviation with S - 1 below; none for one seed."""

    count: int


class Difference(NamedTuple):
    """How much higher one run's figure is than another's, seed by seed."""

    mean: float
    error: float | None
    """Standard error of the mean; none for one seed."""

    count: int


# Student's t, 97.5 %, for 1 to 9 degrees of freedom (Fisher and Yates 1938, table III)
T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
NORMAL_QUANTILE = 1.96


def seed_spread(values: Float[np.ndarray, " S"]) -> Spread:
    """Mean and standard deviation over seeds, at least one."""
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    return Spread(float(values.mean()), sd, len(values))


def paired_difference(one: Float[np.ndarray, " S"], other: Float[np.ndarray, " S"]) -> Difference:
    """The mean of `one - other` over the seeds that both have, and its standard error.

    The seed gives both runs the same order of images and the same random numbers, so what it does
    to both alike falls out of their difference: the error is sd(one - other) / sqrt(S).
    """
    apart = one - other
    error = float(apart.std(ddof=1)) / sqrt(len(apart)) if len(apart) > 1 else None
    return Difference(float(apart.mean()), error, len(apart))


def significance_threshold(count: int) -> float | None:
    """Standard errors from which on a difference over `count` seeds is beyond chance, at 5 %.

    None for one seed, of which nothing can be said. From eleven on the first terms of the series
    for large samples (Abramowitz and Stegun 1964, 26.7.5), right to two decimals.
    """
    if count < 2:
        return None
    if count - 2 < len(T_QUANTILES):
        return T_QUANTILES[count - 2]
    z, degrees = NORMAL_QUANTILE, count - 1
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2
