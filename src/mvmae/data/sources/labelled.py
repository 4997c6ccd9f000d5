"""Labelled images with a training and a test part."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvmae.config.views import Depth
from mvmae.data.sources.base import Source, Subset, labels, plain_channels, with_depth
from mvmae.data.sources.groups import group_numbers
from mvmae.data.sources.open import open_parts, open_source
from mvmae.errors import UserError

TRAIN = ("train", "training")  # names of folders
TEST = ("val", "valid", "validation", "test", "testing")
HELD_OUT_EVERY = 5  # one image, or group of images, in five is a test image


class Labelled(NamedTuple):
    """Labelled images to train on and to test on."""

    train: Source
    test: Source
    split: str
    """Where the split comes from, in words."""


def open_labelled(data: str, channels: int, depth: Depth = "8") -> Labelled:
    """Open labelled images with a training and a test part.

    Named sets that have both parts, and folders with a folder for each part (train and val, or
    other usual names), are used as they are. From anything else, every fifth image of each class,
    in the order of the paths, becomes a test image.

    Args:
        data: What the user wrote.
        channels: Channels of the pixels.
        depth: Depth of the pixels, see `Wanted`.

    Raises:
        UserError: There are no images, they have no labels or only one class, the parts have
            different classes, or there are too few images to split.
    """
    if (found := open_parts(data, plain_channels(channels))) is not None:
        parts, split = found
        train, test = (_require_labels(with_depth(part, channels, depth)) for part in parts)
        return Labelled(train, test, split)
    folders = _split_folders(Path(data))
    if folders:
        train, test = (
            _require_labels(open_source([str(folder)], channels, depth)) for folder in folders
        )
        if train.classes != test.classes:
            odd = sorted(set(train.classes) ^ set(test.classes))
            raise UserError(
                f"{folders[0]} and {folders[1]} have different classes: {', '.join(odd[:5])}"
                f"{' ...' if len(odd) > 5 else ''} in one of them only"
            )
        return Labelled(train, test, f"{folders[0].name}/ and {folders[1].name}/")
    source = _require_labels(open_source([data], channels, depth))
    # Images of one patient in both parts would be leakage.
    groups = group_numbers(source, None)
    tests = _every_fifth(labels(source), groups)
    if tests.all() or not tests.any():
        raise UserError(f"{data} has too few images to test on: a class needs at least 2")
    train, test = (Subset(source, np.flatnonzero(part).tolist()) for part in (~tests, tests))
    what = "image" if groups is None else "group of images"
    return Labelled(train, test, f"every fifth {what} of each class is for testing")


def _split_folders(folder: Path) -> tuple[Path, Path] | None:
    parts = [
        next((folder / name for name in names if (folder / name).is_dir()), None)
        for names in (TRAIN, TEST)
    ]
    return (parts[0], parts[1]) if parts[0] and parts[1] else None


def _require_labels(source: Source) -> Source:
    if not source.classes:
        raise UserError(
            f"{source.name} has no labels: put each class into its own folder "
            "(CLASS/image.jpg), or give a .csv list of path,label"
        )
    if len(source.classes) < 2:
        only = source.classes[0]
        hint = f": add a folder {TEST[0]} beside it" if only in TRAIN else ": nothing to tell apart"
        raise UserError(f"{source.name} has one class only, '{only}'{hint}")
    return source


def _every_fifth(classes: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Mark every fifth image of each class, starting with the second, so that a pair is split too.

    No seed is involved: the split is the same in every run and in every command.

    With groups, such as the images of one patient, mark every fifth group instead, so that no group
    spans both parts. The class of a group is the class of its first image.
    """
    if groups is not None:
        _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
        tests, order = np.zeros(len(first), dtype=bool), np.argsort(first)
        tests[order] = _every_fifth(classes[first[order]])
        return tests[group_of]
    rank = np.zeros(len(classes), dtype=np.int64)  # of an image among the images of its class
    for label in np.unique(classes):
        own = classes == label
        rank[own] = np.arange(own.sum())
    return rank % HELD_OUT_EVERY == 1
