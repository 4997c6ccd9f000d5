"""Reading that goes on when a process that reads dies or hangs.

A file can bring a decoder down or, on a network disk, keep it for ever. Each process notes the
image that it holds in memory that all share. When one dies or hangs, that image is tried once more
by fresh processes, then passed over, with its path and the reason in skipped.csv.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, get_worker_info

from mvmae.data.reading.decode import Pixels, UnreadableImageError
from mvmae.data.sources.base import Forwarding, Source
from mvmae.errors import UserError, printable

POLL = 5.0  # seconds between two looks at the processes that read
MAX_FAILURES = 10  # in one run, before the machine is to blame and not the images
FAILED = re.compile(r"DataLoader (?:(worker \(pid)|timed out)")  # torch's own words
PLACE, SINCE, PID = range(3)


def note_reading(source: Source, index: int) -> contextlib.AbstractContextManager[None]:
    """Note that an image is being read, where the source is watched."""
    return source.note_reading(index) if isinstance(source, Watched) else contextlib.nullcontext()


class Held(NamedTuple):
    """An image that a process began to read and did not finish."""

    place: int
    seconds: float
    pid: int


class Watched(Forwarding):
    """A source whose readers note what they hold; images known to be deadly are not read.

    Args:
        source: The images.
        workers: Processes that read; 0: nothing is noted.
    """

    def __init__(self, source: Source, workers: int) -> None:
        super().__init__(source)
        self.slots = torch.full((workers, 3), -1.0, dtype=torch.float64).share_memory_()
        self.deadly: dict[int, str] = {}

    def read(self, index: int) -> Pixels:
        with self.note_reading(index):
            return self.source.read(index)

    @contextlib.contextmanager
    def note_reading(self, index: int) -> Iterator[None]:
        """Note that this process reads an image, while it does.

        Raises:
            UnreadableImageError: The image is known to be deadly.
        """
        if index in self.deadly:
            raise UnreadableImageError(self.deadly[index])
        worker = get_worker_info()
        if worker is None:
            yield
            return
        slot = self.slots[worker.id].numpy()
        slot[PID], slot[SINCE] = os.getpid(), time.monotonic()
        slot[PLACE] = index
        try:
            yield
        finally:
            slot[PLACE] = -1

    def held(self) -> list[Held]:
        """What the readers hold now."""
        now = time.monotonic()
        return [
            Held(int(place), now - since, int(pid))
            for place, since, pid in self.slots.tolist()
            if place >= 0
        ]


def resilient_batches(
    open_loader: Callable[[range], DataLoader], steps: range, watched: Watched, *, timeout: float
) -> Iterator[Any]:
    """The batches of the steps, whatever becomes of the processes that read.

    What comes is a function of the images alone: a file that kills its reader, or hangs, is passed
    over wherever the run begins or goes on.

    Args:
        open_loader: A loader of the batches of some steps, that reads from `watched` and times out
            every `POLL` seconds.
        steps: Of the run.
        watched: The images.
        timeout: Seconds that reading one image may take.

    Raises:
        UserError: Processes die again and again.
    """
    step, failures, suspects = steps.start, 0, set[int]()
    end = atexit.register(partial(_end, watched))  # where an error keeps this from being closed
    while step < steps.stop:
        watched.slots[:] = -1
        batches = iter(open_loader(range(step, steps.stop)))
        _leave_deaths_to_the_loader()
        try:
            while step < steps.stop:
                yield _next(batches, watched, timeout)
                step += 1
        except _FailedError as failed:
            failures += 1
            _blame(watched, failed.lost, suspects, failures, timeout=timeout)
        finally:
            del batches
            end()
    atexit.unregister(end)


class _FailedError(Exception):
    """Processes that read died or hang; `lost` is what they held."""

    def __init__(self, lost: list[Held]) -> None:
        self.lost = lost


def _next(batches: Iterator[Any], watched: Watched, timeout: float) -> Any:
    """The next batch, however slow the images are, or `_FailedError`."""
    began = time.monotonic()
    while True:
        try:
            return next(batches)
        except RuntimeError as error:
            failure = FAILED.match(str(error))
            if failure is None:
                raise
            held = watched.held()
            if failure[1]:  # one died
                raise _FailedError([one for one in held if not _is_alive(one.pid)]) from error
            lost = [one for one in held if one.seconds >= timeout]
            # Where none reads for so long, one died with a lock that the others wait for.
            if lost or (not held and time.monotonic() - began >= timeout):
                _end(watched)
                raise _FailedError(lost) from error


def _leave_deaths_to_the_loader() -> None:
    """Undo torch's handler, which raises wherever the program is when a reader dies.

    The loader finds out too, within `POLL` seconds, where it can be caught.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _end(watched: Watched) -> None:
    """End what is left of the processes that read, or the program could not end."""
    for pid in watched.slots[:, PID].int().tolist():
        if pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _blame(
    watched: Watched, lost: list[Held], suspects: set[int], failures: int, *, timeout: float
) -> None:
    """Say what was being read; what has been so before is not read again.

    Raises:
        UserError: It has happened too often.
    """
    for one in lost:
        path = watched.path(one.place)
        reason = f"not read within {timeout:g} s" if one.seconds >= timeout else "kills its reader"
        if one.place in suspects:
            watched.deadly[one.place] = reason
        outcome = "passed over" if one.place in suspects else "tried once more"
        suspects.add(one.place)
        print(f"mvmae: {printable(path)}: {reason}; {outcome}", file=sys.stderr)
    if failures >= MAX_FAILURES:
        last = f", the last with {watched.path(lost[-1].place)}" if lost else ""
        raise UserError(
            f"{failures} times a process that reads images died or hung{last}: is the memory too "
            "small for --workers, or the disk gone?"
        )
