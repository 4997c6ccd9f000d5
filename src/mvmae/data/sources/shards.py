"""Images in tar files (WebDataset's shards), each read by itself, in any order.

An index records where each image is. So images are shuffled over all shards and a run resumes at
any step, as with files in folders, although a million images are only a few hundred files.
"""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from mvmae.data.reading.decode import UnreadableImageError, Wanted
from mvmae.data.sources import cache_dir, tar_index
from mvmae.data.sources.base import Source
from mvmae.data.sources.class_list import CLASSES, class_names, parse_class_list
from mvmae.data.sources.shard_names import expand, is_remote
from mvmae.data.sources.string_table import CodedWords, encode_words, label_order
from mvmae.data.sources.tar_index import Stamp, TarIndex, kept_index
from mvmae.errors import UserError

MAX_OPEN = 64  # files per process
MAX_SHOWN = 3  # damaged shards named in messages


@runtime_checkable  # for the isinstance checks of beartype in tests
class Storage(Protocol):
    """Where shards are, on a disk or elsewhere; picklable."""

    shards: list[str]
    """Their paths or addresses."""

    def read(self, shard: int, start: int, size: int) -> bytes:
        """Read `size` bytes of a shard from offset `start`.

        Raises:
            UnreadableImageError: They cannot be read.
        """
        ...

    def open_index(self, shard: int) -> tuple[TarIndex, Stamp]:
        """The index of a shard, and the stamp that tells whether the shard is unchanged.

        Raises:
            UserError: It is not a tar file.
        """
        ...

    def classes(self) -> list[str] | None:
        """Class names from the list beside the shards; None without a list."""
        ...


class Shards(Source):
    """The images of tar files.

    Args:
        name: What the user called them.
        storage: Where they are.
        channels: Channels of the pixels.

    Raises:
        UserError: A file is not a tar file, or none contains an image.
    """

    def __init__(self, name: str, storage: Storage, channels: int) -> None:
        self.name, self.storage, self.wanted = name, storage, Wanted(channels)
        self.shards = storage.shards
        found = [storage.open_index(shard) for shard in range(len(self.shards))]
        indexes, self._stamps = [index for index, _ in found], [stamp for _, stamp in found]
        _report_skipped(self.shards, indexes)
        known = zip(self.shards, indexes, strict=True)
        self.damage = [(shard, index.damage) for shard, index in known if index.damage]
        self.has_local_files = not any(map(is_remote, self.shards))
        if not self.has_local_files:
            self.refuses_check = f"{name} is at an address: copy the tar files here to check them"
        self.begins = np.cumsum([0, *(len(index.names) for index in indexes)])
        if not len(self):
            raise UserError(f"no images in {name}: searched {len(self.shards)} tar file(s)")
        # Names stay in one table per shard: joining the tables would copy them.
        self._names = [index.names for index in indexes]
        self._starts = np.concatenate([index.starts for index in indexes])
        self._sizes = np.concatenate([index.sizes for index in indexes])
        self.label_codes, self.classes = _classes(indexes, storage.classes(), name)
        self.groups = encode_words(chain(*(index.groups.words() for index in indexes)))

    def __len__(self) -> int:
        return int(self.begins[-1])

    def content(self, index: int) -> bytes:
        start, size = int(self._starts[index]), int(self._sizes[index])
        return self.storage.read(self._shard(index), start, size)

    def path(self, index: int) -> str:
        return f"{self.shards[self._shard(index)]}/{self.member(index)}"

    def member(self, index: int) -> str:
        shard = self._shard(index)
        return self._names[shard][index - int(self.begins[shard])]

    def version(self, index: int) -> str:
        stamp = self._stamps[self._shard(index)]
        return f"{self._starts[index]} {self._sizes[index]} {stamp.size} {stamp.mtime_ns}"

    def files(self) -> Iterator[str]:
        if self.has_local_files:
            yield from self.shards
            yield from {str(Path(shard).with_name(CLASSES)) for shard in self.shards}

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self.begins, index, side="right")) - 1


def open_images(names: Sequence[str], channels: int) -> Shards:
    """Open the images of tar files, named by paths, patterns, folders or addresses.

    Raises:
        UserError: There are none, or one is damaged from its beginning, or compressed.
    """
    shards = expand(names)
    remote = [is_remote(name) for name in shards]
    if any(remote) and not all(remote):
        raise UserError("some of DATA are addresses and some are files: name one kind")
    if any(remote):
        from mvmae.data.sources.remote import Remote  # loads an optional package

        return Shards(" ".join(names), Remote(shards), channels)
    return Shards(" ".join(names), Local(shards), channels)


def _report_skipped(shards: Sequence[str], indexes: Sequence[TarIndex]) -> None:
    """Report damaged files and members that were not read, except usual ones."""
    damaged = [at for at, index in enumerate(indexes) if index.damage]
    for at in damaged[:MAX_SHOWN]:
        kept = f"{len(indexes[at].names):,} before that"
        print(f"mvmae: {shards[at]} is {indexes[at].damage}; images read: {kept}", file=sys.stderr)
    if len(damaged) > MAX_SHOWN:
        rest = len(damaged) - MAX_SHOWN
        print(f"mvmae: more damaged tar files: {rest:,}", file=sys.stderr)
    passed: Counter[str] = sum((Counter(index.passed_over) for index in indexes), Counter())
    unusual = {what: number for what, number in passed.items() if what not in USUAL}
    if unusual:
        listed = ", ".join(f"{number:,} {what}" for what, number in sorted(unusual.items()))
        print(f"mvmae: skipped in the tar files: {listed}", file=sys.stderr)


USUAL = ("folders", "other files", "hidden files")


def _classes(indexes: Sequence[TarIndex], listed: list[str] | None, name: str) -> CodedWords:
    """Return labels from .cls or .json if every image has one, else from folders if all have one.

    If the list of classes exists and is empty, images have no labels, whatever folders they are in.

    Raises:
        UserError: A label is not in the list of classes.
    """
    words = [*chain(*(index.labels.words() for index in indexes))]
    if all(words):
        if listed is not None:
            return encode_words(class_names(words, listed, name), listed)
        return encode_words(words, label_order(words))
    folders = _folders(indexes)
    return encode_words(folders if all(folders) and listed != [] else ())


def _folders(indexes: Sequence[TarIndex]) -> list[str]:
    """Return each image's first folder below those common to all; empty if there is none."""
    every = [name.split("/")[:-1] for index in indexes for name in index.names]
    common = len(os.path.commonprefix(every))  # noqa: RUF071  # compares parts, not letters
    return [parts[common] if len(parts) > common else "" for parts in every]


class _Opened:
    """An open file, closed when the last reference to it is gone."""

    def __init__(self, path: str) -> None:
        self.handle = -1  # for __del__, if opening fails
        self.handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


class Local:
    """Shards in a file system.

    Args:
        shards: The files.
    """

    def __init__(self, shards: Sequence[str]) -> None:
        self.shards = list(shards)
        self.stamps: list[Stamp | None] = [None] * len(shards)
        self._opened: dict[int, _Opened] = {}

    def __getstate__(self) -> dict[str, object]:
        """Omit open files, which another process cannot use."""
        return self.__dict__ | {"_opened": {}}

    def read(self, shard: int, start: int, size: int) -> bytes:
        try:
            opened = self._file(shard)  # referenced here, so that no other thread closes it
            content = b""
            # One system call reads up to 2 GB, and may read less.
            while part := os.pread(opened.handle, size - len(content), start + len(content)):
                content += part
        except OSError as error:
            raise UnreadableImageError(error.strerror or str(error)) from error
        if len(content) < size:
            raise UnreadableImageError("the tar file ends before it")
        return content

    def _file(self, shard: int) -> _Opened:
        """Return a shard's open file; threads may share it.

        Raises:
            UnreadableImageError: The shard changed after it was indexed.
        """
        opened = self._opened.get(shard)
        if opened is None:
            opened = _Opened(self.shards[shard])
            facts = os.fstat(opened.handle)
            if self.stamps[shard] not in (None, Stamp(facts.st_size, facts.st_mtime_ns)):
                raise UnreadableImageError("the tar file changed after it was indexed")
            self._opened[shard] = opened
            for oldest in list(self._opened)[:-MAX_OPEN]:  # a copy, as other threads change it
                self._opened.pop(oldest, None)
        return opened

    def open_index(self, shard: int) -> tuple[TarIndex, Stamp]:
        path = Path(self.shards[shard])
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            stamp = Stamp(facts.st_size, facts.st_mtime_ns)
            self.stamps[shard] = stamp
            beside = path.with_name(path.name + tar_index.SUFFIX)
            elsewhere = cache_dir.index_file(str(path.absolute()))
            for kept in (beside, elsewhere):
                if (index := kept_index(kept, stamp, file)) is not None:
                    return index, stamp
            index = tar_index.index_tar(file, stamp.size, str(path))
            probe = tar_index.probe_headers(file, stamp.size, index.starts)
        content = tar_index.to_bytes(index, stamp, probe)
        for kept in (beside, elsewhere):  # if neither can be written, the next run indexes again
            with contextlib.suppress(OSError):
                cache_dir.write_whole(kept, content)
                break
        return index, stamp

    def classes(self) -> list[str] | None:
        folders = {Path(shard).parent for shard in self.shards}
        file = folders.pop() / CLASSES
        if folders or not file.is_file():
            return None
        try:
            return parse_class_list(file.read_bytes(), str(file))
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
