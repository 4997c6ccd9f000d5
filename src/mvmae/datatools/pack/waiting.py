"""Images that are done before their turn."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mvmae.datatools.pack.encode import Packed, Refused
from mvmae.datatools.pack.write import naming


class Waiting:
    """Images by their places, in memory, and beyond a limit in a file without a name.

    Args:
        limit: Bytes that are held in memory.
        folder: On the disk that has room for the rest.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        self.limit, self.folder, self.held, self._end = limit, folder, 0, 0
        self._images: dict[int, Packed | Refused] = {}
        self._spilled: dict[int, tuple[int, int]] = {}  # where in the file, and how many bytes
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
            with contextlib.suppress(OSError):  # of a full disk, which was said before
                self._file.close()

    def __contains__(self, place: int) -> bool:
        return place in self._images

    def put(self, place: int, image: Packed | Refused) -> None:
        """Keep an image until its turn."""
        if isinstance(image, Packed):
            size = len(image.content)
            if self.held + size > self.limit and self._images:
                self._spilled[place] = self._spill(image.content), size
                image = image._replace(content=b"")
            else:
                self.held += size
        self._images[place] = image

    def pop(self, place: int) -> Packed | Refused:
        """The image whose turn it is."""
        image = self._images.pop(place)
        if isinstance(image, Refused):
            return image
        if place not in self._spilled:
            self.held -= len(image.content)
            return image
        start, size = self._spilled.pop(place)
        assert self._file is not None
        self._file.seek(start)
        image = image._replace(content=self._file.read(size))
        if not self._spilled:  # all were read: from the beginning again
            self._file.truncate(0)
            self._end = 0
        return image

    def _spill(self, content: bytes) -> int:
        """Write to the end of the file; where that was."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  # see __exit__
        start = self._end
        with naming(self.folder):  # the file has no name
            self._file.seek(start)
            self._end += self._file.write(content)
            self._file.flush()
        return start
