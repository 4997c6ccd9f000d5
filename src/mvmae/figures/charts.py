"""Training curves: small panels, one for each figure, with a colour for each run.

Shapes: T points.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mvmae.figures.neighbours import drawable, shortened

# Okabe and Ito's, which the colour-blind can tell apart; their yellow is too pale for lines.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000", "#8a8f98"),
)
INK, FAINT, GRID = "#1f2933", "#66707a", "#e4e7eb"
PANEL = (2.95, 2.05)  # inches
FEW = 30  # points that are also marked
LETTERS = 16  # of the note, in an inch
STYLE: dict[str, Any] = {
    "font.size": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "mvmae",  # the same curves, the same bytes
    "pdf.fonttype": 42,
}


class Line(NamedTuple):
    """One figure of one run."""

    x: Float[np.ndarray, " T"]
    y: Float[np.ndarray, " T"]
    """NaN where it was not finite."""

    run: int
    dashed: bool = False


class Level(NamedTuple):
    """What a line is to be compared with: what one who knows nothing reaches."""

    x: Float[np.ndarray, " T"]
    y: Float[np.ndarray, " T"]
    name: str
    run: int | None = None
    """None where it is the same for all runs."""


class Panel(NamedTuple):
    """One figure of all runs that have it."""

    title: str
    """Parts between dollars are formulas."""

    key: str
    """What solid and dashed lines are; empty where all are solid."""

    lines: Sequence[Line]
    levels: Sequence[Level] = ()
    most: float | None = None
    """A height that is shown whatever the lines reach."""


def figure_of(
    panels: Sequence[Panel],
    names: Sequence[str],
    *,
    title: str,
    note: str,
    x_label: str,
    window: int = 1,
) -> Figure:
    """The panels in a grid.

    Args:
        panels: At least one.
        names: Of the runs, whose numbers lines and levels have.
        title: Above the figure.
        note: Below it.
        x_label: Below the lowest panels.
        window: Points in a centred mean; the points themselves are then drawn faint.
    """
    columns, rows = grid(len(panels))
    space = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, hspace=0.03, wspace=0.03)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.75), layout=space)
    FigureCanvasAgg(figure)
    end = max((line.x[-1] for panel in panels for line in panel.lines if len(line.x)), default=0.0)
    end = end or 1.0
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw(axes, panel, window)
        axes.set_xlim(-0.02 * end, 1.02 * end)
        row = panels[number // columns * columns :][:columns]
        _name(axes, panel, has_room=any(one.key for one in row))
        if number + columns >= len(panels):
            axes.set_xlabel(x_label, color=FAINT)
    _head(figure, names, title, PANEL[0] * columns)
    words = textwrap.fill(drawable(note), int(LETTERS * PANEL[0] * columns))
    figure.supxlabel(
        words, x=0.008, ha="left", fontsize=8, color=FAINT, linespacing=1.4, parse_math=False
    )
    return figure


def draw(panels: Sequence[Panel], names: Sequence[str], *, kind: str = "png", **said: Any) -> bytes:
    """`figure_of` as a file's bytes.

    Args:
        panels: At least one.
        names: Of the runs.
        kind: png, svg or pdf.
        said: What else `figure_of` takes.
    """
    stream = io.BytesIO()
    dated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context(STYLE):
        figure = figure_of(panels, names, **said)
        figure.savefig(stream, format=kind, dpi=150, metadata=dated[kind])
    return stream.getvalue()


def grid(count: int) -> tuple[int, int]:
    """Columns and rows: at most four columns, as few empty places as can be, and rather wide."""
    columns = min(
        range(1, min(4, count) + 1),
        key=lambda n: (-(-count // n) * n - count + abs(n - 4) * 1.2, -n),
    )
    return columns, ceil(count / columns)


def smoothed(y: Float[np.ndarray, " T"], window: int) -> Float[np.ndarray, " T"]:
    """The mean of the `window` points around each, of fewer at the ends; NaN counts for none.

    The window reaches equally far to both sides, so an even one is made odd.
    """
    half, there = window // 2, np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(there, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(there)])
    at = np.arange(len(y))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(y))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (sums[high] - sums[low]) / (counts[high] - counts[low])
    return np.where(there, means, np.nan)


def _head(figure: Figure, names: Sequence[str], title: str, inches: float) -> None:
    """The title; of several runs their names in their colours in its place."""
    if len(names) < 2:
        shown = shortened(title, 0.9 * inches, 11.0)
        figure.suptitle(
            shown, x=0.008, ha="left", fontsize=11, fontweight="bold", color=INK, parse_math=False
        )
        return
    handles = [Line2D([], [], color=COLOURS[run], lw=3) for run in range(len(names))]
    columns = min(len(names), max(1, int(inches // 2.4)))
    legend = figure.legend(
        handles,
        [shortened(name, inches / columns - 0.8, 10.0) for name in names],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=10,
        handlelength=1.2,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _name(axes: Axes, panel: Panel, *, has_room: bool) -> None:
    """The panel's title, with room below it where a panel beside it has a key."""
    axes.set_title(panel.title, loc="left", fontsize=9.5, color=INK, pad=17 if has_room else 6)
    if panel.key:
        axes.annotate(
            panel.key,
            (0, 1),
            xytext=(0, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=7.5,
            color=FAINT,
        )


def _draw(axes: Axes, panel: Panel, window: int) -> None:
    for level in panel.levels:
        _draw_level(axes, level, below=_is_below(level, panel.lines))
    for line in panel.lines:
        _draw_line(axes, line, window)
    if panel.most is not None:
        axes.update_datalim([(0.0, panel.most)], updatex=False)
    axes.margins(y=0.15)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8bfc6")
    axes.tick_params(colors=FAINT, labelsize=8, length=2.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(_number))


def _number(value: float, _: int | None) -> str:
    """A tick's label, with k and M for thousands and millions."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _draw_line(axes: Axes, line: Line, window: int) -> None:
    colour, style = COLOURS[line.run], "--" if line.dashed else "-"
    marker = "o" if len(line.x) <= FEW else None
    y = line.y
    if window > 1 and len(y) > 2:
        axes.plot(line.x, y, style, color=colour, lw=0.8, alpha=0.3)
        y, marker = smoothed(y, window), None
    inside = "white" if line.dashed else colour
    axes.plot(line.x, y, style, color=colour, lw=1.5, marker=marker, ms=3.2, mfc=inside)
    lost = np.flatnonzero(~np.isfinite(line.y))
    known = np.flatnonzero(np.isfinite(line.y))
    for at in lost[:1]:  # where it stopped being a number
        before = known[known < at]
        height = line.y[before[-1]] if len(before) else np.nan
        axes.plot(line.x[at], height, "X", color=colour, ms=7, mec="white", zorder=5)


def _is_below(level: Level, lines: Sequence[Line]) -> bool:
    """Whether a level that is no straight line ends below all lines: its name belongs there."""
    ends = [line.y[-1] for line in lines if len(line.y)]
    bent = len(level.y) > 0 and np.ptp(level.y) > 0
    return bool(bent and level.y[-1] < min(ends, default=0.0))


def _draw_level(axes: Axes, level: Level, *, below: bool) -> None:
    colour = FAINT if level.run is None else COLOURS[level.run]
    axes.plot(level.x, level.y, ":", color=colour, lw=1.4, marker=None)
    if not len(level.x):
        return
    last = level.y[-max(1, len(level.y) // 2) :]  # its name is about as long as half of it
    axes.annotate(
        level.name,
        (level.x[-1], last.min() if below else last.max()),
        xytext=(0, -4 if below else 3),
        textcoords="offset points",
        ha="right",
        va="top" if below else "bottom",
        fontsize=7.5,
        color=colour,
    )
