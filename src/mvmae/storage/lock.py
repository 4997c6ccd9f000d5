"""One command at a time writes into a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mvmae.errors import UserError
from mvmae.storage import run_folder
from mvmae.training import distributed


@contextlib.contextmanager
def claimed(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the folder of a run against other commands, once it is known that the run may go there.

    Started twice, on a cluster for one, two runs would write one mixture, and neither would know.

    Raises:
        UserError: As `runs.claim`, or another process is at it.
    """
    run_folder.claim(folder, resume=resume, overwrite=overwrite)
    distributed.barrier()  # or a quick process would find the folder begun by another
    with contextlib.ExitStack() as held:
        refused = None
        if distributed.is_main():
            try:
                held.enter_context(locked(folder))
            except UserError as error:
                refused = str(error)
        if refused := distributed.from_main(refused):
            raise UserError(refused)
        yield


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Hold a folder that the processes of one command write into, against other such commands.

    One process alone needs no lock there: it writes nothing that it must find again.

    Raises:
        UserError: Another command holds it.
    """
    if distributed.world_size() == 1:
        yield
        return
    with locked(folder) if distributed.is_main() else contextlib.nullcontext():
        distributed.from_main(None)  # the others begin when it is held
        yield
    if distributed.is_main():
        with contextlib.suppress(OSError):  # not empty, or not there any more
            folder.rmdir()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made where it is not there; folders that stay empty go again.

    The system lets go of the lock when a process dies, so a file that one left means nothing. It
    is not handed on to the loader's workers, which outlive a killed process by seconds.

    Raises:
        UserError: Another process holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    run_folder.make(folder)
    held = None if os.name == "nt" else _taken(folder)
    try:
        yield
    finally:
        if held is not None:
            (folder / run_folder.LOCK).unlink(missing_ok=True)  # before another may take it
            os.close(held)
        with contextlib.suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def _taken(folder: Path) -> int | None:
    """The open file that is locked; none where the disk knows no locks."""
    import fcntl  # which Windows has not

    file = folder / run_folder.LOCK
    while True:
        try:
            opened = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # who had it took the empty folder away
            run_folder.make(folder)
            continue
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # POSIX allows both
            holder = os.read(opened, 20).decode(errors="replace").strip()
            os.close(opened)
            raise UserError(
                f"another command (process {holder or 'unknown'}) is writing into {folder}: "
                "wait for it, or choose another --out"
            ) from error
        except OSError:
            os.close(opened)
            file.unlink(missing_ok=True)
            return None
        if file.exists() and file.stat().st_ino == os.fstat(opened).st_ino:
            break
        os.close(opened)  # of one who was just done
    os.ftruncate(opened, 0)
    os.write(opened, str(os.getpid()).encode())
    return opened
