"""Lists of image files: .txt, .csv, .tsv and .parquet.

A list may have ten million rows, so it is read row by row, and paths are stored as bytes.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mvmae.data.sources.folders import Files, folder_prefix
from mvmae.data.sources.string_table import store_strings
from mvmae.errors import UserError, printable

if TYPE_CHECKING:
    import pyarrow as pa

PATH = ("path", "file", "filename", "image")  # cells of the first row that make it a header
LABEL = ("label", "class")
GROUP = ("group",)
COLUMNS = (PATH, LABEL, GROUP)
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
MAX_SHOWN = 200  # characters of a cell in a message
ROWS = 65536  # of a Parquet file in memory at once


class Row(NamedTuple):
    """One row of a list; fields that it does not have are empty."""

    path: str
    label: str = ""
    group: str = ""
    line: int = 0
    """Line number in the file; 0 for formats without lines."""


def from_list(file: str, channels: int, root: str | None = None) -> Files:
    """Open the files in a list of path[,label[,group]]; a .txt has one path per line.

    Paths are relative to the list. A .csv or .tsv may start with a header. The header, or the
    column names of a .parquet, tell the columns of path, label and group. Blanks around a path are
    ignored, unless a file has them in its name.

    Args:
        file: The list.
        channels: Channels of the pixels: 3 for colour, 1 for gray.
        root: A folder that all files must be in, after links are resolved. Default: no limit.

    Raises:
        UserError: The list cannot be read, is empty, names a file that is missing or outside of
            `root`, or has labels for some files only.
    """
    labels: list[str] = []
    groups: list[str] = []
    names = store_strings(_paths(file, labels, groups, root))
    if not names:
        raise UserError(f"{file} lists no images")
    if any(labels) and not all(labels):
        entry = labels.index("") + 1
        raise UserError(f"{file}, entry {entry}: no label, but other entries have one")
    return Files(
        file, names, channels, labels if any(labels) else None, groups if any(groups) else None
    )


def _paths(file: str, labels: list[str], groups: list[str], root: str | None) -> Iterator[str]:
    """Yield the path of each row; append its label and group to `labels` and `groups`."""
    prefix = folder_prefix(Path(file).parent)
    bounds = None if root is None else Bounds(root)
    known: dict[str, str] = {}  # one string per class, not one per row

    def find(path: str) -> str | None:
        """Find the file of a path as written, or else without blanks around it."""
        spellings = (_join(prefix, one) for one in (path, path.strip()))
        # os.path is three times as fast as pathlib, which counts for millions of rows.
        return next((one for one in spellings if os.path.isfile(one)), None)  # noqa: PTH113

    for entry, row in enumerate(_rows(file, lambda path: find(path) is not None), 1):
        path = find(row.path)
        if path is None:
            missing = _shorten(_join(prefix, row.path.strip()))
            hint = _hint(row, is_first=entry == 1)
            raise UserError(f"{file}, entry {entry}: no such file {missing}{hint}")
        if bounds is not None and not bounds.hold(path):
            raise UserError(f"{file}, entry {entry}: {path} is outside of {root}")
        labels.append(known.setdefault(row.label, row.label))
        groups.append(known.setdefault(row.group, row.group))
        yield path


def _shorten(text: str) -> str:
    """The first line of a cell, shortened: a missing quote can make a cell of the whole file."""
    first = text.partition("\n")[0]
    return text if text == first[:MAX_SHOWN] else f"{first[:MAX_SHOWN]}..."


def _hint(row: Row, *, is_first: bool) -> str:
    """A likely reason why a path of a table does not exist; empty without one."""
    if not row.line:
        return ""
    if "\n" in row.path:
        return f": the cell spans several lines; is the quote in line {row.line} closed?"
    other = next((mark for mark in ";\t|" if mark in row.path), None)
    if other is not None:
        mark = "tabs" if other == "\t" else f"'{other}'"
        return f": are the columns separated by {mark}? A .csv needs commas, a .tsv tabs"
    if is_first and not os.path.splitext(row.path)[1]:  # noqa: PTH122
        return f": if this is a header, name the column of paths {_either(PATH)}"
    return ""


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _join(prefix: str, path: str) -> str:
    """A path relative to the list, as pathlib writes it, in a fifth of the time."""
    if path.startswith((os.sep, ".")) or "//" in path or "/." in path or path.endswith(os.sep):
        return str(Path(prefix, path))
    return prefix + path if os.sep == "/" else str(Path(prefix, path))


class Bounds:
    """A folder that files must be in, after links are resolved.

    Args:
        root: The folder.

    Raises:
        UserError: It is not a folder.
    """

    def __init__(self, root: str) -> None:
        if not Path(root).is_dir():
            raise UserError(f"--root {root} is not a folder")
        self.root = os.path.realpath(root).rstrip(os.sep) + os.sep
        self._folders: dict[str, str] = {}  # resolved once, as many files are in each

    def hold(self, path: str) -> bool:
        """Whether a file is in the folder."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        whole = os.path.join(self._folders[folder], name)  # noqa: PTH118
        real = os.path.realpath(whole) if os.path.islink(whole) else whole  # noqa: PTH114
        return os.path.normpath(real).startswith(self.root)


def _rows(file: str, is_path: Callable[[str], bool]) -> Iterator[Row]:
    suffix = Path(file).suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(file)
            return
        # The csv module reads line ends itself, as they may be inside quotes.
        with Path(file).open(encoding="utf-8-sig", newline=None if suffix == ".txt" else "") as at:
            if suffix == ".txt":
                yield from (Row(line.rstrip("\n")) for line in at if line.strip())
            else:
                # Strict, or a quote that is not closed would swallow the rest of the list.
                reader = csv.reader(at, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
                yield from _table_rows(file, reader, is_path)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        # Its first bytes cannot be UTF-8.
        is_utf_16 = isinstance(error, UnicodeDecodeError) and error.object[:2] in UTF_16
        said = "it is UTF-16; save it as UTF-8" if is_utf_16 else error
        raise UserError(f"cannot read the list {file}: {said}") from error


def _table_rows(file: str, reader: Any, is_path: Callable[[str], bool]) -> Iterator[Row]:
    """Rows of path[,label[,group]], or of the columns that the header names."""
    columns: tuple[int, int, int] | None = None
    line = 1  # the first of the next row; a quoted row may span several
    try:
        for row in reader:
            first, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = _header_columns(file, row, is_path)
                if columns is not None:
                    continue
                columns = (0, 1, 2)
            path, label, group = (row[at] if 0 <= at < len(row) else "" for at in columns)
            if not path.strip():
                continue
            if "\n" in label.strip() or "\n" in group.strip():
                raise UserError(
                    f"{file}: the entry in line {first} spans several lines: is a quote not closed?"
                )
            yield Row(path, label.strip(), group.strip(), first)
    except csv.Error as error:
        raise UserError(
            f"cannot read the list {file}: the quote that opens in line {line} is not closed "
            f"at the end of its cell ({error})"
        ) from error


def _header_columns(
    file: str, row: list[str], is_path: Callable[[str], bool]
) -> tuple[int, int, int] | None:
    """Column numbers of path, label and group, -1 for a missing column; None without a header.

    The first row is a header if a cell names the column of paths, and its first cell is not a file.

    Raises:
        UserError: There is no label, but a column that may be meant as the label.
    """
    header = [cell.strip().lower() for cell in row]
    path, label, group = (_place(header, names) for names in COLUMNS)
    if path < 0 or (header[0] not in PATH and is_path(row[0])):
        return None
    others = [_shorten(one) for one in header if one not in (*PATH, *LABEL, *GROUP, "")]
    if others and label < 0:
        raise UserError(
            f"{file}: unknown column {others[0]}. A header may name {_either(PATH)}, "
            f"{_either(LABEL)}, and {_either(GROUP)}; other columns only beside a label"
        )
    if others:
        said = _shorten(printable(", ".join(others)))
        print(f"mvmae: ignored columns of {file}: {said}", file=sys.stderr)
    return path, label, group


def _place(header: list[str], names: tuple[str, ...]) -> int:
    return next((header.index(name) for name in names if name in header), -1)


def _parquet_rows(file: str) -> Iterator[Row]:
    """Rows of the columns named path (or file, filename, image), label (or class) and group.

    Raises:
        UserError: The file is damaged, has no column of paths, or a column does not hold text.
    """
    import pyarrow as pa  # a tenth of a second, for these lists only
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            header = parquet.schema_arrow.names
            places = [_place([name.lower() for name in header], names) for names in COLUMNS]
            if places[0] < 0:
                raise UserError(f"{file} has no column of paths: name one {_either(PATH)}")
            wanted = [header[at] for at in places if at >= 0]
            for name in wanted:
                kind = parquet.schema_arrow.field(name).type
                if not _is_text(kind):
                    raise UserError(f"{file}: the column {name} holds {kind}, not text")
            for batch in parquet.iter_batches(ROWS, columns=wanted):
                columns = [
                    batch.column(header[at]).to_pylist() if at >= 0 else [None] * len(batch)
                    for at in places
                ]
                for cells in zip(*columns, strict=True):
                    path, label, group = ("" if one is None else str(one) for one in cells)
                    if path.strip():
                        yield Row(path, label.strip(), group.strip())
    except pa.ArrowException as error:
        raise UserError(f"cannot read the list {file}: {error}") from error


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text, whole numbers or truth values."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    text = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return any(is_kind(kind) for is_kind in (*text, types.is_integer, types.is_boolean))
