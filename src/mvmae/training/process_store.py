"""What the processes of one command tell each other besides tensors, and how they end together.

They talk through the key-value store by which they found each other, not in collectives: a process
asks (some 15 microseconds on one machine), goes on and asks again. So no time runs out while one
fits a classifier for hours, signals are noticed, and who failed or died leaves nobody waiting.
Without other processes every function says what is true of one.
"""

from __future__ import annotations

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

from mvmae.errors import OtherFailedError, ToldError, UserError, line_of, printable

FAILED, SAID, SIGNAL = "failed", "said", "signal"  # keys; those of one process end in its number
POLL = 0.05  # seconds between two questions of one who waits
PATIENCE = 2.0  # seconds that others leave the main process to say what they would say too
BEAT, DEAD = 2.0, 60.0  # seconds between two signs of life, and after which one is missed
LOST = ("connection closed", "connection reset", "connection refused", "broken pipe")


class Company:
    """The processes of a command, as one of them sees them.

    Args:
        store: That all of them reach.
        rank: Of this process; 0 is the main one.
        size: How many they are.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.others = range(1, size)
        self._calls, self._posts, self._phase = count(), count(), 0
        self._read = dict.fromkeys(self.others, 0)
        self._beats = dict.fromkeys(self.others, (b"", time.monotonic()))
        self._signal = 0

    def check(self, signal: int = 0) -> int:
        """Whether to go on.

        Args:
            signal: That this process got, if any, for all to stop.

        Returns:
            A signal that some process got, or 0.

        Raises:
            ToldError: Another process failed, and the main one says so.
            OtherFailedError: The same, in the main process; or one is gone.
        """
        try:
            return self._check(signal)
        except dist.DistNetworkError:
            if signal:  # that the main process, with whom the store went, got too
                return signal
            raise

    def _check(self, signal: int) -> int:
        if signal and not self._signal:
            self._signal = int(self.store.compare_set(SIGNAL, "", str(signal)))  # the first counts
        if self.store.check([FAILED]):
            complaint = self.store.get(FAILED).decode()
            raise OtherFailedError(complaint) if self.rank == 0 else ToldError(complaint)
        if self.rank == 0:
            self._refuse_dead()
        if not self._signal and self.store.check([SIGNAL]):
            self._signal = int(self.store.get(SIGNAL))
        return self._signal

    def _refuse_dead(self) -> None:
        now = time.monotonic()
        for rank, (beat, since) in self._beats.items():
            if now - since < DEAD / 2 or self.store.check([f"left/{rank}"]):
                continue
            key = f"beat/{rank}"
            fresh = self.store.get(key) if self.store.check([key]) else b""
            if fresh != beat:
                self._beats[rank] = fresh, now
            elif now - since > DEAD:
                raise OtherFailedError(
                    f"process {rank} of this command is gone: it was killed, or its machine is lost"
                )

    def from_main(self, value: Any) -> Any:
        """What the main process has here, for all of them; plain data."""
        key = f"main/{next(self._calls)}"
        if self.rank == 0:
            self.store.set(key, pickle.dumps(value))  # pyrefly: ignore[bad-argument-type]  # bytes
            return value
        while not self.store.check([key]):
            self.check()
            time.sleep(POLL)
        return pickle.loads(self.store.get(key))

    def tell(self, name: str, value: int) -> None:
        """Let the others know a number of this process; the last one counts."""
        self.store.set(f"{name}/{self.rank}", str(value))

    def told(self, name: str, rank: int = 0) -> int:
        """The number that a process told last; -1 where it told none."""
        key = f"{name}/{rank}"
        return int(self.store.get(key)) if self.store.check([key]) else -1

    def post(self, value: Any) -> None:
        """Send something to the main process; what JSON knows."""
        self.store.set(f"post/{self.rank}/{next(self._posts)}", json.dumps(value))

    def posted(self) -> Iterator[Any]:
        """What has been sent to the main process and was not read yet, in each sender's order."""
        for rank in self.others:
            while self.store.check([key := f"post/{rank}/{self._read[rank]}"]):
                value = json.loads(self.store.get(key))
                self.store.delete_key(key)
                self._read[rank] += 1
                yield value

    def done(self) -> None:
        """This process has done its share of what all are at, and goes on to the next."""
        self._phase += 1
        self.store.set(f"done/{self._phase}/{self.rank}", "")

    def waiting(self) -> Iterator[None]:
        """Turns of waiting until all others are as far as this process.

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
                time.sleep(POLL)

    def dismiss(self, seconds: float) -> None:
        """Let the others stop what they are at, and wait so long for them."""
        self.store.compare_set(FAILED, "", "the main process failed")
        self._until(lambda: self._have("left"), seconds)

    def leave(self) -> None:
        """Say that this process is over; the main one, with whom the store may go, is the last."""
        self.store.set(f"left/{self.rank}", "")
        self.store.set(f"gone/{self.rank}", "")
        if self.rank == 0:
            self._until(lambda: self._have("gone"), PATIENCE)

    def _have(self, key: str) -> bool:
        """Whether all others have set a key: "left" their work, or "gone" and ask nothing more."""
        return all(self.store.check([f"{key}/{rank}"]) for rank in self.others)

    def _until(self, has_come: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not (came := has_come()) and time.monotonic() < end:
            time.sleep(POLL)
        return came

    def beat(self, over: threading.Event) -> None:
        """Show signs of life until it is over."""
        with suppress(RuntimeError):  # the store went with the main process
            for number in count():
                self.store.set(f"beat/{self.rank}", str(number))
                if over.wait(BEAT):
                    break

    def ended_by(self, error: Exception) -> Exception:
        """What to raise in place of an error, so that one process says one line.

        The main one says it. Where another fails it waits for that, for mostly all fail alike, and
        says it itself when the main one is at something long.
        """
        if isinstance(error, ToldError):
            return error
        try:
            return self._ended_by(error)
        except RuntimeError:  # of the store, which went with the main process
            if _is_loss(error):
                error = UserError("the main process of this command is gone: was it killed?")
                return self._spoken(error) if self.rank == 1 else ToldError(str(error))
            return self._spoken(error)

    def _ended_by(self, error: Exception) -> Exception:
        self.store.set(f"left/{self.rank}", "")
        if _is_loss(error):
            if self._until(lambda: self.store.check([FAILED]), PATIENCE):
                if self.rank:
                    return ToldError(str(error))
                error = UserError(self.store.get(FAILED).decode())
            else:
                error = UserError("another process of this command is gone: was it killed?")
        line = line_of(error)
        said = line or f"process {self.rank} failed: {type(error).__name__}: {error}"
        self.store.compare_set(FAILED, "", said)
        if self.rank and line is not None:
            self._until(lambda: self.store.check([SAID]), PATIENCE)
        is_first = self.store.add(SAID, 1) == 1
        if line is None:  # our own fault, with all that shows where
            return error
        if not is_first:
            return ToldError(line)
        return self._spoken(error) if self.rank else error

    def _spoken(self, error: Exception) -> Exception:
        """Say it here, for the command line speaks in the main process only."""
        if self.rank == 0 or (line := line_of(error)) is None:
            return error
        print(f"mvmae: {printable(' '.join(line.split()))}", file=sys.stderr)
        return ToldError(line)


def _is_loss(error: Exception) -> bool:
    """Whether a process that was to answer did not."""
    if isinstance(error, dist.DistNetworkError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in LOST)


_now: Company | None = None


@contextmanager
def company() -> Iterator[None]:
    """Within, the functions below speak with the processes of the group that was joined."""
    global _now
    # The store has no public name once the group is there; this one has been there since torch 1.8.
    store = dist.distributed_c10d._get_default_store()
    _now = own = Company(store, dist.get_rank(), dist.get_world_size())
    over = threading.Event()
    beating = threading.Thread(target=own.beat, args=(over,), name="beat", daemon=True)
    if own.rank:
        beating.start()
    try:
        yield
    except Exception as error:
        if (other := own.ended_by(error)) is error:
            raise
        raise other from error
    finally:
        over.set()
        with suppress(RuntimeError):  # as above
            own.leave()
        if own.rank:
            beating.join(BEAT)
        _now = None


def check(signal: int = 0) -> int:
    """See `Company.check`."""
    return _now.check(signal) if _now else signal


def from_main(value: Any) -> Any:
    """See `Company.from_main`."""
    return _now.from_main(value) if _now else value


def tell(name: str, value: int) -> None:
    """See `Company.tell`."""
    if _now:
        _now.tell(name, value)


def told(name: str) -> int:
    """The number that the main process told last; -1 where it told none."""
    return _now.told(name) if _now else -1


def post(value: Any) -> None:
    """See `Company.post`."""
    if _now:
        _now.post(value)


def posted() -> Iterator[Any]:
    """See `Company.posted`."""
    if _now:
        yield from _now.posted()


def done() -> None:
    """See `Company.done`."""
    if _now:
        _now.done()


def waiting() -> Iterator[None]:
    """See `Company.waiting`."""
    if _now:
        yield from _now.waiting()


def dismiss(seconds: float) -> None:
    """See `Company.dismiss`."""
    if _now:
        _now.dismiss(seconds)


def share(items: int, rank: int, size: int) -> range:
    """The part of so many items in a row that one of `size` processes takes, as even as can be."""
    return range(items * rank // size, items * (rank + 1) // size)
