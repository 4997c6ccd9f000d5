"""Predict the classes of whole images by sliding windows, and compute mIoU.

Shapes: C channels, K classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int16
from torch import Tensor

from mvmae import encoders
from mvmae.data.annotations.masks import ImageMaskPairs
from mvmae.data.reading.decode import Pixels
from mvmae.data.reading.loader import Skipped
from mvmae.dense.batches import scaled_size
from mvmae.dense.saved_model import Predictor
from mvmae.dense.segment.data import base_scale, read_images, resize_to_base
from mvmae.dense.segment.model import resize
from mvmae.dense.train import evenly_spaced
from mvmae.figures.segmentation import Shown
from mvmae.method.views import normalized
from mvmae.metrics.miou import SegmentationScores, pixel_confusion, segmentation_scores
from mvmae.training import distributed, precision

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
MAX_WINDOWS = 16  # in a batch
CLASS_CHUNK = 16  # classes resized at a time

Size = tuple[int, int]


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
    size, config = (image.shape[1], image.shape[2]), predictor.config
    patch_size = predictor.opened.encoder.patch_size
    h, w = (
        min(config.crop, max(2 * patch_size, -(-side // patch_size) * patch_size)) for side in size
    )
    image = F.pad(image, (0, max(0, w - size[1]), 0, max(0, h - size[0])))
    padded = (image.shape[1], image.shape[2])
    offsets = (
        window_offsets(side, window, config.window_stride)
        for side, window in zip(padded, (h, w), strict=True)
    )
    corners = product(*offsets)
    total, counts = image.new_zeros(0, *padded), image.new_zeros(padded)
    while batch := list(islice(corners, min(config.batch_size, MAX_WINDOWS))):
        windows = torch.stack([image[:, top : top + h, left : left + w] for top, left in batch])
        with precision.autocast(predictor.device, config.precision):
            scores = predictor.model(windows).main
        if not len(total):  # only the scores tell how many classes there are
            total = image.new_zeros(scores.shape[1], *padded)
        for (top, left), part in zip(batch, resize(scores.float(), (h, w)), strict=True):
            total[:, top : top + h, left : left + w] += part
            counts[top : top + h, left : left + w] += 1
    return (total / counts)[:, : size[0], : size[1]]


def score_image(predictor: Predictor, pixels: Pixels) -> Float[Tensor, "K rows columns"]:
    """Score an image at the base scale; with `multi_scale`, by mean probabilities."""
    mean, std, interpolation = predictor.opened.preprocessing
    short_side = predictor.config.short_side

    def score(image: Pixels) -> Tensor:
        return sliding_scores(predictor, normalized(image[None], mean, std, predictor.device)[0])

    if not predictor.config.multi_scale:
        return score(resize_to_base(pixels, short_side, interpolation))
    size = (pixels.shape[1], pixels.shape[2])
    base_size = scaled_size(size, base_scale(size, short_side))
    total = torch.zeros((), device=predictor.device)
    for factor in SCALES:
        image = resize_to_base(pixels, short_side, interpolation, factor)
        for mirrored in (False, True):
            probabilities = score(image.flip(-1) if mirrored else image).softmax(dim=0)
            resized = resize(probabilities[None], base_size)[0]
            total = total + (resized.flip(-1) if mirrored else resized)
    return total / (2 * len(SCALES))


def label_pixels(scores: Float[Tensor, "K h w"], size: tuple[int, int]) -> Int16[Tensor, "H W"]:
    """Return the class of highest score at each pixel of an image of this size.

    A few classes at a time are resized: all 150 of ADE20K would take gigabytes.
    """
    best = scores.new_full(size, -torch.inf, dtype=torch.float32)
    labels = torch.zeros(size, dtype=torch.int16, device=scores.device)
    for number, chunk in enumerate(scores.split(CLASS_CHUNK)):
        values, classes = resize(chunk[None].float(), size)[0].max(dim=0)
        classes = (classes + number * CLASS_CHUNK).to(torch.int16)
        labels = torch.where(values > best, classes, labels)
        best = torch.maximum(values, best)
    return labels


def predict_classes(
    predictor: Predictor, pixels: Pixels, size: Size
) -> Int16[Tensor, "rows columns"]:
    """Return the class of each pixel at `size`, on the CPU."""
    with torch.inference_mode():
        return label_pixels(score_image(predictor, pixels), size).cpu()


def evaluate(
    predictor: Predictor,
    pairs: ImageMaskPairs,
    num_classes: int,
    advance: Callable[[int], object] = lambda count: None,
    predict: Callable[[list[Pixels], list[Size]], Iterable[Tensor]] | None = None,
    at_once: int = 1,
) -> Evaluation:
    """Predict all images and compare with their masks; leaves the model in evaluation mode.

    Processes share the images, and each returns the metrics of all of them.

    Args:
        predictor: Model and settings.
        pairs: Images with masks.
        num_classes: K.
        advance: Called with the number of images done since the last call.
        predict: Returns the classes of images at the given sizes. Default: by sliding windows.
        at_once: Images that `predict` gets.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    model, opened, config, device = predictor
    model.eval()
    indices = range(distributed.rank(), len(pairs), distributed.world_size())
    drawn = evenly_spaced(indices) if distributed.is_main() else []
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    skipped, shown = [], []
    # Several scales are made from the original, not from the base scale.
    short_side = None if config.multi_scale else config.short_side
    images = read_images(
        pairs, indices, short_side, opened.preprocessing.interpolation, config.workers, device
    )
    while group := list(islice(images, at_once)):
        skipped += [skip for one in group for skip in one.skipped]
        read = [(one.index, *one.content) for one in group if one.content]
        pixels, sizes = (
            [image for _, image, _ in read],
            [tuple(truth.shape) for _, _, truth in read],
        )
        if predict:
            predicted = predict(pixels, sizes)
        else:
            predicted = map(partial(predict_classes, predictor), pixels, sizes)
        for (index, image, truth), classes in zip(read, predicted, strict=True):
            confusion += pixel_confusion(classes, truth, num_classes)
            if index in drawn:
                shown.append(Shown(pairs.path(index), image, truth, classes))
        advance(len(group))
    skipped = distributed.from_main(distributed.gather_objects(skipped))
    encoders.require_readable(pairs, skipped)
    # Sum counts exactly: float64 represents whole numbers up to 2**53.
    mean = distributed.mean_over_processes(confusion.double().to(device))
    confusion = (mean * distributed.world_size()).round().long().cpu()
    return Evaluation(confusion, skipped, shown)
