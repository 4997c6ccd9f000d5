"""Accuracy, confusions, their sampling error, and differences between runs over several seeds.

Shapes: Q images, K classes, S seeds.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

NORMAL_QUANTILE = 1.96  # 97.5 %


def topk_accuracy(scores: Float[Tensor, "Q K"], labels: Int[Tensor, " Q"], k: int) -> float:
    """Percentage of images whose class is among the `k` with the largest scores.

    Of equal scores the class with the smaller number comes first, as in `argmax`. A class of score
    -inf was not predicted, and never counts.
    """
    own = scores.gather(1, labels[:, None])
    numbers = torch.arange(scores.shape[1], device=scores.device)
    ahead = (scores > own) | ((scores == own) & (numbers < labels[:, None]))
    right = (ahead.sum(dim=1) < k) & (own[:, 0] > -torch.inf)
    return 100 * right.double().mean().item()


def confusion_matrix(
    predictions: Int[Tensor, " Q"], labels: Int[Tensor, " Q"], num_classes: int
) -> Int[Tensor, "K K"]:
    """Count the images of each class (row) that were predicted as each class (column)."""
    cells = labels * num_classes + predictions
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def per_class_accuracy(confusion: Int[Tensor, "K K"]) -> Float[Tensor, " K"]:
    """Accuracy of each class in percent; NaN for a class without an image."""
    return 100 * confusion.diagonal().double() / confusion.sum(dim=1)


def most_confused(confusion: Int[Tensor, "K K"], count: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes: true class, predicted class, number of images."""
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    values, cells = wrong.sort(descending=True, stable=True)
    width = len(confusion)
    return [
        (int(cell) // width, int(cell) % width, int(value))
        for value, cell in zip(values[:count], cells[:count], strict=True)
        if value > 0
    ]


def sampling_error(share: float, count: int) -> float:
    """Standard error in percentage points of an accuracy `share` (0 to 1) on `count` images.

    It is that of a binomial proportion: how much another draw of test images would change it.
    """
    return 100 * sqrt(share * (1 - share) / count)


class Spread(NamedTuple):
    """A figure over seeds."""

    mean: float
    sd: float | None
    """Standard deviation, with S - 1 in the denominator; None for one seed."""

    count: int


class Difference(NamedTuple):
    """How much higher one run's figure is than another's, paired by seed."""

    mean: float
    error: float | None
    """Standard error of the mean; None for one seed."""

    count: int


def spread_over_seeds(values: Float[np.ndarray, " S"]) -> Spread:
    """Mean and standard deviation over at least one seed."""
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    return Spread(float(values.mean()), sd, len(values))


def paired_difference(one: Float[np.ndarray, " S"], other: Float[np.ndarray, " S"]) -> Difference:
    """Mean of `one - other` over seeds that both have, and its standard error.

    A seed gives both runs the same order of images and the same random numbers. What that does to
    both alike cancels in their difference, so the error is sd(one - other) / sqrt(S).
    """
    differences = one - other
    count = len(differences)
    error = float(differences.std(ddof=1)) / sqrt(count) if count > 1 else None
    return Difference(float(differences.mean()), error, count)


def significance_threshold(count: int) -> float | None:
    """Standard errors beyond which a mean difference over `count` seeds is significant at 5 %.

    The quantile of Student's t; None for one seed, which allows no statement.
    """
    from scipy.special import stdtrit  # heavy, and `knn` reads this module for other figures

    return float(stdtrit(count - 1, 0.975)) if count > 1 else None
