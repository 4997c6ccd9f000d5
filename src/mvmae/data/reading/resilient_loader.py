"""Batches from reader processes that may die or hang.

A file can crash a decoder or, on a network disk, block it for ever. Each reader process notes in
shared memory which image it is reading. When it dies or hangs, that image is tried once more by
new processes and then skipped, with its path and the reason in skipped.csv.
"""

import atexit
import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, get_worker_info

from mvmae.data.reading.decode import Pixels, UnreadableImageError
from mvmae.data.sources.base import Source, SourceWrapper
from mvmae.errors import UserError, printable

POLL = 5.0  # seconds between two checks of the reader processes
MAX_FAILURES = 10  # in one run; more of them are the machine's fault and not the images'
FAILURE = re.compile(r"DataLoader (?:(worker \(pid)|timed out)")  # torch's messages
INDEX, SINCE, PID = range(3)  # columns of `Watched.slots`


def note_reading(source: Source, index: int) -> contextlib.AbstractContextManager[None]:
    """Note that this process reads an image, if the source is `Watched`."""
    return source.note_reading(index) if isinstance(source, Watched) else contextlib.nullcontext()


class Held(NamedTuple):
    """An image that a process started to read and has not finished."""

    index: int
    seconds: float
    pid: int


class Watched(SourceWrapper):
    """A source whose readers note what they are reading; images known to be deadly are refused.

    Args:
        source: The images.
        workers: Number of reader processes; with 0, nothing is noted.
    """

    def __init__(self, source: Source, workers: int) -> None:
        super().__init__(source)
        # float64 holds indices, process ids and seconds alike, without losing a digit.
        self.slots = torch.full((workers, 3), -1.0, dtype=torch.float64).share_memory_()
        self.suspects: set[int] = set()
        self.deadly: dict[int, str] = {}

    def read(self, index: int) -> Pixels:
        with self.note_reading(index):
            return self.source.read(index)

    @contextlib.contextmanager
    def note_reading(self, index: int) -> Iterator[None]:
        """Note during the block that this process reads an image.

        Raises:
            UnreadableImageError: The image killed or blocked its readers before.
        """
        if index in self.deadly:
            raise UnreadableImageError(self.deadly[index])
        worker = get_worker_info()
        if worker is None:
            yield
            return
        slot = self.slots[worker.id].numpy()
        # The index last: with it, the other two count.
        slot[PID], slot[SINCE] = os.getpid(), time.monotonic()
        slot[INDEX] = index
        try:
            yield
        finally:
            slot[INDEX] = -1

    def list_held(self) -> list[Held]:
        """The images that are being read now."""
        now = time.monotonic()
        return [
            Held(int(index), now - since, int(pid))
            for index, since, pid in self.slots.tolist()
            if index >= 0
        ]

    def blame(self, lost: Iterable[Held], timeout: float) -> None:
        """Report what was being read; an image reported before is not read again."""
        # Two readers may have held the same image, of two epochs.
        for index, one in {held.index: held for held in lost}.items():
            hung = one.seconds >= timeout
            reason = f"not read within {timeout:g} s" if hung else "kills its reader"
            # Once may be chance, such as a lack of memory that another image caused.
            if index in self.suspects:
                self.deadly[index] = reason
            self.suspects.add(index)
            outcome = "skipped" if index in self.deadly else "tried once more"
            print(f"mvmae: {printable(self.path(index))}: {reason}; {outcome}", file=sys.stderr)


def resilient_batches(
    open_loader: Callable[[range], DataLoader],
    steps: range,
    watched: Watched,
    *,
    timeout: float,
) -> Iterator[Any]:
    """The batches of the steps, even if reader processes die or hang.

    The batches depend on the images alone: a file that kills or blocks its reader is skipped
    wherever the run starts or resumes.

    Args:
        open_loader: Makes a loader for some steps, which reads from `watched` and times out after
            `POLL` seconds.
        steps: Steps of the run.
        watched: The images.
        timeout: Seconds that reading one image may take.

    Raises:
        UserError: Processes died or hung `MAX_FAILURES` times.
    """
    step, failures = steps.start, 0
    end = atexit.register(partial(_end, watched))  # in case an error prevents the clean-up below
    while step < steps.stop:
        watched.slots[:] = -1
        batches = iter(open_loader(range(step, steps.stop)))
        # torch's handler raises anywhere in the program when a reader dies. The loader notices it
        # within `POLL` seconds too, at a place where the error can be caught.
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            while step < steps.stop:
                yield _next(batches, watched, timeout)
                step += 1
        except _FailedError as failed:
            failures += 1
            watched.blame(failed.args, timeout)
            if failures >= MAX_FAILURES:
                paths = [watched.path(one.index) for one in failed.args]
                last = f", the last with {paths[-1]}" if paths else ""
                raise UserError(
                    f"reader processes died or hung {failures} times{last}: is there too little "
                    "memory for --workers, or is the disk gone?"
                ) from failed
        finally:
            del batches
            end()
    atexit.unregister(end)


class _FailedError(Exception):
    """Reader processes died or hung; `args` are the images that they were reading."""


def _next(batches: Iterator[Any], watched: Watched, timeout: float) -> Any:
    """The next batch, however slow the images are; raises `_FailedError`."""
    began = time.monotonic()
    while True:
        try:
            return next(batches)
        except RuntimeError as error:
            failure = FAILURE.match(str(error))
            if failure is None:
                raise
            held = watched.list_held()
            if failure[1]:  # a process died
                raise _FailedError(*(one for one in held if not _is_alive(one.pid))) from error
            lost = [one for one in held if one.seconds >= timeout]
            # If nobody reads for so long, a process died holding a lock that the others wait for.
            if lost or (not held and time.monotonic() - began >= timeout):
                _end(watched)
                raise _FailedError(*lost) from error


def _end(watched: Watched) -> None:
    """Kill the remaining reader processes, which would keep the program from ending."""
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
