"""SIGINT and SIGTERM as requests to stop after the current step."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupt:
    """Context in which the first SIGINT or SIGTERM is recorded instead of ending the program.

    A second SIGINT ends the program at once.

    Args:
        at_once: Raise KeyboardInterrupt at the first signal, too.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.signal, self.at_once = 0, at_once
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _record(self, number: int, _frame: FrameType | None) -> None:
        is_second = self.signal and number == signal.SIGINT
        self.signal = self.signal or number
        if self.at_once or is_second:
            raise KeyboardInterrupt


def exit_status(number: int) -> int:
    """Exit status for a signal, as shells expect it: 130 or 143; 0 without one."""
    return 128 + number if number else 0
