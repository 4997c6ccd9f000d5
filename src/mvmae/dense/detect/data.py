"""Images with boxes: find the splits, check their annotations, and report what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mvmae.config.detect import DetectConfig
from mvmae.data.annotations.coco import CocoSplit, SplitFiles, find_splits
from mvmae.data.annotations.coco_check import (
    CheckedCoco,
    check_coco,
    load_coco,
    read_image_sizes,
    require_same_categories,
)
from mvmae.data.annotations.findings import Finding, print_findings
from mvmae.errors import UserError
from mvmae.training import distributed


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
    if distributed.is_main():
        findings = {split.name: one.findings for split, one in zip(files, checked, strict=True)}
        print_findings("annotations", findings)
    for split, one in zip(files, checked, strict=True):
        if one.fatal:
            raise UserError(f"{split.file} cannot be used: {_describe(one.fatal)}")
    require_same_categories(files, checked)
    with_masks = all(one.has_masks for one in checked)
    train, test = (
        CocoSplit(split, one.content, channels=channels, with_masks=with_masks)
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
