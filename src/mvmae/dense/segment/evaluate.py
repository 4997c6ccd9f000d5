"""What a segmenter makes of whole images: windows that overlap, scales, mirrors, and figures.

Shapes: C channels, K classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int16
from torch import Tensor, nn

from mvmae.data.annotations.masks import ImageMaskPairs
from mvmae.data.reading.decode import Pixels
from mvmae.data.reading.loader import Skipped
from mvmae.dense.segment.crops import base_scale, resize_to_base, scaled_size, whole_images
from mvmae.dense.segment.model import resize_scores
from mvmae.encoders import Preprocessing
from mvmae.errors import UserError
from mvmae.figures.segmentation import Shown
from mvmae.method.views import normalized, resize
from mvmae.metrics.miou import SegmentationScores, pixel_confusion, segmentation_scores
from mvmae.training import distributed, precision

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
CHUNK = 16  # classes brought to an image's size at a time
PICTURES = 4  # test images that are drawn


class Predictor(NamedTuple):
    """A model, and how it looks at images."""

    model: nn.Module
    """Gives `Scores` for images of any size that the patch divides."""

    patch: int
    crop: int
    """Side of a window, in pixels."""

    stride: int
    short_side: int | None
    preprocessing: Preprocessing
    device: torch.device
    precision: str
    at_once: int
    """Windows."""

    multi_scale: bool = False


class Evaluation(NamedTuple):
    """What a segmenter makes of test images."""

    confusion: Int[Tensor, "K K"]
    skipped: list[Skipped]
    shown: list[Shown]
    """Some of the images, on the main process."""

    @property
    def quality(self) -> SegmentationScores:
        """The figures."""
        return segmentation_scores(self.confusion)

    def figures(self) -> dict[str, float]:
        """Those for a line of metrics, in percent."""
        own = self.quality
        return {
            "miou": round(own.miou, 4),
            "mean_accuracy": round(own.mean_accuracy, 4),
            "pixel_accuracy": round(own.pixel_accuracy, 4),
        }


def window_offsets(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover a side; the last ends where it does."""
    count = max(0, -(-(side - window) // stride)) + 1
    return [min(number * stride, side - window) for number in range(count)]


def sliding_scores(examiner: Predictor, image: Float[Tensor, "C H W"]) -> Float[Tensor, "K H W"]:
    """Scores of each pixel, averaged over the windows that hold it.

    An image smaller than the window is its own window, with the mean pixel beyond its edge up to a
    whole patch.
    """
    size = (image.shape[1], image.shape[2])
    patch = examiner.patch
    window = [min(examiner.crop, max(2 * patch, -(-side // patch) * patch)) for side in size]
    lacks = [max(0, want - side) for want, side in zip(window, size, strict=True)]
    image = F.pad(image, (0, lacks[1], 0, lacks[0]))
    h, w = window
    sides = (image.shape[1], image.shape[2])
    begins = (window_offsets(s, v, examiner.stride) for s, v in zip(sides, window, strict=True))
    corners = list(product(*begins))
    total, counts = None, image.new_zeros(sides)
    for begin in range(0, len(corners), examiner.at_once):
        some = corners[begin : begin + examiner.at_once]
        cut = torch.stack([image[:, top : top + h, left : left + w] for top, left in some])
        with precision.autocast(examiner.device, examiner.precision):
            scores = examiner.model(cut).main
        for (top, left), one in zip(some, resize_scores(scores, (h, w)), strict=True):
            if total is None:
                total = one.new_zeros(len(one), *sides)
            total[:, top : top + h, left : left + w] += one
            counts[top : top + h, left : left + w] += 1
    assert total is not None
    return (total / counts)[:, : size[0], : size[1]]


def score_image(examiner: Predictor, pixels: Pixels) -> Float[Tensor, "K rows columns"]:
    """Scores at the base scale; with several scales and mirrors, their mean probabilities."""
    mean, std, interpolation = examiner.preprocessing

    def scored(image: Pixels) -> Tensor:
        return sliding_scores(examiner, normalized(image[None], mean, std, examiner.device)[0])

    if not examiner.multi_scale:
        return scored(resize_to_base(pixels, examiner.short_side, interpolation))
    size = (pixels.shape[1], pixels.shape[2])
    base = base_scale(size, examiner.short_side)
    whole = scaled_size(size, base)
    total = torch.zeros((), device=examiner.device)
    for scale in SCALES:
        wanted = list(scaled_size(size, base * scale))
        image = resize(pixels, wanted, interpolation)
        for mirrored in (False, True):
            scores = scored(image.flip(-1) if mirrored else image).softmax(dim=0)
            scores = resize_scores(scores[None], whole)[0]
            total = total + (scores.flip(-1) if mirrored else scores)
    return total / (2 * len(SCALES))


def label_pixels(scores: Float[Tensor, "K h w"], size: tuple[int, int]) -> Int16[Tensor, "H W"]:
    """The class of largest score at each pixel of an image of this size.

    A few classes at a time are brought to the size: all 150 of ADE20K would take gigabytes.
    """
    best, where = None, None
    for at, some in enumerate(scores.split(CHUNK)):
        values, places = resize_scores(some[None], size)[0].max(dim=0)
        places = (places + at * CHUNK).to(torch.int16)
        if best is None or where is None:
            best, where = values, places
        else:
            where = torch.where(values > best, places, where)
            best = torch.maximum(values, best)
    assert where is not None
    return where


def predict_classes(
    examiner: Predictor, pixels: Pixels, size: tuple[int, int]
) -> Int16[Tensor, "rows columns"]:
    """The classes of an image's pixels, at `size`, on the CPU."""
    with torch.inference_mode():
        return label_pixels(score_image(examiner, pixels), size).cpu()


def evaluate(
    examiner: Predictor,
    pairs: ImageMaskPairs,
    num_classes: int,
    *,
    workers: int | None,
    advance: Callable[[int], object] = lambda count: None,
) -> Evaluation:
    """Name the pixels of all test images; processes share them, and all get the sum.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    examiner.model.eval()
    distributed.share_buffers(examiner.model)
    places = range(distributed.rank(), len(pairs), distributed.world_size())
    drawn = evenly_spaced(list(places)) if distributed.is_main() else set()
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    skipped, shown = [], []
    for whole in _images(examiner, pairs, places, workers):
        skipped += whole.skipped
        advance(1)
        if whole.image is None or whole.classes is None:
            continue
        size = (whole.classes.shape[0], whole.classes.shape[1])
        classes = predict_classes(examiner, whole.image, size)
        confusion += pixel_confusion(classes, whole.classes, num_classes)
        if whole.index in drawn:
            name = pairs.path(whole.index)
            shown.append(Shown(name, whole.image, whole.classes, classes))
    whole_confusion = _summed(confusion, examiner.device)
    skipped = distributed.from_main(distributed.gather_objects(skipped))
    if len(skipped) > len(pairs) / 2:
        path, reason = skipped[0]
        raise UserError(
            f"{len(skipped)} of the {len(pairs)} test images cannot be read, {path} for one "
            f"({reason})"
        )
    return Evaluation(whole_confusion, skipped, shown)


def _images(
    examiner: Predictor, pairs: ImageMaskPairs, places: range, workers: int | None
) -> Iterator:
    """With several scales each is made of the original, not of the base scale."""
    yield from whole_images(
        pairs,
        short_side=None if examiner.multi_scale else examiner.short_side,
        interpolation=examiner.preprocessing.interpolation,
        workers=workers,
        cuda=examiner.device.type == "cuda",
        indices=places,
    )


def evenly_spaced(places: list[int]) -> set[int]:
    """A few of the places, evenly spread."""
    count = min(PICTURES, len(places))
    return {places[len(places) * (2 * at + 1) // (2 * count)] for at in range(count)}


def _summed(confusion: Tensor, device: torch.device) -> Int[Tensor, "K K"]:
    """Over all processes; float64 holds whole numbers up to 2**53."""
    mean = distributed.mean_over_processes(confusion.double().to(device))
    return (mean * distributed.world_size()).round().long().cpu()
