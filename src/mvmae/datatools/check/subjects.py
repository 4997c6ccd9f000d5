"""What is checked: the kind of DATA, its files, the part and the class that each belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
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
    """Files to look at. A path, two numbers and nothing else is held of each."""

    kind: str
    name: str
    paths: list[str]
    parts: tuple[str, ...] = ("",)
    """Names of the parts: splits, and what DATA is held against."""

    part: np.ndarray
    """Place in `parts` of each file."""

    classes: tuple[str, ...] = ()
    label: np.ndarray | None = None
    """Place in `classes` of each file; none where there are no labels, -1 where one has none."""

    against: int | None = None
    """Place in `parts` of what DATA is held against."""

    passed_over: list[str] = field(default_factory=list)
    """Files that training passes over for their suffix."""

    unlisted: list[tuple[str, str]] = field(default_factory=list)
    """Folders that cannot be listed, and why."""

    masks: list[str] = field(default_factory=list)
    """Mask files: looked at, but no images of DATA."""

    members: list[Item] = field(default_factory=list)
    """What is inspected in place of `paths`, where these are not separate files."""

    sources: list[Source] = field(default_factory=list)
    """Where the parts among `members` come from."""

    damaged: list[tuple[str, str]] = field(default_factory=list)
    """Tar files of which only the beginning is read, and why."""

    root: str = ""
    """The folder that paths are shown from."""

    @property
    def items(self) -> list[Item]:
        """What is looked at, an item for each path."""
        return self.members or [*self.paths]

    def own(self) -> np.ndarray:
        """Marks the files of DATA, without those it is held against."""
        if self.against is None:
            return np.ones(len(self.paths), dtype=bool)
        return self.part != self.against

    def class_of(self, index: int) -> str:
        """The name of a file's class; empty without one."""
        known = self.label is not None and self.label[index] >= 0
        return self.classes[self.label[index]] if known and self.label is not None else ""


def kind_of(config: DataCheckConfig) -> str:
    """What DATA is, by what lies there.

    Raises:
        UserError: It is said to be of a layout that takes one folder, and is several.
    """
    folder = Path(config.data[0])
    if config.kind != "auto":
        if config.kind != "images" and len(config.data) > 1:
            raise UserError(f"--kind {config.kind} takes one folder, not {len(config.data)}")
        return config.kind
    if len(config.data) > 1 or not folder.is_dir():
        return "images"
    if any((folder / "annotations").glob(f"{FILE_PREFIX}*.json")):
        return "coco"
    has_masks = any((folder / name).is_dir() for name in MASK_FOLDERS)
    return "masks" if has_masks and (folder / "images").is_dir() else "images"


def open_images(config: DataCheckConfig) -> Subject:
    """The images of folders, a list, tar files or an array, as `pretrain` finds them.

    Raises:
        UserError: There are none.
    """
    source = open_source(config.data, 3)
    members = _members_of(source, 0)
    if members and config.quarantine is not None:
        raise UserError(
            f"--quarantine lists files, and the images of {source.name} are none: "
            "mvmae data pack leaves out what cannot be read"
        )
    subject = Subject(
        kind="images",
        name=source.name,
        paths=_paths_of(source),
        part=np.zeros(len(source), dtype=np.int16),
        members=members,
        sources=[source] if members else [],
        damaged=[*source.damage],
        root=config.data[0] if len(config.data) == 1 and Path(config.data[0]).is_dir() else "",
    )
    names = [] if members else _split_names(config.data)
    if names:
        _divide(subject, names)
    elif source.classes:
        subject.classes = tuple(source.classes)
        subject.label = np.array([source.label(i) for i in range(len(source))], dtype=np.int32)
    if not members and (subject.root or len(config.data) > 1):
        subject.passed_over, subject.unlisted = _others(config.data)
    return subject


def hold_against(subject: Subject, config: DataCheckConfig) -> None:
    """Add the images that none of DATA may be.

    Raises:
        UserError: There are none, or they are DATA itself.
    """
    if not config.against:
        return
    for name in config.against:
        if any(_is_same(name, own) for own in config.data):
            raise UserError(f"--against {name} is DATA itself: name other images")
    source = open_source(config.against, 3)
    members = _members_of(source, len(subject.sources))
    subject.sources += [source] if members else []
    paths = _paths_of(source)
    if members or subject.members:
        subject.members = [*subject.items, *(members or paths)]
    subject.damaged += source.damage
    subject.against = len(subject.parts)
    subject.parts = (*subject.parts, f"--against {source.name}")
    part = np.full(len(source), subject.against, dtype=np.int16)
    subject.part = np.concatenate([subject.part, part])
    subject.paths = [*subject.paths, *paths]
    if subject.label is not None:
        subject.label = np.concatenate([subject.label, np.full(len(source), -1, np.int32)])


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)  # noqa: PTH121
    except OSError:
        return False


def _paths_of(source: Source) -> list[str]:
    return [source.path(index) for index in range(len(source))]


def _members_of(source: Source, number: int) -> list[Item]:
    """What is inspected of a source whose images are not separate files; empty for files.

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


def _split_names(data: Sequence[str]) -> list[str]:
    """Names of the splits that lie in one folder; none where there are fewer than two."""
    if len(data) != 1 or not Path(data[0]).is_dir():
        return []
    names = [name for name in (*TRAIN, *TEST) if (Path(data[0]) / name).is_dir()]
    return names if len(names) > 1 else []


def _divide(subject: Subject, names: list[str]) -> None:
    """The first folder is a split, the second a class."""
    depth = len(Path(subject.root).parts)
    subject.parts = (*names, "")
    place = {name: at for at, name in enumerate(subject.parts)}
    labels = []
    for index, path in enumerate(subject.paths):
        inside = Path(path).parts[depth:]
        subject.part[index] = place.get(inside[0], len(names)) if len(inside) > 1 else len(names)
        labels.append(inside[1] if len(inside) > 2 else "")
    if not (subject.part == len(names)).any():
        subject.parts = tuple(names)
        if all(labels):
            subject.classes = tuple(sorted(set(labels)))
            order = {name: at for at, name in enumerate(subject.classes)}
            subject.label = np.array([order[name] for name in labels], dtype=np.int32)


def _others(folders: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Files that training passes over for their suffix, and folders that cannot be listed."""
    unlisted: list[tuple[str, str]] = []

    def note(error: OSError) -> None:
        unlisted.append((str(error.filename), error.strerror or str(error)))

    passed = [path for folder in folders for path in _other_files(folder, note)]
    return sorted(set(passed)), sorted(set(unlisted))


def _other_files(folder: str, note: object) -> Iterator[str]:
    """As the walk that finds images: hidden ones are passed over, each folder is read once."""
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True, onerror=note):  # type: ignore[arg-type]
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() not in EXTENSIONS:
                yield str(Path(where, name))
