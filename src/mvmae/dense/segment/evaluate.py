"""Predict the classes of whole images by sliding windows, and compute mIoU.

Shapes: C channels, K classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int16
from torch import Tensor, nn

from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.masks import ImageMaskPairs
from mvmae.data.reading.decode import Pixels
from mvmae.data.reading.loader import Skipped
from mvmae.dense.segment.crops import base_scale, resize_to_base, scaled_size, whole_images
from mvmae.dense.segment.model import resize_scores
from mvmae.encoders import Preprocessing
from mvmae.errors import UserError
from mvmae.figures.segmentation import Shown
from mvmae.method.views import normalized
from mvmae.metrics.miou import SegmentationScores, pixel_confusion, segmentation_scores
from mvmae.training import distributed, precision

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
MAX_WINDOWS = 16  # in a batch
CLASS_CHUNK = 16  # classes resized at a time
NUM_PICTURES = 4  # images kept for drawing


class Predictor(NamedTuple):
    """Model with the settings for applying it to whole images."""

    model: nn.Module
    """Returns `Scores` for images of any multiple of the patch size."""

    patch_size: int
    preprocessing: Preprocessing
    config: SegmentConfig
    device: torch.device
    multi_scale: bool = False


class Evaluation(NamedTuple):
    """Predictions for a set of images, compared with their masks."""

    confusion: Int[Tensor, "K K"]
    """Pixels by true and by predicted class."""

    skipped: list[Skipped]
    shown: list[Shown]
    """A few of the images, on the main process."""

    @property
    def scores(self) -> SegmentationScores:
        """All metrics."""
        return segmentation_scores(self.confusion)

    def figures(self) -> dict[str, float]:
        """Headline metrics, in percent."""
        metrics = self.scores
        return {
            "miou": round(metrics.miou, 4),
            "mean_accuracy": round(metrics.mean_accuracy, 4),
            "pixel_accuracy": round(metrics.pixel_accuracy, 4),
        }


def window_offsets(side: int, window: int, stride: int) -> list[int]:
    """Return the offsets of windows that cover a side; the last one ends where the side does."""
    count = max(0, -(-(side - window) // stride)) + 1
    return [min(number * stride, side - window) for number in range(count)]


def sliding_scores(predictor: Predictor, image: Float[Tensor, "C H W"]) -> Float[Tensor, "K H W"]:
    """Score each pixel, averaged over the windows that contain it.

    An image smaller than the window is one window, padded with the mean pixel to whole patches.
    """
    size = (image.shape[1], image.shape[2])
    patch_size = predictor.patch_size
    h, w = (
        min(predictor.config.crop, max(2 * patch_size, -(-side // patch_size) * patch_size))
        for side in size
    )
    image = F.pad(image, (0, max(0, w - size[1]), 0, max(0, h - size[0])))
    padded = (image.shape[1], image.shape[2])
    corners = list(
        product(
            window_offsets(padded[0], h, predictor.config.window_stride),
            window_offsets(padded[1], w, predictor.config.window_stride),
        )
    )
    total, counts = None, image.new_zeros(padded)
    batch_size = min(predictor.config.batch_size, MAX_WINDOWS)
    for begin in range(0, len(corners), batch_size):
        batch = corners[begin : begin + batch_size]
        windows = torch.stack([image[:, top : top + h, left : left + w] for top, left in batch])
        with precision.autocast(predictor.device, predictor.config.precision):
            scores = predictor.model(windows).main
        for (top, left), part in zip(batch, resize_scores(scores, (h, w)), strict=True):
            if total is None:
                total = part.new_zeros(len(part), *padded)
            total[:, top : top + h, left : left + w] += part
            counts[top : top + h, left : left + w] += 1
    assert total is not None
    return (total / counts)[:, : size[0], : size[1]]


def score_image(predictor: Predictor, pixels: Pixels) -> Float[Tensor, "K rows columns"]:
    """Score an image at the base scale; with `multi_scale`, by mean probabilities."""
    mean, std, interpolation = predictor.preprocessing

    def score(image: Pixels) -> Tensor:
        return sliding_scores(predictor, normalized(image[None], mean, std, predictor.device)[0])

    if not predictor.multi_scale:
        return score(resize_to_base(pixels, predictor.config.short_side, interpolation))
    size = (pixels.shape[1], pixels.shape[2])
    base_size = scaled_size(size, base_scale(size, predictor.config.short_side))
    total = torch.zeros((), device=predictor.device)
    for factor in SCALES:
        image = resize_to_base(pixels, predictor.config.short_side, interpolation, factor)
        for mirrored in (False, True):
            probabilities = score(image.flip(-1) if mirrored else image).softmax(dim=0)
            resized = resize_scores(probabilities[None], base_size)[0]
            total = total + (resized.flip(-1) if mirrored else resized)
    return total / (2 * len(SCALES))


def label_pixels(scores: Float[Tensor, "K h w"], size: tuple[int, int]) -> Int16[Tensor, "H W"]:
    """Return the class of highest score at each pixel of an image of this size.

    A few classes at a time are resized: all 150 of ADE20K would take gigabytes.
    """
    best, labels = None, None
    for number, chunk in enumerate(scores.split(CLASS_CHUNK)):
        values, classes = resize_scores(chunk[None], size)[0].max(dim=0)
        classes = (classes + number * CLASS_CHUNK).to(torch.int16)
        if best is None or labels is None:
            best, labels = values, classes
        else:
            labels = torch.where(values > best, classes, labels)
            best = torch.maximum(values, best)
    assert labels is not None
    return labels


def predict_classes(
    predictor: Predictor, pixels: Pixels, size: tuple[int, int]
) -> Int16[Tensor, "rows columns"]:
    """Return the class of each pixel at `size`, on the CPU."""
    with torch.inference_mode():
        return label_pixels(score_image(predictor, pixels), size).cpu()


def evaluate(
    predictor: Predictor,
    pairs: ImageMaskPairs,
    num_classes: int,
    advance: Callable[[int], object] = lambda count: None,
) -> Evaluation:
    """Predict all images and compare with their masks; leaves the model in evaluation mode.

    Processes share the images, and each returns the metrics of all of them.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    predictor.model.eval()
    indices = range(distributed.rank(), len(pairs), distributed.world_size())
    drawn = evenly_spaced(indices) if distributed.is_main() else set()
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    skipped, shown = [], []
    config = predictor.config
    if predictor.multi_scale:  # several scales are made from the original, not from the base scale
        config = replace(config, short_side=None)
    interpolation, cuda = predictor.preprocessing.interpolation, predictor.device.type == "cuda"
    for whole in whole_images(pairs, indices, config, interpolation, cuda=cuda):
        skipped += whole.skipped
        advance(1)
        if whole.image is None:
            continue
        size = (whole.classes.shape[0], whole.classes.shape[1])
        classes = predict_classes(predictor, whole.image, size)
        confusion += pixel_confusion(classes, whole.classes, num_classes)
        if whole.index in drawn:
            shown.append(Shown(pairs.path(whole.index), whole.image, whole.classes, classes))
    skipped = distributed.from_main(distributed.gather_objects(skipped))
    if len(skipped) > len(pairs) / 2:
        path, reason = skipped[0]
        raise UserError(
            f"{len(skipped)} of the {len(pairs)} test images cannot be read, for example {path} "
            f"({reason})"
        )
    return Evaluation(_sum_over_processes(confusion, predictor.device), skipped, shown)


def evenly_spaced(indices: Sequence[int]) -> set[int]:
    """Choose a few indices, evenly spaced."""
    count = min(NUM_PICTURES, len(indices))
    return {indices[len(indices) * (2 * at + 1) // (2 * count)] for at in range(count)}


def _sum_over_processes(confusion: Tensor, device: torch.device) -> Int[Tensor, "K K"]:
    """Sum counts exactly: float64 represents whole numbers up to 2**53."""
    mean = distributed.mean_over_processes(confusion.double().to(device))
    return (mean * distributed.world_size()).round().long().cpu()
