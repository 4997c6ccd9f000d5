"""The files to check: the layout of DATA, and the split and class of each file."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mvmae.config.datatools import DataCheckConfig
from mvmae.data.annotations.coco import FILE_PREFIX
from mvmae.data.annotations.masks import MASK_FOLDERS
from mvmae.data.reading.decode import EXTENSIONS
from mvmae.data.reading.inspect_file import Item, Part
from mvmae.data.sources.base import Source
from mvmae.data.sources.labelled import TEST, TRAIN
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError

KINDS = {
    "images": "images",
    "coco": "images with boxes, in COCO's layout",
    "masks": "images with masks",
}


@dataclass(kw_only=True)
class Subject:
    """Files to check. Only a path and two numbers of each are held in memory."""

    kind: str
    name: str
    paths: list[str]
    parts: tuple[str, ...] = ("",)
    """Names of the splits, and of what DATA is compared with."""

    part: np.ndarray
    """Index in `parts` of each file."""

    classes: tuple[str, ...] = ()
    label: np.ndarray | None = None
    """Index in `classes` of each file, -1 for a file without label; None without labels."""

    against: int | None = None
    """Index in `parts` of what DATA is compared with."""

    passed_over: list[str] = field(default_factory=list)
    """Files that training passes over for their suffix."""

    unlisted: list[tuple[str, str]] = field(default_factory=list)
    """Folders that cannot be listed, and why."""

    masks: list[str] = field(default_factory=list)
    """Mask files: inspected, but not images of DATA."""

    members: list[Item] = field(default_factory=list)
    """What is inspected instead of `paths`, where these are not separate files."""

    sources: list[Source] = field(default_factory=list)
    """Where the parts among `members` come from."""

    damaged: list[tuple[str, str]] = field(default_factory=list)
    """Tar files of which only the beginning is read, and why."""

    root: str = ""
    """How paths begin in the folder that they are shown relative to."""

    @property
    def items(self) -> list[Item]:
        """What is inspected for each path."""
        return self.members or [*self.paths]

    def own(self) -> np.ndarray:
        """Mark the files of DATA, without those it is compared with."""
        if self.against is None:
            return np.ones(len(self.paths), dtype=bool)
        return self.part != self.against

    def class_name(self, index: int) -> str:
        """Name of a file's class; empty without one."""
        label = -1 if self.label is None else self.label[index]
        return self.classes[label] if label >= 0 else ""


def detect_layout(config: DataCheckConfig) -> str:
    """Tell the layout of DATA by its files, unless --kind is given.

    Raises:
        UserError: --kind needs one folder, and there are several.
    """
    folder = Path(config.data[0])
    if config.kind != "auto":
        if config.kind != "images" and len(config.data) > 1:
            raise UserError(f"--kind {config.kind} takes one folder, not {len(config.data)}")
        return config.kind
    if len(config.data) > 1 or not folder.is_dir():
        return "images"
    # COCO first: its folders may also hold masks in annotations/.
    if any((folder / "annotations").glob(f"{FILE_PREFIX}*.json")):
        return "coco"
    has_masks = any((folder / name).is_dir() for name in MASK_FOLDERS)
    return "masks" if has_masks and (folder / "images").is_dir() else "images"


def open_images(config: DataCheckConfig) -> Subject:
    """Open the images of any source of files, tar files or arrays, as `pretrain` does.

    Raises:
        UserError: There are no images, or they cannot be checked.
    """
    folder, source = Path(config.data[0]), open_source(config.data, 3)
    members = _members(source, 0)
    # Before anything is inspected, which may take hours.
    if members and config.quarantine is not None:
        raise UserError(
            f"--quarantine lists files, and the images of {source.name} are not separate files: "
            "mvmae data pack leaves out what cannot be read"
        )
    subject = Subject(
        kind="images",
        name=source.name,
        paths=[*map(source.path, range(len(source)))],
        part=np.zeros(len(source), dtype=np.int16),
        members=members,
        sources=[source] if members else [],
        damaged=[*source.damage],
        root=f"{folder}/" if len(config.data) == 1 and folder.is_dir() else "",
    )
    splits = [name for name in (*TRAIN, *TEST) if (folder / name).is_dir()]
    if subject.root and not members and len(splits) > 1:
        _assign_splits(subject, splits)
    elif source.classes:
        subject.classes = tuple(source.classes)
        subject.label = np.array([source.label(i) for i in range(len(source))], dtype=np.int32)
    if not members and (subject.root or len(config.data) > 1):
        others = [_other_files(name, subject.unlisted) for name in config.data]
        subject.passed_over = sorted(set(itertools.chain(*others)))
        subject.unlisted = sorted(set(subject.unlisted))
    return subject


def add_comparison(subject: Subject, config: DataCheckConfig) -> None:
    """Add the images of --against, none of which may be in DATA.

    Raises:
        UserError: There are none, or they are DATA itself.
    """
    if not config.against:
        return
    # By real path: DATA is often a link, and comparing a folder with itself finds only copies.
    own = {os.path.realpath(name) for name in config.data}
    for name in config.against:
        if os.path.realpath(name) in own:
            raise UserError(f"--against {name} is DATA itself: name other images")
    source = open_source(config.against, 3)
    members = _members(source, len(subject.sources))
    subject.sources += [source] if members else []
    paths = [*map(source.path, range(len(source)))]
    if members or subject.members:
        subject.members = [*subject.items, *(members or paths)]
    subject.damaged += source.damage
    subject.against = len(subject.parts)
    subject.parts = (*subject.parts, f"--against {source.name}")
    part = np.full(len(source), subject.against, dtype=np.int16)
    subject.part = np.concatenate([subject.part, part])
    subject.paths = [*subject.paths, *paths]
    # Images of --against count for no class, whatever folders they are in.
    if subject.label is not None:
        subject.label = np.concatenate([subject.label, np.full(len(source), -1, np.int32)])


def _members(source: Source, number: int) -> list[Item]:
    """Images of a source that are not separate files; an empty list for files.

    Args:
        source: The images.
        number: Index in `Subject.sources`.

    Raises:
        UserError: These images cannot be checked.
    """
    if source.refuses_check:
        raise UserError(source.refuses_check)
    if source.has_own_files:
        return []
    return [Part(number, index) for index in range(len(source))]


def _assign_splits(subject: Subject, splits: Sequence[str]) -> None:
    """Take the first folder of each path as its split, and the second as its class.

    Without classes where any image is outside the splits or directly in one.
    """
    depth, outside = len(Path(subject.root).parts), len(splits)
    index_of = {name: index for index, name in enumerate(splits)}
    inside = [Path(path).parts[depth:] for path in subject.paths]
    # An image directly in DATA is in no split, even if its own name is that of one.
    subject.part[:] = [
        index_of.get(parts[0], outside) if len(parts) > 1 else outside for parts in inside
    ]
    if (subject.part == outside).any():
        subject.parts = (*splits, "")
        return
    subject.parts = tuple(splits)
    if all(len(parts) > 2 for parts in inside):
        classes, labels = np.unique([parts[1] for parts in inside], return_inverse=True)
        subject.classes, subject.label = tuple(classes.tolist()), labels.astype(np.int32)


def _other_files(folder: str, unlisted: list[tuple[str, str]]) -> Iterator[str]:
    """Find files that training passes over for their suffix.

    As in the search for images, hidden files are skipped and each folder is read once.

    Args:
        folder: Where to search.
        unlisted: Gets the folders that cannot be listed, and why.
    """

    def note(error: OSError) -> None:
        unlisted.append((str(error.filename), error.strerror or str(error)))

    seen = set()  # real paths, because links may form loops
    for where, folders, files in os.walk(folder, followlinks=True, onerror=note):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() not in EXTENSIONS:
                yield str(Path(where, name))
