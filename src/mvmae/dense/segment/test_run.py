"""`mvmae segment RUN DATA --protocol test`: a finished segmenter on any images with masks."""

from __future__ import annotations

import time
from typing import NamedTuple

from rich.console import Console

from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_check import CheckedMasks, usable_data
from mvmae.data.annotations.mask_values import Rule
from mvmae.data.annotations.masks import (
    ALL_IMAGES_TEST,
    FoundPairs,
    SegmentationData,
    black_and_white_rules,
    candidate_rules,
    hash_images,
)
from mvmae.dense import saved_model
from mvmae.dense.segment import product, report
from mvmae.dense.segment.evaluate import evaluate
from mvmae.dense.segment.opening import check_masks, data_name, describe_values, find_data
from mvmae.dense.segment.product import COMMAND, OpenedSegmenter
from mvmae.errors import UserError
from mvmae.storage import results
from mvmae.terminal import Bar
from mvmae.training import distributed, precision


class TestData(NamedTuple):
    """Images with masks to test on."""

    data: SegmentationData
    said: tuple[str, ...]
    """What is to be known of them."""


def run(config: SegmentConfig) -> None:
    """Print and keep the figures of a finished run.

    Raises:
        UserError: The run or the images cannot be opened, or have other classes.
    """
    began = time.perf_counter()
    device = precision.choose_device(config.device)
    with distributed.process_group(device):
        made = product.open_segmenter(config.encoder)
        saved_model.refuse_fixed_settings(config, COMMAND, made.looks)
        home = results.home(config.encoder, config.out)
        data, said = open_test_data(config, made)
        console = Console(
            soft_wrap=True, highlight=False, markup=False, quiet=not distributed.is_main()
        )
        for sentence in said:
            console.print(sentence)
        examiner = product.examiner_of(made, config, device)
        with Bar(len(data.test) // distributed.world_size()) as bar:
            bar.name("testing")
            judgement = evaluate(
                examiner, data.test, len(data.classes), workers=config.workers, advance=bar.advance
            )
        if not distributed.is_main():
            return
        Console().print(report.class_table(judgement, data))
        console.print(report.summary(judgement))
        what = "segment-test" + ("-multi-scale" if config.multi_scale else "")
        title = f"{config.encoder} on {data.name}"
        content = report.result_content(judgement, data)
        content["seconds"] = round(time.perf_counter() - began, 1)
        file = report.write_result(home, config, content, device, what=what)
        picture = report.write_picture(home, judgement, data, title=title, name=what)
        console.print(f"written: {file} and {picture}")


def open_test_data(config: SegmentConfig, made: OpenedSegmenter) -> TestData:
    """The images with masks that a config names, with the classes of a trained model.

    Raises:
        UserError: There are none, they cannot be used, or their classes have other names.
    """
    rules, said = value_rules(config, made)
    channels = made.opened.encoder.in_channels
    found, left_out = drop_training_images(
        find_data(config, channels, with_training=False, rules=rules), made
    )
    checked = check_masks(found, len(made.classes))
    classes = merge_class_names(checked, made, config)
    data = usable_data(found, checked._replace(names=dict(enumerate(classes))))
    looks = f"windows of {made.crop} pixels, {made.stride} apart, as in the training"
    sentences = (
        f"{len(data.test)} images of {data.name} test ({data.split}); "
        f"{len(classes)} classes; {looks}",
        *left_out,
        *said,
        f"values in the masks: {describe_values(checked, classes)}",
    )
    return TestData(data, sentences)


def value_rules(
    config: SegmentConfig, made: OpenedSegmenter
) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """What values mean, the likeliest first, and what to say of it: by default as in training."""
    if config.ignore_index != "auto":
        rules = candidate_rules(config.ignore_index, has_parts=False)
        learnt = "none" if made.rule.ignored is None else made.rule.ignored
        other = f"the run learnt with --ignore-index {learnt}; here it is {config.ignore_index}"
        return rules, ((other,) if rules[0] != made.rule else ())
    if made.rule.ignored is None and len(made.classes) == 2:  # 0 and 1, or black and white
        return (made.rule, *black_and_white_rules()), ()
    return (made.rule,), ()


def drop_training_images(
    found: FoundPairs, made: OpenedSegmenter
) -> tuple[FoundPairs, tuple[str, ...]]:
    """Without the images that the model was trained on, where it is known which they are."""
    is_split = found.split != ALL_IMAGES_TEST
    if is_split:
        found = found._replace(split=found.split.split(" and ")[0])
    contents = hash_images(found.test.pairs) if made.learnt else []
    fresh = [at for at, content in enumerate(contents) if content not in made.learnt]
    known, count = len(contents) - len(fresh), len(contents)
    if not known:
        return found, ()
    if is_split or not fresh:  # who laid out a split wants it whole
        return found, (f"{known} of the {count} images were learnt from: this is no fair test",)
    kept = found.test._replace(pairs=found.test.pairs.select(fresh))
    said = f"{known} of the {count} images were learnt from, and are left out"
    return found._replace(test=kept, split="those that were not learnt from"), (said,)


def merge_class_names(
    checked: CheckedMasks, made: OpenedSegmenter, config: SegmentConfig
) -> tuple[str, ...]:
    """Names of the classes: the model's, and the images' own where it knows none.

    Raises:
        UserError: Both have names, and other ones.
    """
    names = list(made.classes)
    for number, name in sorted(checked.names.items()):
        value = checked.rule.to_value(number)
        if number >= len(names):
            raise UserError(
                f"{data_name(config)} names class {name} (value {value}), and {config.encoder} has "
                f"{len(names)} classes: {', '.join(made.classes[:8])}"
            )
        own = names[number]
        if own in (str(number), str(made.rule.to_value(number))):
            names[number] = name
        elif own != name:
            raise UserError(
                f"value {value} is {name} in {data_name(config)}, and {own} for {config.encoder}: "
                "the classes must be the same, in the same order"
            )
    return tuple(names)
