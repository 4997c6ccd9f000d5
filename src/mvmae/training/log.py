"""Progress of a run: metrics.jsonl, a bar or a few lines, TensorBoard."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from mvmae import terminal
from mvmae.errors import UserError, printable
from mvmae.storage.atomic import write_text
from mvmae.storage.metric_specs import sort_metrics

PLAIN_LINES = 20  # lines in a whole run without a terminal
LONG_WAIT = 0.1  # share of time waiting for data from which it is shown


@dataclass(eq=False)
class Log:
    """Writes and shows metrics; silent in all processes but the main one."""

    folder: Path
    """The run folder."""

    _: KW_ONLY
    start: int
    """Steps already taken; later lines of metrics.jsonl are dropped."""

    total: int
    """Steps in the whole run."""

    also: Sequence[str]
    """Other places for the metrics."""

    quiet: bool
    """Whether this process prints nothing."""

    title: str = "pretrain"
    """Shown before the bar."""

    def __post_init__(self) -> None:
        self.file = self.folder / "metrics.jsonl"
        self.console = Console(quiet=self.quiet, soft_wrap=True)
        self.began, self._seconds_before, self._lines = time.perf_counter(), 0.0, 0
        self._known: dict[str, Any] = {}  # newest values: kNN stays in sight between evaluations
        self._board: Any = None
        require_log(self.also)
        if not self.quiet:
            self._seconds_before = _drop_lines_after(self.file, self.start)
            if "tensorboard" in self.also:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self.folder / "tensorboard"))
        self._bar = terminal.StepBar(self.title, self.total, unit="steps", console=self.console)
        self.advance(self.start)

    def __enter__(self) -> Log:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._board:
            self._board.close()

    def seconds(self) -> float:
        """Seconds that the run has taken, including the time before a resume."""
        return self._seconds_before + time.perf_counter() - self.began

    def end_bar(self) -> None:
        """Stop the bar where it is; later lines appear below it."""
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        # Names of files may hold control characters, or brackets that rich would take for markup.
        self.console.print(printable(text), markup=False, highlight=False, emoji=False)

    def warn(self, text: str) -> None:
        """Print a warning, with --quiet too."""
        if not self.quiet:
            terminal.warn(text)

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(self._bar.task, completed=step)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line of metrics with the seconds so far; `record` has at least `step`."""
        if self.quiet:
            return
        record = {**record, "seconds": round(self.seconds(), 3)}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        if self._board:
            for name, value in record.items():
                if name != "step":
                    self._board.add_scalar(name, value, record["step"])
        terminal.emit("metrics", record)
        self._known |= record
        words = in_words(self._known)
        self._bar.say(words)
        self.advance(record["step"])
        if self._bar.disable:
            self._print_line(record["step"], "  ".join(filter(None, words.values())))

    def picture(self, name: str, draw: Callable[[], bytes], step: int) -> None:
        """Log a picture, if pictures can be shown; `draw` returns the bytes of a PNG file."""
        if self._board:
            with Image.open(io.BytesIO(draw())) as file:
                pixels = np.asarray(file.convert("RGB"))
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def _print_line(self, step: int, words: str) -> None:
        """Print about twenty lines in a whole run, for logs of machines without a terminal."""
        due = step * PLAIN_LINES // self.total
        if due == self._lines:
            return
        self._lines = due
        seconds = time.perf_counter() - self.began
        left = seconds / max(1, step - self.start) * (self.total - step)
        self.say(f"step {step}/{self.total}  {words}  {terminal.clock(left)} left")


def in_words(known: Mapping[str, Any]) -> dict[str, str]:
    """Metrics as the log prints them, by name; the wait for data only if it is long."""
    rows = [row for row in sort_metrics(known) if row.short]
    words = {row.name: f"{row.short} {known[row.name]:{row.format}}" for row in rows}
    return words | ({} if known.get("data_wait", 0.0) > LONG_WAIT else {"data_wait": ""})


def _drop_lines_after(file: Path, step: int) -> float:
    """Drop lines after `step`, which a resumed run writes again; return the last line's seconds."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    kept = [record for record in records if record["step"] <= step]
    write_text(file, "".join(json.dumps(record) + "\n" for record in kept))
    return max((record.get("seconds", 0.0) for record in kept), default=0.0)


def require_log(also: Sequence[str]) -> None:
    """Check that the metrics can go to the other places.

    Raises:
        UserError: A package is missing.
    """
    if "tensorboard" in also:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise UserError("--log tensorboard needs: pip install 'mvmae[logging]'") from error
