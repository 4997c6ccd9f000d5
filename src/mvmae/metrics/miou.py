"""Quality of segmentations: mean intersection over union, and two accuracies.

Shapes: K classes; a confusion matrix has true classes as rows and predicted classes as columns.
"""

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
    """Of each class; NaN for one that is neither present nor predicted."""

    accuracy: Float[Tensor, " K"]
    """Share of a class's pixels that are predicted right; NaN for a class without a pixel."""


def pixel_confusion(
    predicted: Int[Tensor, "*pixels"], truth: Int[Tensor, "*pixels"], num_classes: int
) -> Int[Tensor, "K K"]:
    """Count the pixels of each class that were predicted as each; a truth below 0 is ignored."""
    counts = truth >= 0
    cells = truth[counts].long() * num_classes + predicted[counts].long()
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def segmentation_scores(confusion: Int[Tensor, "K K"]) -> SegmentationScores:
    """Compute the figures of all pixels together.

    A class that is neither present nor predicted is left out of the mean IoU, and a class without a
    pixel out of the mean accuracy. Pixels are pooled over images, as in all figures on ADE20K.
    """
    counted = confusion.double()
    right, true, predicted = counted.diagonal(), counted.sum(dim=1), counted.sum(dim=0)
    iou = 100 * right / (true + predicted - right)
    accuracy = 100 * right / true
    return SegmentationScores(
        iou.nanmean().item(),
        accuracy.nanmean().item(),
        (100 * right.sum() / true.sum()).item(),
        iou,
        accuracy,
    )
