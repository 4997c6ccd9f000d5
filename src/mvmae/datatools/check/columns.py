"""What is held of each file once it was looked at: columns of numbers.

A path, some 60 bytes in these columns and 768 of a thumbnail, which lie in a temporary file that
the system may drop from memory: a million files take about 0.3 GB, beside 0.8 GB of disk.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np

from mvmae.config.datatools import DataCheckConfig
from mvmae.data.reading.inspect_file import THUMB, Inspection, Inspector, Item, Problem
from mvmae.data.reading.subprocess_pool import Lost, run_guarded
from mvmae.data.sources.base import Source

PROBLEMS: tuple[str, ...] = get_args(Problem)
FLAGS = ("rotated", "animated", "alpha")


class Columns:
    """What the files are, by place.

    Args:
        count: Files.
        thumbs: Count x 16 x 16 x 3 zeros.
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
        """Keep what one file is."""
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
        """The first so many files."""
        part = Columns(0, self.thumbs[:count])
        for name in (*("problem", "digest", "size", "shape", "format", "mode"), "bits", "channels"):
            setattr(part, name, getattr(self, name)[:count])
        part.flags = {name: marks[:count] for name, marks in self.flags.items()}
        part.names, part.reasons = self.names, self.reasons
        return part

    def settle(self, *, deep: bool) -> int:
        """Decide on the files that cannot be read as gray or colour of 8 bit.

        Where more files are so than not, they are what training is asked for, with the channels
        that most of them have; else they are passed over.

        Args:
            deep: Whether training can be asked for such files.

        Returns:
            The channels that training is to be asked for; 3, the usual, stand for 1 too.
        """
        is_deep, plain = self.is_problem("deep"), self.readable
        if not deep or is_deep.sum() <= plain.sum():
            self._call(is_deep, "other" if deep else "unread")
            return 3
        numbers, counts = np.unique(self.channels[is_deep], return_counts=True)
        wanted = int(numbers[counts.argmax()])
        between = (1, 3) if wanted in (1, 3) else (wanted,)  # gray becomes colour
        fits = np.isin(self.channels, between)
        self._call(is_deep & fits, "")
        self._call((is_deep | plain) & ~fits, "other")
        return 3 if wanted == 1 else wanted

    def _call(self, marked: np.ndarray, problem: Problem) -> None:
        self.problem[marked] = PROBLEMS.index(problem)
        for at in np.flatnonzero(marked).tolist():
            if problem == "other":
                self.reasons[at] = self.mode_of(at)
            elif not problem:
                self.reasons.pop(at, None)

    def is_problem(self, *problems: str) -> np.ndarray:
        """Marks files that have one of the problems."""
        return np.isin(self.problem, [PROBLEMS.index(one) for one in problems])

    @property
    def readable(self) -> np.ndarray:
        """Marks files that training reads."""
        return self.problem == 0

    def format_of(self, index: int) -> str:
        """Pillow's name for a file's content."""
        return self.names[self.format[index]]

    def mode_of(self, index: int) -> str:
        """How a file keeps pixels: Pillow's name for it, or words."""
        return self.names[self.mode[index]]


@contextlib.contextmanager
def columns_for(count: int, *, with_thumbs: bool) -> Iterator[Columns]:
    """Room for what is found; the thumbnails' file is gone at the end."""
    shape = (count if with_thumbs else 0, THUMB, THUMB, 3)
    if not shape[0]:
        yield Columns(count, np.zeros(shape, np.uint8))
        return
    with tempfile.TemporaryFile() as file:
        yield Columns(count, np.memmap(file, np.uint8, "w+", shape=shape))


def look_at(
    items: Sequence[Item],
    columns: Columns,
    config: DataCheckConfig,
    *,
    sniff_from: int,
    sources: Sequence[Source],
    workers: int,
) -> Iterator[int]:
    """Look at every file, in processes that may be lost.

    Args:
        items: The files, or parts of files.
        columns: Filled here.
        config: Time and memory that a file may take.
        sniff_from: Place from which on files are only asked whether they are images.
        sources: Where the parts among the items come from.
        workers: Processes.

    Yields:
        The place of each file once it is done, in no certain order.
    """
    tasks = _Tasks(items, sniff_from)
    memory = round(config.memory * 2**30)
    for place, found in run_guarded(
        Inspector(sources), tasks, workers=workers, timeout=config.timeout, memory=memory
    ):
        if isinstance(found, Lost):
            found = Inspection("hung" if found.hung else "died", found.reason)
        columns.put(place, found)
        yield place


class _Tasks(list):
    """Pairs of an item and whether to sniff only, made when they are asked for."""

    def __init__(self, items: Sequence[Item], sniff_from: int) -> None:
        super().__init__()
        self.items, self.sniff_from = items, sniff_from

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, part: slice) -> list[tuple[Item, bool]]:  # type: ignore[override]
        places = range(*part.indices(len(self.items)))
        return [(self.items[at], at >= self.sniff_from) for at in places]
