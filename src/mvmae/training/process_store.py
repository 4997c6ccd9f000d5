"""Messages between the processes of one command, and how they end together.

They use the key-value store through which `torchrun` connected them, not collectives. A waiting
process reads a key again and again (about 15 microseconds on one machine) instead of blocking. So
nothing times out while one process fits a classifier for hours, signals are noticed, and no process
waits forever for one that failed or died.
"""

import json
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import torch.distributed as dist

from mvmae.errors import OtherFailedError, ReportedError, UserError, printable, user_message

FAILED, REPORTED, SIGNAL = "failed", "reported", "signal"  # keys of all processes
POLL_SECONDS = 0.05  # seconds between two reads of a waiting process
REPORT_SECONDS = 2.0  # time for the main process to report what the others would report too
# Seconds between two heartbeats, and seconds without one after which a process counts as dead. A
# thread sends them, which a long computation in C can block, so that is many heartbeats.
HEARTBEAT_SECONDS, DEATH_SECONDS = 2.0, 60.0
CONNECTION_LOST = ("connection closed", "connection reset", "connection refused", "broken pipe")


class NoStore:
    """The store of a command that runs in one process: it keeps nothing, as no other reads it.

    torch's own store in memory, `HashStore`, does not exist on Windows.
    """

    def set(self, key: str, value: object) -> None:
        """Drop a value."""

    def compare_set(self, key: str, expected: str, value: str) -> None:
        """Drop a value."""

    def check(self, keys: list[str]) -> bool:
        """Whether the keys are set: never."""
        return False


class ProcessStore:
    """Messages of one process to and from the other processes of its command.

    Args:
        store: A `torch.distributed.Store` that all processes reach, or `NoStore`.
        rank: Rank of this process; 0 is the main process.
        size: Number of processes.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.others = range(1, size)
        self._calls, self._posts, self._phase = count(), count(), 0
        self._read = dict.fromkeys(self.others, 0)
        self._heartbeats = dict.fromkeys(self.others, (-1, time.monotonic()))
        self._signal = 0

    def check(self, signal: int = 0) -> int:
        """Raise if another process failed; exchange signals, so that all stop together.

        Args:
            signal: Number of a signal that this process received, or 0.

        Returns:
            The first signal that any process received, or 0.

        Raises:
            ReportedError: Another process failed, and the main process reports it.
            OtherFailedError: In the main process: another process failed or died.
        """
        if self.size == 1:
            return signal  # not stored: the next command of this Python process must not find it
        try:
            return self._check(signal)
        except dist.DistNetworkError:
            if signal:  # the main process, which hosts the store, received it too and has left
                return signal
            raise

    def _check(self, signal: int) -> int:
        if signal and not self._signal:
            self._signal = int(self.store.compare_set(SIGNAL, "", str(signal)))  # the first wins
        if self.store.check([FAILED]):
            complaint = self.store.get(FAILED).decode()
            raise OtherFailedError(complaint) if self.rank == 0 else ReportedError(complaint)
        if self.rank == 0:
            self._require_alive()
        if not self._signal and self.store.check([SIGNAL]):
            self._signal = int(self.store.get(SIGNAL))
        return self._signal

    def _require_alive(self) -> None:
        now = time.monotonic()
        for rank, (heartbeat, since) in self._heartbeats.items():
            if now - since < DEATH_SECONDS / 2 or self.store.check([f"left/{rank}"]):
                continue
            newest = self.latest("beat", rank)
            if newest != heartbeat:
                self._heartbeats[rank] = newest, now
            elif now - since > DEATH_SECONDS:
                raise OtherFailedError(
                    f"process {rank} of this command died: it was killed, or its machine is lost"
                )

    def from_main(self, value: Any) -> Any:
        """Return the main process's value in all processes; every process must call this.

        Args:
            value: Anything that can be pickled; ignored in the other processes.

        Raises:
            UserError: As `check`, while waiting.
        """
        key = f"main/{next(self._calls)}"
        if self.rank == 0:
            self.store.set(key, pickle.dumps(value))
            return value
        while not self.store.check([key]):
            self.check()
            time.sleep(POLL_SECONDS)
        return pickle.loads(self.store.get(key))

    def publish(self, name: str, value: int) -> None:
        """Publish a number that the other processes read with `latest`."""
        self.store.set(f"{name}/{self.rank}", str(value))

    def latest(self, name: str, rank: int = 0) -> int:
        """Return the number that a process published last; -1 if it published none."""
        key = f"{name}/{rank}"
        return int(self.store.get(key)) if self.store.check([key]) else -1

    def post(self, value: Any) -> None:
        """Send JSON data to the main process."""
        self.store.set(f"post/{self.rank}/{next(self._posts)}", json.dumps(value))

    def read_posts(self) -> Iterator[Any]:
        """Yield what the others posted since the last call, in each sender's order."""
        for rank in self.others:
            while self.store.check([key := f"post/{rank}/{self._read[rank]}"]):
                value = json.loads(self.store.get(key))
                self.store.delete_key(key)
                self._read[rank] += 1
                yield value

    def finish_phase(self) -> None:
        """Mark that this process finished its share of the current phase of work."""
        self._phase += 1
        self.store.set(f"done/{self._phase}/{self.rank}", "")

    def wait_for_others(self) -> Iterator[None]:
        """Yield while waiting until all others finished the phase that this process finished.

        Raises:
            UserError: As `check`.
        """
        for rank in self.others:
            key = f"done/{self._phase}/{rank}"
            while not self.store.check([key]):
                self.check()
                if self.store.check([f"left/{rank}"]) and not self.store.check([key]):
                    raise OtherFailedError(f"process {rank} of this command was interrupted")
                yield
                time.sleep(POLL_SECONDS)

    def stop_others(self, seconds: float) -> None:
        """Make the others fail at their next `check`, and wait up to `seconds` until they have."""
        self.store.compare_set(FAILED, "", "the main process failed")
        self._wait_until(lambda: self._all_set("left"), seconds)

    def leave(self) -> None:
        """Mark this process as finished; rank 0 leaves last because it hosts the store."""
        self.store.set(f"left/{self.rank}", "")
        self.store.set(f"gone/{self.rank}", "")
        if self.rank == 0:
            self._wait_until(lambda: self._all_set("gone"), REPORT_SECONDS)

    def _all_set(self, key: str) -> bool:
        """Whether all others set a key: "left" after their work, "gone" after their last read."""
        return all(self.store.check([f"{key}/{rank}"]) for rank in self.others)

    def _wait_until(self, is_true: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not (result := is_true()) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        return result

    def send_heartbeats(self, stop: threading.Event) -> None:
        """Send heartbeats until `stop` is set."""
        with suppress(RuntimeError):  # the main process left, and the store with it
            for number in count():
                self.publish("beat", number)
                if stop.wait(HEARTBEAT_SECONDS):
                    break

    def error_to_raise(self, error: Exception) -> Exception:
        """Choose what to raise in place of an error, so that only one process prints it.

        The main process prints it if it fails too. Processes usually fail for the same reason, so
        another process waits for that a moment, and prints its line itself if it waits in vain.
        """
        if isinstance(error, ReportedError):
            return error
        try:
            return self._error_to_raise(error)
        except RuntimeError:  # the main process left, and the store with it
            if _is_connection_loss(error):
                error = UserError("the main process of this command is gone: was it killed?")
                return self._print_line(error) if self.rank == 1 else ReportedError(str(error))
            return self._print_line(error)

    def _error_to_raise(self, error: Exception) -> Exception:
        self.store.set(f"left/{self.rank}", "")
        if _is_connection_loss(error):
            if self._wait_until(lambda: self.store.check([FAILED]), REPORT_SECONDS):
                if self.rank:
                    return ReportedError(str(error))
                error = UserError(self.store.get(FAILED).decode())
            else:
                error = UserError("another process of this command is gone: was it killed?")
        line = user_message(error)
        complaint = line or f"process {self.rank} failed: {type(error).__name__}: {error}"
        self.store.compare_set(FAILED, "", complaint)
        if self.rank and line is not None:
            self._wait_until(lambda: self.store.check([REPORTED]), REPORT_SECONDS)
        is_first = self.store.add(REPORTED, 1) == 1
        if line is None:  # a bug: raise it with its traceback
            return error
        if not is_first:
            return ReportedError(line)
        return self._print_line(error) if self.rank else error

    def _print_line(self, error: Exception) -> Exception:
        """Print an error's line here, since only the main process's command line prints errors."""
        if self.rank == 0 or (line := user_message(error)) is None:
            return error
        print(f"mvmae: {printable(' '.join(line.split()))}", file=sys.stderr)
        return ReportedError(line)


def _is_connection_loss(error: Exception) -> bool:
    """Whether an error says that another process closed its connection."""
    text = str(error).lower()  # gloo and NCCL raise a plain RuntimeError
    has_words = isinstance(error, RuntimeError) and any(words in text for words in CONNECTION_LOST)
    return has_words or isinstance(error, dist.DistNetworkError)


SINGLE_PROCESS = ProcessStore(NoStore(), 0, 1)
_current = SINGLE_PROCESS


def current() -> ProcessStore:
    """Return the store of this command's processes."""
    return _current


@contextmanager
def connect() -> Iterator[None]:
    """Make the store of the joined process group the current one."""
    global _current
    # The store has no public name once the group exists; this one has existed since torch 1.8.
    store = dist.distributed_c10d._get_default_store()
    _current = own = ProcessStore(store, dist.get_rank(), dist.get_world_size())
    stop = threading.Event()
    heart = threading.Thread(target=own.send_heartbeats, args=(stop,), name="heart", daemon=True)
    if own.rank:
        heart.start()
    try:
        yield
    except Exception as error:
        if (other := own.error_to_raise(error)) is error:
            raise
        raise other from error
    finally:
        stop.set()
        with suppress(RuntimeError):  # the store may be gone
            own.leave()
        if own.rank:
            heart.join(HEARTBEAT_SECONDS)
        _current = SINGLE_PROCESS


def partition(items: int, rank: int, size: int) -> range:
    """Return the indices that one of `size` processes takes, consecutive and evenly divided."""
    return range(items * rank // size, items * (rank + 1) // size)
