"""Apply a function to many items in subprocesses that may die or hang.

Made for untrusted files: a decoder that crashes, loops or allocates all memory brings down its own
process and nothing else, and the item that it was working on is reported.
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

CHUNK = 16  # items sent to a process at once, so that it does not wait for each
START_SECONDS = 300.0  # for a process to start: the disk with torch may be slow
END_SECONDS = 5.0  # for a process to end; on a dead network disk even SIGKILL may not reach it
STACK_BYTES = 64 << 20  # that a new process may allocate before its first item


class Lost(NamedTuple):
    """An item whose process did not answer."""

    hung: bool
    """Whether it took too long; otherwise its process died."""

    reason: str


class _Worker:
    """A subprocess, and the items that were sent to it and not answered yet."""

    def __init__(self, function: Callable[[Any], Any], memory: int) -> None:
        # Forked from a small server that has imported torch once: a dead process is replaced in
        # milliseconds, and inherits no threads and locks of this process.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, function.__module__])
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, function, memory), daemon=True, name="mvmae-reader"
        )
        with _blocked_signals():
            self.process.start()
        theirs.close()
        self.held: deque[tuple[int, Any]] = deque()
        self.is_ready, self.since = False, time.monotonic()

    def give(self, items: list[tuple[int, Any]]) -> None:
        self.held.extend(items)
        self.since = time.monotonic()
        with contextlib.suppress(OSError):  # it died meanwhile, which the next read shows
            self.connection.send(items)

    def end(self) -> int | None:
        """Stop the process and return its exit code, negative for a signal."""
        self.connection.close()
        code = self.process.exitcode
        self.process.kill()
        self.process.join(END_SECONDS)
        return code


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block SIGINT and SIGTERM; child processes started in the block inherit the mask.

    A terminal sends Ctrl-C to all of its processes. Python's fork server protects itself only after
    its preloaded imports; a signal before that ended it, and failed every later start.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def run_guarded(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    workers: int,
    timeout: float,
    memory: int,
) -> Iterator[tuple[int, Any]]:
    """Apply a function to each item in subprocesses.

    Args:
        function: A picklable callable from an importable module.
        items: Picklable items.
        workers: Number of subprocesses.
        timeout: Seconds for one item.
        memory: Bytes that a process may allocate beyond what it has at its start.

    Yields:
        The index of an item with the result or `Lost`, in arbitrary order.
    """
    waiting = deque(range(0, len(items), CHUNK))
    again: deque[list[tuple[int, Any]]] = deque()  # other items of a lost process
    pool = [_Worker(function, memory) for _ in range(min(workers, len(waiting)))]
    try:
        while pool:
            limit = min(_seconds_left(one, timeout) for one in pool)
            answered = wait([one.connection for one in pool], max(0.0, limit))
            for worker in list(pool):
                answer: tuple[int, Any] | None = None
                if worker.connection in answered:
                    answer = _answer(worker)
                elif _seconds_left(worker, timeout) > 0:
                    continue
                if answer is None:
                    yield _lost(worker, timeout, hung=worker.connection not in answered)
                    pool.remove(worker)
                    if rest := list(worker.held):
                        again.append(rest)
                    if again or waiting:
                        pool.append(_Worker(function, memory))
                    continue
                if answer[0] >= 0:
                    yield answer
                if not worker.held and not _feed(worker, items, waiting, again):
                    worker.end()
                    pool.remove(worker)
    finally:
        for worker in pool:
            worker.end()


def _seconds_left(worker: _Worker, timeout: float) -> float:
    return worker.since + (timeout if worker.is_ready else START_SECONDS) - time.monotonic()


def _answer(worker: _Worker) -> tuple[int, Any] | None:
    """The next answer, with index -1 for the first sign of life; None from a dead process."""
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
    """Send a process more items, if there are any."""
    if again:
        worker.give(again.popleft())
        return True
    if waiting:
        first = waiting.popleft()
        worker.give(list(enumerate(items[first : first + CHUNK], start=first)))
        return True
    return False


def _lost(worker: _Worker, timeout: float, *, hung: bool) -> tuple[int, Lost]:
    """End a dead or hanging process; return the item it was working on, and why it is lost."""
    if not hung:
        worker.process.join(END_SECONDS)
    code = worker.end()
    if not worker.is_ready or not worker.held:
        raise RuntimeError(f"a reader process could not be started (exit code {code})")
    index, _ = worker.held.popleft()
    if hung:
        return index, Lost(True, f"not done after {timeout:g} seconds")
    return index, Lost(False, _exit_reason(code))


def _exit_reason(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its reader process ended with status {code}"
    name = signal.strsignal(-code) or "unknown"
    return f"its reader process was ended by signal {-code} ({name})"


def _serve(connection: Connection, function: Callable[[Any], Any], memory: int) -> None:
    """The main function of a subprocess: answer one item after another."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    _limit_resources(memory)
    _silence_output()
    connection.send((-1, None))
    while True:
        try:
            items = connection.recv()
        except (EOFError, OSError):  # the main process is gone or has no more items
            return
        for index, item in items:
            connection.send((index, function(item)))


def _limit_resources(memory: int) -> None:
    """Limit additional memory, core files and threads; not on Windows."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # On Linux this is private writable memory. RLIMIT_AS would count the gigabytes of
        # libraries that torch only maps.
        limit = _private_bytes() + memory + STACK_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if torch := sys.modules.get("torch"):  # imported with the function, if it uses it
        torch.set_num_threads(1)


def _private_bytes() -> int:
    """Bytes of private writable memory of this process."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # not Linux
        return 1 << 30


def _silence_output() -> None:
    """Discard stdout and stderr, to which decoders in C write warnings."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
