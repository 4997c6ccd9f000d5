"""What `embed` says: what it begins, a bar that counts images or some lines, what is there."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mvmae.config.embed import EmbedConfig
from mvmae.config.files import command_line
from mvmae.embed.storage import PARTS, Index
from mvmae.errors import counted, printable
from mvmae.terminal import emit, has_bars
from mvmae.training.log import PLAIN_LINES


class Meter:
    """Shows how many images are done, how many a second, and the time left.

    Args:
        total: Images.
    """

    def __init__(self, total: int) -> None:
        self.total, self.first, self._said, self.began = total, 0, 0, time.perf_counter()
        self.console = Console(soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total} images"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not has_bars(self.console),
        )
        self._task = self._bar.add_task("embed", total=total, speed="")

    def __enter__(self) -> Meter:
        self.began = time.perf_counter()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line for a person."""
        self.console.print(printable(text), markup=False, highlight=False)

    def start_from(self, done: int) -> None:
        """Images that were done before count for no speed."""
        self.first, self._said = done, done * PLAIN_LINES // self.total
        self._bar.update(self._task, completed=done)

    def advance(self, done: int) -> None:
        """So many images are done."""
        speed = (done - self.first) / max(time.perf_counter() - self.began, 1e-9)
        self._bar.update(self._task, completed=done, speed=f"{speed:.0f} images/s")
        due = done * PLAIN_LINES // self.total
        if self._bar.disable and due > self._said and done < self.total:
            self._said = due
            left = round((self.total - done) / max(speed, 1e-9))
            clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
            self.say(f"{done}/{self.total} images  {speed:.0f} images/s  {clock} left")


def introduce(meter: Meter, index: Index) -> None:
    """Say what is about to happen."""
    facts = index.facts
    what = {"mean": "mean of the patch tokens", "cls": "class token", "patch": "all patch tokens"}
    size = " x ".join(str(number) for number in facts["shape"])
    height, width = facts["encoder_facts"]["image_size"]
    meter.say(
        f"{counted(facts['num_images'], 'image')} at {height} x {width}, "
        f"{what[facts['tokens']]}: {size} numbers each ({facts['dtype']})"
    )
    if index.parts:
        meter.say(
            f"{index.count('images')} images are done, "
            f"{len(index.todo)} of {len(index.spans)} parts to do"
        )
    meter.start_from(index.count("images"))


def farewell(number: int, config: EmbedConfig, index: Index) -> str:
    """What is there after a signal, and how to go on."""
    command = command_line("embed", replace(config, resume=True, overwrite=False))
    return (
        f"stopped by {signal.Signals(number).name}: {index.count('images')} of "
        f"{index.facts['num_images']} images are in whole parts; go on with {command}"
    )


def conclude(meter: Meter, folder: Path, index: Index) -> None:
    """Say what is there now."""
    skipped, megabytes = index.count("skipped"), index.count("bytes") / 1e6
    lost = f"; {skipped} could not be read: {folder / 'skipped.csv'}" if skipped else ""
    meter.say(
        f"written: {folder / PARTS} ({counted(index.count('rows'), 'image')} in "
        f"{counted(len(index.parts), 'part')}, {megabytes:.1f} MB{lost})"
    )
    told = {"command": "embed", "folder": str(folder), "images": index.count("rows")}
    emit("result", told | {"skipped": skipped, "parts": len(index.parts)})
