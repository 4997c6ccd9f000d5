"""What a run says while it runs: metrics.jsonl, a bar or some lines, TensorBoard."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from mvmae import terminal
from mvmae.errors import UserError, printable
from mvmae.storage.atomic import write_text
from mvmae.storage.metric_specs import in_order

PLAIN_LINES = 20  # lines in a whole run where there is no terminal
LONG_WAIT = 0.1  # share of the time spent waiting for data from which people should know


class Log:
    """Writes metrics, and shows them; on other processes than the main one it is silent.

    Args:
        folder: The run folder.
        start: Steps done already; later lines of metrics.jsonl are dropped.
        total: Steps in the whole run.
        also: Other places for the metrics.
        quiet: Whether this process says nothing.
        title: Before the bar.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start: int,
        total: int,
        also: Sequence[str],
        quiet: bool,
        title: str = "pretrain",
    ) -> None:
        self.file, self.start, self.total, self.quiet = (
            folder / "metrics.jsonl",
            start,
            total,
            quiet,
        )
        self.console = Console(quiet=quiet, soft_wrap=True)
        self.began, self._seconds_before, self._said = time.perf_counter(), 0.0, 0
        require(also)
        self._board = _tensorboard(folder) if "tensorboard" in also and not quiet else None
        if not quiet:
            self._seconds_before = _keep_until(self.file, start)
        self._known: dict[str, Any] = {}
        self._bar = terminal.StepBar(title, total, unit="steps", console=self.console)
        self._bar.update(self._bar.task, completed=start)

    def __enter__(self) -> Log:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._board:
            self._board.close()

    def seconds(self) -> float:
        """Time that the run has taken, what came before a resume included."""
        return self._seconds_before + time.perf_counter() - self.began

    def end_bar(self) -> None:
        """Leave the bar as it is; what is said from now on stands below it."""
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line for a person, above the bar."""
        self.console.print(printable(text), markup=False, highlight=False)

    def warn(self, text: str) -> None:
        """As `say`, also to those who asked to hear nothing."""
        if not self.quiet:
            terminal.warn(text)

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(self._bar.task, completed=step)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line of metrics and the seconds so far; `record` has at least `step`."""
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
        said = in_words(self._known)
        self._bar.say(said)
        self.advance(record["step"])
        self._plain_line(record["step"], "  ".join(filter(None, said.values())))

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Show a picture, a PNG file's bytes, where there is a place for pictures."""
        if self._board:
            with Image.open(io.BytesIO(png)) as file:
                pixels = np.asarray(file.convert("RGB"))
            self._board.add_image(name, pixels, step, dataformats="HWC")

    @property
    def shows_pictures(self) -> bool:
        """Whether `picture` has a place to show them."""
        return self._board is not None

    def _plain_line(self, step: int, said: str) -> None:
        """Where there is no terminal, about twenty lines tell the run."""
        due = step * PLAIN_LINES // self.total
        if not self._bar.disable or due == self._said:
            return
        self._said = due
        done = self.seconds() - self._seconds_before
        left = done / max(1, step - self.start) * (self.total - step)
        self.say(f"step {step}/{self.total}  {said}  {terminal.clock(left)} left")


def in_words(known: Mapping[str, Any]) -> dict[str, str]:
    """Metrics as the log prints them, by name; waiting for data only where there is much of it."""
    rows = [row for row in in_order(known) if row.short]
    said = {row.name: f"{row.short} {known[row.name]:{row.format}}" for row in rows}
    return said | ({} if known.get("data_wait", 0.0) > LONG_WAIT else {"data_wait": ""})


def _keep_until(file: Path, step: int) -> float:
    """Drop lines after `step`, which a resumed run writes again; seconds at the last line kept."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    kept = [record for record in records if record["step"] <= step]
    write_text(file, "".join(json.dumps(record) + "\n" for record in kept))
    return max((record.get("seconds", 0.0) for record in kept), default=0.0)


def require(also: Sequence[str]) -> None:
    """Make sure that metrics can go to the other places.

    Raises:
        UserError: A package is missing.
    """
    if "tensorboard" in also:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise UserError("--log tensorboard needs: pip install 'mvmae[logging]'") from error


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
