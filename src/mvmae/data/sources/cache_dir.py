"""The folder for files that can be made again: indexes of shards, blocks of remote files."""

import hashlib
import os
import secrets
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


def may_download() -> bool:
    """Whether the user allows to download named sets that are missing."""
    return os.environ.get(CONSENT, "") not in ("", "0")


def short_name(text: str) -> str:
    """A short file name that stands for a text, such as an address with slashes and a key."""
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=12).hexdigest()


def index_file(shard: str) -> Path:
    """Where the index of a tar file is kept if it cannot be beside it."""
    return cache_folder() / "indexes" / short_name(shard)


def write_whole(file: Path, content: bytes) -> None:
    """Write a file atomically: other processes see all of it or nothing.

    Raises:
        OSError: It cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # Several processes, even of several machines, may fetch the same block at the same time.
    temporary = file.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
