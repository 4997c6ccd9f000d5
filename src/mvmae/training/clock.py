"""Speed of a training run, and the time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

B = TypeVar("B")  # a batch


class Clock:
    """Measures the time between two lines of metrics."""

    def __init__(self) -> None:
        self.start, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def timed(self, batches: Iterable[B]) -> Iterator[B]:
        """Yield the batches, and measure how long each was waited for."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            if batch is None:
                return
            self.waited += time.perf_counter() - start
            self.steps += 1
            yield batch

    def lap(self, batch_size: int) -> dict[str, float]:
        """Return images per second and the share of time spent waiting; start a new interval."""
        now = time.perf_counter()
        passed = max(now - self.start, 1e-9)
        speed = {
            "images_per_second": round(self.steps * batch_size / passed, 2),
            "data_wait": round(self.waited / passed, 4),
        }
        self.start, self.waited, self.steps = now, 0.0, 0
        return speed
