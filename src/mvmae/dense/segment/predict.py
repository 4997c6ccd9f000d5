"""Save trained segmenters, and apply them: `mvmae segment RUN --predict IMAGES --out FOLDER`."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mvmae import encoders
from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_values import Rule
from mvmae.data.annotations.masks import EVERY_FIFTH_IMAGE_TESTS, hash_images
from mvmae.data.reading.decode import Pixels, UnreadableImageError
from mvmae.data.sources.base import Source
from mvmae.dense import predictions, saved_model
from mvmae.dense.segment.evaluate import Predictor, predict_classes
from mvmae.dense.segment.model import Segmenter
from mvmae.dense.segment.report import SegmentJob
from mvmae.encoders import OpenedEncoder
from mvmae.figures.segmentation import overlaid, palette
from mvmae.storage import atomic, run_folder
from mvmae.terminal import Bar
from mvmae.training import precision

CLASSES = "classes.csv"
OWNED = {"masks": ".png", "overlays": ".jpg", CLASSES: "", "skipped.csv": ""}
FIXED_SETTINGS = ("crop", "stride", "short_side")
JPEG_QUALITY = 90  # of the overlays
MAX_CLASSES = 8  # printed


class SavedSegmenter(NamedTuple):
    """Trained segmenter with the facts needed to apply it."""

    model: Segmenter
    opened: OpenedEncoder
    classes: tuple[str, ...]
    rule: Rule
    """Meaning of the values in the training masks, and in the masks that it writes."""

    fixed_settings: dict[str, int | None]
    """Settings that training has fixed, by field of the config: crop, stride and short_side."""

    training_images: frozenset[str]
    """Hashes of the training images, where no separate folder tells which they are."""


def save_segmenter(job: SegmentJob, model: nn.Module) -> None:
    """Write model.safetensors and model.json into the run folder, and the encoder separately."""
    config, data = job.config, job.data
    facts = {
        "encoder": encoders.encoder_metadata(job.opened),
        "classes": list(data.classes),
        "ignored": data.test.rule.ignored,
        "foreground": data.test.rule.foreground,
        "channels": config.channels,
        "auxiliary_channels": config.auxiliary_channels if config.auxiliary_weight else None,
        "crop": config.crop,
        "stride": config.window_stride,
        "short_side": config.short_side,
        "learnt": hash_images(data.train) if data.split == EVERY_FIFTH_IMAGE_TESTS else [],
    }
    saved_model.save_model(job.folder, "segment", facts, model)
    encoders.save_encoder(job.folder, job.opened)


def open_segmenter(source: str) -> SavedSegmenter:
    """Open a finished run folder of `mvmae segment`, or its model.safetensors.

    Raises:
        UserError: There is no trained segmenter, or its files are damaged.
    """
    return saved_model.open_model(source, "segment", "segmenter", _build)


def _build(facts: Mapping[str, Any], opened: OpenedEncoder) -> SavedSegmenter:
    classes = tuple(map(str, facts["classes"]))
    model = Segmenter(
        opened.encoder,
        len(classes),
        channels=facts["channels"],
        auxiliary_channels=facts["auxiliary_channels"],
    )
    return SavedSegmenter(
        model,
        opened,
        classes,
        Rule(facts["ignored"], facts.get("foreground")),
        {name: facts[name] for name in FIXED_SETTINGS},
        frozenset(facts.get("learnt", ())),
    )


def saved_predictor(
    saved: SavedSegmenter, config: SegmentConfig, device: torch.device
) -> Predictor:
    """Apply a saved model as in its own evaluation, with speed and scales from `config`.

    Raises:
        UserError: The config has other settings than training has fixed.
    """
    config = saved_model.apply_fixed_settings(config, "segment", saved.fixed_settings)
    patch_size, preprocessing = saved.opened.encoder.patch_size, saved.opened.preprocessing
    model = saved.model.to(device)
    return Predictor(model, patch_size, preprocessing, config, device, config.multi_scale)


def run(config: SegmentConfig) -> None:
    """Write a mask and an overlay for each image of a folder or a list, or for one image.

    Raises:
        UserError: The run or the images cannot be opened, or the output folder holds something.
    """
    assert config.predict is not None
    assert config.out is not None
    predictions.require_single_process("--predict")
    began, out = time.perf_counter(), config.out
    device = precision.choose_device(config.device)
    predictions.require_replaceable(out, OWNED, CLASSES, overwrite=config.overwrite)
    saved = open_segmenter(config.encoder)
    predictor = saved_predictor(saved, config, device)
    source = predictions.open_images(config.predict, saved.opened.encoder.in_channels)
    predictions.refuse_own_images(out, source)
    with predictions.write_aside(out, OWNED) as folder:
        pixels, skipped = predict_all(folder, predictor, saved, source)
        predictions.keep_skipped(folder, source, skipped)
        write_classes(folder / CLASSES, saved, pixels)
    predictions.report_predictions(
        "segment",
        out,
        began=began,
        num_images=len(source),
        num_skipped=len(skipped),
        findings=describe(pixels, saved.classes),
        written=f"{out / 'masks'} (values: {out / CLASSES}) and {out / 'overlays'}",
        facts={"folder": str(out)},
    )


def predict_all(
    folder: Path, predictor: Predictor, saved: SavedSegmenter, source: Source
) -> tuple[Tensor, list[tuple[str, str]]]:
    """Write masks and overlays of all images.

    Returns:
        Number of pixels of each class; path and reason of each image that cannot be read.
    """
    predictor.model.eval()
    colours, names = palette(len(saved.classes)), predictions.prediction_names(source)
    pixels = torch.zeros(len(saved.classes), dtype=torch.int64)
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
            classes = predict_classes(predictor, image, (image.shape[1], image.shape[2]))
            pixels += torch.bincount(classes.flatten().int(), minlength=len(pixels))
            write_mask(folder / "masks" / f"{name}.png", classes, saved, colours)
            write_overlay(folder / "overlays" / f"{name}.jpg", image, classes, colours)
    return pixels, skipped


def write_mask(file: Path, classes: Tensor, saved: SavedSegmenter, colours: np.ndarray) -> None:
    """Write a PNG with the values of the training masks.

    It has a palette, except for values beyond 255, which need 16 bits, and for black-and-white
    training masks.
    """
    run_folder.make(file.parent)
    values = saved.rule.to_values(classes.numpy().astype(np.int64))
    if saved.rule.to_value(len(saved.classes) - 1) > 255:
        picture = Image.fromarray(values.astype(np.uint16))
    else:
        picture = Image.fromarray(values.astype(np.uint8))
        if saved.rule.foreground is None:
            table = np.zeros((256, 3), dtype=np.uint8)
            table[saved.rule.to_values(np.arange(len(colours)))] = colours
            picture.putpalette(table.flatten().tolist())
    picture.save(file)


def write_overlay(file: Path, image: Pixels, classes: Tensor, colours: np.ndarray) -> None:
    """Write a JPEG of the image with the classes overlaid in colour."""
    run_folder.make(file.parent)
    picture = overlaid(image.expand(3, -1, -1), classes, colours)
    Image.fromarray(picture).save(file, quality=JPEG_QUALITY)


def write_classes(file: Path, saved: SavedSegmenter, pixels: Tensor) -> None:
    """Write a CSV of each class's value in the masks, name, number of pixels and colour."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("value", "name", "pixels", "colour"))
    values = saved.rule.to_values(np.arange(len(saved.classes))).tolist()
    colours = ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in palette(len(values)).tolist()]
    writer.writerows(zip(values, saved.classes, pixels.tolist(), colours, strict=True))
    atomic.write_text(file, text.getvalue())


def describe(pixels: Tensor, classes: tuple[str, ...]) -> str:
    """Describe the shares of the largest classes."""
    total = max(1, int(pixels.sum()))
    order = [n for n in pixels.argsort(descending=True, stable=True).tolist() if pixels[n]]
    shares = [f"{classes[n]} {100 * int(pixels[n]) / total:.1f} %" for n in order[:MAX_CLASSES]]
    return ", ".join(shares)
