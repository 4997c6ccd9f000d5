"""Images with boxes: find the splits, check their annotations, and report what is wrong."""

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

MAX_DIFFERENCES = 3  # categories named in an error message


class DetectionData(NamedTuple):
    """Training and validation images with boxes."""

    train: CocoSplit
    test: CocoSplit

    @property
    def with_masks(self) -> bool:
        """Whether masks are trained on."""
        return self.train.with_masks

    @property
    def fingerprint(self) -> str:
        """Identifies images and annotations."""
        return f"{self.train.fingerprint()}-{self.test.fingerprint()}"


def open_detection(config: DetectConfig, channels: int) -> DetectionData:
    """Open and check the images with boxes that a config names.

    Raises:
        UserError: There are none, or they cannot be used.
    """
    if channels not in (1, 3):
        raise UserError(f"image files are read with 1 or 3 channels, and ENCODER takes {channels}")
    files = find_splits(Path(config.data), config.train_split, config.val_split)
    checked = [_check(split, with_masks=not config.boxes_only) for split in files]
    print_findings({split.name: one.findings for split, one in zip(files, checked, strict=True)})
    for split, one in zip(files, checked, strict=True):
        if one.fatal:
            raise UserError(f"{split.file} cannot be used: {_describe(one.fatal)}")
    require_same_categories(files, checked)
    with_masks = all(one.has_masks for one in checked)
    train, test = (
        CocoSplit(
            split.name,
            split.file,
            one.content,
            split.images,
            channels=channels,
            with_masks=with_masks,
        )
        for split, one in zip(files, checked, strict=True)
    )
    return DetectionData(train, test)


def _check(split: SplitFiles, *, with_masks: bool) -> CheckedCoco:
    content = load_coco(split.file)
    return check_coco(content, read_image_sizes(split.images, content), with_masks=with_masks)


def _describe(findings: Sequence[Finding]) -> str:
    return "; ".join(
        f"{finding.what} ({', '.join(e for e in finding.examples if e) or finding.count})"
        for finding in findings
    )


def require_same_categories(files: Sequence[SplitFiles], checked: Sequence[CheckedCoco]) -> None:
    """Require that a category's id means the same in two splits.

    Raises:
        UserError: A category is missing or has another name in one of them.
    """
    first, second = ({c["id"]: c["name"] for c in one.content["categories"]} for one in checked)
    differences = [
        f"{number} is {first.get(number, 'missing')} and {second.get(number, 'missing')}"
        for number in sorted({*first, *second})
        if first.get(number) != second.get(number)
    ]
    if differences:
        raise UserError(
            f"{files[0].file.name} and {files[1].file.name} have different categories: "
            f"{'; '.join(differences[:MAX_DIFFERENCES])}. Give both splits the same"
        )


def print_findings(findings: Mapping[str, Sequence[Finding]]) -> None:
    """Print a table of what is wrong with the annotations, by split, if anything is."""
    if not any(findings.values()) or not distributed.is_main():
        return
    table = Table(title="annotations", title_justify="left")
    for column in ("split", "", "count", "for example", "action"):
        table.add_column(column, justify="right" if column == "count" else "left")
    for split, of_split in findings.items():
        for finding in of_split:
            examples = "\n".join(map(escape, finding.examples))
            table.add_row(escape(split), finding.what, str(finding.count), examples, finding.remedy)
    Console().print(table)
