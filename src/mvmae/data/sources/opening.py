"""What the user wrote to a source of images."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvmae.data.sources.builtin import BUILTIN, is_builtin
from mvmae.data.sources.files import from_folders, from_list
from mvmae.data.sources.source import Source, Subset, labels
from mvmae.errors import UserError

LISTS = (".txt", ".csv")
TRAIN = ("train", "training")
TEST = ("val", "valid", "validation", "test", "testing")


def open_source(data: Sequence[str], channels: int) -> Source:
    """The images of folders, of one list file, or built-in ones (their training part).

    Raises:
        UserError: There is nothing there, or nothing that is read.
    """
    if channels not in (1, 3):
        raise UserError(f"image files are read with 1 or 3 channels, not {channels}")
    if not data:
        raise UserError("no DATA: name a folder of images, a list file, photos or digits")
    if len(data) == 1:
        return _open_one(data[0], channels)
    for name in data:
        if not Path(name).is_dir():
            raise UserError(f"several DATA must all be folders, and {name} is not one")
    return from_folders(data, channels)


def _open_one(name: str, channels: int) -> Source:
    if is_builtin(name):
        return BUILTIN[name.removeprefix("builtin:")]("train", channels)
    path = Path(name)
    if path.is_dir():
        return from_folders([name], channels)
    if path.suffix.lower() in LISTS and path.is_file():
        return from_list(name, channels)
    if path.exists():
        raise UserError(f"{name} is neither a folder nor a list of images (.txt, .csv)")
    raise UserError(
        f"no such folder: {name} (DATA is a folder of images, a .txt or .csv list, "
        "photos or digits)"
    )


class Labelled(NamedTuple):
    """Labelled images to learn from and to be judged on."""

    train: Source
    test: Source
    split: str
    """Where the split comes from, in words."""


def open_labelled(data: str, channels: int) -> Labelled:
    """Labelled images with a training and a test part.

    A folder with both parts as folders (train and val, or other usual names) is taken as it is. Of
    anything else every fifth image of each class, in the order of the paths, tests.

    Raises:
        UserError: There is nothing there, or there are no labels.
    """
    if is_builtin(data):
        build = BUILTIN[data.removeprefix("builtin:")]
        return Labelled(build("train", channels), build("val", channels), "built in")
    parts = _split_folders(Path(data))
    if parts:
        train, test = (_with_labels(open_source([str(part)], channels)) for part in parts)
        if train.classes != test.classes:
            odd = sorted(set(train.classes) ^ set(test.classes))
            raise UserError(
                f"{parts[0]} and {parts[1]} have different classes: {', '.join(odd[:5])}"
                f"{' ...' if len(odd) > 5 else ''} in one of them only"
            )
        return Labelled(train, test, f"{parts[0].name}/ and {parts[1].name}/")
    source = _with_labels(open_source([data], channels))
    tests = _every_fifth(labels(source))
    if tests.all() or not tests.any():
        raise UserError(f"{data} has too few images to test on: a class needs at least 2")
    train, test = (Subset(source, np.flatnonzero(part).tolist()) for part in (~tests, tests))
    return Labelled(train, test, "every fifth image of each class tests")


def _split_folders(folder: Path) -> tuple[Path, Path] | None:
    parts = [
        next((folder / name for name in names if (folder / name).is_dir()), None)
        for names in (TRAIN, TEST)
    ]
    return (parts[0], parts[1]) if parts[0] and parts[1] else None


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


def _every_fifth(classes: np.ndarray) -> np.ndarray:
    """Marks every fifth image of each class, from the second on, so that a pair is split too."""
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
        with contextlib.suppress(OSError, ValueError):  # built-in images are no files
            facts = Path(source.path(index)).stat()
            digest.update(f"{facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
