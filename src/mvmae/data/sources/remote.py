"""Shards at an address: http(s)://, s3:// and gs://, through fsspec.

If all of them fit into the cache, blocks of a few megabytes are fetched and kept: each byte is
fetched once, together with its neighbours. If they do not fit, single images are fetched and
nothing is kept: a shuffle over all images would evict nearly every block before its next use.
"""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources import cache_dir, tar_index
from mvmae.data.sources.class_list import CLASSES, parse_class_list
from mvmae.data.sources.shard_names import WILD
from mvmae.data.sources.tar_index import Stamp, TarIndex, kept_index
from mvmae.errors import UserError

BLOCK = 4 << 20  # bytes fetched at once
WAITS = (1.0, 4.0)  # seconds before the second and the third try
SWEEP = 64  # blocks that a process writes between two checks of the limit
NEEDS = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}

T = TypeVar("T")


class Cache:
    """Blocks of files in a folder; beyond a size limit the least recently used are removed.

    Several processes may share it: a block exists whole or not at all, and a removed block is
    fetched again. fsspec's own block cache has no limit and is not shared while files are open.

    Args:
        folder: Folder of the blocks.
        limit: Size of all blocks in bytes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit, self._written = folder, limit, 0

    def block(self, file: str, number: int, size: int, fetch: Callable[[], bytes]) -> bytes:
        """Read a block from the folder, or fetch and keep it.

        Args:
            file: The address of the file, with a mark that changes with its content.
            number: Number of the block.
            size: Size of the block in bytes.
            fetch: Fetches the bytes.
        """
        path = self.folder / cache_dir.short_name(file) / f"{number}"
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            if len(content) == size:
                os.utime(path)  # marks it as used now
                return content
        content = fetch()
        with contextlib.suppress(OSError):  # a full disk: keeping it only saves time
            cache_dir.write_whole(path, content)
            self._written += 1
            if self._written % SWEEP == 1:  # also at the first: many processes write only a few
                self.sweep()
        return content

    def sweep(self) -> None:
        """Remove the least recently used blocks, down to nine tenths of the limit."""
        blocks = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):
                facts = path.stat()
                blocks.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in blocks)
        if total <= self.limit:
            return
        for _, size, path in sorted(blocks):
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
            # With some room, or the next block would need another sweep.
            if total <= 0.9 * self.limit:
                return


class Remote:
    """Shards at addresses of one kind.

    Args:
        shards: Their addresses, or patterns of addresses.

    Raises:
        UserError: A shard does not exist, or a package is missing.
    """

    def __init__(self, shards: Sequence[str]) -> None:
        self._system: Any = None
        self._pid = 0
        self.shards = list(shards)
        self.shards = [found for shard in shards for found in self._expand(shard)]
        facts = [self._size_and_mark(shard) for shard in self.shards]
        self.sizes, self.marks = [size for size, _ in facts], [mark for _, mark in facts]
        total, limit = sum(self.sizes), cache_dir.cache_bytes()
        self.cache = Cache(cache_dir.cache_folder() / "blocks", limit)
        self.keeps_blocks = total <= limit
        if not self.keeps_blocks:
            print(
                f"mvmae: the shards have {total / 1e9:.1f} GB and the cache {limit / 1e9:.1f} GB: "
                f"each image is fetched when it is needed, and again in each epoch. "
                f"{cache_dir.CACHE_GB}={-(-total // 10**9)} keeps all of them in "
                f"{cache_dir.cache_folder()}",
                file=sys.stderr,
            )

    def __getstate__(self) -> dict[str, object]:
        """Omit connections."""
        return self.__dict__ | {"_system": None}

    @property
    def system(self) -> Any:
        """The file system; each process has its own, as event loops cannot be shared.

        Raises:
            UserError: A package is missing.
        """
        if self._system is None or self._pid != os.getpid():
            kind = self.shards[0].partition("://")[0]
            try:
                import fsspec

                self._system = fsspec.filesystem(kind, skip_instance_cache=True)
            except ImportError as error:
                raise UserError(
                    f"{kind}:// needs {NEEDS[kind]}: pip install 'mvmae[cloud]'"
                ) from error
            self._pid = os.getpid()
        return self._system

    def _expand(self, shard: str) -> list[str]:
        """An address, or the sorted addresses that match a pattern."""
        kind, _, place = shard.partition("://")
        is_web = kind.startswith("http")
        if not WILD.search(place.partition("?")[0] if is_web else place):
            return [shard]
        if is_web:
            raise UserError(
                f"{shard}: web servers cannot list files; write a range such as {{000..146}}"
            )
        matching = self._ask(shard, lambda: self.system.glob(shard))
        if not matching:
            raise UserError(f"nothing matches {shard}")
        return [f"{kind}://{name}" for name in sorted(matching)]

    def _size_and_mark(self, shard: str) -> tuple[int, str]:
        """The size of a shard, and a mark that changes with its content."""
        facts = self._ask(shard, lambda: self.system.info(shard))
        size = facts.get("size")
        if not isinstance(size, int):
            raise UserError(f"{_plain(shard)}: the server does not tell its size")
        mark = facts.get("ETag") or facts.get("etag") or facts.get("LastModified") or ""
        return size, f"{shard} {size} {mark}"

    def _ask(self, shard: str, question: Callable[[], T]) -> T:
        try:
            return _retry(question)
        except FileNotFoundError as error:
            # fsspec raises this too if no server answers.
            raise UserError(f"no such file: {_plain(shard)}, or nothing answers there") from error
        except Exception as error:  # of network packages
            raise UserError(f"{_plain(shard)} cannot be reached: {_short(error)}") from error

    def read(self, shard: int, start: int, size: int) -> bytes:
        end = min(start + size, self.sizes[shard])
        if end - start < size:
            raise UnreadableImageError("the tar file ends before it")
        if not self.keeps_blocks:
            return self._fetch(shard, start, end)
        first, last = start // BLOCK, max(start, end - 1) // BLOCK
        content = b"".join(self._block(shard, number) for number in range(first, last + 1))
        return content[start - first * BLOCK : end - first * BLOCK]

    def _block(self, shard: int, number: int) -> bytes:
        start, end = number * BLOCK, min((number + 1) * BLOCK, self.sizes[shard])
        return self.cache.block(
            self.marks[shard], number, end - start, lambda: self._fetch(shard, start, end)
        )

    def _fetch(self, shard: int, start: int, end: int) -> bytes:
        try:
            content = _retry(lambda: self.system.cat_file(self.shards[shard], start, end))
        except Exception as error:
            raise UnreadableImageError(f"cannot be fetched: {_short(error)}") from error
        if len(content) != end - start:
            raise UnreadableImageError("the server does not send parts of files")
        return content

    def open_index(self, shard: int) -> tuple[TarIndex, Stamp]:
        """Find the index in the cache, beside the shard, or by reading the whole shard."""
        name, size = self.shards[shard], self.sizes[shard]
        # Servers need not tell a time; 15 digits of the mark's hash fit into its 64 bits.
        stamp = Stamp(size, int(cache_dir.short_name(self.marks[shard])[:15], 16))
        elsewhere = cache_dir.index_file(name)
        file = io.BufferedReader(_Reader(self, shard), BLOCK)
        if (index := kept_index(elsewhere, stamp, file)) is not None:
            return index, stamp
        with contextlib.suppress(Exception):  # usually there is none
            place, mark, query = name.partition("?")
            kept = tar_index.from_bytes(
                self.system.cat_file(place + tar_index.SUFFIX + mark + query)
            )
            index = kept.index if kept is not None and kept.stamp.size == size else None
        if index is None:
            print(f"mvmae: {_plain(name)} has no index: reading the whole file", file=sys.stderr)
            try:
                index = tar_index.index_tar(file, size, name)
            except UnreadableImageError as error:
                raise UserError(f"{name}: {error}") from error
        with contextlib.suppress(OSError):
            cache_dir.write_whole(elsewhere, tar_index.to_bytes(index, stamp, probe=""))
        return index, stamp

    def classes(self) -> list[str] | None:
        folders = {shard.rpartition("/")[0] for shard in self.shards}
        name = f"{folders.pop()}/{CLASSES}"
        if folders:
            return None
        try:
            content = self.system.cat_file(name)
        except Exception:  # servers report a missing file in many ways
            return None
        return parse_class_list(content, name)


class _Reader(io.RawIOBase):
    """A shard as a file object; its blocks are cached."""

    def __init__(self, remote: Remote, shard: int) -> None:
        self.remote, self.shard, self.at = remote, shard, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        before = (0, self.at, self.remote.sizes[self.shard])[whence]
        self.at = before + offset
        return self.at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self.remote.sizes[self.shard] - self.at))
        if size:
            buffer[:size] = self.remote.read(self.shard, self.at, size)
        self.at += size
        return size


def _plain(address: str) -> str:
    """An address without its query string, which may contain a key."""
    return address.partition("?")[0]


def _retry(question: Callable[[], T]) -> T:
    """Ask up to three times, except after errors that a retry cannot fix."""
    for wait in WAITS:
        try:
            return question()
        except (FileNotFoundError, PermissionError, UserError):
            raise
        except Exception:  # network packages raise anything
            time.sleep(wait)
    return question()


def _short(error: Exception) -> str:
    """The message of an error, without the query string of an address."""
    said = " ".join(str(error).split()) or type(error).__name__
    return _plain(said)[:160]
