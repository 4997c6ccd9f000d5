"""What each inspected file is, in columns of numbers, and a summary of them.

A million files take about 0.3 GB: a path, about 60 bytes in these columns and, in a temporary file
that the system may drop from memory (0.8 GB), 768 bytes of a thumbnail.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np

from mvmae.config.datatools import DataCheckConfig
from mvmae.data.reading.inspect_file import THUMB, Inspection, Inspector, Item, Problem
from mvmae.data.reading.subprocess_pool import Lost, run_guarded
from mvmae.datatools.check.subjects import Subject

PROBLEMS: tuple[str, ...] = get_args(Problem)
FLAGS = ("rotated", "animated", "alpha")
COLUMNS = ("problem", "digest", "size", "shape", "format", "mode", "bits", "channels")
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


class Columns:
    """What the files are, by index.

    Args:
        count: Number of files.
        thumbs: Thumbnails, count x 16 x 16 x 3, or none of them.
    """

    def __init__(self, count: int, thumbs: np.ndarray) -> None:
        self.thumbs = thumbs
        self.problem = np.zeros(count, np.uint8)
        self.digest = np.zeros((count, 2), np.uint64)
        self.size = np.zeros(count, np.int64)
        self.shape = np.zeros((count, 2), np.int32)
        self.format, self.mode = np.zeros(count, np.uint8), np.zeros(count, np.uint8)
        self.bits, self.channels = np.zeros(count, np.uint8), np.zeros(count, np.uint16)
        self.flags = {name: np.zeros(count, bool) for name in FLAGS}
        self.names = [""]  # of formats and modes
        self.reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.problem)

    def put(self, index: int, found: Inspection) -> None:
        """Store what one file is."""
        self.problem[index] = PROBLEMS.index(found.problem)
        if found.reason:
            self.reasons[index] = found.reason
        if found.digest:
            self.digest[index] = np.frombuffer(found.digest, np.uint64)
        self.size[index], self.bits[index] = found.size, found.bits
        self.channels[index] = found.channels
        self.shape[index] = found.shape or (0, 0)
        self.format[index], self.mode[index] = self._code(found.format), self._code(found.mode)
        for name in FLAGS:
            self.flags[name][index] = getattr(found, name)
        if found.thumb and len(self.thumbs):
            self.thumbs[index] = np.frombuffer(found.thumb, np.uint8).reshape(THUMB, THUMB, 3)

    def _code(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def head(self, count: int) -> Columns:
        """Return the first files, in the same memory."""
        part = Columns(0, self.thumbs[:count])
        for name in COLUMNS:
            setattr(part, name, getattr(self, name)[:count])
        part.flags = {name: marks[:count] for name, marks in self.flags.items()}
        part.names, part.reasons = self.names, self.reasons
        return part

    def settle_deep_files(self, *, can_be_read: bool) -> int:
        """Decide whether files that are not 8-bit gray or colour are readable.

        If they are the majority, they are what training has to be set up for, with the number of
        channels that most of them have; otherwise training skips them.

        Args:
            can_be_read: Whether training can be set up for such files.

        Returns:
            The number of channels that training has to be set up for; 3, the usual, includes 1.
        """
        is_deep, plain = self.is_problem("deep"), self.readable
        if not can_be_read or is_deep.sum() <= plain.sum():
            self._set_problem(is_deep, "other" if can_be_read else "unread")
            return 3
        numbers, counts = np.unique(self.channels[is_deep], return_counts=True)
        wanted = int(numbers[counts.argmax()])
        fitting = (1, 3) if wanted in (1, 3) else (wanted,)  # gray is read as colour
        fits = np.isin(self.channels, fitting)
        self._set_problem(is_deep & fits, "")
        self._set_problem((is_deep | plain) & ~fits, "other")
        return 3 if wanted == 1 else wanted

    def _set_problem(self, marked: np.ndarray, problem: Problem) -> None:
        self.problem[marked] = PROBLEMS.index(problem)
        for at in np.flatnonzero(marked).tolist():
            if problem == "other":
                self.reasons[at] = self.mode_of(at)
            elif not problem:
                self.reasons.pop(at, None)

    def is_problem(self, *problems: str) -> np.ndarray:
        """Mark files that have one of the problems."""
        return np.isin(self.problem, [PROBLEMS.index(one) for one in problems])

    def lost(self) -> np.ndarray:
        """Indices of files that stopped the process that read them."""
        return np.flatnonzero(self.is_problem("died", "hung", "memory"))

    @property
    def readable(self) -> np.ndarray:
        """Marks files that training reads."""
        return self.problem == 0

    def format_of(self, index: int) -> str:
        """Pillow's name for the format of a file's content."""
        return self.names[self.format[index]]

    def mode_of(self, index: int) -> str:
        """How a file stores pixels: Pillow's name for it, or words."""
        return self.names[self.mode[index]]


@contextlib.contextmanager
def open_columns(count: int, *, with_thumbs: bool) -> Iterator[Columns]:
    """Make room for what is found; the file of the thumbnails is removed at the end."""
    shape = (count if with_thumbs else 0, THUMB, THUMB, 3)
    if not shape[0]:
        yield Columns(count, np.zeros(shape, np.uint8))
        return
    with tempfile.TemporaryFile() as file:
        yield Columns(count, np.memmap(file, np.uint8, "w+", shape=shape))


def inspect_files(
    subject: Subject, columns: Columns, config: DataCheckConfig, workers: int
) -> Iterator[int]:
    """Inspect every file, in processes that may crash or hang, and store what it is.

    Yields:
        The index of each file when it is done, in any order.
    """
    items = [*subject.items, *subject.masks, *subject.passed_over]
    tasks = _Tasks(items, len(items) - len(subject.passed_over))
    for index, found in run_guarded(
        Inspector(subject.sources),
        tasks,
        workers=workers,
        timeout=config.timeout,
        memory=round(config.memory * 2**30),
    ):
        if isinstance(found, Lost):
            found = Inspection("hung" if found.hung else "died", found.reason)
        columns.put(index, found)
        yield index


class _Tasks(list):
    """Items and whether only their header is read, paired when asked for, to save memory."""

    def __init__(self, items: Sequence[Item], headers_from: int) -> None:
        super().__init__()
        self.items, self.headers_from = items, headers_from

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, part: slice) -> list[tuple[Item, bool]]:  # type: ignore[override]
        indices = range(*part.indices(len(self.items)))
        return [(self.items[at], at >= self.headers_from) for at in indices]


def summarise(subject: Subject, columns: Columns) -> dict[str, Any]:
    """Count formats, modes, sizes and so on over the readable images of DATA."""
    own = subject.own()
    read = columns.readable & own
    known = np.flatnonzero(read & (columns.shape[:, 0] > 0))
    modes = _count_names(columns.names, columns.mode[read])
    facts: dict[str, Any] = {
        "files": int(own.sum()),
        "readable": int(read.sum()),
        "bytes": int(columns.size[own].sum()),
        "formats": _count_names(columns.names, columns.format[read]),
        "modes": modes,
        "bits": {str(bits): count for bits, count in _count(columns.bits[read]) if bits},
        "rotated by EXIF": int(columns.flags["rotated"][read].sum()),
        "animated": int(columns.flags["animated"][read].sum()),
        "with transparency": int(columns.flags["alpha"][read].sum()),
        "CMYK": modes.get("CMYK", 0),
    }
    if len(subject.parts) > 1:
        facts["parts"] = {
            name: int((columns.readable & (subject.part == at)).sum())
            for at, name in enumerate(subject.parts)
        }
    if len(known):
        facts |= _summarise_sizes(subject, columns, known)
    return facts


def _count(values: np.ndarray) -> list[tuple[int, int]]:
    """Distinct values with their counts, the most frequent first."""
    numbers, counts = np.unique(values, return_counts=True)
    rows = zip(numbers.tolist(), counts.tolist(), strict=True)
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def _count_names(names: list[str], codes: np.ndarray) -> dict[str, int]:
    rows = [(names[code] or "unknown", count) for code, count in _count(codes)]
    return dict(sorted(rows, key=lambda row: (-row[1], row[0])))


def _summarise_sizes(subject: Subject, columns: Columns, known: np.ndarray) -> dict[str, Any]:
    sides = columns.shape[known].astype(np.int64)
    pixels = sides.prod(axis=1)
    facts: dict[str, Any] = {"quantiles": list(QUANTILES)}
    for name, side in (("shorter side", sides.min(axis=1)), ("longer side", sides.max(axis=1))):
        facts[name] = np.quantile(side, QUANTILES, method="nearest").tolist()
    for name, at in (("smallest", known[pixels.argmin()]), ("largest", known[pixels.argmax()])):
        height, width = columns.shape[at].tolist()
        facts[name] = {"path": subject.paths[at], "width": width, "height": height}
    return facts
