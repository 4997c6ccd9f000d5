"""What the user wrote to a source of images."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvmae.config.views import Depth
from mvmae.data.reading.detect_kind import kind_of, require_channels
from mvmae.data.sources import hub, torchvision_sets
from mvmae.data.sources.arrays import Stack
from mvmae.data.sources.base import Source, Subset, labels, state
from mvmae.data.sources.builtin import BUILTIN, is_builtin
from mvmae.data.sources.deep import deepened, plain_channels
from mvmae.data.sources.folders import from_folders
from mvmae.data.sources.groups import group_numbers
from mvmae.data.sources.lists import LISTS, from_list
from mvmae.data.sources.shard_names import names_shards
from mvmae.data.sources.shards import open_shards
from mvmae.errors import UserError

TRAIN = ("train", "training")
TEST = ("val", "valid", "validation", "test", "testing")


DATA = (
    "DATA is a folder of images, a list (.txt, .csv, .tsv, .parquet), tar files, a .npy file, "
    "torchvision:NAME, hf:NAME, photos or digits"
)


def open_source(data: Sequence[str], channels: int, depth: Depth = "8") -> Source:
    """The images of folders, of one list, of tar files, or of a named set (its training part).

    Args:
        data: What the user wrote.
        channels: Of the pixels.
        depth: Of the pixels, see `Wanted`.

    Raises:
        UserError: There is nothing there, or nothing that is read.
    """
    source = deepened(_open(data, plain_channels(channels)), channels, depth)
    if channels not in (1, 3):
        require_channels(kind_of(source, 0), channels, data)
    return source


def _open(data: Sequence[str], channels: int) -> Source:
    if not data:
        raise UserError("no DATA: name a folder of images, a list file, photos or digits")
    if all(map(names_shards, data)):
        return open_shards(data, channels)
    if len(data) == 1:
        return _open_one(data[0], channels)
    for name in data:
        if not Path(name).is_dir():
            raise UserError(
                f"several DATA must all be folders, and {name} is not one; or all tar files"
            )
    return from_folders(data, channels)


def _open_one(name: str, channels: int) -> Source:
    if is_builtin(name):
        return BUILTIN[name.removeprefix("builtin:")]("train", channels)
    if name.startswith(torchvision_sets.PREFIX):
        return torchvision_sets.open_set(name, "train", channels)
    if name.startswith(hub.PREFIX):
        return hub.open_set(name, "train", channels)
    path = Path(name)
    if path.is_dir():
        return from_folders([name], channels)
    if path.suffix.lower() in LISTS and path.is_file():
        return from_list(name, channels)
    if path.suffix.lower() == ".npy" and path.is_file():
        return Stack(name, channels)
    if path.exists():
        raise UserError(f"{name} is neither a folder nor a list of images ({', '.join(LISTS)})")
    raise UserError(f"no such folder: {name} ({DATA})")


class Labelled(NamedTuple):
    """Labelled images to learn from and to be judged on."""

    train: Source
    test: Source
    split: str
    """Where the split comes from, in words."""


def open_labelled(data: str, channels: int, depth: Depth = "8") -> Labelled:
    """Labelled images with a training and a test part.

    A folder with both parts as folders (train and val, or other usual names) is taken as it is. Of
    anything else every fifth image of each class, in the order of the paths, tests.

    Raises:
        UserError: There is nothing there, or there are no labels.
    """
    if is_builtin(data):
        build = BUILTIN[data.removeprefix("builtin:")]
        train, test = (
            deepened(build(part, plain_channels(channels)), channels, depth)
            for part in ("train", "val")
        )
        return Labelled(train, test, "built in")
    if both := _parts_of_set(data, plain_channels(channels)):
        train, test = (_with_labels(deepened(part, channels, depth)) for part in both)
        return Labelled(train, test, "its own parts")
    parts = _split_folders(Path(data))
    if parts:
        train, test = (_with_labels(open_source([str(part)], channels, depth)) for part in parts)
        if train.classes != test.classes:
            odd = sorted(set(train.classes) ^ set(test.classes))
            raise UserError(
                f"{parts[0]} and {parts[1]} have different classes: {', '.join(odd[:5])}"
                f"{' ...' if len(odd) > 5 else ''} in one of them only"
            )
        return Labelled(train, test, f"{parts[0].name}/ and {parts[1].name}/")
    source = _with_labels(open_source([data], channels, depth))
    groups = group_numbers(source, None)
    tests = _every_fifth(labels(source), groups)
    if tests.all() or not tests.any():
        raise UserError(f"{data} has too few images to test on: a class needs at least 2")
    train, test = (Subset(source, np.flatnonzero(part).tolist()) for part in (~tests, tests))
    what = "image" if groups is None else "group of images"
    return Labelled(train, test, f"every fifth {what} of each class tests")


def _split_folders(folder: Path) -> tuple[Path, Path] | None:
    parts = [
        next((folder / name for name in names if (folder / name).is_dir()), None)
        for names in (TRAIN, TEST)
    ]
    return (parts[0], parts[1]) if parts[0] and parts[1] else None


def _parts_of_set(data: str, channels: int) -> tuple[Source, Source] | None:
    """The parts of a named set; none of anything else, or where it has one part only."""
    for kind in (torchvision_sets, hub):
        if data.startswith(kind.PREFIX):
            return kind.both_parts(data, channels)
    return None


def _with_labels(source: Source) -> Source:
    if not source.classes:
        raise UserError(
            f"{source.name} has no labels: put each class into a folder of its own "
            "(CLASS/image.jpg), or give a .csv list of path,label"
        )
    if len(source.classes) < 2:
        only = source.classes[0]
        hint = f": add a folder {TEST[0]} beside it" if only in TRAIN else ": nothing to tell"
        raise UserError(f"{source.name} has one class only, '{only}'{hint}")
    return source


def _every_fifth(classes: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Marks every fifth image of each class, from the second on, so that a pair is split too.

    Of images in groups, such as those of one patient, every fifth group, so that no group is in
    both parts; its class is that of its first image.
    """
    if groups is not None:
        _, first, of = np.unique(groups, return_index=True, return_inverse=True)
        tests, order = np.zeros(len(first), dtype=bool), np.argsort(first)
        tests[order] = _every_fifth(classes[first[order]])
        return tests[of]
    place = np.zeros(len(classes), dtype=np.int64)
    for label in np.unique(classes):
        own = classes == label
        place[own] = np.arange(own.sum())
    return place % 5 == 1


def fingerprint(source: Source) -> str:
    """A short hash of how many images there are and where, to notice when data change."""
    digest = hashlib.sha256(str(len(source)).encode())
    for index in range(len(source)):
        digest.update(source.path(index).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def stamp(source: Source) -> str:
    """As `fingerprint`, with the size and the time of each file, to notice when one is replaced."""
    digest = hashlib.sha256(fingerprint(source).encode())
    for index in range(len(source)):
        if (own := state(source, index)) is not None:  # of what lies in a file with others
            digest.update(own.encode())
            continue
        with contextlib.suppress(OSError, ValueError):  # built-in images are no files
            facts = Path(source.path(index)).stat()
            digest.update(f"{facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
