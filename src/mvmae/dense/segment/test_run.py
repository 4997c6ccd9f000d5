"""Test a finished segmenter on any images with masks: `mvmae segment RUN DATA --protocol test`."""

from __future__ import annotations

import time
from typing import NamedTuple

from rich.console import Console

from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_check import CheckedMasks, describe_values, usable_data
from mvmae.data.annotations.mask_values import Rule
from mvmae.data.annotations.masks import (
    ALL_IMAGES_TEST,
    BLACK_AND_WHITE_RULES,
    FoundPairs,
    SegmentationData,
    candidate_rules,
    hash_images,
)
from mvmae.dense.segment import report
from mvmae.dense.segment.data import check_masks, data_name, find_data
from mvmae.dense.segment.evaluate import evaluate
from mvmae.dense.segment.predict import SavedSegmenter, open_segmenter, saved_predictor
from mvmae.errors import UserError
from mvmae.storage import results
from mvmae.terminal import Bar
from mvmae.training import distributed, precision

MAX_NAMES = 8  # classes listed in an error message


class TestData(NamedTuple):
    """Test images with masks."""

    data: SegmentationData
    remarks: tuple[str, ...]
    """Sentences to print about them."""


def run(config: SegmentConfig) -> None:
    """Print and keep the metrics of a finished run on other images.

    Raises:
        UserError: The run or the images cannot be opened, or have different classes.
    """
    began = time.perf_counter()
    device = precision.choose_device(config.device)
    with distributed.process_group(device):
        saved = open_segmenter(config.encoder)
        predictor = saved_predictor(saved, config, device)
        folder = results.home(config.encoder, config.out)
        data, remarks = open_test_data(config, saved)
        console = Console(
            soft_wrap=True, highlight=False, markup=False, quiet=not distributed.is_main()
        )
        for remark in remarks:
            console.print(remark)
        with Bar(len(data.test) // distributed.world_size()) as bar:
            bar.name("testing")
            evaluation = evaluate(predictor, data.test, len(data.classes), bar.advance)
        if not distributed.is_main():
            return
        Console().print(report.class_table(evaluation, data))
        console.print(report.summary(evaluation))
        what = "segment-test" + ("-multi-scale" if config.multi_scale else "")
        title = f"{config.encoder} on {data.name}"
        content = report.result_content(evaluation, data)
        content["seconds"] = round(time.perf_counter() - began, 1)
        file = report.write_result(folder, config, content, device, what=what)
        picture = report.write_picture(folder, evaluation, data, title=title, name=what)
        console.print(f"written: {file} and {picture}")


def open_test_data(config: SegmentConfig, saved: SavedSegmenter) -> TestData:
    """Open the images with masks that a config names, with the classes of a saved model.

    Raises:
        UserError: There are none, they cannot be used, or their classes have different names.
    """
    rules, remarks = value_rules(config, saved)
    channels = saved.opened.encoder.in_channels
    found = find_data(config, channels, with_training=False, rules=rules)
    found, leakage = drop_training_images(found, saved)
    checked = check_masks(found, len(saved.classes))
    classes = merge_class_names(checked, saved, config)
    data = usable_data(found, checked._replace(names=dict(enumerate(classes))))
    windows = saved.fixed_settings
    summary = (
        f"{len(data.test)} test images of {data.name} ({data.split}); {len(classes)} classes; "
        f"windows of {windows['crop']} pixels, {windows['stride']} apart, as in training"
    )
    values = f"values in the masks: {describe_values(checked, classes)}"
    return TestData(data, (summary, *leakage, *remarks, values))


def value_rules(
    config: SegmentConfig, saved: SavedSegmenter
) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """Return the possible meanings of mask values, most likely first, and remarks on them.

    Unless the user sets one, it is the meaning in training.
    """
    if config.ignore_index != "auto":
        rules = candidate_rules(config.ignore_index, has_splits=False)
        trained = "none" if saved.rule.ignored is None else saved.rule.ignored
        remark = (
            f"the run was trained with --ignore-index {trained}, and is tested with "
            f"{config.ignore_index}"
        )
        return rules, ((remark,) if rules[0] != saved.rule else ())
    if saved.rule.ignored is None and len(saved.classes) == 2:  # 0 and 1, or black and white
        return (saved.rule, *BLACK_AND_WHITE_RULES), ()
    return (saved.rule,), ()


def drop_training_images(
    found: FoundPairs, saved: SavedSegmenter
) -> tuple[FoundPairs, tuple[str, ...]]:
    """Leave out images that the model was trained on, if it is known which they are.

    A test split that the user has laid out is only remarked upon, since its metrics are expected
    to be over all of it.
    """
    is_split = found.split != ALL_IMAGES_TEST
    if is_split:
        found = found._replace(split=found.split.split(" and ")[0])
    hashes = hash_images(found.test.pairs) if saved.training_images else []
    new = [at for at, digest in enumerate(hashes) if digest not in saved.training_images]
    known, count = len(hashes) - len(new), len(hashes)
    if not known:
        return found, ()
    if is_split or not new:
        remark = f"{known} of the {count} test images are training images: metrics are optimistic"
        return found, (remark,)
    kept = found.test._replace(pairs=found.test.pairs.select(new))
    remark = f"{known} of the {count} images are training images and left out"
    return found._replace(test=kept, split="those that are not training images"), (remark,)


def merge_class_names(
    checked: CheckedMasks, saved: SavedSegmenter, config: SegmentConfig
) -> tuple[str, ...]:
    """Return the names of the classes: the model's, or the data's where the model has none.

    Raises:
        UserError: Model and data have different names.
    """
    names = list(saved.classes)
    for number, name in sorted(checked.names.items()):
        value = checked.rule.to_value(number)
        if number >= len(names):
            raise UserError(
                f"{data_name(config)} names class {name} (value {value}), but {config.encoder} has "
                f"{len(names)} classes: {', '.join(saved.classes[:MAX_NAMES])}"
            )
        own = names[number]
        if own in (str(number), str(saved.rule.to_value(number))):
            names[number] = name
        elif own != name:
            raise UserError(
                f"value {value} is {name} in {data_name(config)} but {own} in {config.encoder}: "
                "the classes must be the same, in the same order"
            )
    return tuple(names)
