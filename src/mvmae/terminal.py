"""Where words, bars and figures go: a terminal, the log of a machine, a program that reads JSON.

`MVMAE_OUTPUT`, or `--quiet` and `--json` of the command line, chooses. `output` holds for all that
runs inside of it, whatever prints: with JSON nothing else can get on stdout.
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
from rich.text import Text

from mvmae.errors import UserError, printable

VARIABLE = "MVMAE_OUTPUT"
WORDS = ("auto", "plain", "quiet", "json")
WIDE = 72  # columns from which a bar has room for its title and more
STEADY = 300.0  # seconds over which a bar measures its speed, so that slow steps have one
FIRST_LINE = 10.0  # seconds of work without a terminal before a line says how far it is
MOST_LINES = 10


class _Output(NamedTuple):
    """What `output` was told."""

    words: frozenset[str]
    json: TextIO | None
    """The stdout that carries JSON only."""


_now = _Output(frozenset(), None)


def asked(words: Collection[str] = ()) -> frozenset[str]:
    """The words given, or else those of the environment.

    Raises:
        UserError: The environment's are none of `WORDS`, or cannot go together.
    """
    said = frozenset(words) or frozenset(os.environ.get(VARIABLE, "").replace(",", " ").split())
    if unknown := sorted(said - set(WORDS)):
        raise UserError(f"{VARIABLE}={unknown[0]}: choose of {', '.join(WORDS)}")
    return said - {"auto"}


def flags(args: Sequence[str]) -> tuple[set[str], list[str]]:
    """The words for `output` that are among a command's arguments, and the arguments without them.

    Returns:
        `auto` where help is asked for: it is always shown.
    """
    given = {flag for flag in ("--quiet", "--json") if flag in args}
    rest = [word for word in args if word not in given]
    if {"-h", "--help"} & set(args):
        return {"auto"}, rest
    return {flag.removeprefix("--") for flag in given}, rest


@contextlib.contextmanager
def output(words: Collection[str] = (), *, silent: bool = False) -> Iterator[None]:
    """What is printed meanwhile goes where `words`, or else `MVMAE_OUTPUT`, say.

    Args:
        words: `quiet`: nothing, but for errors and warnings that matter, on stderr. `json`: stdout
            gets a JSON object a line, from `emit`; what is for people goes to stderr. Both: JSON,
            and nothing for people. `plain`: lines and no bars, even in a terminal.
        silent: Not even warnings and JSON, for another process says all there is to say.

    Raises:
        UserError: As `asked`.
    """
    global _now
    before, words = _now, frozenset(("quiet", "silent")) if silent else asked(words)
    with contextlib.ExitStack() as stack:
        _now = _Output(words, sys.stdout if "json" in words else None)
        stack.callback(_restore, before)
        if "quiet" in words:
            opened = Path(os.devnull).open("w", encoding="utf-8", errors="replace")  # noqa: SIM115
            nowhere = stack.enter_context(opened)
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        elif "json" in words:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def _restore(before: _Output) -> None:
    global _now
    _now = before


def emit(event: str, content: Mapping[str, Any]) -> None:
    """Write one JSON object, `event` first, to a stdout that carries JSON; else nothing.

    A number that is not finite, which JSON does not know, is null.
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


class _People(Console):
    """A console that shows text and never obeys it."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As Rich's, with strings made `printable`."""
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)


def people() -> Console:
    """For lines that people read: nothing in them is markup, and a terminal breaks long ones.

    Names of files may stand in them: control characters are shown, not obeyed.
    """
    return _People(soft_wrap=True, highlight=False, markup=False)


def warn(text: str) -> None:
    """Say what matters even to those who want to hear nothing."""
    if "silent" in _now.words:
        return
    if "quiet" in _now.words:
        print(f"mvmae: {printable(text)}", file=sys.stderr)
    else:
        people().print(text)
    emit("warning", {"message": text})


def has_bars(console: Console) -> bool:
    """Whether a line can be drawn over again there.

    Rich takes a pipe for a terminal where FORCE_COLOR is set, as machines that test code do, and a
    dumb terminal for any other.
    """
    file = console.file
    is_terminal = not file.closed and file.isatty() and console.is_terminal
    return is_terminal and not console.is_dumb_terminal and "plain" not in _now.words


class StepBar(Progress):
    """A bar, and below it figures that stay until they are said anew.

    Args:
        title: Before the bar, where there is room.
        total: Steps or images.
        unit: What they are, in the plural.
        console: Where it is drawn; where no bar can be, it is not.
    """

    def __init__(
        self, title: str, total: int, *, unit: str, console: Console, transient: bool = False
    ) -> None:
        self.items: dict[str, str] = {}
        self._drawn_on, width = console, console.width  # asked for before Progress has its own
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
            *(narrow if width < WIDE else wide),
            console=console,
            transient=transient,
            disable=not has_bars(console),
            speed_estimate_period=STEADY,
        )
        self.task = self.add_task(escape(title), total=total)

    def say(self, items: Mapping[str, str]) -> None:
        """Show these figures below the bar, in place of those said before."""
        self.items = dict(items)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and lines of figures, none of them broken in two."""
        yield self.make_tasks_table(self.tasks)
        for line in packed(list(self.items.values()), self._drawn_on.width):
            yield Text(line, no_wrap=True, overflow="ellipsis")


def packed(items: list[str], width: int) -> list[str]:
    """Items two spaces apart in as few lines of at most `width` columns as they need."""
    lines: list[str] = []
    for item in filter(None, items):
        if lines and len(lines[-1]) + 2 + len(item) <= width:
            lines[-1] += f"  {item}"
        else:
            lines.append(item)
    return lines


class Bar:
    """Progress over images; without a terminal about ten lines on stderr, of long work only.

    Args:
        total: Images.
        unit: What they are, in the plural.
        done: Images that an earlier command finished.
    """

    def __init__(self, total: int, unit: str = "images", done: int = 0) -> None:
        self.total, self.done, self.first, self.unit, self.title = total, done, done, unit, ""
        self.began, self._said = time.perf_counter(), -1
        self.bar = StepBar("", total, unit=unit, console=people(), transient=True)
        self.bar.update(self.bar.task, completed=done)

    def __enter__(self) -> Bar:
        self.began = time.perf_counter()
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def name(self, name: str) -> None:
        """What is being done now."""
        self.title = name
        self.bar.update(self.bar.task, description=escape(printable(name)))

    def advance(self, count: int) -> None:
        """So many more images are done."""
        self.done += count
        self.bar.update(self.bar.task, completed=self.done)
        if self.bar.disable and "quiet" not in _now.words:
            self._line()

    def _line(self) -> None:
        """Quick work needs no line; slow work begins with one, and then one comes each tenth."""
        seconds = time.perf_counter() - self.began
        if seconds < FIRST_LINE or not self.first < self.done < self.total:
            return
        due = self.done * MOST_LINES // self.total
        if due <= self._said:
            return
        self._said = due
        left = seconds / (self.done - self.first) * (self.total - self.done)
        what = f"{printable(self.title)}: " if self.title else ""
        print(f"{what}{self.done}/{self.total} {self.unit}, {clock(left)} left", file=sys.stderr)


def clock(seconds: float) -> str:
    """A time in minutes and seconds, with hours where it has some."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def duration(seconds: int | float) -> str:
    """Write a duration in its two largest units."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours / 24:.1f} days"
