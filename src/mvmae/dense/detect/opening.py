"""Opening images with boxes: found, looked through, and what is wrong with them told in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvmae.config.detect import DetectConfig
from mvmae.data.annotations.coco import CocoSplit, SplitFiles, find_splits
from mvmae.data.annotations.coco_check import (
    CheckedCoco,
    Finding,
    check_coco,
    load_coco,
    read_image_sizes,
)
from mvmae.errors import UserError
from mvmae.training import distributed


class Detection(NamedTuple):
    """Images to learn from and to be judged on."""

    train: CocoSplit
    test: CocoSplit

    @property
    def with_masks(self) -> bool:
        """Whether masks are learnt."""
        return self.train.with_masks

    @property
    def fingerprint(self) -> str:
        """Of images and annotations."""
        return f"{self.train.fingerprint()}-{self.test.fingerprint()}"


def open_detection(config: DetectConfig, channels: int) -> Detection:
    """The images with boxes that a config names, checked.

    Raises:
        UserError: There are none, or they cannot be used.
    """
    if channels not in (1, 3):
        raise UserError(f"image files are read with 1 or 3 channels, and ENCODER takes {channels}")
    places = find_splits(Path(config.data), config.train_split, config.val_split)
    found = [_checked(place, with_masks=not config.boxes_only) for place in places]
    show({place.name: one.findings for place, one in zip(places, found, strict=True)})
    for place, one in zip(places, found, strict=True):
        if one.fatal:
            raise UserError(f"{place.file} cannot be used: {_sentence(one.fatal)}")
    refuse_other_classes(places, found)
    with_masks = all(one.has_masks for one in found)
    train, test = (
        CocoSplit(
            place.name,
            place.file,
            one.content,
            place.images,
            channels=channels,
            with_masks=with_masks,
        )
        for place, one in zip(places, found, strict=True)
    )
    return Detection(train, test)


def _checked(place: SplitFiles, *, with_masks: bool) -> CheckedCoco:
    content = load_coco(place.file)
    return check_coco(content, read_image_sizes(place.images, content), with_masks=with_masks)


def _sentence(findings: Sequence[Finding]) -> str:
    return "; ".join(
        f"{finding.what} ({', '.join(e for e in finding.examples if e) or finding.count})"
        for finding in findings
    )


def refuse_other_classes(places: Sequence[SplitFiles], found: Sequence[CheckedCoco]) -> None:
    """Both splits must mean the same by a category's id.

    Raises:
        UserError: They do not.
    """
    known = [{c["id"]: c["name"] for c in one.content["categories"]} for one in found]
    if known[0] == known[1]:
        return
    differs = [
        f"{number} is {known[0].get(number, 'missing')} and {known[1].get(number, 'missing')}"
        for number in sorted({*known[0], *known[1]})
        if known[0].get(number) != known[1].get(number)
    ]
    raise UserError(
        f"{places[0].file.name} and {places[1].file.name} have other categories: "
        f"{'; '.join(differs[:3])}"
    )


def show(findings: Mapping[str, Sequence[Finding]]) -> None:
    """What is not as it should be, if anything is."""
    if not any(findings.values()) or not distributed.is_main():
        return
    table = Table(title="annotations", title_justify="left")
    for column in ("split", "", "count", "for example", "what is done"):
        table.add_column(column, justify="right" if column == "count" else "left")
    for split, ones in findings.items():
        for one in ones:
            examples = "\n".join(map(escape, one.examples))
            table.add_row(escape(split), one.what, str(one.count), examples, one.remedy)
    Console().print(table)
