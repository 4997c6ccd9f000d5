"""Threads that answer.

Networks run in one thread, which is the only lock they need: questions queue up there, and so do
the background's batches, one at a time. Files are decoded in two others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Workers:
    """The threads that answer, and when a person asked last."""

    def __init__(self) -> None:
        self.computing = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.reading = ThreadPoolExecutor(2, thread_name_prefix="read")
        self._asked = time.monotonic()

    def compute(self, work: Callable[[], T]) -> T:
        """Run something where networks run, and wait for it."""
        return self.computing.submit(work).result()

    def touch(self) -> None:
        """Note that a person asked."""
        self._asked = time.monotonic()

    def idle(self) -> float:
        """Seconds since a person asked."""
        return time.monotonic() - self._asked

    def close(self) -> None:
        """Take no more work, and do not wait for what runs."""
        for pool in (self.computing, self.reading):
            pool.shutdown(wait=False, cancel_futures=True)
