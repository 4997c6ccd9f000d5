"""Lists of image files: .txt, .csv, .tsv and .parquet.

A list may have ten million rows: it is read a row at a time, and paths are kept as bytes.
"""

from __future__ import annotations

import csv
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mvmae.data.sources.folders import Files
from mvmae.data.sources.string_table import StringTable
from mvmae.errors import UserError, printable

if TYPE_CHECKING:
    import pyarrow as pa

PATH = ("path", "file", "filename", "image")  # cells that make the first row a header
LABEL = ("label", "class")
GROUP = ("group",)
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how such a file begins
MAX_SHOWN = 200  # characters of what a list says that are shown
ROWS = 65536  # of a Parquet file held at once


class Row(NamedTuple):
    """What a list says of an image; empty where it says nothing."""

    path: str
    label: str = ""
    group: str = ""
    line: int = 0
    """Where it begins; 0 where entries have no lines."""


def open_images(names: Sequence[str], channels: int) -> Files:
    """Open the one list in `names`; see `from_list`."""
    return from_list(names[0], channels)


def from_list(file: str, channels: int, root: str | None = None) -> Files:
    """The files named in a list of path[,label[,group]]; a .txt has a path a line.

    Paths are relative to the list. A .csv or .tsv may begin with a header; a header, or the names
    of a .parquet's columns, say where the path, the label and the group stand. Blanks around a path
    are no part of it, unless a file is called so.

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
    names = StringTable(_paths(file, labels, groups, root))
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

    def found(path: str) -> str | None:
        return next((one for one in _spellings(prefix, path) if _is_file(one)), None)

    for entry, row in enumerate(_rows(file, lambda path: found(path) is not None), 1):
        path = found(row.path)
        if path is None:
            missing = _shown(_joined(prefix, row.path.strip()))
            hint = _hint(row, is_first=entry == 1)
            raise UserError(f"{file}, entry {entry}: no such file {missing}{hint}")
        if bounds is not None and not bounds.hold(path):
            raise UserError(f"{file}, entry {entry}: {path} lies outside of {root}")
        labels.append(known.setdefault(row.label, row.label))
        groups.append(known.setdefault(row.group, row.group))
        yield path


def _spellings(prefix: str, path: str) -> Iterator[str]:
    """What a path may stand for: itself, and then without the blanks around it."""
    yield _joined(prefix, path)
    if (plain := path.strip()) != path:
        yield _joined(prefix, plain)


def _shown(text: str) -> str:
    """The first line of what a list says, not all of what may be a whole file."""
    first = text.partition("\n")[0]
    return text if text == first[:MAX_SHOWN] else f"{first[:MAX_SHOWN]}..."


def _hint(row: Row, *, is_first: bool) -> str:
    """Why a path of a table may be none; empty where nothing is to be guessed."""
    if not row.line:
        return ""
    if "\n" in row.path:
        return f": it goes over several lines; is the quote in line {row.line} closed?"
    other = next((mark for mark in ";\t|" if mark in row.path), None)
    if other is not None:
        mark = "tabs" if other == "\t" else f"'{other}'"
        return (
            f": are the columns parted by {mark}? Those of a .csv are by commas, of a .tsv by tabs"
        )
    if is_first and not os.path.splitext(row.path)[1]:  # noqa: PTH122
        return f": if this is a header, the column of paths must be called {_either(PATH)}"
    return ""


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


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


def _rows(file: str, is_path: Callable[[str], bool]) -> Iterator[Row]:
    suffix = Path(file).suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _of_parquet(file)
            return
        _refuse_utf_16(file)
        with Path(file).open(encoding="utf-8-sig", newline=None if suffix == ".txt" else "") as at:
            if suffix == ".txt":
                yield from (Row(line.rstrip("\n")) for line in at if line.strip())
            else:
                reader = csv.reader(at, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
                yield from _of_table(file, _numbered(file, reader), is_path)
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"cannot read the list {file}: {error}") from error


def _refuse_utf_16(file: str) -> None:
    with Path(file).open("rb") as stream:
        if stream.read(2) in UTF_16:
            raise UserError(f"cannot read the list {file}: it is UTF-16; save it as UTF-8")


def _numbered(file: str, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows, and the line that each begins in; a row with a quote may have several."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"cannot read the list {file}: a quote that opens in line {line} is not closed, or "
                f"not before the end of its cell ({error})"
            ) from error
        if any(cell.strip() for cell in row):
            yield line, row


def _of_table(
    file: str, rows: Iterator[tuple[int, list[str]]], is_path: Callable[[str], bool]
) -> Iterator[Row]:
    """Rows of path[,label[,group]], or as the header says."""
    path, label, group = 0, 1, 2
    for number, (line, row) in enumerate(rows):
        if number == 0 and _is_header(row, is_path):
            path, label, group = _by_header(file, row)
            continue
        if path >= len(row) or not row[path].strip():
            continue
        found = Row(row[path], _cell(row, label), _cell(row, group), line)
        if "\n" in found.label or "\n" in found.group:
            raise UserError(
                f"{file}: an entry in line {line} goes over several lines: is a quote not closed?"
            )
        yield found


def _is_header(row: list[str], is_path: Callable[[str], bool]) -> bool:
    """Whether a cell is called as a column of paths is, and the first one is no file."""
    cells = [cell.strip().lower() for cell in row]
    return cells[0] in PATH or (any(cell in PATH for cell in cells) and not is_path(row[0]))


def _by_header(file: str, row: list[str]) -> tuple[int, int, int]:
    """Where path, label and group stand; -1 for nowhere.

    Raises:
        UserError: There is no label, and a column that may be meant to be one.
    """
    header = [cell.strip().lower() for cell in row]
    path, label, group = (_place(header, names) for names in (PATH, LABEL, GROUP))
    others = [_shown(one) for one in header if one not in (*PATH, *LABEL, *GROUP, "")]
    if others and label < 0:
        raise UserError(
            f"{file}: what is the column {others[0]}? A header may name {_either(PATH)}, "
            f"{_either(LABEL)}, and {_either(GROUP)}; others only beside a label"
        )
    _say_passed_over(file, others)
    return path, label, group


def _say_passed_over(file: str, columns: list[str]) -> None:
    if columns:
        said = _shown(printable(", ".join(columns)))
        print(f"mvmae: columns of {file} that are passed over: {said}", file=sys.stderr)


def _place(header: list[str], names: tuple[str, ...]) -> int:
    return next((header.index(name) for name in names if name in header), -1)


def _cell(row: list[str], at: int) -> str:
    return row[at].strip() if 0 <= at < len(row) else ""


def _of_parquet(file: str) -> Iterator[Row]:
    """Rows of the columns called path (or file, filename, image), label (or class) and group.

    Raises:
        UserError: There is no column of paths, or one holds no words.
    """
    import pyarrow as pa  # a tenth of a second, for these lists only

    try:
        yield from _rows_of_parquet(file)
    except pa.ArrowException as error:
        raise UserError(f"cannot read the list {file}: {error}") from error


def _rows_of_parquet(file: str) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        header = parquet.schema_arrow.names
        lower = [name.lower() for name in header]
        places = [_place(lower, names) for names in (PATH, LABEL, GROUP)]
        if places[0] < 0:
            raise UserError(f"{file} has no column of paths: one must be called {_either(PATH)}")
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
            for path, label, group in zip(*columns, strict=True):
                if path.strip():
                    yield Row(path, label.strip(), group.strip())


def _is_of_words(kind: pa.DataType) -> bool:
    """Whether a column holds text, whole numbers or truth values."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    text = text or pa.types.is_string_view(kind) or pa.types.is_null(kind)
    return text or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _word(value: object) -> str:
    return "" if value is None else str(value)
