"""Opening images with masks: found, looked through, and what is wrong with them told in a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_check import CheckedMasks, check_pairs, usable_data
from mvmae.data.annotations.mask_values import ALWAYS_IGNORED, IGNORED, Rule
from mvmae.data.annotations.masks import FoundPairs, SegmentationData, find_pairs
from mvmae.terminal import Bar
from mvmae.training import distributed

MOST_SAID = 6  # values on the screen, of either kind


def open_segmented(config: SegmentConfig, channels: int) -> tuple[SegmentationData, CheckedMasks]:
    """The images with masks that a config names, checked.

    Raises:
        UserError: There are none, or they cannot be used.
    """
    found = find_data(config, channels)
    checked = check_masks(found, config.num_classes)
    return usable_data(found, checked), checked


def find_data(
    config: SegmentConfig,
    channels: int,
    *,
    with_training: bool = True,
    rules: tuple[Rule, ...] | None = None,
) -> FoundPairs:
    """As `find_pairs`, for what a config names."""
    folders = None
    if config.images is not None and config.masks is not None:
        folders = config.images, config.masks
    return find_pairs(
        config.data,
        folders=folders,
        channels=channels,
        ignore_index=config.ignore_index,
        test_split=config.test_split,
        names=config.classes,
        with_training=with_training,
        rules=rules,
    )


def check_masks(found: FoundPairs, num_classes: int | None) -> CheckedMasks:
    """Look at every pair, on the main process, and show what is not as it should be."""
    checked = None
    if distributed.is_main():
        with Bar(len(found.train.pairs) + len(found.test.pairs)) as bar:
            bar.name("looking at masks")
            checked = check_pairs(found, num_classes, bar.advance)
        show(checked)
    return distributed.from_main(checked)


def show(checked: CheckedMasks) -> None:
    """What is not as it should be, if anything is."""
    if not checked.findings:
        return
    table = Table(title="images and masks", title_justify="left")
    for column in ("", "files", "for example", ""):
        justify = "right" if column == "files" else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for finding in checked.findings:
        examples = "\n".join(map(escape, finding.examples))
        table.add_row(finding.what, str(finding.count), examples, finding.consequence)
    Console().print(table)


def data_name(config: SegmentConfig) -> str:
    """What the user called the images."""
    return config.data or str(config.images)


def describe_data(data: SegmentationData, checked: CheckedMasks) -> str:
    """How many images and classes there are, in a sentence."""
    learnt, tested = checked.pixels
    silent = [name for name, count in zip(data.classes, learnt, strict=True) if not count]
    absent = f", {len(silent)} of them in no training mask" if silent else ""
    only = [name for name, a, b in zip(data.classes, learnt, tested, strict=True) if b and not a]
    warned = f"; only in test masks: {', '.join(only[:5])}" if only else ""
    return (
        f"{len(data.train)} images learn, {len(data.test)} test ({data.split}); "
        f"{len(data.classes)} classes{absent}{warned}"
    )


def describe_values(checked: CheckedMasks, classes: Sequence[str]) -> str:
    """What each value in the masks was taken for, with its share of the pixels."""
    rule, total = checked.rule, sum(checked.values.values())
    order = sorted(checked.values, key=lambda value: -checked.values[value])
    numbers = rule.to_classes(np.array(order, dtype=np.int64)).tolist()
    nothing, something = [], []
    for value, number in zip(order, numbers, strict=True):
        share = f"({100 * checked.values[value] / total:.1f} %)"
        if number == IGNORED:
            nothing.append(f"{value} counts for nothing {share}")
        else:
            name = classes[number] if number < len(classes) else "no class"
            called = f"class {name}" if name.isdecimal() else name
            said = f"{value} is {'a class' if name == str(value) else called}"
            something.append(f"{said} {share}")
    said = [*nothing[:MOST_SAID], *something[:MOST_SAID]]
    if more := len(nothing) + len(something) - len(said):
        said.append(f"and {more} more")
    return f"{', '.join(said)}{_because(rule, checked)}"


def _because(rule: Rule, checked: CheckedMasks) -> str:
    if rule.foreground is not None:
        return "; black-and-white masks have two classes, --ignore-index none would take one away"
    if rule.ignored == 0 and 0 in checked.values:  # others have been asked for
        return "; --ignore-index none makes 0 a class"
    if ALWAYS_IGNORED in checked.values:
        return f"; {ALWAYS_IGNORED} never counts beside other classes"
    return ""
