"""What `detect` says and leaves: figures of each class, pictures, predictions, JSON."""

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

from mvmae.config.files import command_line
from mvmae.data.annotations.coco import CocoSplit, decode_masks
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.dense.detect.evaluate import Detections, Evaluation, to_coco_results
from mvmae.dense.detect.model import ANCHOR_SIDE
from mvmae.dense.detect.opening import Detection
from mvmae.dense.detect.state import DetectState, Job, Trained, run_folder
from mvmae.dense.pyramid import SCALES
from mvmae.errors import counted
from mvmae.figures import detection
from mvmae.figures.detection import Panel, Things
from mvmae.metrics.coco_ap import AveragePrecision
from mvmae.storage import results
from mvmae.storage import run_folder as runs
from mvmae.training import checkpoint, distributed
from mvmae.training.log import Log

MOST_ROWS = 30  # classes in the table on the screen
SUREST = 3  # detections drawn in each image where none is above DRAWN_SCORE
SHOWN = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")  # on the screen
WORST = 5  # classes named on the screen
PICTURES = 4
DRAWN_SCORE = 0.5  # from which a detection is drawn


def report_start(log: Log, job: Job, trained: Trained, state: DetectState) -> None:
    """Say what is about to happen."""
    config, data = job.config, job.data
    size = sum(p.numel() for p in trained.model.parameters()) / 1e6
    kinds = "boxes and masks" if data.with_masks else "boxes"
    things = sum(len(picture.instances) for picture in data.train.images)
    classes = len(data.train.classes)
    log.say(
        f"{len(data.train)} images with {things} {kinds} of {classes} "
        f"class{'es' if classes > 1 else ''} learn ({data.train.name}), {len(data.test)} test "
        f"({data.test.name})"
    )
    name = "Mask R-CNN" if data.with_masks else "Faster R-CNN"
    log.say(f"{name} on {config.encoder}, {size:.1f} M parameters at {config.image_size} pixels")
    patch = job.opened.encoder.patch_size
    if warning := small_box_warning(relative_sides(data.train), config.image_size, patch):
        log.warn(warning)
    resumed = f", from step {state.step}" if state.step else ""
    log.say(
        f"{counted(config.epochs, 'epoch')} of {counted(job.plan.per_epoch, 'step')} of "
        f"{counted(config.batch_size, 'image')}{resumed} -> {config.out}"
    )


def relative_sides(split: CocoSplit) -> list[float]:
    """Side of a square of each box's area, over the longer side of its image."""
    return [
        ((right - left) * (bottom - top)) ** 0.5 / max(picture.size)
        for picture in split.images
        for left, top, right, bottom in (thing.box for thing in picture.instances)
    ]


def small_box_warning(sides: Sequence[float], image_size: int, patch_size: int) -> str:
    """A warning where most boxes are smaller than what is looked for; else nothing.

    An anchor of a box's middle and of twice its area overlaps it by half.

    Args:
        sides: From `relative_sides`.
        image_size: Of the square that images are fitted into, in pixels.
        patch_size: Of the encoder.
    """
    middle, anchor = float(np.median(sides)), ANCHOR_SIDE * patch_size / max(SCALES)
    least = anchor / sqrt(2)
    if middle * image_size >= least:
        return ""
    whole = 4 * patch_size
    wanted = ceil(least / middle / whole) * whole
    return (
        f"half of the boxes are smaller than {middle * image_size:.0f} pixels at --image-size "
        f"{image_size}, and the smallest anchor is {anchor:.0f}: they will hardly be found. "
        f"--image-size {wanted} would do, or an encoder of smaller patches"
    )


def report_result(log: Log, job: Job, judgement: Evaluation, state: DetectState) -> None:
    """The figures, on the screen and in files, and what to do next."""
    out, test = run_folder(job.config), job.data.test
    runs.append_skipped(out, judgement.skipped)
    found = to_coco_results(judgement.found, test)
    checkpoint.write_text(out / "predictions.json", json.dumps(found) + "\n")
    file = write_result(log, job, judgement)
    picture = out / "figures" / "detections.png"
    runs.make(picture.parent)
    png = draw_evaluation(judgement.found, test, title=f"{job.config.encoder} on {job.config.data}")
    checkpoint.write_whole(picture, lambda stream: stream.write(png))
    if len(test.classes) > 1:
        Console().print(class_table(judgement, job.data))
    Console().print(summary_table(judgement))
    log.say(f"in %, COCO's figures on the {len(test)} images of {test.name}")
    worst = worst_classes(judgement.mask or judgement.box)
    if worst and len(test.classes) > MOST_ROWS:
        log.say(worst)
    if state.unreadable or judgement.skipped:
        log.say(f"images that could not be read: {out / 'skipped.csv'}")
    minutes, seconds = divmod(round(log.seconds()), 60)
    log.say(f"{state.step} steps in {minutes}:{seconds:02}. Written: {file} and {picture}")
    log.say(f"Find things in other images: mvmae detect {out} --predict IMAGES --out FOLDER")


def summary_table(judgement: Evaluation) -> Table:
    """The figures that people quote."""
    table = Table()
    table.add_column("")
    for name in SHOWN:
        table.add_column(name.replace("_", " "), justify="right")
    for name, one in (("boxes", judgement.box), ("masks", judgement.mask)):
        if one is not None:
            table.add_row(name, *(_said(one.figures[figure]) for figure in SHOWN))
    return table


def _said(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def class_table(judgement: Evaluation, data: Detection) -> Table:
    """A row a class, the most frequent first: how often it is there, and its AP."""
    counts = [
        Counter(thing.label for picture in split.images for thing in picture.instances)
        for split in (data.train, data.test)
    ]
    table = Table()
    table.add_column("class")
    kinds = {"AP box": judgement.box, "AP mask": judgement.mask}
    for column in ("learnt", "tested", *(name for name, one in kinds.items() if one is not None)):
        table.add_column(column, justify="right")
    order = sorted(range(len(data.test.classes)), key=lambda at: -counts[1][at + 1])
    for at in order[:MOST_ROWS]:
        name = data.test.classes[at]
        numbers = [str(count[at + 1]) for count in counts]
        values = [_said(one.by_class[name]) for one in kinds.values() if one is not None]
        table.add_row(escape(name), *numbers, *values)
    if len(order) > MOST_ROWS:
        table.add_row(f"and {len(order) - MOST_ROWS} rarer classes")
    return table


def worst_classes(judged: AveragePrecision) -> str:
    """The classes of lowest AP, as a sentence; nothing where there is one class, or all are 0."""
    known = {name: value for name, value in judged.by_class.items() if value is not None}
    if len(known) < 2 or not any(known.values()):
        return ""
    worst = sorted(known, key=lambda name: known[name])[:WORST]
    return f"lowest AP: {', '.join(f'{escape(name)} {known[name]:.1f}' for name in worst)}"


def write_result(log: Log, job: Job, judgement: Evaluation) -> Path:
    """The JSON in the run's results/."""
    config, data, mask = job.config, job.data, judgement.mask
    content: dict[str, Any] = {
        # What is not given comes from a recipe, and which one depends on the machine.
        "command_line": f"{command_line('detect', config)} --recipe li2021",
        "headline": judgement.figures(),
        "box": judgement.box._asdict(),
        "mask": mask._asdict() if mask is not None else None,
        "data": {
            "name": config.data,
            "fingerprint": job.plan.fingerprint,
            "split": f"{data.train.name} and {data.test.name}",
            "num_train": len(data.train),
            "num_test": len(data.test),
            "classes": data.test.classes,
        },
        "skipped": [skip._asdict() for skip in judgement.skipped],
        "world_size": distributed.world_size(),
        "seconds": round(log.seconds(), 1),
    }
    return results.write(run_folder(config), "detect", config, content, device=job.device)


def draw_evaluation(found: Sequence[Detections], split: CocoSplit, *, title: str) -> bytes:
    """A PNG of some images with what is there and what was found."""
    drawn, note = select_drawn(choose_images(found, split))
    panels = [panel for one in drawn if (panel := make_panel(one, split))]
    if not panels:  # none of them can be read any more
        panels = [Panel("", np.full((8, 8, 1), 255, np.uint8), Things([], []), Things([], []))]
    note = f"validation images, evenly chosen; found: {note}"
    return detection.draw(panels, split.classes, title=title, note=note)


def choose_images(found: Sequence[Detections], split: CocoSplit) -> list[Detections]:
    """Some images with something in them, evenly spread over the split."""
    filled = [one for one in found if split.images[one.index].instances] or list(found)
    count = min(PICTURES, len(filled))
    return [filled[(2 * at + 1) * len(filled) // (2 * count)] for at in range(count)]


def select_drawn(found: Sequence[Detections]) -> tuple[list[Detections], str]:
    """What is sure enough to be drawn, in an image without that the surest; and which of both."""
    drawn = [one.above(min(DRAWN_SCORE, _surest(one.scores))) for one in found]
    bests = [max(one.scores) for one in found if one.scores]
    if min(bests, default=DRAWN_SCORE) >= DRAWN_SCORE:
        return drawn, f"score {DRAWN_SCORE} or more"
    if max(bests) >= DRAWN_SCORE:
        return drawn, f"score {DRAWN_SCORE} or more, and where there is none the {SUREST} surest"
    said = f"no score of {DRAWN_SCORE}, so the {SUREST} surest; the best here is {max(bests):.2f}"
    return drawn, said


def _surest(scores: Sequence[float]) -> float:
    """The score from which the surest are drawn where none is sure."""
    few = sorted(scores)[-SUREST:]
    return few[0] if few and few[-1] < DRAWN_SCORE else DRAWN_SCORE


def make_panel(one: Detections, split: CocoSplit) -> Panel | None:
    """An image with its truth; none where it cannot be read."""
    picture = split.images[one.index]
    try:
        pixels = split.read(one.index).permute(1, 2, 0).numpy()
    except UnreadableImageError:
        return None
    masks = None
    if split.with_masks:
        masks = list(decode_masks(picture.instances, picture.size).bool().numpy())
    truth = Things(
        [thing.box for thing in picture.instances],
        [thing.label for thing in picture.instances],
        masks=masks,
    )
    return Panel(picture.path.name, pixels, truth, to_things(one))


def to_things(found: Detections) -> Things:
    """What was found, to be drawn."""
    masks = None
    if found.masks is not None:
        masks = [rle.decode(mask).astype(bool) for mask in found.masks]
    return Things(found.boxes, found.labels, found.scores, masks)
