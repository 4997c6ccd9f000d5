"""The folder for files that can be made again: indexes of shards, blocks of remote files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from mvmae.errors import UserError

CACHE = "MVMAE_CACHE"  # a folder
CONSENT = "MVMAE_DOWNLOAD"  # 1: named sets that are missing may be downloaded
CACHE_GB = "MVMAE_CACHE_GB"  # the limit for blocks of remote files
DEFAULT_GB = 20.0


def cache_folder() -> Path:
    """`MVMAE_CACHE`, or a folder below the user's home; it may not exist yet."""
    if own := os.environ.get(CACHE):
        return Path(own).expanduser()
    try:
        above = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # the user has no home
        above = Path(tempfile.gettempdir())
    return above / "mvmae"


def cache_bytes() -> int:
    """The largest number of bytes of remote files to keep.

    Raises:
        UserError: `MVMAE_CACHE_GB` is not a number.
    """
    text = os.environ.get(CACHE_GB) or str(DEFAULT_GB)
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not 0 <= size < 1e9:
        raise UserError(
            f"{CACHE_GB}={text} is not a size: set the number of GB to keep, such as 20, or 0"
        )
    return int(size * 1e9)


def short_name(text: str) -> str:
    """A short file name that stands for a text."""
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=12).hexdigest()


def write_whole(file: Path, content: bytes) -> None:
    """Write a file atomically: other processes see all of it or nothing.

    Raises:
        OSError: It cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
