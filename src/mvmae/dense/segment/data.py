"""Images with masks: find the pairs, check them, and describe what was found."""

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

MAX_VALUES = 6  # printed, ignored ones and classes each
MAX_NAMES = 5  # classes named in a warning


def open_segmentation(
    config: SegmentConfig, channels: int
) -> tuple[SegmentationData, CheckedMasks]:
    """Open and check the images with masks that a config names.

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
    """Find the images with masks that a config names; see `find_pairs` for the rest."""
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
    """Read every pair on the main process, and print a table of what is wrong with them."""
    checked = None
    if distributed.is_main():
        with Bar(len(found.train.pairs) + len(found.test.pairs)) as bar:
            bar.name("checking masks")
            checked = check_pairs(found, num_classes, bar.advance)
        print_findings(checked)
    return distributed.from_main(checked)


def print_findings(checked: CheckedMasks) -> None:
    """Print a table of what is wrong with images and masks, if anything is."""
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
    """Return the name under which the user gave the images."""
    return config.data or str(config.images)


def describe_data(data: SegmentationData, checked: CheckedMasks) -> str:
    """Describe the numbers of images and classes in one sentence."""
    train, test = checked.pixels
    missing = [name for name, count in zip(data.classes, train, strict=True) if not count]
    absent = f", {len(missing)} of them in no training mask" if missing else ""
    only = [name for name, a, b in zip(data.classes, train, test, strict=True) if b and not a]
    warning = f"; only in test masks: {', '.join(only[:MAX_NAMES])}" if only else ""
    return (
        f"{len(data.train)} training images, {len(data.test)} test images ({data.split}); "
        f"{len(data.classes)} classes{absent}{warning}"
    )


def describe_values(checked: CheckedMasks, classes: Sequence[str]) -> str:
    """Describe what each value in the masks means, with its share of the pixels."""
    rule, total = checked.rule, sum(checked.values.values())
    order = sorted(checked.values, key=lambda value: -checked.values[value])
    numbers = rule.to_classes(np.array(order, dtype=np.int64)).tolist()
    ignored, used = [], []
    for value, number in zip(order, numbers, strict=True):
        share = f"({100 * checked.values[value] / total:.1f} %)"
        if number == IGNORED:
            ignored.append(f"{value} is ignored {share}")
            continue
        name = classes[number] if number < len(classes) else "no class"
        meaning = f"class {name}" if name.isdecimal() else name
        used.append(f"{value} is {'a class' if name == str(value) else meaning} {share}")
    listed = [*ignored[:MAX_VALUES], *used[:MAX_VALUES]]
    if more := len(ignored) + len(used) - len(listed):
        listed.append(f"and {more} more")
    return f"{', '.join(listed)}{_explain_rule(rule, checked)}"


def _explain_rule(rule: Rule, checked: CheckedMasks) -> str:
    if rule.foreground is not None:
        return "; black-and-white masks have two classes, --ignore-index none would remove one"
    if rule.ignored == 0 and 0 in checked.values:  # the user asked for any other ignored value
        return "; --ignore-index none makes 0 a class"
    if ALWAYS_IGNORED in checked.values:
        return f"; {ALWAYS_IGNORED} is always ignored beside other classes"
    return ""
