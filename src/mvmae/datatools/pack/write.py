"""Writing tar files one after another, and resuming a stopped run.

The tar file of an image depends only on the images and their order, so a run that resumes after a
finished tar file writes the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mvmae.data.sources import tar_index
from mvmae.datatools.pack.encode import Packed, unique_key
from mvmae.errors import UserError
from mvmae.storage.atomic import read_object, write_bytes, write_text

STATE = "unfinished.json"
SKIPPED = "skipped.csv"
BLOCK = 512  # bytes; tar files consist of whole blocks


@dataclass(kw_only=True)
class State:
    """Progress of a run as of its last finished tar file."""

    settings: dict[str, Any]
    """Everything that the bytes depend on, including the images."""

    done: int = 0
    """Number of images of the source that are done."""

    packed: int = 0
    stays: int = 0
    """Number of images that could not be re-encoded as asked."""

    skipped: int = 0
    skipped_bytes: int = 0
    """Size of the list of skipped images."""

    bytes: int = 0
    shards: list[str] = field(default_factory=list)


def read_state(folder: Path, settings: dict[str, Any], *, overwrite: bool) -> State | None:
    """Read the progress of a stopped run; None if it cannot be resumed.

    Raises:
        UserError: The run had other settings or other images, and may not be overwritten.
    """
    try:
        state = State(**read_object(folder / STATE))
        there = sum((folder / shard).stat().st_size for shard in state.shards)
    except (OSError, ValueError, TypeError):
        return None
    differs = [key for key, value in settings.items() if state.settings.get(key) != value]
    if there != state.bytes or (differs and overwrite):
        return None
    if differs:
        raise UserError(
            f"{folder} holds a stopped run with other {' and '.join(differs)}: give the same "
            "command, or --overwrite to start again"
        )
    return state


class Writer:
    """Writes images into tar files of a limited size; as a context, it leaves none half-written.

    Args:
        folder: Where the tar files are written.
        state: Progress of the run.
        limit: Largest size of a tar file, in bytes.
    """

    def __init__(self, folder: Path, state: State, limit: float) -> None:
        self.folder, self.state, self.limit = folder, state, limit
        kept = {STATE, SKIPPED, *state.shards, *(name + tar_index.SUFFIX for name in state.shards)}
        for file in folder.iterdir():
            if file.name not in kept:
                file.unlink()  # part of an unfinished tar file
        if (skipped := folder / SKIPPED).exists():
            os.truncate(skipped, state.skipped_bytes)  # recorded after the last finished tar file
        self._temporary = folder / ".tar.tmp"
        self._file: BinaryIO | None = None
        self._size, self._taken = 0, set[str]()
        self._skipped: list[tuple[str, str]] = []
        self._count = self._stays = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove an unfinished tar file; a resumed run writes it again."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # unwritten data on a full disk
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def add(self, key: str, packed: Packed, label: int, group: str | None, index: int) -> None:
        """Write an image with its label and group.

        Args:
            key: Its name, without a suffix.
            packed: The file.
            label: Index of its class; -1 for none.
            group: What else it belongs to, such as a patient.
            index: Its index in the source.
        """
        parts = [(packed.suffix, packed.content)]
        if label >= 0:
            parts.append((".cls", str(label).encode()))
        if group is not None:
            parts.append((".json", json.dumps({"group": group}).encode()))
        # Names longer than 100 bytes take further blocks, so the header is built to be measured.
        size = sum(len(_member(key + suffix, b"")) + len(content) for suffix, content in parts)
        size += BLOCK * len(parts)  # upper limit of the padding
        if self._file is not None and self._size + size + 2 * BLOCK > self.limit:
            self.finish(index)
        if self._file is None:
            self._file = self._temporary.open("wb")
        key = unique_key(key, self._taken)
        with with_filename(self._temporary):
            # Sorted, so that the bytes do not depend on the order in which they were collected.
            for suffix, content in sorted(parts):
                self._size += self._file.write(_member(key + suffix, content))
        self._count += 1
        self._stays += packed.stays

    def skip(self, path: str, reason: str) -> None:
        """Record an image that cannot be read."""
        self._skipped.append((path, reason))

    def finish(self, done: int) -> None:
        """Complete the tar file, then record the progress.

        Args:
            done: Number of images of the source that are written or skipped.
        """
        if self._file is not None:
            with with_filename(self._temporary):
                self._file.write(b"\0" * 2 * BLOCK)  # the end of a tar file
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
            name = f"{len(self.state.shards):06}.tar"
            size = self._temporary.stat().st_size
            with self._temporary.open("rb") as file:
                index = tar_index.index_tar(file, size, str(self.folder / name))
                probe = tar_index.probe_headers(file, size, index.starts)  # recognises copies
            self._temporary.replace(self.folder / name)
            beside = self.folder / (name + tar_index.SUFFIX)
            write_bytes(beside, tar_index.to_bytes(index, tar_index.Stamp(size, None), probe))
            self.state.shards.append(name)
            self.state.bytes += size
        self._append_skipped()
        self.state.done = done
        self.state.packed += self._count
        self.state.stays += self._stays
        self._file, self._size, self._count, self._stays = None, 0, 0, 0
        self._taken.clear()
        write_text(self.folder / STATE, json.dumps(asdict(self.state)))

    def _append_skipped(self) -> None:
        if not self._skipped:
            return
        file = self.folder / SKIPPED
        with (
            with_filename(file),
            file.open("a", newline="", encoding="utf-8", errors="backslashreplace") as stream,
        ):
            rows = csv.writer(stream, lineterminator="\n")
            if not self.state.skipped_bytes:
                rows.writerow(("path", "reason"))
            rows.writerows(self._skipped)
        self.state.skipped_bytes = file.stat().st_size
        self.state.skipped += len(self._skipped)
        self._skipped = []


@contextlib.contextmanager
def with_filename(path: Path) -> Iterator[None]:
    """Add the file to errors of writing, which the system leaves out."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _member(name: str, content: bytes) -> bytes:
    """A member with its header, without owner and time, so that equal content has equal bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return header + content + b"\0" * (-len(content) % BLOCK)
