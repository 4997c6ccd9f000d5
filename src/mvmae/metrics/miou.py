"""How well pixels are named: intersection over union, and two accuracies.

Shapes: K classes; a confusion matrix has a class's pixels as its row, what they were taken for as
columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class SegmentationScores(NamedTuple):
    """Figures in percent."""

    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    iou: Float[Tensor, " K"]
    """Of each class; NaN for one that is neither there nor predicted."""

    accuracy: Float[Tensor, " K"]
    """Share of a class's pixels that are named right; NaN for a class without a pixel."""


def pixel_confusion(
    predicted: Int[Tensor, "*pixels"], truth: Int[Tensor, "*pixels"], num_classes: int
) -> Int[Tensor, "K K"]:
    """Pixels of each class that were taken for each; a truth below 0 counts for nothing."""
    counts = truth >= 0
    places = truth[counts].long() * num_classes + predicted[counts].long()
    return torch.bincount(places, minlength=num_classes**2).view(num_classes, num_classes)


def segmentation_scores(confusion: Int[Tensor, "K K"]) -> SegmentationScores:
    """Figures of all pixels together.

    A class that is neither in the truth nor predicted is left out of the mean IoU, a class without
    a pixel out of the mean accuracy. Pixels are pooled over images, as all of ADE20K's figures are.
    """
    counted = confusion.double()
    right, true, named = counted.diagonal(), counted.sum(dim=1), counted.sum(dim=0)
    iou = 100 * right / (true + named - right)
    accuracy = 100 * right / true
    return SegmentationScores(
        iou.nanmean().item(),
        accuracy.nanmean().item(),
        (100 * right.sum() / true.sum()).item(),
        iou,
        accuracy,
    )
