"""Predict the classes of whole images by sliding windows, compute mIoU, and report it.

Shapes: C channels, K classes, H x W pixels.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice, product
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int16
from rich.table import Table
from torch import Tensor

from mvmae import encoders, terminal
from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.masks import ImageMaskPairs, SegmentationData, fingerprint
from mvmae.data.reading.decode import Pixels
from mvmae.data.reading.loader import Skipped
from mvmae.dense.batches import scaled_size
from mvmae.dense.saved_model import Predictor
from mvmae.dense.segment.data import SegmentJob, base_scale, read_images, resize_to_base
from mvmae.dense.segment.model import resize
from mvmae.dense.train import class_table, evenly_spaced, percent, write_picture
from mvmae.figures import segmentation
from mvmae.figures.segmentation import Shown
from mvmae.method.views import normalize
from mvmae.metrics.miou import SegmentationScores, pixel_confusion, segmentation_scores
from mvmae.storage import results
from mvmae.training import distributed, precision
from mvmae.training.loop import Loop

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of a multi-scale test, as in mmsegmentation
MAX_WINDOWS = 16  # in a batch
CLASS_CHUNK = 16  # classes resized at a time
MAX_CONFUSION = 200  # classes up to which the JSON has the confusion matrix

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
        metrics, names = self.scores, ("miou", "mean_accuracy", "pixel_accuracy")
        return {name: round(getattr(metrics, name), 4) for name in names}


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
    corners = product(
        window_offsets(padded[0], h, config.window_stride),
        window_offsets(padded[1], w, config.window_stride),
    )
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
        return sliding_scores(predictor, normalize(image[None], mean, std, predictor.device)[0])

    if not predictor.config.multi_scale:
        return score(resize_to_base(pixels, short_side, interpolation))
    size = (pixels.shape[1], pixels.shape[2])
    base_size = scaled_size(size, base_scale(size, short_side))
    total = torch.zeros((), device=predictor.device)
    for factor in SCALES:
        image = resize_to_base(pixels, short_side, interpolation, factor)
        for mirrored in (False, True):
            # Scores of different scales are not comparable, probabilities are.
            probabilities = score(image.flip(-1) if mirrored else image).softmax(dim=0)
            resized = resize(probabilities[None], base_size)[0]
            total = total + (resized.flip(-1) if mirrored else resized)
    return total / (2 * len(SCALES))


def label_pixels(scores: Float[Tensor, "K h w"], size: Size) -> Int16[Tensor, "H W"]:
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
    predictor.model.eval()
    predict = predict or partial(map, partial(predict_classes, predictor))
    indices = range(distributed.rank(), len(pairs), distributed.world_size())
    drawn = evenly_spaced(indices) if distributed.is_main() else []
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    skipped, shown = [], []
    images = read_images(predictor, pairs, indices)
    while group := list(islice(images, at_once)):
        skipped += [skip for one in group for skip in one.skipped]
        read = [(one.index, *one.content) for one in group if one.content]
        pixels = [image for _, image, _ in read]
        sizes = [tuple(truth.shape) for _, _, truth in read]
        for (index, image, truth), classes in zip(read, predict(pixels, sizes), strict=True):
            confusion += pixel_confusion(classes, truth, num_classes)
            if index in drawn:
                shown.append(Shown(pairs.path(index), image, truth, classes))
        advance(len(group))
    # All processes get the whole list, so that either all of them stop or none.
    skipped = distributed.from_main(distributed.gather_objects(skipped))
    encoders.require_readable(pairs, skipped)
    # Sum counts exactly: float64 represents whole numbers up to 2**53.
    mean = distributed.mean_over_processes(confusion.double().to(predictor.device))
    confusion = (mean * distributed.world_size()).round().long().cpu()
    return Evaluation(confusion, skipped, shown)


def report(job: SegmentJob, evaluation: Evaluation, loop: Loop) -> dict[str, Any]:
    """Print the metrics; return the content of the result."""
    terminal.print_table(table_of_classes(evaluation, job.data))
    loop.log.say(describe(evaluation))
    return result_content(evaluation, job.data)


def write_outputs(
    folder: Path,
    name: str,
    title: str,
    config: SegmentConfig,
    device: torch.device,
    data: SegmentationData,
    evaluation: Evaluation,
    **facts: Any,
) -> None:
    """Write result and picture of an evaluation that makes no run, and print where they are."""
    world_size = distributed.world_size()
    file = results.write(
        *(folder, "segment", config, result_content(evaluation, data) | facts),
        device=device,
        world_size=world_size,
        name=f"{name}-{results.slug(data.name)}",
    )
    picture = write_picture(folder, name, draw(evaluation, data, title))
    console = terminal.console()
    console.print(f"written: {file} and {picture}")


def result_content(evaluation: Evaluation, data: SegmentationData) -> dict[str, Any]:
    """Return the content of a result file: metrics, data and skipped images."""
    metrics = evaluation.scores
    pixels = evaluation.confusion.sum(dim=1).tolist()
    rows = zip(data.classes, metrics.iou.tolist(), metrics.accuracy.tolist(), pixels, strict=True)
    content = {
        "headline": evaluation.figures(),
        "per_class": [
            {
                "class": name,
                "iou": None if isnan(iou) else round(iou, 4),
                "accuracy": None if isnan(accuracy) else round(accuracy, 4),
                "pixels": count,
            }
            for name, iou, accuracy, count in rows
        ],
        "data": {
            "name": data.name,
            "fingerprint": fingerprint(data),
            "split": data.split,
            "num_train": len(data.train),
            "num_test": len(data.test) - len(evaluation.skipped),
            "classes": list(data.classes),
            "ignored_value": data.test.rule.ignored,
        },
        "skipped": [skip._asdict() for skip in evaluation.skipped],
    }
    if len(data.classes) <= MAX_CONFUSION:  # 1,000 classes would be a million numbers
        content["confusion"] = evaluation.confusion.tolist()
    return content


def table_of_classes(evaluation: Evaluation, data: SegmentationData) -> Table:
    """Return a table of each class's share of the pixels, IoU and accuracy, largest class first."""
    metrics, pixels = evaluation.scores, evaluation.confusion.sum(dim=1)
    total = max(1, int(pixels.sum()))
    rows = [
        (
            data.classes[at],
            f"{100 * int(pixels[at]) / total:.1f}",
            percent(metrics.iou[at].item()),
            percent(metrics.accuracy[at].item()),
        )
        for at in pixels.argsort(descending=True, stable=True).tolist()
    ]
    table = class_table(("share", "IoU", "accuracy"), rows)
    table.add_section()
    table.add_row("mean", "", f"{metrics.miou:.1f}", f"{metrics.mean_accuracy:.1f}")
    return table


def describe(evaluation: Evaluation) -> str:
    """State the three metrics in one sentence, and what the mean leaves out."""
    metrics = evaluation.scores
    absent = int(metrics.iou.isnan().sum())
    left_out = ""
    if absent:
        left_out = f"; classes left out of the mean, neither in the masks nor predicted: {absent}"
    return (
        f"mIoU {metrics.miou:.1f}, mean accuracy {metrics.mean_accuracy:.1f}, pixel accuracy "
        f"{metrics.pixel_accuracy:.1f} (in %, over the pixels of all test images{left_out})"
    )


def draw(evaluation: Evaluation, data: SegmentationData, title: str) -> bytes:
    """Draw masks and predictions of some test images, as PNG."""
    miou = evaluation.scores.miou
    note = (
        f"test images, evenly spaced over {data.name}; mIoU of all {len(data.test)}: {miou:.1f} %"
    )
    return segmentation.draw(evaluation.shown, data.classes, title=title, note=note)
