"""How often a classifier is right, and what it takes for what.

Shapes: Q images, K classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def topk_accuracy(scores: Float[Tensor, "Q K"], labels: Int[Tensor, " Q"], k: int) -> float:
    """Share of images whose class is among the `k` of largest score, in percent.

    Of equal scores the class of smaller number is first, as for `argmax`. A class of score -inf was
    not named, and never counts.
    """
    own = scores.gather(1, labels[:, None])
    numbers = torch.arange(scores.shape[1], device=scores.device)
    ahead = (scores > own) | ((scores == own) & (numbers < labels[:, None]))
    right = (ahead.sum(dim=1) < k) & (own[:, 0] > -torch.inf)
    return 100 * right.double().mean().item()


def confusion_matrix(
    predictions: Int[Tensor, " Q"], labels: Int[Tensor, " Q"], num_classes: int
) -> Int[Tensor, "K K"]:
    """Images of each class (rows) that were taken for each class (columns)."""
    places = labels * num_classes + predictions
    return torch.bincount(places, minlength=num_classes**2).view(num_classes, num_classes)


def per_class_accuracy(confusion: Int[Tensor, "K K"]) -> Float[Tensor, " K"]:
    """Share of each class's images that were taken for it, in percent; NaN for a class without."""
    return 100 * confusion.diagonal().double() / confusion.sum(dim=1)


def most_confused(confusion: Int[Tensor, "K K"], count: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes: class, what it was taken for, images."""
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    values, places = wrong.sort(descending=True, stable=True)
    width = len(confusion)
    return [
        (int(place) // width, int(place) % width, int(value))
        for value, place in zip(values[:count], places[:count], strict=True)
        if value > 0
    ]
