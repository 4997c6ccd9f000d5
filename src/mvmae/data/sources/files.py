"""Image files: a folder to its bottom, several folders, or a list of paths."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from mvmae.data.decode import EXTENSIONS, Pixels, UnreadableImageError, decode
from mvmae.errors import UserError

HEADERS = {"path", "file", "filename", "image"}  # first cells that make a row a header


class Files:
    """Image files, and the class of each where there are classes.

    Args:
        name: What the user called them.
        paths: The files.
        channels: What the pixels are decoded to: 3 for colour, 1 for gray.
        class_names: The name of each file's class, or none.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        channels: int,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.name, self.paths, self.channels = name, list(paths), channels
        self.classes = tuple(sorted(set(class_names))) if class_names else ()
        place = {name: at for at, name in enumerate(self.classes)}
        self._labels = [place[name] for name in class_names] if class_names else None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Pixels:
        """See `Source`."""
        return decode(contents(self.paths[index]), self.channels)

    def label(self, index: int) -> int:
        """See `Source`."""
        return -1 if self._labels is None else self._labels[index]

    def path(self, index: int) -> str:
        """See `Source`."""
        return self.paths[index]


def contents(path: str) -> bytes:
    """All bytes of a file.

    Raises:
        UnreadableImageError: It cannot be read, or is a pipe or a device, which may never end.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise UnreadableImageError("no regular file")
            return stream.read()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UnreadableImageError(getattr(error, "strerror", None) or str(error)) from error


def _without_waiting(path: str, flags: int) -> int:
    """Open a pipe without waiting for somebody who writes."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def from_folders(folders: Sequence[str], channels: int) -> Files:
    """Every image below the folders, in the order of their paths.

    A first-level folder is a class, as in torchvision's ImageFolder; where any image lies directly
    in its folder there are no classes.

    Raises:
        UserError: A folder is missing or holds no image.
    """
    paths, class_names = [], []
    for folder in {os.path.realpath(folder): folder for folder in folders}.values():
        found = sorted(_images_below(Path(folder)))
        if not found:
            raise UserError(f"no images below {folder}: looked for {', '.join(sorted(EXTENSIONS))}")
        paths += found
        depth = len(Path(folder).parts)
        class_names += [
            parts[depth] if len(parts := Path(path).parts) > depth + 1 else "" for path in found
        ]
    return Files(" ".join(folders), paths, channels, class_names if all(class_names) else None)


def _images_below(folder: Path) -> Iterator[str]:
    """Paths of image files; links to folders are followed, each folder is read once."""
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if Path(name).suffix.lower() in EXTENSIONS and not name.startswith("."):
                yield str(Path(where, name))


def from_list(file: str, channels: int) -> Files:
    """The files named in a list: .txt with a path a line, or .csv with path[,label].

    Paths are relative to the list. A .csv may begin with a header.

    Raises:
        UserError: The list cannot be read, is empty, names a file that is not there, or gives
            labels to some files only.
    """
    rows = _rows(file)
    if not rows:
        raise UserError(f"{file} lists no images")
    paths = [str(Path(file).parent / row[0]) for row in rows]
    for line, path in enumerate(paths, 1):
        if not Path(path).is_file():
            raise UserError(f"{file}, entry {line}: no such file {path}")
    class_names = [row[1].strip() if len(row) > 1 else "" for row in rows]
    if any(class_names) and not all(class_names):
        entry = class_names.index("") + 1
        raise UserError(f"{file}, entry {entry}: no label, though other entries have one")
    return Files(file, paths, channels, class_names if any(class_names) else None)


def _rows(file: str) -> list[list[str]]:
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {file}: {error}") from error
    if Path(file).suffix.lower() == ".txt":
        return [[line.strip()] for line in text.splitlines() if line.strip()]
    try:
        rows = [row for row in csv.reader(text.splitlines()) if row and row[0].strip()]
    except csv.Error as error:
        raise UserError(f"cannot read the list {file}: {error}") from error
    return rows[1:] if rows and rows[0][0].strip().lower() in HEADERS else rows
