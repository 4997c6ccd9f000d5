"""Opening images with masks: found, looked through, and what is wrong with them told in a table."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvmae.config import SegmentConfig
from mvmae.data.segmentation import Segmented, find_pairs
from mvmae.data.segmentation_check import Checked, accepted, check_pairs
from mvmae.engine import distributed
from mvmae.tasks.evaluation import Bar


def open_segmented(
    config: SegmentConfig, channels: int, classes: tuple[str, ...] | None = None
) -> tuple[Segmented, Checked]:
    """The images with masks that a config names, checked.

    Args:
        config: What was asked.
        channels: Of the images.
        classes: Of a trained model, in place of what the files say.

    Raises:
        UserError: There are none, or they cannot be used.
    """
    folders = None
    if config.images is not None and config.masks is not None:
        folders = config.images, config.masks
    found = find_pairs(
        config.data,
        folders=folders,
        channels=channels,
        ignore_index=config.ignore_index,
        test_split=config.test_split,
        names=config.classes,
        learns=config.protocol != "test",
    )
    if classes:
        found = found._replace(names=dict(enumerate(classes)))
    checked = None
    if distributed.is_main():
        with Bar(len(found.train.pairs) + len(found.test.pairs)) as bar:
            bar.name("looking at masks")
            checked = check_pairs(
                found, len(classes) if classes else config.num_classes, bar.advance
            )
        show(checked)
    checked = distributed.from_main(checked)
    return accepted(found, checked), checked


def show(checked: Checked) -> None:
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


def name_of(config: SegmentConfig) -> str:
    """What the user called the images."""
    return config.data or str(config.images)


def described(data: Segmented, checked: Checked) -> str:
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
