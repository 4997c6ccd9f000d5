"""Columns of numbers that say what each inspected file is, and a summary of them.

A million files take about 0.3 GB: a path, about 60 bytes in these columns and, in a temporary file
that the system may drop from memory (0.8 GB), 768 bytes of a thumbnail.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from mvmae import terminal
from mvmae.config.datatools import DataCheckConfig
from mvmae.data.reading.inspect_file import THUMB, Header, Inspection, Inspector, Problem
from mvmae.data.reading.subprocess_pool import Lost, num_cores, run_guarded
from mvmae.datatools.check.subjects import Subject

PROBLEMS: tuple[str, ...] = get_args(Problem)
LOST = ("died", "hung", "memory")  # what stopped the process that read a file
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
# 41 bytes for each file; an object of Python with these values would take several hundred.
ROW = np.dtype(
    [
        ("problem", np.uint8),  # index in PROBLEMS
        ("digest", np.uint64, 2),
        ("size", np.int64),
        ("shape", np.int32, 2),  # 0 x 0 where it is unknown
        ("format", np.uint8),  # index in `Columns.names`, as that of the mode
        ("mode", np.uint8),
        ("bits", np.uint8),
        ("channels", np.uint16),
        ("rotated", np.bool_),
        ("animated", np.bool_),
        ("alpha", np.bool_),
    ]
)


@dataclass
class Columns:
    """What the files are, by index."""

    table: np.ndarray
    """A row of type `ROW` for each file."""

    thumbs: np.ndarray
    """Thumbnails, count x 16 x 16 x 3, or none of them."""

    names: list[str] = field(default_factory=lambda: [""])
    """Of formats and modes."""

    reasons: dict[int, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        """One column."""
        return self.table[name]

    def store(self, index: int, found: Inspection) -> None:
        """Store what one file is."""
        # All files together have few formats and modes, so that one byte is enough for each.
        for name in (found.format, found.mode):
            if name not in self.names:
                self.names.append(name)
        self.table[index] = (
            PROBLEMS.index(found.problem),
            np.frombuffer(found.digest or bytes(16), np.uint64),
            found.size,
            found.shape or (0, 0),
            *(self.names.index(name) for name in (found.format, found.mode)),
            *(found.bits, found.channels, found.rotated, found.animated, found.alpha),
        )
        if found.reason:
            self.reasons[index] = found.reason
        if found.thumb and len(self.thumbs):
            self.thumbs[index] = np.frombuffer(found.thumb, np.uint8).reshape(THUMB, THUMB, 3)

    def head(self, count: int) -> Columns:
        """Return the first files, in the same memory."""
        return Columns(self.table[:count], self.thumbs[:count], self.names, self.reasons)

    def settle_deep_files(self, *, can_be_read: bool) -> int:
        """Decide whether files that are not 8-bit gray or colour are readable.

        If they are the majority, they are what training has to be set up for, with the number of
        channels that most of them have; otherwise training skips them.

        Args:
            can_be_read: Whether training can be set up for such files.

        Returns:
            The number of channels that training has to be set up for; 3, the usual, includes 1.
        """
        # A run has one depth and one number of channels, so one of the two kinds has to be skipped.
        is_deep, plain = self.is_problem("deep"), self.readable
        if not can_be_read or is_deep.sum() <= plain.sum():
            self._set_problem(is_deep, "other" if can_be_read else "unread")
            return 3
        numbers, counts = np.unique(self["channels"][is_deep], return_counts=True)
        wanted = int(numbers[counts.argmax()])
        fitting = (1, 3) if wanted in (1, 3) else (wanted,)  # gray is read as colour
        fits = np.isin(self["channels"], fitting)
        self._set_problem(is_deep & fits, "")
        self._set_problem((is_deep | plain) & ~fits, "other")
        return 3 if wanted == 1 else wanted

    def _set_problem(self, marked: np.ndarray, problem: Problem) -> None:
        self["problem"][marked] = PROBLEMS.index(problem)
        for at in np.flatnonzero(marked).tolist():
            if problem == "other":
                self.reasons[at] = self.stored_name("mode", at)
            elif not problem:
                self.reasons.pop(at, None)

    def is_problem(self, *problems: str) -> np.ndarray:
        """Mark files that have one of the problems."""
        return np.isin(self["problem"], [PROBLEMS.index(one) for one in problems])

    def lost(self) -> list[int]:
        """Indices of files that stopped the process that read them."""
        return np.flatnonzero(self.is_problem(*LOST)).tolist()

    @property
    def readable(self) -> np.ndarray:
        """Marks files that training reads."""
        return self["problem"] == 0

    def stored_name(self, column: str, index: int) -> str:
        """Pillow's name for the `format` of a file's content; its name for the `mode`, or words."""
        return self.names[self[column][index]]


@contextlib.contextmanager
def open_columns(count: int, *, with_thumbs: bool) -> Iterator[Columns]:
    """Make room for what is found; the file of the thumbnails is removed at the end."""
    rows = count if with_thumbs else 0
    with tempfile.TemporaryFile() as file:
        # At least one row, because an empty file cannot be mapped.
        thumbs = np.memmap(file, np.uint8, "w+", shape=(max(1, rows), THUMB, THUMB, 3))
        yield Columns(np.zeros(count, ROW), thumbs[:rows])


def inspect_files(subject: Subject, columns: Columns, config: DataCheckConfig) -> None:
    """Inspect every file, in processes that may crash or hang, and store what it is."""
    # Of files with other suffixes only the header is read: they may be videos of many gigabytes.
    items = [*subject.items, *subject.masks, *map(Header, subject.passed_over)]
    done = run_guarded(
        Inspector(subject.sources),
        items,
        workers=config.workers or num_cores(),
        timeout=config.timeout,
        memory=round(config.memory * 2**30),
    )
    first = list(itertools.islice(done, 1))  # starts the processes, before the bar's clock runs
    with terminal.Bar(len(items), "files") as bar:
        bar.name("checking")
        for index, found in itertools.chain(first, done):
            if isinstance(found, Lost):
                # "memory" is reported by processes that catch the error; the others just die.
                found = Inspection("hung" if found.hung else "died", found.reason)
            columns.store(index, found)
            bar.advance(1)


def summarise(subject: Subject, columns: Columns) -> dict[str, Any]:
    """Count formats, modes, sizes and so on over the readable images of DATA."""
    own = subject.own()
    read = columns.readable & own
    formats, modes = (
        count_values([columns.names[code] or "unknown" for code in columns[name][read].tolist()])
        for name in ("format", "mode")
    )
    facts: dict[str, Any] = {
        "files": int(own.sum()),
        "readable": int(read.sum()),
        "bytes": int(columns["size"][own].sum()),
        "formats": formats,
        "modes": modes,
        "bits": {
            str(n): times for n, times in count_values(columns["bits"][read].tolist()).items() if n
        },
        "rotated by EXIF": int(columns["rotated"][read].sum()),
        "animated": int(columns["animated"][read].sum()),
        "with transparency": int(columns["alpha"][read].sum()),
        "CMYK": modes.get("CMYK", 0),
    }
    if len(subject.parts) > 1:
        facts["parts"] = {
            name: int((columns.readable & (subject.part == at)).sum())
            for at, name in enumerate(subject.parts)
        }
    known = np.flatnonzero(read & (columns["shape"][:, 0] > 0))
    if len(known):
        facts |= _summarise_sizes(subject, columns, known)
    return facts


def count_values(values: Iterable[Any]) -> dict[Any, int]:
    """Count distinct values, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda row: (-row[1], row[0])))


def _summarise_sizes(subject: Subject, columns: Columns, known: np.ndarray) -> dict[str, Any]:
    sides = columns["shape"][known].astype(np.int64)
    pixels = sides.prod(axis=1)
    facts: dict[str, Any] = {"quantiles": list(QUANTILES)}
    for name, side in (("shorter side", sides.min(axis=1)), ("longer side", sides.max(axis=1))):
        # "nearest": the sides that are printed are those of images, in whole pixels.
        facts[name] = np.quantile(side, QUANTILES, method="nearest").tolist()
    for name, at in (("smallest", known[pixels.argmin()]), ("largest", known[pixels.argmax()])):
        height, width = columns["shape"][at].tolist()
        facts[name] = {"path": subject.paths[at], "width": width, "height": height}
    return facts
