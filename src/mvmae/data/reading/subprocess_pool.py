"""A function applied to many items by processes that may die or hang: what they held is named.

Made for files that nobody can vouch for. A decoder that crashes, loops or asks for all memory
takes its own process along and nothing else.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

CHUNK = 16  # items handed to a process at once, so that it need not wait for each next one
START_SECONDS = 300.0  # for a process to begin: torch is imported from a disk that may be slow
END_SECONDS = 5.0  # for one to go; on a dead network disk even SIGKILL may not reach it
STACKS_PER_WORKER = 64 << 20  # bytes that a fresh process may ask for before it holds anything


class Lost(NamedTuple):
    """What became of an item whose process did not answer."""

    hung: bool
    """Whether it took too long, and else its process died."""

    reason: str


class _Worker:
    """A process, and the items it has been given and not answered yet."""

    def __init__(self, function: Callable[[Any], Any], memory: int) -> None:
        # Forked from a small server that has imported torch once: a dead process is replaced in
        # some milliseconds, and nothing of this process (threads, locks) is inherited.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, function.__module__])
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, function, memory), daemon=True, name="mvmae-reader"
        )
        with _signals_wait():
            self.process.start()
        theirs.close()
        self.held: deque[tuple[int, Any]] = deque()
        self.is_ready, self.since = False, time.monotonic()

    def give(self, items: list[tuple[int, Any]]) -> None:
        self.held.extend(items)
        self.since = time.monotonic()
        with contextlib.suppress(OSError):  # it died meanwhile, which the next answer shows
            self.connection.send(items)

    def end(self) -> int | None:
        """Stop the process; its exit code, negative for a signal."""
        self.connection.close()
        code = self.process.exitcode
        self.process.kill()
        self.process.join(END_SECONDS)
        return code


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals come when it is over; what is started within never sees those to end it.

    They go to all processes of a terminal, and Python's server only shields itself when it has
    imported what it is to preload: until then Ctrl-C ended it, and every start after that.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which would let signals through again when it begins
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_guarded(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    workers: int,
    timeout: float,
    memory: int,
) -> Iterator[tuple[int, Any]]:
    """What a function says of each item.

    Args:
        function: Of a module that can be imported; called in the processes.
        items: Picklable.
        workers: Processes.
        timeout: Seconds for one item.
        memory: Bytes that a process may take beyond what it has when it begins.

    Yields:
        An item's place and what the function returned, or `Lost`; in no certain order.
    """
    waiting = deque(range(0, len(items), CHUNK))
    again: deque[list[tuple[int, Any]]] = deque()  # what a lost process held besides
    crew = [_Worker(function, memory) for _ in range(min(workers, len(waiting)))]
    try:
        while crew:
            limit = min(_seconds_left(one, timeout) for one in crew)
            answered = wait([one.connection for one in crew], max(0.0, limit))
            for worker in list(crew):
                answer: tuple[int, Any] | None = None
                if worker.connection in answered:
                    answer = _answer(worker)
                elif _seconds_left(worker, timeout) > 0:
                    continue
                if answer is None:
                    yield _lost(worker, timeout, hung=worker.connection not in answered)
                    crew.remove(worker)
                    if rest := list(worker.held):
                        again.append(rest)
                    if again or waiting:
                        crew.append(_Worker(function, memory))
                    continue
                if answer[0] >= 0:
                    yield answer
                if not worker.held and not _feed(worker, items, waiting, again):
                    worker.end()
                    crew.remove(worker)
    finally:
        for worker in crew:
            worker.end()


def _seconds_left(worker: _Worker, timeout: float) -> float:
    return worker.since + (timeout if worker.is_ready else START_SECONDS) - time.monotonic()


def _answer(worker: _Worker) -> tuple[int, Any] | None:
    """The next answer, with place -1 for the first sign of life; none from a dead process."""
    try:
        answer = worker.connection.recv()
    except (EOFError, OSError):
        return None
    worker.since = time.monotonic()
    if not worker.is_ready:
        worker.is_ready = True
        return -1, None
    worker.held.popleft()
    return answer


def _feed(
    worker: _Worker,
    items: Sequence[Any],
    waiting: deque[int],
    again: deque[list[tuple[int, Any]]],
) -> bool:
    """Give a process more to do, if there is more."""
    if again:
        worker.give(again.popleft())
        return True
    if waiting:
        first = waiting.popleft()
        worker.give(list(enumerate(items[first : first + CHUNK], start=first)))
        return True
    return False


def _lost(worker: _Worker, timeout: float, *, hung: bool) -> tuple[int, Lost]:
    """End a process that is of no use any more; the item it held, and why it is lost."""
    if not hung:
        worker.process.join(END_SECONDS)
    code = worker.end()
    if not worker.is_ready or not worker.held:
        raise RuntimeError(f"a process that reads files could not be started (exit code {code})")
    place, _ = worker.held.popleft()
    if hung:
        return place, Lost(True, f"not done after {timeout:g} seconds")
    return place, Lost(False, _how_it_ended(code))


def _how_it_ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"the process that read it ended with status {code}"
    name = signal.strsignal(-code) or "unknown"
    return f"the process that read it was ended by signal {-code} ({name})"


def _serve(connection: Connection, function: Callable[[Any], Any], memory: int) -> None:
    """What a process does: answer for one item after another."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    _limit(memory)
    _be_silent()
    connection.send((-1, None))
    while True:
        try:
            items = connection.recv()
        except (EOFError, OSError):  # the main process is gone, or needs nothing more
            return
        for place, item in items:
            connection.send((place, function(item)))


def _limit(memory: int) -> None:
    """So much more memory, no core files and one thread."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows, or a lower limit is set
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Linux counts private writable memory here; RLIMIT_AS would count the gigabytes of
        # libraries that torch only maps.
        limit = _taken() + memory + STACKS_PER_WORKER
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if torch := sys.modules.get("torch"):  # which came with the function, if it needs it
        torch.set_num_threads(1)


def _taken() -> int:
    """Bytes of private writable memory that this process has."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # not Linux
        return 1 << 30


def _be_silent() -> None:
    """Decoders in C write what they think of a file to the screen."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
