"""Where the time of a training run goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

B = TypeVar("B")  # a batch


class Clock:
    """Where the time goes between two lines of metrics."""

    def __init__(self) -> None:
        self.began, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def timed(self, batches: Iterable[B]) -> Iterator[B]:
        """The batches, with the waiting for each noted."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            batch = next(iterator, None)
            if batch is None:
                return
            self.waited += time.perf_counter() - began
            self.steps += 1
            yield batch

    def lap(self, batch_size: int) -> dict[str, float]:
        """Images a second, and the share of time that steps waited for data; starts anew."""
        now = time.perf_counter()
        passed = max(now - self.began, 1e-9)
        speed = {
            "images_per_second": round(self.steps * batch_size / passed, 2),
            "data_wait": round(self.waited / passed, 4),
        }
        self.began, self.waited, self.steps = now, 0.0, 0
        return speed
