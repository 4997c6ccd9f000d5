"""Finished runs of `segment`: saved, applied to images (--predict), tested (--protocol test)."""

import csv
import io
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvmae import encoders, terminal
from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations import masks
from mvmae.data.annotations.mask_check import CheckedMasks, describe_values, usable_data
from mvmae.data.annotations.mask_values import Rule
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.dense import saved_model
from mvmae.dense.saved_model import Prediction
from mvmae.dense.segment.data import SegmentJob, check_masks, find_data
from mvmae.dense.segment.evaluate import (
    describe,
    evaluate,
    predict_classes,
    table_of_classes,
    write_outputs,
)
from mvmae.dense.segment.model import Segmenter
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.figures.segmentation import overlay_classes, palette
from mvmae.storage import atomic, results, run_folder
from mvmae.training import distributed, precision

CLASSES = "classes.csv"
OWNED = {CLASSES: "", "masks": ".png", "overlays": ".jpg", "skipped.csv": ""}
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


def save_segmenter(job: SegmentJob, folder: Path) -> None:
    """Write model.safetensors and model.json into the run folder, and the encoder separately."""
    config, data = job.config, job.data
    facts = {
        "encoder": encoders.encoder_metadata(job.opened),
        "classes": list(data.classes),
        # What values mean, so that masks of --predict and --protocol test agree with training.
        "ignored": data.test.rule.ignored,
        "foreground": data.test.rule.foreground,
        "channels": config.channels,
        "auxiliary_channels": config.auxiliary_channels if config.auxiliary_weight else None,
        "crop": config.crop,
        "stride": config.window_stride,
        "short_side": config.short_side,
        # Only where no folder tells which images were trained on: reading all of them takes time.
        "learnt": masks.hash_images(data.train)
        if data.split == masks.EVERY_FIFTH_IMAGE_TESTS
        else [],
    }
    saved_model.save_model(folder, "segment", facts, job.model)
    # The segmenter trains this encoder in place, so other commands can start from its weights.
    encoders.save_encoder(folder, job.opened)


def open_segmenter(source: str) -> SavedSegmenter:
    """Open a finished run folder of `mvmae segment`, or its model.safetensors.

    Raises:
        UserError: There is no trained segmenter, or its files are damaged.
    """
    return saved_model.open_model(source, "segment", "segmenter", _build)


def _build(facts: Mapping[str, Any], opened: OpenedEncoder) -> SavedSegmenter:
    classes = tuple(map(str, facts["classes"]))
    channels = {name: facts[name] for name in ("channels", "auxiliary_channels")}
    return SavedSegmenter(
        Segmenter(opened.encoder, len(classes), **channels),
        opened,
        classes,
        Rule(facts["ignored"], facts.get("foreground")),
        {name: facts[name] for name in ("crop", "stride", "short_side")},
        frozenset(facts.get("learnt", ())),
    )


def predict(config: SegmentConfig) -> None:
    """Write a mask and an overlay for each image of a folder or a list, or for one image.

    Raises:
        UserError: The run or the images cannot be opened, or the output folder holds something.
    """
    out = Path(str(config.out))  # the config requires one with --predict
    saved_model.predict("segment", config, out, OWNED, open_segmenter, predict_all)


def predict_all(task: Prediction) -> tuple[list[tuple[str, str]], str, str, dict[str, Any]]:
    """Write masks and overlays of all images, and the table of their classes."""
    folder, out, saved, predictor, source = task
    predictor.model.eval()
    colours = palette(len(saved.classes))
    pixels = torch.zeros(len(saved.classes), dtype=torch.int64)
    skipped = []
    with terminal.Bar(len(source)) as bar:
        bar.name("segmenting")
        for index, name in enumerate(saved_model.prediction_names(source)):
            bar.advance(1)
            try:
                image = source.read(index)
            except UnreadableImageError as error:
                skipped.append((source.path(index), str(error)))
                continue
            classes = predict_classes(predictor, image, (image.shape[1], image.shape[2]))
            pixels += torch.bincount(classes.flatten().int(), minlength=len(pixels))
            mask, overlay = folder / "masks" / f"{name}.png", folder / "overlays" / f"{name}.jpg"
            run_folder.make(mask.parent)
            run_folder.make(overlay.parent)
            to_mask(classes, saved, colours).save(mask)
            laid = Image.fromarray(overlay_classes(image.expand(3, -1, -1), classes, colours))
            laid.save(overlay, quality=JPEG_QUALITY)
    write_classes(folder / CLASSES, saved, pixels)
    total = max(1, int(pixels.sum()))
    order = [n for n in pixels.argsort(descending=True, stable=True).tolist() if pixels[n]]
    shares = (f"{saved.classes[n]} {100 * int(pixels[n]) / total:.1f} %" for n in order)
    written = f"{out / 'masks'} (values: {out / CLASSES}) and {out / 'overlays'}"
    return skipped, ", ".join(islice(shares, MAX_CLASSES)), written, {"folder": str(out)}


def to_mask(classes: Tensor, saved: SavedSegmenter, colours: np.ndarray) -> Image.Image:
    """Convert classes to a picture of the values in the training masks.

    It has a palette, except for values beyond 255, which need 16 bits, and for black-and-white
    training masks.
    """
    values = saved.rule.to_values(classes.numpy().astype(np.int64))
    if saved.rule.to_value(len(saved.classes) - 1) > 255:
        return Image.fromarray(values.astype(np.uint16))
    picture = Image.fromarray(values.astype(np.uint8))
    if saved.rule.foreground is None:
        table = np.zeros((256, 3), dtype=np.uint8)
        table[saved.rule.to_values(np.arange(len(colours)))] = colours
        picture.putpalette(table.flatten().tolist())
    return picture


def write_classes(file: Path, saved: SavedSegmenter, pixels: Tensor) -> None:
    """Write a CSV of each class's value in the masks, name, number of pixels and colour."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("value", "name", "pixels", "colour"))
    values = saved.rule.to_values(np.arange(len(saved.classes))).tolist()
    colours = ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in palette(len(values)).tolist()]
    writer.writerows(zip(values, saved.classes, pixels.tolist(), colours, strict=True))
    atomic.write_text(file, text.getvalue())


def test(config: SegmentConfig) -> None:
    """Print and keep the metrics of a finished run on other images.

    Raises:
        UserError: The run or the images cannot be opened, or have different classes.
    """
    began, device = time.perf_counter(), precision.choose_device(config.device)
    with distributed.process_group(device):
        saved = open_segmenter(config.encoder)
        predictor = saved_model.saved_predictor(saved, "segment", config, device)
        folder = results.home(config.encoder, config.out)
        data, remarks = open_test_data(config, saved)
        is_main = distributed.is_main()
        console = terminal.console()
        console.quiet = not is_main
        console.print("\n".join(remarks))
        with terminal.Bar(len(data.test) // distributed.world_size()) as bar:
            bar.name("testing")
            evaluation = evaluate(predictor, data.test, len(data.classes), bar.advance)
        if not is_main:
            return
        terminal.print_table(table_of_classes(evaluation, data))
        console.print(describe(evaluation))
        name = "segment-test" + ("-multi-scale" if config.multi_scale else "")
        title = f"{config.encoder} on {data.name}"
        seconds = round(time.perf_counter() - began, 1)
        write_outputs(folder, name, title, config, device, data, evaluation, seconds=seconds)


def open_test_data(
    config: SegmentConfig, saved: SavedSegmenter
) -> tuple[masks.SegmentationData, list[str]]:
    """Open the images with masks that a config names, with the classes of a saved model.

    Returns:
        The data, of which there are no training images, and sentences to print about them.

    Raises:
        UserError: There are none, they cannot be used, or their classes have different names.
    """
    rules, remark = value_rules(config, saved)
    channels = saved.opened.encoder.in_channels
    found = find_data(config, channels, with_training=False, rules=rules)
    found, leakage = drop_training_images(found, saved)
    checked = check_masks(found, len(saved.classes))
    classes = merge_class_names(checked, saved, found.test.pairs.name, config.encoder)
    data = usable_data(found, checked._replace(names=dict(enumerate(classes))))
    windows = saved.fixed_settings
    summary = (
        f"{len(data.test)} test images of {data.name} ({data.split}); {len(classes)} classes; "
        f"windows of {windows['crop']} pixels, {windows['stride']} apart, as in training"
    )
    values = f"values in the masks: {describe_values(checked, classes)}"
    return data, [text for text in (summary, leakage, remark, values) if text]


def value_rules(config: SegmentConfig, saved: SavedSegmenter) -> tuple[tuple[Rule, ...], str]:
    """Return the possible meanings of mask values, most likely first, and a remark or nothing.

    Unless the user sets one, it is the meaning in training.
    """
    trained, given = saved.rule.ignored, config.ignore_index
    if given == "auto":
        is_binary = trained is None and len(saved.classes) == 2  # 0 and 1, or black and white
        return (saved.rule, *(masks.BLACK_AND_WHITE_RULES if is_binary else ())), ""
    rules, name = (
        masks.candidate_rules(given, has_splits=False),
        "none" if trained is None else trained,
    )
    if rules[0] == saved.rule:
        return rules, ""
    return rules, f"the run was trained with --ignore-index {name}, and is tested with {given}"


def drop_training_images(
    found: masks.FoundPairs, saved: SavedSegmenter
) -> tuple[masks.FoundPairs, str]:
    """Leave out images that the model was trained on, if it is known which they are, and say so.

    A test split that the user has laid out is only remarked upon, since its metrics are expected
    to be over all of it.
    """
    is_split = found.split != masks.ALL_IMAGES_TEST
    if is_split:
        found = found._replace(split=found.split.split(" and ")[0])
    hashes = masks.hash_images(found.test.pairs) if saved.training_images else []
    new = [at for at, digest in enumerate(hashes) if digest not in saved.training_images]
    known, count = len(hashes) - len(new), len(hashes)
    if not known:
        return found, ""
    if is_split or not new:
        remark = f"{known} of the {count} test images are training images: metrics are optimistic"
        return found, remark
    kept = found.test._replace(pairs=found.test.pairs.select(new))
    found = found._replace(test=kept, split="those that are not training images")
    return found, f"{known} of the {count} images are training images and left out"


def merge_class_names(
    checked: CheckedMasks, saved: SavedSegmenter, data: str, run: str
) -> tuple[str, ...]:
    """Return the names of the classes: the model's, or the data's where the model has none.

    Args:
        checked: Classes of the data.
        saved: The model.
        data: Name of the data, for error messages.
        run: Name of the model.

    Raises:
        UserError: Model and data have different names.
    """
    names = list(saved.classes)
    for number, name in sorted(checked.names.items()):
        value = checked.rule.to_value(number)
        if number >= len(names):
            raise UserError(
                f"{data} names class {name} (value {value}), but {run} has {len(names)} classes: "
                f"{', '.join(saved.classes[:MAX_CLASSES])}"
            )
        own = names[number]
        if own in (str(number), str(saved.rule.to_value(number))):
            names[number] = name
        elif own != name:
            raise UserError(
                f"value {value} is {name} in {data} but {own} in {run}: the classes must be the "
                "same, in the same order"
            )
    return tuple(names)
