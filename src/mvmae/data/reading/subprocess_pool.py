"""Apply a function to many items in subprocesses that may die or hang.

Made for untrusted files: a decoder that crashes, loops or allocates all memory brings down its own
process and nothing else, and the item that it was working on is reported.
"""

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

ITEMS_PER_PROCESS = 16  # for fewer items, starting another process takes longer than it saves
START_SECONDS = 300.0  # for a process to start: the disk with torch may be slow
END_SECONDS = 5.0  # for a process to end; on a dead network disk even SIGKILL may not reach it
STACK_BYTES = 64 << 20  # that a new process may allocate before its first item


class Lost(NamedTuple):
    """An item whose process did not answer."""

    hung: bool
    """Whether it took too long; otherwise its process died."""

    reason: str


class _Worker:
    """A subprocess, and the item that it is working on."""

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
        self.index: int | None = None  # of the item; None while the process starts
        self.since = time.monotonic()

    def give(self, index: int, item: Any) -> None:
        self.index, self.since = index, time.monotonic()
        with contextlib.suppress(OSError):  # it died meanwhile, which the next read shows
            self.connection.send(item)

    def seconds_left(self, timeout: float) -> float:
        limit = START_SECONDS if self.index is None else timeout
        return self.since + limit - time.monotonic()

    def end(self) -> int | None:
        """Kill the process; return the exit code it had: None if it ran, negative for a signal."""
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
        The index of an item with the result or `Lost`, in arbitrary order. A function that raises
        ends its process, so its item is `Lost`.

    Raises:
        RuntimeError: A subprocess could not be started.
    """
    waiting = deque(range(len(items)))
    count = min(workers, -(-len(items) // ITEMS_PER_PROCESS))
    pool = [_Worker(function, memory) for _ in range(count)]
    try:
        while pool:
            limit = min(worker.seconds_left(timeout) for worker in pool)
            answered = wait([worker.connection for worker in pool], max(0.0, limit))
            for worker in list(pool):
                hung = worker.connection not in answered
                if hung and worker.seconds_left(timeout) > 0:
                    continue
                try:
                    answer = _lose(worker, timeout) if hung else worker.connection.recv()
                except (EOFError, OSError):  # it died
                    answer = _lose(worker, None)
                # A process's first message only reports that it has started.
                if worker.index is not None:
                    yield worker.index, answer
                if isinstance(answer, Lost):
                    pool.remove(worker)
                    if waiting:
                        pool.append(_Worker(function, memory))
                elif waiting:
                    index = waiting.popleft()
                    worker.give(index, items[index])
                else:
                    worker.end()
                    pool.remove(worker)
    finally:
        for worker in pool:
            worker.end()


def _lose(worker: _Worker, timeout: float | None) -> Lost:
    """End a worker and return why its item is lost.

    Args:
        worker: One that did not answer.
        timeout: The exceeded limit in seconds; None if the process died.

    Raises:
        RuntimeError: The process never started.
    """
    if timeout is None:
        worker.process.join(END_SECONDS)
    code = worker.end()
    if worker.index is None:
        raise RuntimeError(f"a reader process could not be started (exit code {code})")
    if timeout is not None:
        return Lost(True, f"not done after {timeout:g} seconds")
    if code is None or code >= 0:
        return Lost(False, f"its reader process ended with status {code}")
    name = signal.strsignal(-code) or "unknown"
    return Lost(False, f"its reader process was ended by signal {-code} ({name})")


def _serve(connection: Connection, function: Callable[[Any], Any], memory: int) -> None:
    """The main function of a subprocess: answer one item after another."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    _limit_resources(memory)
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # stdout and stderr, to which decoders in C write warnings
        os.dup2(null, stream)
    connection.send("started")
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):  # the main process is gone or has no more items
            return
        connection.send(function(item))


def _limit_resources(memory: int) -> None:
    """Limit additional memory, core files and threads; memory on Linux only."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # On Linux, this limits private writable memory, the sixth number in statm. RLIMIT_AS would
        # count the gigabytes of libraries that torch only maps.
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            private_bytes = int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
        limit = private_bytes + memory + STACK_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if torch := sys.modules.get("torch"):  # imported with the function, if it uses it
        torch.set_num_threads(1)
