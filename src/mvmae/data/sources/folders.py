"""Image files below one or several folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from mvmae.data.reading.decode import EXTENSIONS, UnreadableImageError, Wanted
from mvmae.data.sources.base import Source
from mvmae.data.sources.string_table import CodedWords, StringTable
from mvmae.errors import UserError


class Files(Source):
    """Image files, with their classes and groups.

    Args:
        name: What the user called them.
        paths: The files.
        channels: Channels of the pixels: 3 for colour, 1 for gray.
        class_names: The class name of each file; None without classes.
        group_names: What each file belongs to besides its class, such as a patient or a film; empty
            for a file without a group; None without groups.
    """

    has_own_files = True

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        channels: int,
        class_names: Sequence[str] | None = None,
        group_names: Sequence[str] | None = None,
    ) -> None:
        self.name, self.wanted = name, Wanted(channels)
        self.names = paths if isinstance(paths, StringTable) else StringTable(paths)
        self._classes = CodedWords(class_names) if class_names else None
        self._groups = CodedWords(group_names) if group_names else None
        self.classes = self._classes.table if self._classes else ()

    @cached_property
    def paths(self) -> list[str]:
        """All paths as strings, which takes more memory than `names`."""
        return list(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def content(self, index: int) -> bytes:
        return read_file(self.names[index])

    def version(self, index: int) -> str:
        return file_version(self.names[index])

    def label(self, index: int) -> int:
        return -1 if self._classes is None else int(self._classes.codes[index])

    def group(self, index: int) -> str | None:
        return None if self._groups is None else self._groups.word(index)

    def path(self, index: int) -> str:
        return self.names[index]

    def member(self, index: int) -> str:
        return os.path.abspath(self.names[index]).replace(os.sep, "/")  # noqa: PTH100

    def files(self) -> Iterator[str]:
        return iter(self.names)


def read_file(path: str) -> bytes:
    """Read all bytes of a file.

    Raises:
        UnreadableImageError: It cannot be read, or is a pipe or a device, which may never end.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise UnreadableImageError("not a regular file")
            return stream.read()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UnreadableImageError(getattr(error, "strerror", None) or str(error)) from error


def file_version(path: str) -> str:
    """Size and time of a file, which change with its content; empty if they are unknown."""
    try:
        facts = os.stat(path)  # noqa: PTH116  # a third of pathlib's time
    except (OSError, ValueError):  # gone, or a zero byte in the name
        return ""
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; of a pipe, do not wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def open_images(folders: Sequence[str], channels: int) -> Files:
    """Open every image below the folders, in the order of their paths.

    First-level folders are classes, as in torchvision's ImageFolder. If any image is directly in
    its folder, there are no classes.

    Raises:
        UserError: A folder is missing or contains no images.
    """
    class_names: list[str] = []
    unique = {os.path.realpath(folder): folder for folder in folders}.values()
    names = StringTable(_paths_below(unique, class_names))
    return Files(" ".join(folders), names, channels, class_names if all(class_names) else None)


def _paths_below(folders: Iterable[str], class_names: list[str]) -> Iterator[str]:
    """Yield paths of images; append the class of each, or an empty text, to `class_names`."""
    for folder in folders:
        base = _prefix(folder)
        before = len(class_names)
        known: dict[str, str] = {}  # one string per class, not one per image
        for path in _images_below(base):
            label, inside, _ = path[len(base) :].partition(os.sep)
            class_names.append(known.setdefault(label, label) if inside else "")
            yield path
        if len(class_names) == before:
            raise UserError(f"no images below {folder}: looked for {', '.join(sorted(EXTENSIONS))}")


def _prefix(folder: str) -> str:
    """The path up to a name in the folder, as pathlib writes it."""
    plain = str(Path(folder))
    return "" if plain == os.curdir else plain if plain.endswith(os.sep) else plain + os.sep


def _images_below(base: str) -> Iterator[str]:
    """Yield sorted paths of image files. Links to folders are followed, each folder is read once.

    Folders are sorted as if their names ended in a slash: this gives the order of whole paths one
    folder at a time, with only the folders on the way in memory. `scandir` tells with each name
    whether it is a folder, which saves a system call per file.
    """
    seen, rest = {os.path.realpath(base)}, _entries(base)
    while rest:
        name = rest.pop()
        if not name.endswith(os.sep):
            yield name
        elif (real := os.path.realpath(name)) not in seen:
            seen.add(real)
            rest += _entries(name)


def _entries(prefix: str) -> list[str]:
    """Images and folders (with a trailing slash) in a folder, in descending order."""
    found = []
    try:
        with os.scandir(prefix or os.curdir) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    found.append(entry.name + os.sep)
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:  # noqa: PTH122
                    found.append(entry.name)
    except OSError:  # no permission to read the folder
        return []
    return [prefix + name for name in sorted(found, reverse=True)]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
