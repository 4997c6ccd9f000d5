"""What `detect` says and leaves: figures of each class, pictures, predictions, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvmae.config.files import command_of
from mvmae.data.coco import CocoSplit, masks_of
from mvmae.data.decode import UnreadableImageError
from mvmae.engine import checkpoint, distributed, results, runs
from mvmae.engine.log import Log
from mvmae.figures import detections
from mvmae.figures.detections import Panel, Things
from mvmae.metrics.coco_ap import AveragePrecision
from mvmae.tasks.detecting.judging import Found, Judgement, in_coco_format
from mvmae.tasks.detecting.state import DetectState, Job, Trained, run_folder

SHOWN = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")  # on the screen
WORST = 5  # classes named on the screen
PICTURES = 4
DRAWN_SCORE = 0.5  # from which a detection is drawn


def introduce(log: Log, job: Job, trained: Trained, state: DetectState) -> None:
    """Say what is about to happen."""
    config, data = job.config, job.data
    size = sum(p.numel() for p in trained.model.parameters()) / 1e6
    kinds = "boxes and masks" if data.with_masks else "boxes"
    things = sum(len(picture.things) for picture in data.train.pictures)
    classes = len(data.train.classes)
    log.say(
        f"{len(data.train)} images with {things} {kinds} of {classes} "
        f"class{'es' if classes > 1 else ''} learn ({data.train.name}), {len(data.test)} test "
        f"({data.test.name})"
    )
    name = "Mask R-CNN" if data.with_masks else "Faster R-CNN"
    log.say(f"{name} on {config.encoder}, {size:.1f} M parameters at {config.image_size} pixels")
    resumed = f", from step {state.step}" if state.step else ""
    log.say(
        f"{config.epochs} epochs of {job.plan.per_epoch} steps of {config.batch_size} "
        f"images{resumed} -> {config.out}"
    )


def conclude(log: Log, job: Job, judgement: Judgement, state: DetectState) -> None:
    """The figures, on the screen and in files, and what to do next."""
    out, test = run_folder(job.config), job.data.test
    runs.append_skipped(out, judgement.skipped)
    found = in_coco_format(judgement.found, test)
    checkpoint.write_text(out / "predictions.json", json.dumps(found) + "\n")
    picture = out / "figures" / "detections.png"
    runs.make(picture.parent)
    png = picture_of(judgement.found, test, title=f"{job.config.encoder} on {job.config.data}")
    checkpoint.write_whole(picture, lambda stream: stream.write(png))
    file = write_result(log, job, judgement)
    Console().print(table_of(judgement))
    log.say(f"in %, COCO's figures on the {len(test)} images of {test.name}")
    if worst := worst_classes(judgement.mask or judgement.box):
        log.say(worst)
    if state.unreadable or judgement.skipped:
        log.say(f"images that could not be read: {out / 'skipped.csv'}")
    minutes, seconds = divmod(round(log.seconds()), 60)
    log.say(f"{state.step} steps in {minutes}:{seconds:02}. Written: {file} and {picture}")
    log.say(f"Find things in other images: mvmae detect {out} --predict IMAGES --out FOLDER")


def table_of(judgement: Judgement) -> Table:
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


def worst_classes(judged: AveragePrecision) -> str:
    """The classes of lowest AP, as a sentence; nothing where there is one class, or all are 0."""
    known = {name: value for name, value in judged.by_class.items() if value is not None}
    if len(known) < 2 or not any(known.values()):
        return ""
    worst = sorted(known, key=lambda name: known[name])[:WORST]
    return f"lowest AP: {', '.join(f'{escape(name)} {known[name]:.1f}' for name in worst)}"


def write_result(log: Log, job: Job, judgement: Judgement) -> Path:
    """The JSON in the run's results/."""
    config, data, mask = job.config, job.data, judgement.mask
    content: dict[str, Any] = {
        # What is not given comes from a recipe, and which one depends on the machine.
        "command": f"{command_of('detect', config)} --recipe li2021",
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


def picture_of(found: Sequence[Found], split: CocoSplit, *, title: str) -> bytes:
    """A PNG of some images with what is there and what was found."""
    panels = [panel for one in chosen(found, split) if (panel := panel_of(one, split))]
    if not panels:  # none of them can be read any more
        panels = [Panel("", np.full((8, 8, 1), 255, np.uint8), Things([], []), Things([], []))]
    note = f"validation images, evenly chosen; found: score {DRAWN_SCORE} or more"
    return detections.draw(panels, split.classes, title=title, note=note)


def chosen(found: Sequence[Found], split: CocoSplit) -> list[Found]:
    """Some images with something in them, evenly spread over the split."""
    filled = [one for one in found if split.pictures[one.index].things] or list(found)
    count = min(PICTURES, len(filled))
    return [filled[(2 * at + 1) * len(filled) // (2 * count)] for at in range(count)]


def panel_of(one: Found, split: CocoSplit) -> Panel | None:
    """An image with its truth; none where it cannot be read."""
    picture = split.pictures[one.index]
    try:
        pixels = split.read(one.index).permute(1, 2, 0).numpy()
    except UnreadableImageError:
        return None
    masks = None
    if split.with_masks:
        masks = list(masks_of(picture.things, picture.size).bool().numpy())
    truth = Things(
        [thing.box for thing in picture.things],
        [thing.label for thing in picture.things],
        masks=masks,
    )
    return Panel(picture.path.name, pixels, truth, things_of(one.above(DRAWN_SCORE)))


def things_of(found: Found) -> Things:
    """What was found, to be drawn."""
    masks = None
    if found.masks is not None:
        masks = [rle.decode(mask).astype(bool) for mask in found.masks]
    return Things(found.boxes, found.labels, found.scores, masks)
