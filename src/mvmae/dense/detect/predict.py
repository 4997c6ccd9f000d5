"""`mvmae detect RUN --predict IMAGES --out FOLDER`: what is in other images, and pictures of it."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from mvmae import terminal
from mvmae.config.detect import DetectConfig
from mvmae.data.reading.loader import Skipped
from mvmae.data.sources.base import Source
from mvmae.dense import saved_model
from mvmae.dense.detect import product
from mvmae.dense.detect.evaluate import Detector, find_objects
from mvmae.dense.detect.product import OpenedDetector
from mvmae.dense.detect.report import to_things
from mvmae.dense.predictions import (
    open_images,
    prediction_names,
    refuse_own_images,
    require_replaceable,
    write_aside,
)
from mvmae.errors import UserError
from mvmae.figures.detection import drawn, png_of
from mvmae.storage import run_folder as runs
from mvmae.terminal import Bar
from mvmae.training import checkpoint, distributed, precision

FILE = "predictions.json"
OURS = {FILE: "", "pictures": ".png", "skipped.csv": ""}
MOST_SAID = 8  # classes on the screen


def run(config: DetectConfig) -> None:
    """Write what is found in each image of a folder or a list, or in one image.

    Raises:
        UserError: The run or the images cannot be opened, or the folder holds something.
    """
    assert config.predict is not None
    if distributed.announced_world_size() > 1:
        raise UserError("--predict runs in one process: start it without torchrun")
    began = time.perf_counter()
    device = precision.choose_device(config.device)
    run_folder = Path(config.encoder)
    run_folder = run_folder if run_folder.is_dir() else run_folder.parent
    out = config.out or run_folder / "predictions"
    require_replaceable(out, OURS, FILE, overwrite=config.overwrite)
    made = product.open_detector(config.encoder)
    saved_model.refuse_fixed_settings(config, product.COMMAND, {"image_size": made.shape.side})
    source = open_images(config.predict, made.in_channels)
    refuse_own_images(out, source)
    finder = Detector(
        made.model.to(device),
        made.shape.side,
        made.preprocessing,
        device,
        config.precision,
        config.batch_size,
        config.workers,
    )
    with write_aside(out, OURS) as folder:
        rows, skipped, best = write_all(folder, finder, made, source, config)
        if len(skipped) == len(source):
            path, reason = skipped[0]
            raise UserError(f"no image of {source.name} can be read, {path} for one ({reason})")
        lines = ",\n".join(json.dumps(row) for row in rows)
        checkpoint.write_text(folder / FILE, f"[\n{lines}\n]\n")
        runs.append_skipped(folder, skipped)
    told(out, rows, len(source), skipped, time.perf_counter() - began, config, best)


def write_all(
    folder: Path, finder: Detector, made: OpenedDetector, source: Source, config: DetectConfig
) -> tuple[list[dict[str, Any]], list[Skipped], float]:
    """Pictures of all images; what was found, what could not be read, and the best score."""
    rows: list[dict[str, Any]] = []
    best = 0.0
    skipped: list[Skipped] = []
    names = prediction_names(source)
    with Bar(len(source)) as bar:
        bar.name("looking")
        for one in find_objects(finder, source, range(len(source)), skipped, bar.advance):
            kept, best = one.above(config.score), max(best, *one.scores, 0.0)
            file = source.path(one.index)
            for row, label in zip(kept.as_coco(one.index + 1, made.ids), kept.labels, strict=True):
                rows.append({"file_name": file, "category": made.classes[label - 1]} | row)
            if config.draw:
                pixels = source.read(one.index).permute(1, 2, 0).numpy()
                png = png_of(drawn(pixels, to_things(kept), made.classes))
                picture = folder / "pictures" / f"{names[one.index]}.png"
                runs.make(picture.parent)
                checkpoint.write_whole(picture, lambda stream, png=png: stream.write(png))
    return rows, skipped, best


def told(
    out: Path,
    rows: list[dict[str, Any]],
    count: int,
    skipped: list[Skipped],
    seconds: float,
    config: DetectConfig,
    best: float,
) -> None:
    """What was written, and what is in the images."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    classes = Counter(row["category"] for row in rows).most_common(MOST_SAID)
    said = ", ".join(f"{number} {name}" for name, number in classes) or "nothing"
    if not classes and best:
        said = f"nothing; the best score is {best:.2f}, and --score {best / 2:.1g} would show more"
    console.print(
        f"{count - len(skipped)} images in {seconds:.0f} s; found with score {config.score:g} or "
        f"more: {said}"
    )
    if skipped:
        console.print(f"{len(skipped)} images could not be read: {out / 'skipped.csv'}")
    pictures = f" and {out / 'pictures'}" if config.draw else ""
    console.print(f"written: {out / FILE}{pictures}")
    facts = {"images": count - len(skipped), "skipped": len(skipped), "things": len(rows)}
    terminal.emit("result", {"command": "detect", "file": str(out / FILE)} | facts)
