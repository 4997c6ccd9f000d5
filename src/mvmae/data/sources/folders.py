"""Image files below one or several folders."""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from mvmae.data.reading.decode import EXTENSIONS, UnreadableImageError, Wanted
from mvmae.data.sources.base import Source
from mvmae.data.sources.string_table import StringTable, encode_words, store_strings
from mvmae.errors import UserError

OF_IMAGES_AND_FOLDERS = EXTENSIONS | {os.sep}  # suffixes from `visible_names`


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
        paths: Sequence[str] | StringTable,
        channels: int,
        class_names: Sequence[str] | None = None,
        group_names: Sequence[str] | None = None,
    ) -> None:
        self.name, self.wanted = name, Wanted(channels)
        self.names = paths if isinstance(paths, StringTable) else store_strings(paths)
        self.label_codes, self.classes = encode_words(class_names or ())
        self.groups = encode_words(group_names or ())

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
    # Without this flag, opening a pipe waits until somebody writes to it.
    more = getattr(os, "O_NONBLOCK", 0)
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | more)) as stream:
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


def open_images(folders: Sequence[str], channels: int) -> Files:
    """Open every image below the folders, in the order of their paths.

    First-level folders are classes, as in torchvision's ImageFolder. If any image is directly in
    its folder, there are no classes.

    Raises:
        UserError: A folder is missing or contains no images.
    """
    class_names: list[str] = []
    # A folder that is named twice, or through a link, must not count twice.
    unique = {os.path.realpath(folder): folder for folder in folders}.values()
    names = store_strings(_paths_below(unique, class_names))
    return Files(" ".join(folders), names, channels, class_names if all(class_names) else None)


def _paths_below(folders: Iterable[str], class_names: list[str]) -> Iterator[str]:
    """Yield paths of images; append the class of each, or an empty text, to `class_names`."""
    for folder in folders:
        base = folder_prefix(folder)
        before = len(class_names)
        known: dict[str, str] = {}  # one string per class, not one per image
        for path in _images_below(base):
            label, inside, _ = path[len(base) :].partition(os.sep)
            class_names.append(known.setdefault(label, label) if inside else "")
            yield path
        if len(class_names) == before:
            raise UserError(f"no images below {folder}: looked for {', '.join(sorted(EXTENSIONS))}")


def folder_prefix(folder: str | Path) -> str:
    """The path up to a name in the folder, as pathlib writes it."""
    plain = str(Path(folder))
    return "" if plain == os.curdir else plain.rstrip(os.sep) + os.sep


def _images_below(base: str) -> Iterator[str]:
    """Yield sorted paths of image files. Links to folders are followed, each folder is read once.

    Folders are sorted as if their names ended in a slash: this gives the order of whole paths one
    folder at a time, with only the folders on the way in memory.
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
    names = (name for name, suffix in visible_names(prefix) if suffix in OF_IMAGES_AND_FOLDERS)
    return [prefix + name for name in sorted(names, reverse=True)]


def visible_names(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the names in a folder that are not hidden, each with its suffix in lower case.

    Folders end in a slash, which is also their suffix. Nothing is yielded without permission to
    read the folder.
    """
    with contextlib.suppress(OSError), os.scandir(folder or os.curdir) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                # `scandir` knows this already, which saves a system call per file.
                is_folder = entry.is_dir()
            except OSError:  # a link that leads to itself
                is_folder = False
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
            yield (entry.name + os.sep, os.sep) if is_folder else (entry.name, suffix)
