"""Draw few labels of each class, and find how many labels reach an accuracy."""

from collections.abc import Sequence
from itertools import pairwise
from math import exp, log

import numpy as np
from jaxtyping import Int


def class_counts(labels: Int[np.ndarray, " M"], amount: int | float) -> list[int]:
    """Number of images that `stratified_draw` takes of each class, in the classes' order."""
    sizes = np.unique(labels, return_counts=True)[1].tolist()
    if isinstance(amount, int):
        return [min(amount, size) for size in sizes]
    return [max(1, round(amount * size)) for size in sizes]


def stratified_draw(
    labels: Int[np.ndarray, " M"], amount: int | float, rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Draw images at random, with the same share or number of every class.

    Args:
        labels: The class of each image.
        amount: A float up to 1.0 is a share of each class, at least one image. An int is a number
            of images per class, or all of a smaller class.
        rng: Source of randomness.

    Returns:
        Indices of the images in rising order.
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
    """Number of labels at which a curve first reaches an accuracy, interpolated on a log scale.

    Returns:
        The number; the first count if the curve starts above; None if it never reaches the target.
    """
    curve = sorted(zip(counts, accuracies, strict=True))
    if curve[0][1] >= target:
        return float(curve[0][0])
    for (low, below), (high, above) in pairwise(curve):
        if above >= target:
            share = (target - below) / (above - below)
            return exp(log(low) + share * (log(high) - log(low)))
    return None
