"""`mvmae segment RUN --predict IMAGES --out FOLDER`: masks and overlays of other images."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from mvmae import terminal
from mvmae.config.segment import SegmentConfig
from mvmae.data.reading.decode import Pixels, UnreadableImageError
from mvmae.data.sources.base import Source
from mvmae.dense import saved_model
from mvmae.dense.predictions import (
    open_images,
    prediction_names,
    refuse_own_images,
    require_replaceable,
    write_aside,
)
from mvmae.dense.segment import product
from mvmae.dense.segment.evaluate import Predictor, predict_classes
from mvmae.dense.segment.product import OpenedSegmenter
from mvmae.errors import UserError
from mvmae.figures.segmentation import overlaid, palette
from mvmae.storage import run_folder
from mvmae.terminal import Bar
from mvmae.training import checkpoint, distributed, precision

OURS = {"masks": ".png", "overlays": ".jpg", "classes.csv": "", "skipped.csv": ""}
QUALITY = 90  # of the overlays' JPEG


def run(config: SegmentConfig) -> None:
    """Write a mask and an overlay for each image of a folder or a list, or for one image.

    Raises:
        UserError: The run or the images cannot be opened, or the folder holds something.
    """
    assert config.predict is not None
    assert config.out is not None
    if distributed.announced_world_size() > 1:
        raise UserError("--predict runs in one process: start it without torchrun")
    began = time.perf_counter()
    device = precision.choose_device(config.device)
    require_replaceable(config.out, OURS, "classes.csv", overwrite=config.overwrite)
    made = product.open_segmenter(config.encoder)
    saved_model.refuse_fixed_settings(config, product.COMMAND, made.looks)
    source = open_images(config.predict, made.opened.encoder.in_channels)
    refuse_own_images(config.out, source)
    examiner = product.examiner_of(made, config, device)
    with write_aside(config.out, OURS) as folder:
        pixels, skipped = write_all(folder, examiner, made, source)
        write_classes(folder / "classes.csv", made, pixels)
        run_folder.append_skipped(folder, skipped)
    told(config.out, made, pixels, len(source) - len(skipped), skipped, time.perf_counter() - began)


def write_all(
    folder: Path, examiner: Predictor, made: OpenedSegmenter, source: Source
) -> tuple[Tensor, list[tuple[str, str]]]:
    """Masks and overlays; the pixels of each class, and what could not be read."""
    examiner.model.eval()
    colours, names = palette(len(made.classes)), prediction_names(source)
    pixels = torch.zeros(len(made.classes), dtype=torch.int64)
    skipped = []
    with Bar(len(source)) as bar:
        bar.name("segmenting")
        for index, name in enumerate(names):
            bar.advance(1)
            try:
                image = source.read(index)
            except UnreadableImageError as error:
                skipped.append((source.path(index), str(error)))
                continue
            classes = predict_classes(examiner, image, (image.shape[1], image.shape[2]))
            pixels += torch.bincount(classes.flatten().int(), minlength=len(pixels))
            write_mask(folder / "masks" / f"{name}.png", classes, made, colours)
            write_overlay(folder / "overlays" / f"{name}.jpg", image, classes, colours)
    if len(skipped) == len(source):
        raise UserError(f"no image of {source.name} can be read, {skipped[0][0]}: {skipped[0][1]}")
    return pixels, skipped


def write_mask(file: Path, classes: Tensor, made: OpenedSegmenter, colours: np.ndarray) -> None:
    """A PNG of the values that the training masks had.

    It is a palette, 16 bit for values beyond 255, or as black and white as the training masks.
    """
    run_folder.make(file.parent)
    values = made.rule.to_values(classes.numpy().astype(np.int64))
    if made.rule.to_value(len(made.classes) - 1) > 255:
        picture = Image.fromarray(values.astype(np.uint16))
    else:
        picture = Image.fromarray(values.astype(np.uint8))
        if made.rule.foreground is None:
            table = np.zeros((256, 3), dtype=np.uint8)
            table[made.rule.to_values(np.arange(len(colours)))] = colours
            picture.putpalette(table.flatten().tolist())
    picture.save(file)


def write_overlay(file: Path, image: Pixels, classes: Tensor, colours: np.ndarray) -> None:
    """A JPEG of the image with the classes in colour upon it."""
    run_folder.make(file.parent)
    picture = overlaid(image.expand(3, -1, -1), classes, colours)
    Image.fromarray(picture).save(file, quality=QUALITY)


def write_classes(file: Path, made: OpenedSegmenter, pixels: Tensor) -> None:
    """What the masks' values and the overlays' colours mean, and how many pixels each has."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("value", "name", "pixels", "colour"))
    values = made.rule.to_values(np.arange(len(made.classes))).tolist()
    colours = ["#{:02x}{:02x}{:02x}".format(*one) for one in palette(len(values)).tolist()]
    writer.writerows(zip(values, made.classes, pixels.tolist(), colours, strict=True))
    checkpoint.write_text(file, text.getvalue())


def told(
    out: Path,
    made: OpenedSegmenter,
    pixels: Tensor,
    count: int,
    skipped: Sequence[tuple[str, str]],
    seconds: float,
) -> None:
    """What was written, and what is in the images."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    total = max(1, int(pixels.sum()))
    order = [n for n in pixels.argsort(descending=True, stable=True).tolist() if pixels[n]]
    shares = [f"{made.classes[n]} {100 * int(pixels[n]) / total:.1f} %" for n in order[:8]]
    console.print(f"{count} images in {seconds:.0f} s; {', '.join(shares)}")
    if skipped:
        console.print(f"{len(skipped)} images could not be read: {out / 'skipped.csv'}")
    facts = {"images": count, "skipped": len(skipped)}
    terminal.emit("result", {"command": "segment", "folder": str(out)} | facts)
    console.print(
        f"written: {out / 'masks'} (values: {out / 'classes.csv'}) and {out / 'overlays'}"
    )
