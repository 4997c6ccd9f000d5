"""Messages, tables, pictures and result files of `detect`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from mvmae.config.detect import DetectConfig
from mvmae.config.files import command_line
from mvmae.data.annotations.coco import CocoSplit, decode_masks
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.dense.detect.data import DetectionData
from mvmae.dense.detect.evaluate import Detections, Evaluation, to_coco_results
from mvmae.dense.detect.model import ANCHOR_SIDE
from mvmae.dense.pyramid import SCALES
from mvmae.dense.train import Job, count_parameters, report_files
from mvmae.errors import counted
from mvmae.figures import detection
from mvmae.figures.detection import Panel, Things
from mvmae.metrics.coco_ap import AveragePrecision
from mvmae.storage import atomic, results
from mvmae.storage import run_folder as runs
from mvmae.training import distributed
from mvmae.training.log import Log
from mvmae.training.loop import Loop

MAX_ROWS = 30  # classes in the printed table
NUM_BEST = 3  # detections drawn in an image without any above DRAWN_SCORE
TABLE_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")
NUM_WORST = 5  # classes named below the table
NUM_PICTURES = 4
DRAWN_SCORE = 0.5  # minimum score of a detection that is drawn

DetectJob = Job[DetectConfig, DetectionData]


def report_start(job: DetectJob, model: nn.Module, log: Log, step: int) -> None:
    """Print data, model and length of the run."""
    config, data = job.config, job.data
    kinds = "boxes and masks" if data.with_masks else "boxes"
    num_objects = sum(len(image.instances) for image in data.train.images)
    num_classes = len(data.train.classes)
    log.say(
        f"{len(data.train)} training images ({data.train.name}) with {num_objects} {kinds} of "
        f"{num_classes} class{'es' if num_classes > 1 else ''}, {len(data.test)} validation images "
        f"({data.test.name})"
    )
    name = "Mask R-CNN" if data.with_masks else "Faster R-CNN"
    millions = count_parameters(model) / 1e6
    log.say(
        f"{name} on {config.encoder}, {millions:.1f} M parameters at {config.image_size} pixels"
    )
    patch_size = job.opened.encoder.patch_size
    if warning := small_box_warning(relative_sides(data.train), config.image_size, patch_size):
        log.warn(warning)
    resumed = f", from step {step}" if step else ""
    log.say(
        f"{counted(config.epochs, 'epoch')} of {counted(job.plan.per_epoch, 'step')} of "
        f"{counted(config.batch_size, 'image')}{resumed} -> {config.out}"
    )


def relative_sides(split: CocoSplit) -> list[float]:
    """Side of a square with each box's area, relative to the longer side of its image."""
    return [
        ((right - left) * (bottom - top)) ** 0.5 / max(image.size)
        for image in split.images
        for left, top, right, bottom in (instance.box for instance in image.instances)
    ]


def small_box_warning(sides: Sequence[float], image_size: int, patch_size: int) -> str:
    """Return a warning if most boxes are smaller than the smallest anchors, else nothing.

    The limit is the median box: an anchor of twice its area with the same centre overlaps it by
    half.

    Args:
        sides: Result of `relative_sides`.
        image_size: Side of the square that images are fitted into, in pixels.
        patch_size: Side of the encoder's patches, in pixels.
    """
    median, anchor = float(np.median(sides)), ANCHOR_SIDE * patch_size / max(SCALES)
    min_side = anchor / sqrt(2)
    if median * image_size >= min_side:
        return ""
    multiple = 4 * patch_size  # that image sizes must be of
    sufficient = ceil(min_side / median / multiple) * multiple
    return (
        f"half of the boxes are smaller than {median * image_size:.0f} pixels at --image-size "
        f"{image_size}, and the smallest anchor is {anchor:.0f}: they will rarely be detected. "
        f"Set --image-size {sufficient}, or use an encoder with smaller patches"
    )


def report_result(job: DetectJob, loop: Loop, evaluation: Evaluation) -> None:
    """Write predictions, result and picture; print the metrics and what to do next."""
    test = job.data.test
    runs.append_skipped(job.folder, evaluation.skipped)
    predictions = to_coco_results(evaluation.found, test)
    atomic.write_text(job.folder / "predictions.json", json.dumps(predictions) + "\n")
    file = write_result(job, evaluation, loop.log.seconds())
    picture = job.folder / "figures" / "detections.png"
    runs.make(picture.parent)
    title = f"{job.config.encoder} on {job.config.data}"
    png = draw_evaluation(evaluation, test, title=title)
    atomic.write_bytes(picture, png)
    if len(test.classes) > 1:
        Console().print(class_table(evaluation, job.data))
    Console().print(summary_table(evaluation))
    loop.log.say(f"in %, COCO's metrics on the {len(test)} images of {test.name}")
    worst = worst_classes(evaluation.mask or evaluation.box)
    if worst and len(test.classes) > MAX_ROWS:
        loop.log.say(worst)
    report_files(loop, evaluation.skipped, [file, picture])
    loop.log.say(
        f"Detect objects in other images: mvmae detect {job.folder} --predict IMAGES --out FOLDER"
    )


def summary_table(evaluation: Evaluation) -> Table:
    """Return a table of the metrics that people quote, over all classes."""
    table = Table()
    table.add_column("")
    for name in TABLE_METRICS:
        table.add_column(name.replace("_", " "), justify="right")
    for name, result in (("boxes", evaluation.box), ("masks", evaluation.mask)):
        if result is not None:
            table.add_row(name, *(_percent(result.figures[metric]) for metric in TABLE_METRICS))
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def class_table(evaluation: Evaluation, data: DetectionData) -> Table:
    """Return a table of each class's number of objects and AP, the most frequent class first."""
    counts = [
        Counter(instance.label for image in split.images for instance in image.instances)
        for split in (data.train, data.test)
    ]
    results = {"AP box": evaluation.box, "AP mask": evaluation.mask}
    computed = {name: result for name, result in results.items() if result is not None}
    table = Table()
    table.add_column("class")
    for column in ("training", "validation", *computed):
        table.add_column(column, justify="right")
    order = sorted(range(len(data.test.classes)), key=lambda at: -counts[1][at + 1])
    for at in order[:MAX_ROWS]:
        name = data.test.classes[at]
        numbers = [str(count[at + 1]) for count in counts]
        values = [_percent(result.by_class[name]) for result in computed.values()]
        table.add_row(escape(name), *numbers, *values)
    if len(order) > MAX_ROWS:
        table.add_row(f"and {len(order) - MAX_ROWS} rarer classes")
    return table


def worst_classes(result: AveragePrecision) -> str:
    """List the classes of lowest AP; empty if there is one class only, or all are 0."""
    known = {name: value for name, value in result.by_class.items() if value is not None}
    if len(known) < 2 or not any(known.values()):
        return ""
    worst = sorted(known, key=lambda name: known[name])[:NUM_WORST]
    return f"lowest AP: {', '.join(f'{escape(name)} {known[name]:.1f}' for name in worst)}"


def write_result(job: DetectJob, evaluation: Evaluation, seconds: float) -> Path:
    """Write the JSON file in the run's results/."""
    config, data, mask = job.config, job.data, evaluation.mask
    content: dict[str, Any] = {
        # The default recipe depends on the machine, so the command names the recipe whose values
        # are the config's defaults.
        "command_line": f"{command_line('detect', config)} --recipe li2021",
        "headline": evaluation.figures(),
        "box": evaluation.box._asdict(),
        "mask": mask._asdict() if mask is not None else None,
        "data": {
            "name": config.data,
            "fingerprint": job.plan.fingerprint,
            "split": f"{data.train.name} and {data.test.name}",
            "num_train": len(data.train),
            "num_test": len(data.test),
            "classes": data.test.classes,
        },
        "skipped": [skip._asdict() for skip in evaluation.skipped],
        "world_size": distributed.world_size(),
        "seconds": round(seconds, 1),
    }
    return results.write(
        *(job.folder, "detect", config, content),
        device=job.device,
        world_size=distributed.world_size(),
    )


def draw_evaluation(evaluation: Evaluation, split: CocoSplit, *, title: str) -> bytes:
    """Draw ground truth and detections of some images, as PNG."""
    drawn, rule = select_drawn(choose_images(evaluation.found, split))
    panels = [panel for found in drawn if (panel := make_panel(found, split))]
    if not panels:  # none of them can be read any more
        panels = [Panel("", np.full((8, 8, 1), 255, np.uint8), Things([], []), Things([], []))]
    note = f"validation images, evenly spaced; detections drawn: {rule}"
    return detection.draw(panels, split.classes, title=title, note=note)


def choose_images(found: Sequence[Detections], split: CocoSplit) -> list[Detections]:
    """Choose a few images with objects in them, evenly spaced over the split."""
    candidates = [one for one in found if split.images[one.index].instances] or list(found)
    count = min(NUM_PICTURES, len(candidates))
    return [candidates[(2 * at + 1) * len(candidates) // (2 * count)] for at in range(count)]


def select_drawn(found: Sequence[Detections]) -> tuple[list[Detections], str]:
    """Select the detections to draw: sure ones, or an image's best if none is sure.

    Returns:
        The detections, and the rule in words.
    """
    drawn = [one.above(min(DRAWN_SCORE, _score_of_best(one.scores))) for one in found]
    maxima = [max(one.scores) for one in found if one.scores]
    if min(maxima, default=DRAWN_SCORE) >= DRAWN_SCORE:
        return drawn, f"score {DRAWN_SCORE} or more"
    if max(maxima) >= DRAWN_SCORE:
        return drawn, f"score {DRAWN_SCORE} or more, or the best {NUM_BEST} of an image without any"
    rule = f"the best {NUM_BEST} of each image, none has a score of {DRAWN_SCORE}"
    return drawn, f"{rule} (highest: {max(maxima):.2f})"


def _score_of_best(scores: Sequence[float]) -> float:
    """Minimum score of the detections drawn in an image where none is sure."""
    best = sorted(scores)[-NUM_BEST:]
    return best[0] if best and best[-1] < DRAWN_SCORE else DRAWN_SCORE


def make_panel(found: Detections, split: CocoSplit) -> Panel | None:
    """Combine an image with its ground truth and detections; None if it cannot be read."""
    image = split.images[found.index]
    try:
        pixels = split.read(found.index).permute(1, 2, 0).numpy()
    except UnreadableImageError:
        return None
    masks = None
    if split.with_masks:
        masks = list(decode_masks(image.instances, image.size).bool().numpy())
    truth = Things(
        [instance.box for instance in image.instances],
        [instance.label for instance in image.instances],
        masks=masks,
    )
    return Panel(image.path.name, pixels, truth, to_things(found))


def to_things(found: Detections) -> Things:
    """Convert detections for drawing."""
    masks = None
    if found.masks is not None:
        masks = [rle.decode(mask).astype(bool) for mask in found.masks]
    return Things(found.boxes, found.labels, found.scores, masks)
