"""Images with masks: find the pairs, check them, and describe what was found."""

from __future__ import annotations

from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.findings import print_findings
from mvmae.data.annotations.mask_check import CheckedMasks, check_pairs, usable_data
from mvmae.data.annotations.mask_values import Rule
from mvmae.data.annotations.masks import FoundPairs, SegmentationData, find_pairs
from mvmae.terminal import Bar
from mvmae.training import distributed

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
        print_findings("images and masks", {"": checked.findings})
    return distributed.from_main(checked)


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
