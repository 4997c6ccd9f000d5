"""The lock: one command at a time writes into a folder, on Linux, macOS and Windows.

The system releases a lock when its process ends, however it ends, so a file that a killed process
left behind means nothing. filelock keeps forked readers, which outlive a killed parent by seconds,
from inheriting it.
"""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mvmae import terminal
from mvmae.errors import UserError
from mvmae.storage import run_folder
from mvmae.storage.atomic import read_object

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # errors of a disk without locks


@contextlib.contextmanager
def try_lock(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock if no other process does, until the block or the process ends.

    On a disk without locks this prints a warning, and the lock counts as held: filelock would use
    the mere existence of a file instead, which a killed process leaves behind for ever.

    Args:
        file: Lock file; its folder is made if it is missing.
        wait: Wait for the process that holds the lock, instead of giving up at once.

    Yields:
        Whether this process holds the lock.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, blocking=wait, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        terminal.warn(f"no locks in {file.parent}: make sure that no other command writes there")
        yield True
        return
    # In a second file, because on Windows no other process can read a locked one.
    note = file.with_name(f"{file.name}.holder")
    try:
        note.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname()}))
        yield True
    finally:
        note.unlink(missing_ok=True)
        # Remove the file while the lock is held: another process that waits for it notices that the
        # file is gone, and filelock tries again. Windows refuses to remove an open file; it stays.
        with contextlib.suppress(OSError):
            file.unlink()
        lock.release()


def holder(file: Path) -> str:
    """Name the process that holds a lock, and its machine, for messages."""
    content = read_object(file.with_name(f"{file.name}.holder"))
    if not content.keys() >= {"process", "host"}:
        return "unknown process"
    return f"process {content['process']} on {content['host']}"


@contextlib.contextmanager
def locked(folder: Path, file: Path | None = None, *, flag: str = "--out") -> Iterator[None]:
    """Make a folder and lock it for this process; new folders that stay empty are removed again.

    Args:
        folder: Folder to write into.
        file: Lock file. Default: `run_folder.LOCK` in the folder.
        flag: Option that names the folder, for the message.

    Raises:
        UserError: Another process holds the lock, or the folder cannot be made.
    """
    file = file or folder / run_folder.LOCK
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    run_folder.make(folder)
    try:
        with try_lock(file) as is_held:
            if not is_held:
                raise UserError(
                    f"another command ({holder(file)}) is writing into {folder}: wait for it, or "
                    f"choose another {flag}"
                )
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in made:
                path.rmdir()
