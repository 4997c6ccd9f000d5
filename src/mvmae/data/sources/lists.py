"""Lists of image files: .txt, .csv, .tsv and .parquet.

A list may have ten million rows: it is read a row at a time, and paths are kept as bytes.
"""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mvmae.data.sources.files import Files
from mvmae.data.sources.names import Names
from mvmae.errors import UserError

LISTS = (".txt", ".csv", ".tsv", ".parquet")
PATH = ("path", "file", "filename", "image")  # first cells that make a row a header
LABEL = ("label", "class")
GROUP = ("group",)
ROWS = 65536  # of a Parquet file held at once


class Row(NamedTuple):
    """What a list says of an image; empty where it says nothing."""

    path: str
    label: str = ""
    group: str = ""


def from_list(file: str, channels: int, root: str | None = None) -> Files:
    """The files named in a list of path[,label[,group]]; a .txt has a path a line.

    Paths are relative to the list. A .csv or .tsv may begin with a header; a header, or the names
    of a .parquet's columns, say where the label and the group stand.

    Args:
        file: The list.
        channels: As for `Files`.
        root: A folder that no file may lie outside of, wherever links lead.

    Raises:
        UserError: The list cannot be read, is empty, names a file that is not there or lies
            outside of `root`, or gives labels to some files only.
    """
    labels: list[str] = []
    groups: list[str] = []
    names = Names(_paths(file, labels, groups, root))
    if not names:
        raise UserError(f"{file} lists no images")
    if any(labels) and not all(labels):
        entry = labels.index("") + 1
        raise UserError(f"{file}, entry {entry}: no label, though other entries have one")
    has_labels, has_groups = any(labels), any(groups)
    return Files(
        file, names, channels, labels if has_labels else None, groups if has_groups else None
    )


def _paths(file: str, labels: list[str], groups: list[str], root: str | None) -> Iterator[str]:
    """The path of each row; what else it says goes to `labels` and `groups`."""
    prefix = str(Path(file).parent)
    prefix = "" if prefix == os.curdir else prefix.rstrip(os.sep) + os.sep
    bounds = None if root is None else Bounds(root)
    known: dict[str, str] = {}  # one string for a class, not one for a row
    for entry, row in enumerate(_rows(file), 1):
        path = _joined(prefix, row.path)
        if not _is_file(path):
            raise UserError(f"{file}, entry {entry}: no such file {path}")
        if bounds is not None and not bounds.hold(path):
            raise UserError(f"{file}, entry {entry}: {path} lies outside of {root}")
        labels.append(known.setdefault(row.label, row.label))
        groups.append(known.setdefault(row.group, row.group))
        yield path


def _joined(prefix: str, path: str) -> str:
    """A path from where the list lies, as pathlib would write it, in a fifth of the time."""
    if path.startswith((os.sep, ".")) or "//" in path or "/." in path or path.endswith(os.sep):
        return str(Path(prefix, path))
    return prefix + path if os.sep == "/" else str(Path(prefix, path))


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116  # a third of pathlib's time
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return False


class Bounds:
    """A folder that files have to lie in, wherever links lead.

    Args:
        root: The folder.

    Raises:
        UserError: It is none.
    """

    def __init__(self, root: str) -> None:
        if not Path(root).is_dir():
            raise UserError(f"--root {root} is no folder")
        self.root = os.path.realpath(root).rstrip(os.sep) + os.sep
        self._folders: dict[str, str] = {}  # resolved once: many files lie in each

    def hold(self, path: str) -> bool:
        """Whether a file lies in the folder."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        whole = os.path.join(self._folders[folder], name)  # noqa: PTH118
        real = os.path.realpath(whole) if os.path.islink(whole) else whole  # noqa: PTH114
        return os.path.normpath(real).startswith(self.root)


def _rows(file: str) -> Iterator[Row]:
    suffix = Path(file).suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _of_parquet(file)
            return
        with Path(file).open(encoding="utf-8-sig", newline=None if suffix == ".txt" else "") as at:
            if suffix == ".txt":
                yield from (Row(line.strip()) for line in at if line.strip())
            else:
                yield from _of_table(csv.reader(at, delimiter="\t" if suffix == ".tsv" else ","))
    except UserError:
        raise
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"cannot read the list {file}: {error}") from error


def _of_table(rows: Iterator[list[str]]) -> Iterator[Row]:
    """Rows of path[,label[,group]], or as the header says."""
    label, group = 1, 2
    is_first = True
    for row in rows:
        if not row or not row[0].strip():
            continue
        if is_first and row[0].strip().lower() in PATH:
            header = [cell.strip().lower() for cell in row]
            label, group = _place(header, LABEL), _place(header, GROUP)
            if label < 0 and len(header) > 1 and group != 1:
                label = 1  # whatever it is called
            is_first = False
            continue
        is_first = False
        yield Row(row[0], _cell(row, label), _cell(row, group))


def _place(header: list[str], names: tuple[str, ...]) -> int:
    return next((header.index(name) for name in names if name in header), -1)


def _cell(row: list[str], at: int) -> str:
    return row[at].strip() if 0 <= at < len(row) else ""


def _of_parquet(file: str) -> Iterator[Row]:
    """Rows of the columns called path (or file, filename, image), label (or class) and group.

    Raises:
        UserError: There is no column of paths, or one holds no words.
    """
    with pq.ParquetFile(file) as parquet:
        header = parquet.schema_arrow.names
        lower = [name.lower() for name in header]
        places = [_place(lower, names) for names in (PATH, LABEL, GROUP)]
        if places[0] < 0:
            raise UserError(
                f"{file} has no column of paths: one must be called {', '.join(PATH[:-1])} or "
                f"{PATH[-1]}"
            )
        wanted = [header[at] for at in places if at >= 0]
        for name in wanted:
            kind = parquet.schema_arrow.field(name).type
            if not _is_of_words(kind):
                raise UserError(f"{file}: the column {name} holds {kind}, and no words")
        for batch in parquet.iter_batches(ROWS, columns=wanted):
            columns = [
                [_word(value) for value in batch.column(header[at]).to_pylist()]
                if at >= 0
                else [""] * len(batch)
                for at in places
            ]
            yield from (Row(*cells) for cells in zip(*columns, strict=True) if cells[0])


def _is_of_words(kind: pa.DataType) -> bool:
    """Whether what a column holds is a word, a number or a truth."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    text = text or pa.types.is_string_view(kind) or pa.types.is_null(kind)
    return text or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _word(value: object) -> str:
    return "" if value is None else str(value).strip()
