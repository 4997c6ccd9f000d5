"""Output of commands: text, progress bars and JSON, for a terminal, a log file or a program.

`--quiet` and `--json`, or the environment variable `MVMAE_OUTPUT`, choose the mode. The context
manager `output` redirects everything that is printed inside it, so that with JSON nothing else can
reach stdout.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mvmae.errors import UserError, printable

OUTPUT_VARIABLE = "MVMAE_OUTPUT"
MODES = ("auto", "plain", "quiet", "json")
MIN_WIDE = 72  # columns of a terminal in which a bar has room for its title and unit
# Seconds over which a bar measures its speed. With Rich's 30, slower steps would show no estimate.
SPEED_SECONDS = 300.0
FIRST_LINE_SECONDS = 10.0  # seconds of work without a terminal before the first line of progress
MAX_LINES = 10  # lines of progress without a terminal


class _Output(NamedTuple):
    """Arguments of the innermost `output`."""

    words: frozenset[str]
    json: TextIO | None
    """The stdout that carries JSON only; None without `json`."""


_now = _Output(frozenset(), None)


def requested_modes(words: Collection[str] = ()) -> frozenset[str]:
    """Return the given modes, or else those of the environment variable.

    Raises:
        UserError: A mode is not in `MODES`.
    """
    found = frozenset(words or os.environ.get(OUTPUT_VARIABLE, "").replace(",", " ").split())
    if unknown := sorted(found - set(MODES)):
        raise UserError(f"{OUTPUT_VARIABLE}={unknown[0]}: choose from {', '.join(MODES)}")
    return found - {"auto"}


def flags(args: Sequence[str]) -> tuple[set[str], list[str]]:
    """Split a command's arguments into modes for `output` and the other arguments.

    Help is always printed, whatever the modes: with it the only mode is `auto`.
    """
    given = {flag for flag in ("--quiet", "--json") if flag in args}
    words = {flag.removeprefix("--") for flag in given}
    is_help = not {"-h", "--help"}.isdisjoint(args)
    return {"auto"} if is_help else words, [word for word in args if word not in given]


@contextlib.contextmanager
def output(words: Collection[str] = (), *, silent: bool = False) -> Iterator[None]:
    """Redirect everything that is printed in the block, according to the modes.

    Args:
        words: Modes. Default: those of `MVMAE_OUTPUT`.
            `quiet`: only errors and important warnings, on stderr.
            `json`: stdout gets one JSON object per line, from `emit`; text goes to stderr. With
            `quiet` too there is no text.
            `plain`: lines and no bars, even in a terminal.
        silent: Print nothing, not even warnings and JSON, because another process prints them.

    Raises:
        UserError: As `requested_modes`.
    """
    global _now
    before, words = _now, frozenset(("quiet", "silent")) if silent else requested_modes(words)
    _now = _Output(words, sys.stdout if "json" in words else None)
    try:
        with contextlib.ExitStack() as stack:
            if "quiet" in words:
                file = Path(os.devnull).open("w", encoding="utf-8", errors="replace")  # noqa: SIM115
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(file)))
            elif "json" in words:
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield
    finally:
        _now = before


def emit(event: str, content: Mapping[str, Any]) -> None:
    """Write one JSON object, `event` first, if stdout carries JSON.

    JSON has no infinity and no NaN: they become null.
    """
    if _now.json is None:
        return
    _now.json.write(json.dumps({"event": event} | _finite(content), default=str) + "\n")
    _now.json.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


class _SafeConsole(Console):
    """A console that escapes control characters, so that the terminal does not obey them."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as Rich does, after making strings `printable`."""
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)


def console() -> Console:
    """Return the console for text that people read, as opposed to JSON.

    Text contains names of files, so nothing in it is markup, and control characters are escaped.
    The terminal breaks long lines.
    """
    return _SafeConsole(soft_wrap=True, highlight=False, markup=False, emoji=False)


def print_table(table: Table) -> None:
    """Print a table whose cells may hold rich's markup; names in it are escaped by its maker."""
    Console(emoji=False).print(table)


def warn(text: str) -> None:
    """Print an important warning, with --quiet too."""
    if "silent" in _now.words:
        return
    if "quiet" in _now.words:
        print(f"mvmae: {printable(text)}", file=sys.stderr)
    else:
        console().print(text)
    emit("warning", {"message": text})


def has_bars(console: Console) -> bool:
    """Whether the console can draw progress bars, which overwrite lines.

    Rich takes a pipe for a terminal if FORCE_COLOR is set, as in continuous integration, and would
    draw on a dumb terminal.
    """
    file = console.file
    is_terminal = not file.closed and file.isatty() and console.is_terminal
    return is_terminal and not console.is_dumb_terminal and "plain" not in _now.words


class StepBar(Progress):
    """A progress bar, and below it figures that stay until they are replaced.

    Args:
        title: Text before the bar, if there is room.
        total: Number of steps or images.
        unit: What is counted, in the plural.
        console: Console to draw on; nothing is drawn if it has no bars.
        transient: Whether the bar vanishes at the end.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        unit: str,
        console: Console,
        transient: bool = False,
    ) -> None:
        self.items: dict[str, str] = {}
        self._drawn_on, width = console, console.width  # Progress makes `console` a property
        narrow: list[ProgressColumn] = [
            BarColumn(bar_width=max(4, min(12, width - 28))),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(compact=True),
        ]
        wide: list[ProgressColumn] = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn(f"{{task.completed}}/{{task.total}} {unit}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        ]
        super().__init__(
            *(narrow if width < MIN_WIDE else wide),
            console=console,
            transient=transient,
            disable=not has_bars(console),
            speed_estimate_period=SPEED_SECONDS,
        )
        self.task = self.add_task(escape(title), total=total)

    def say(self, items: Mapping[str, str]) -> None:
        """Replace the figures below the bar; the keys are for callers only."""
        self.items = dict(items)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and lines of figures that do not wrap."""
        yield self.make_tasks_table(self.tasks)
        for line in pack_items(self.items.values(), self._drawn_on.width):
            yield Text(line, no_wrap=True, overflow="ellipsis")


def pack_items(items: Iterable[str], width: int) -> list[str]:
    """Put items, two spaces apart, into as few lines of at most `width` columns as possible."""
    lines: list[str] = []
    for item in filter(None, items):
        if lines and len(lines[-1]) + 2 + len(item) <= width:
            lines[-1] += f"  {item}"
        else:
            lines.append(item)
    return lines


class Bar:
    """Progress over images: a bar, or without a terminal about ten lines on stderr.

    Args:
        total: Number of images.
        unit: What is counted, in the plural.
        done: Images that an earlier, interrupted command finished.
    """

    def __init__(self, total: int, unit: str = "images", done: int = 0) -> None:
        self.total, self.done, self.first, self.unit, self.title = total, done, done, unit, ""
        self.began, self._lines = time.perf_counter(), -1
        self.bar = StepBar("", total, unit=unit, console=console(), transient=True)
        self.bar.update(self.bar.task, completed=done)

    def __enter__(self) -> Bar:
        self.began = time.perf_counter()
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def name(self, name: str) -> None:
        """Name the work that begins now."""
        self.title = name
        self.bar.update(self.bar.task, description=escape(printable(name)))

    def advance(self, count: int) -> None:
        """Add to the number of finished images."""
        self.done += count
        self.bar.update(self.bar.task, completed=self.done)
        # Work of a few seconds prints nothing; longer work prints a line for each tenth.
        seconds, due = time.perf_counter() - self.began, self.done * MAX_LINES // self.total
        is_wanted = self.bar.disable and "quiet" not in _now.words
        is_slow = seconds >= FIRST_LINE_SECONDS and self.first < self.done < self.total
        if not (is_wanted and is_slow and due > self._lines):
            return
        self._lines = due
        left = seconds / (self.done - self.first) * (self.total - self.done)
        what = f"{printable(self.title)}: " if self.title else ""
        print(f"{what}{self.done}/{self.total} {self.unit}, {clock(left)} left", file=sys.stderr)


def clock(seconds: float) -> str:
    """Format seconds as minutes:seconds, or hours:minutes:seconds from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def duration(seconds: int | float) -> str:
    """Format seconds in one or two units: 89 s, 45 min, 3 h 20 min, 2.5 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours / 24:.1f} days"
