"""What few labels suffice for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import exp, log

import numpy as np
from jaxtyping import Int


def class_counts(labels: Int[np.ndarray, " M"], amount: int | float) -> list[int]:
    """How many images of each class `stratified_draw` takes, in the classes' order."""
    sizes = np.unique(labels, return_counts=True)[1].tolist()
    if isinstance(amount, int):
        return [min(amount, size) for size in sizes]
    return [max(1, round(amount * size)) for size in sizes]


def stratified_draw(
    labels: Int[np.ndarray, " M"], amount: int | float, rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Places of a random draw that takes from every class alike.

    Args:
        labels: The class of each image.
        amount: Below or at 1.0 a share of each class, at least one image; an int is a number of
            images of each class, or all where there are fewer.
        rng: Draws.

    Returns:
        Places in rising order.
    """
    counts = class_counts(labels, amount)
    drawn = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(np.unique(labels), counts, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def labels_needed(
    counts: Sequence[int], accuracies: Sequence[float], target: float
) -> float | None:
    """Labels with which a curve first reaches an accuracy, between its points on a log scale.

    Returns:
        The number; none if the curve never reaches it. At most the first count where it already
        starts above.
    """
    curve = sorted(zip(counts, accuracies, strict=True))
    if curve[0][1] >= target:
        return float(curve[0][0])
    for (low, below), (high, above) in pairwise(curve):
        if above >= target:
            share = (target - below) / (above - below)
            return exp(log(low) + share * (log(high) - log(low)))
    return None
