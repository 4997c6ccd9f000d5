"""Tar files, one after another, and how far a stopped run came.

Which image goes into which tar file follows from the images and their order alone, so that a run
that begins again behind a finished file writes what it would have written.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from mvmae.data.sources import tar_index
from mvmae.datatools.pack.encode import Packed
from mvmae.datatools.pack.naming import unlike
from mvmae.errors import UserError
from mvmae.storage.atomic import write_bytes, write_text

STATE = "unfinished.json"
SKIPPED = "skipped.csv"
BLOCK = 512  # a tar file's unit, in bytes


@dataclass(kw_only=True)
class State:
    """How far a run is, as of its last finished tar file."""

    settings: dict[str, Any]
    """What the bytes depend on, the images included."""

    done: int = 0
    """Images of the source."""

    packed: int = 0
    stays: int = 0
    """Images that were to be written anew and could not be."""

    skipped: int = 0
    skipped_bytes: int = 0
    """Length of the list of skipped images."""

    bytes: int = 0
    shards: list[str] = field(default_factory=list)


def read_state(folder: Path, settings: dict[str, Any]) -> State | None:
    """How far a stopped run of these settings came; none where there is none, or files are gone.

    Raises:
        UserError: It was of other settings or other images.
    """
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        state = State(**content)
        there = sum((folder / shard).stat().st_size for shard in state.shards)
    except (OSError, ValueError, TypeError):
        return None
    if there != state.bytes:
        return None
    differs = [key for key, value in settings.items() if state.settings.get(key) != value]
    if differs:
        raise UserError(
            f"{folder} holds a stopped run of other {' and '.join(differs)}: give the same "
            "command, or --overwrite to begin anew"
        )
    return state


class Writer:
    """Writes samples into tar files of a limited size; a context, which leaves none half-written.

    Args:
        folder: For the tar files.
        state: How far a run came.
        limit: Of a tar file, in bytes.
    """

    def __init__(self, folder: Path, state: State, limit: float) -> None:
        self.folder, self.state, self.limit = folder, state, limit
        for file in folder.iterdir():
            if file.name not in {STATE, SKIPPED, *_with_indexes(state.shards)}:
                file.unlink()  # of a tar file that was not finished
        self._cut_skipped()
        self._file: BinaryIO | None = None
        self._size, self._taken = 0, set[str]()
        self._skipped: list[tuple[str, str]] = []
        self._count = self._stays = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abandon()

    def add(self, key: str, packed: Packed, label: int, group: str | None, index: int) -> None:
        """Write an image with what is known of it.

        Args:
            key: Its name, without a suffix.
            packed: The file.
            label: Its class; -1 for none.
            group: What it belongs to besides.
            index: Its place in the source.
        """
        parts = [(packed.suffix, packed.content)]
        if label >= 0:
            parts.append((".cls", str(label).encode()))
        if group is not None:
            parts.append((".json", json.dumps({"group": group}).encode()))
        size = sum(len(_member(key + suffix, b"")) + len(content) for suffix, content in parts)
        size += BLOCK * len(parts)  # at most, of zeros that fill up
        if self._file is not None and self._size + size + 2 * BLOCK > self.limit:
            self.finish(index)
        if self._file is None:
            self._file = self._temporary.open("wb")
        key = unlike(key, self._taken)
        with naming(self._temporary):
            for suffix, content in sorted(parts):
                self._size += self._file.write(_member(key + suffix, content))
        self._count += 1
        self._stays += packed.stays

    def skip(self, path: str, reason: str) -> None:
        """Note an image that cannot be read."""
        self._skipped.append((path, reason))

    def finish(self, done: int) -> None:
        """Make the tar file whole, then note how far the run is.

        Args:
            done: Images of the source that are in it or in one before, or skipped.
        """
        if self._file is not None:
            with naming(self._temporary):
                self._file.write(b"\0" * 2 * BLOCK)
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
            name = f"{len(self.state.shards):06}.tar"
            size = self._temporary.stat().st_size
            self._temporary.replace(self.folder / name)
            _write_index(self.folder / name, size)
            self.state.shards.append(name)
            self.state.bytes += size
        self._append_skipped()
        self.state.done = done
        self.state.packed += self._count
        self.state.stays += self._stays
        self._file, self._size, self._count, self._stays = None, 0, 0, 0
        self._taken.clear()
        write_text(self.folder / STATE, json.dumps(asdict(self.state)))

    def abandon(self) -> None:
        """Leave the tar file that is not finished; it is written again."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # on a full disk, what is not written yet
                self._file.close()
            self._temporary.unlink(missing_ok=True)
            self._file = None

    @property
    def _temporary(self) -> Path:
        return self.folder / ".tar.tmp"

    def _cut_skipped(self) -> None:
        """Drop what was noted behind the last finished tar file."""
        file = self.folder / SKIPPED
        if file.exists():
            with file.open("r+b") as stream:
                stream.truncate(self.state.skipped_bytes)

    def _append_skipped(self) -> None:
        if not self._skipped:
            return
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        if not self.state.skipped_bytes:
            rows.writerow(("path", "reason"))
        rows.writerows(self._skipped)
        content = text.getvalue().encode("utf-8", "backslashreplace")
        file = self.folder / SKIPPED
        with naming(file), file.open("ab") as stream:
            stream.write(content)
        self.state.skipped_bytes += len(content)
        self.state.skipped += len(self._skipped)
        self._skipped = []


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of a write say of which file it is, which the system does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _with_indexes(shards: Iterable[str]) -> list[str]:
    return [name for shard in shards for name in (shard, shard + tar_index.SUFFIX)]


def _member(name: str, content: bytes) -> bytes:
    """A member with its header, of no owner and no time, so that equal content has equal bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return header + content + b"\0" * (-len(content) % BLOCK)


def _write_index(shard: Path, size: int) -> None:
    """The index beside a tar file, which it knows again by its headers, wherever it is copied."""
    with shard.open("rb") as file:
        index = tar_index.index_tar(file, size, str(shard))
        probe = tar_index.probe_of(file, size, index.starts)
    content = tar_index.to_bytes(index, None, probe, size)
    beside = shard.with_name(shard.name + tar_index.SUFFIX)
    write_bytes(beside, content)
