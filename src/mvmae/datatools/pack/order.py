"""Images in their order, packed by processes that may crash or hang."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mvmae.config.datatools import DataPackConfig
from mvmae.data.reading.subprocess_pool import Lost, run_guarded
from mvmae.data.sources.base import Source
from mvmae.datatools.pack.destination import unfinished_folder
from mvmae.datatools.pack.encode import Packed, Packer, Refused
from mvmae.datatools.pack.write import with_filename
from mvmae.training import distributed

MAX_WAITING_BYTES = 512 << 20  # images held in memory until those before them are done


def pack_in_order(
    source: Source, config: DataPackConfig, indices: Sequence[int]
) -> Generator[tuple[int, Packed | Refused], None, None]:
    """Pack some images and yield each with its index, in their order.

    Processes finish in any order, and one image may take --timeout seconds. Images that wait for
    an earlier one are held in memory, and beyond `MAX_WAITING_BYTES` on the disk.
    """
    done = run_guarded(
        Packer(source, config),
        indices,
        workers=config.workers or max(1, _cores() // distributed.processes_here()),
        timeout=config.timeout,
        memory=int(config.memory * 2**30),
    )
    due, room = 0, Waiting(MAX_WAITING_BYTES, unfinished_folder(config.out).parent)
    with contextlib.closing(done), room as waiting:  # type: ignore[type-var]
        for at, packed in done:
            waiting.put(at, Refused(packed.reason) if isinstance(packed, Lost) else packed)
            while due in waiting:
                yield indices[due], waiting.pop(due)
                due += 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Waiting:
    """Images that are done before their turn: in memory and, beyond a limit, in an unnamed file.

    Args:
        limit: Bytes that are held in memory.
        folder: On the disk that has room for the rest.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        self.limit, self.folder, self.held, self._end = limit, folder, 0, 0
        self._images: dict[int, Packed | Refused] = {}
        self._spilled: dict[int, tuple[int, int]] = {}  # start in the file, and number of bytes
        self._file: BinaryIO | None = None

    def __enter__(self) -> Waiting:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk was reported by the write before
                self._file.close()

    def __contains__(self, at: int) -> bool:
        return at in self._images

    def put(self, at: int, image: Packed | Refused) -> None:
        """Keep an image until its turn."""
        if isinstance(image, Packed):
            size = len(image.content)
            if self.held + size > self.limit and self._images:
                self._spilled[at] = self._spill(image.content), size
                image = image._replace(content=b"")
            else:
                self.held += size
        self._images[at] = image

    def pop(self, at: int) -> Packed | Refused:
        """Return the image whose turn it is."""
        image = self._images.pop(at)
        if isinstance(image, Refused):
            return image
        if at not in self._spilled:
            self.held -= len(image.content)
            return image
        start, size = self._spilled.pop(at)
        assert self._file is not None
        self._file.seek(start)
        image = image._replace(content=self._file.read(size))
        if not self._spilled:  # all were read: use the file from its beginning again
            self._file.truncate(0)
            self._end = 0
        return image

    def _spill(self, content: bytes) -> int:
        """Write to the end of the file and return where."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  # see __exit__
        start = self._end
        with with_filename(self.folder):  # the file has no name
            self._file.seek(start)
            self._end += self._file.write(content)
            self._file.flush()
        return start
