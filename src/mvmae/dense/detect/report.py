"""Messages, tables, pictures and result files of `detect`."""

import json
from collections import Counter
from collections.abc import Mapping
from math import ceil, sqrt
from typing import Any

import numpy as np
from rich.table import Table
from torch import nn

from mvmae import terminal
from mvmae.config.detect import DetectConfig
from mvmae.config.files import command_line
from mvmae.data.annotations.coco import CocoSplit, decode_masks
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.dense.backbone import SCALES
from mvmae.dense.detect.data import DetectionData, DetectJob
from mvmae.dense.detect.evaluate import Detections, Evaluation
from mvmae.dense.detect.model import ANCHOR_SIDE
from mvmae.dense.train import MAX_ROWS, build_table, class_table, evenly_spaced, percent
from mvmae.errors import pluralize
from mvmae.figures import detection
from mvmae.figures.detection import Panel, Things
from mvmae.metrics.coco_ap import AveragePrecision
from mvmae.storage import atomic
from mvmae.training.loop import Loop
from mvmae.training.plan import Plan

NUM_BEST = 3  # detections drawn in an image without any above DRAWN_SCORE
METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")  # printed
NUM_WORST = 5  # classes named below the table
DRAWN_SCORE = 0.5  # minimum score of a detection that is drawn


def introduce(config: DetectConfig, data: DetectionData, plan: Plan, model: nn.Module) -> str:
    """Describe data, model and length of a run."""
    train, test = data
    kinds, name = "boxes", "Faster R-CNN"
    if train.with_masks:
        kinds, name = "boxes and masks", "Mask R-CNN"
    num_objects = sum(len(image.instances) for image in train.images)
    classes = f"{len(train.classes)} class{'es' * (len(train.classes) > 1)}"
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return (
        f"{len(train)} training images ({train.name}) with {num_objects} {kinds} of {classes}, "
        f"{len(test)} validation images ({test.name})\n"
        f"{name} on {config.encoder}, {millions:.1f} M parameters at {config.image_size} pixels\n"
        f"{pluralize(config.epochs, 'epoch')} of {pluralize(plan.per_epoch, 'step')} of "
        f"{pluralize(config.batch_size, 'image')}"
    )


def small_box_warning(split: CocoSplit, image_size: int, patch_size: int) -> str:
    """Return a warning if most boxes are smaller than the smallest anchors, else nothing.

    The limit is the median box: an anchor of twice its area with the same centre overlaps it by
    half.

    Args:
        split: Training images.
        image_size: Side of the square that images are fitted into, in pixels.
        patch_size: Side of the encoder's patches, in pixels.
    """
    sides = [  # of a square of the box's area, relative to the longer side of the image
        ((right - left) * (bottom - top)) ** 0.5 / max(image.size)
        for image in split.images
        for left, top, right, bottom in (instance.box for instance in image.instances)
    ]
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


def report(job: DetectJob, evaluation: Evaluation, loop: Loop) -> dict[str, Any]:
    """Print the metrics and write predictions.json; return the content of the result."""
    (train, test), mask = job.data, evaluation.mask
    atomic.write_text(loop.folder / "predictions.json", json.dumps(evaluation.results) + "\n")
    kinds = {"box": evaluation.box} | ({"mask": mask} if mask else {})
    if len(test.classes) > 1:
        terminal.print_table(table_of_classes(job.data, kinds))
    rows = [
        ("masks" if kind == "mask" else "boxes", *(percent(ap.figures[name]) for name in METRICS))
        for kind, ap in kinds.items()
    ]
    terminal.print_table(build_table(("", *(name.replace("_", " ") for name in METRICS)), rows))
    loop.log.say(f"in %, COCO's metrics on the {len(test)} images of {test.name}")
    by_class = (mask or evaluation.box).by_class
    known = {name: value for name, value in by_class.items() if value is not None}
    if len(test.classes) > MAX_ROWS and any(known.values()):
        worst = sorted(known, key=lambda name: known[name])[:NUM_WORST]
        loop.log.say(f"lowest AP: {', '.join(f'{name} {known[name]:.1f}' for name in worst)}")
    return {
        # The default recipe depends on the machine, so the command names the recipe whose values
        # are the config's defaults.
        "command_line": f"{command_line('detect', job.config)} --recipe li2021",
        "headline": evaluation.figures(),
        "box": evaluation.box._asdict(),
        "mask": mask._asdict() if mask else None,
        "data": {
            "name": job.config.data,
            "fingerprint": job.plan.fingerprint,
            "split": f"{train.name} and {test.name}",
            "num_train": len(train),
            "num_test": len(test),
            "classes": test.classes,
        },
        "skipped": [skip._asdict() for skip in evaluation.skipped],
    }


def table_of_classes(data: DetectionData, kinds: Mapping[str, AveragePrecision]) -> Table:
    """Return a table of each class's number of objects and AP, the most frequent class first."""
    counts = [
        Counter(instance.label for image in split.images for instance in image.instances)
        for split in data
    ]
    order = sorted(range(len(data.test.classes)), key=lambda at: -counts[1][at + 1])
    rows = [
        (
            data.test.classes[at],
            *(str(count[at + 1]) for count in counts),
            *(percent(result.by_class[data.test.classes[at]]) for result in kinds.values()),
        )
        for at in order
    ]
    return class_table(("training", "validation", *(f"AP {kind}" for kind in kinds)), rows)


def draw_evaluation(job: DetectJob, evaluation: Evaluation, title: str) -> bytes:
    """Draw ground truth and detections of some images, as PNG."""
    split, found = job.data.test, evaluation.found
    chosen = evenly_spaced([one for one in found if split.images[one.index].instances] or found)
    panels = [panel for one in chosen if (panel := make_panel(sure_or_best(one), split))]
    if not panels:  # none of them can be read any more
        panels = [Panel("", np.full((8, 8, 1), 255, np.uint8), Things([], []), Things([], []))]
    highest = max((one.scores[0] for one in chosen if one.scores), default=0.0)
    note = (
        f"validation images, evenly spaced; detections drawn: score {DRAWN_SCORE} or more, or the "
        f"best {NUM_BEST} of an image without any (highest score: {highest:.2f})"
    )
    return detection.draw(panels, split.classes, title=title, note=note)


def sure_or_best(found: Detections) -> Detections:
    """Select the detections to draw in an image: sure ones, or its best if none is sure."""
    is_sure = not found.scores or found.scores[0] >= DRAWN_SCORE
    return found.above(DRAWN_SCORE if is_sure else found.scores[:NUM_BEST][-1])


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
    boxes = [instance.box for instance in image.instances]
    labels = [instance.label for instance in image.instances]
    truth = Things(boxes, labels, masks=masks)
    return Panel(image.path.name, pixels, truth, found.as_things())
