"""Who runs which cell: a lock file for each, which the system frees when its process ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

FOLDER = ".locks"
WORDS = 200  # bytes of a lock file that are read


@contextlib.contextmanager
def taken(folder: Path, name: str, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock, if no other process does.

    The system frees it when the process ends, however it ends, so a file that one left behind
    means nothing; nor do the loader's processes inherit it, which outlive a killed parent by
    seconds. Where the disk knows no locks, or on Windows, everything is free.

    Args:
        folder: Of the table.
        name: Of what is locked.
        wait: Whether to wait for who holds it.

    Yields:
        Whether it is held now.
    """
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    opened = os.open(place / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        held = _lock(opened, wait=wait)
        if held:
            os.ftruncate(opened, 0)
            os.write(opened, json.dumps(_me()).encode())  # in one piece: who reads sees it all
        yield held
        if held:
            os.ftruncate(opened, 0)
    finally:
        os.close(opened)


def _lock(opened: int, *, wait: bool) -> bool:
    if os.name == "nt":
        return True
    import fcntl  # which Windows has not

    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):  # POSIX allows both
        return False
    except OSError:  # no locks on this disk
        return True
    return True


def _me() -> dict[str, object]:
    return {"process": os.getpid(), "host": socket.gethostname()}


def holder(folder: Path, name: str) -> str:
    """Who holds a lock, in words."""
    try:
        said = json.loads((folder / FOLDER / name).read_bytes()[:WORDS])
        return f"process {said['process']} on {said['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
