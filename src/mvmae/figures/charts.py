"""Line charts: one renderer for figures in files and, with `chart_svg.py`, for report pages.

Shapes: T points.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
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

from mvmae.figures.text import FAINT, INK, drawable, shorten
from mvmae.storage import metrics_file
from mvmae.storage.metrics_file import Column

# Okabe and Ito's colours, which colour-blind people can distinguish, without the pale yellow.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000", "#8a8f98"),
)
GRID = "#e4e7eb"
X_LABELS = {"steps": "steps", "images": "images seen", "hours": "hours of training"}
PANEL = (2.95, 2.05)  # inches
MAX_MARKED = 30  # points of a line; longer lines have no markers
NOTE_DENSITY = 16  # characters of the note per inch
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.ymargin": 0.15,
    "svg.fonttype": "none",
    "svg.hashsalt": "mvmae",  # the same curves, the same bytes
    "pdf.fonttype": 42,
}


class Line(NamedTuple):
    """One metric of one run."""

    x: Float[np.ndarray, " T"]
    y: Float[np.ndarray, " T"]
    """NaN where it was not finite."""

    run: int
    """Number of the run, which chooses the colour."""

    dashed: bool = False
    name: str = ""
    spread: Float[np.ndarray, " T"] | None = None
    """Half the height of a band around the line; None: no band."""


class Level(NamedTuple):
    """What a line is compared with: chance, or the trivial answer."""

    x: Float[np.ndarray, " T"]
    y: Float[np.ndarray, " T"]
    name: str
    colour: str = FAINT
    """Of its run, where runs have different levels."""


class Panel(NamedTuple):
    """One chart: the metrics of all runs that have them."""

    title: str
    """Parts between dollars are formulas."""

    key: str
    """What solid and dashed lines are; empty where all are solid."""

    lines: Sequence[Line]
    levels: Sequence[Level] = ()
    best: float | None = None
    """A height that is shown whatever the lines reach."""

    log_x: bool = False
    """Whether x has a logarithmic scale with a tick at every point; x must be positive."""


def metric_levels(name: str, runs: Sequence[Mapping[str, Column]]) -> list[Level]:
    """Return what the lines of a metric are compared with: one level where all runs have the same.

    Args:
        name: The metric.
        runs: From `metrics_file.columns`, in the order of the lines.
    """
    found = {
        number: level
        for number, columns in enumerate(runs)
        if name in columns and (level := metrics_file.level(columns, name))
    }
    if not found:
        return []
    label = metrics_file.level_name(name)
    values = np.concatenate([level.y for level in found.values()])
    # Less than a thousandth cannot be told apart in a chart: one line with one name is clearer.
    if np.ptp(values[np.isfinite(values)]) < 1e-3 * np.nanmax(np.abs(values)):
        x = np.concatenate([level.x for level in found.values()])
        value = np.nanmean(values)
        ends = np.array([x.min(), x.max()])
        return [Level(ends, np.full(2, value), f"{label} {value:.3g}")]
    colours = COLOURS * (1 + len(runs) // len(COLOURS))
    return [Level(*level, label, colours[number]) for number, level in found.items()]


def build_figure(
    panels: Sequence[Panel],
    names: Sequence[str],
    *,
    title: str,
    note: str,
    x_label: str,
    window: int = 1,
) -> Figure:
    """Draw the panels in a grid.

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
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        for line in panel.lines:
            _draw_line(axes, line, window)
        if panel.best is not None:
            axes.update_datalim([(0.0, panel.best)], updatex=False)
        draw_axes(axes, panel, end)
        # All titles of a row are at one height: above the room for a key, if any panel has one.
        row = panels[number // columns * columns :][:columns]
        room = 17 if any(one.key for one in row) else 6
        axes.set_title(panel.title, loc="left", fontsize=9.5, color=INK, pad=room)
        if panel.key:
            axes.text(0, 1.05, panel.key, transform=axes.transAxes, fontsize=7.5, color=FAINT)
        if number + columns >= len(panels):
            axes.set_xlabel(x_label, color=FAINT)
    _head(figure, names, title, PANEL[0] * columns)
    words = textwrap.fill(drawable(note), int(NOTE_DENSITY * PANEL[0] * columns))
    figure.supxlabel(
        words, x=0.008, ha="left", fontsize=8, color=FAINT, linespacing=1.4, parse_math=False
    )
    return figure


def draw(
    panels: Sequence[Panel], names: Sequence[str], *, kind: str = "png", **options: Any
) -> bytes:
    """Draw panels as the bytes of a file.

    Args:
        panels: At least one.
        names: Of the runs.
        kind: png, svg or pdf.
        options: The other arguments of `build_figure`.
    """
    stream = io.BytesIO()
    dated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context(STYLE):
        figure = build_figure(panels, names, **options)
        figure.savefig(stream, format=kind, dpi=150, metadata=dated[kind])
    return stream.getvalue()


def grid(count: int) -> tuple[int, int]:
    """Choose columns and rows: at most four columns, few empty places, wide rather than tall."""
    columns = min(
        range(1, min(4, count) + 1),
        key=lambda n: (-(-count // n) * n - count + abs(n - 4) * 1.2, -n),
    )
    return columns, ceil(count / columns)


def moving_mean(y: Float[np.ndarray, " T"], window: int) -> Float[np.ndarray, " T"]:
    """Return the centred mean over `window` points, over fewer at the ends; NaN is left out.

    The window reaches equally far to both sides, so an even one is widened by one.
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
    """Write the title, or the names of several runs in their colours."""
    if len(names) < 2:
        shown = shorten(title, 0.9 * inches, 11.0)
        figure.suptitle(
            shown, x=0.008, ha="left", fontsize=11, fontweight="bold", color=INK, parse_math=False
        )
        return
    handles = [Line2D([], [], color=COLOURS[run], lw=3) for run in range(len(names))]
    columns = min(len(names), max(1, int(inches // 2.4)))
    legend = figure.legend(
        handles,
        [shorten(name, inches / columns - 0.8, 10.0) for name in names],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=10,
        handlelength=1.2,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def draw_axes(axes: Axes, panel: Panel, end: float | None) -> None:
    """Draw the grid, the ticks and the levels of a panel whose lines are drawn.

    Args:
        axes: Where.
        panel: What is drawn there.
        end: The last x. Default: that of the panel's lines.
    """
    # Before anything asks for the limits, which the locator may round.
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if panel.log_x:
        axes.set_xscale("log")
        axes.set_xticks(spaced_points(panel.lines))
        axes.minorticks_off()
    else:
        ends = [line.x[-1] for line in panel.lines if len(line.x)]
        end = (max(ends, default=0.0) if end is None else end) or 1.0
        axes.set_xlim(-0.02 * end, 1.02 * end)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value)))
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8bfc6")
    axes.tick_params(colors=FAINT, length=2.5)
    for level in panel.levels:
        axes.plot(level.x, level.y, ":", color=level.colour, lw=1.4, gid="level")
    for level in panel.levels:  # once the limits are known, which every level may widen
        _name_level(axes, level, panel.lines)


def spaced_points(lines: Sequence[Line]) -> list[float]:
    """Return the x of every point, without those whose labels would overlap on a log scale."""
    kept: list[float] = []
    for value in sorted({float(x) for line in lines for x in line.x if np.isfinite(x)}):
        if not kept or value / kept[-1] > 1.6:
            kept.append(value)
    return kept


def tick_label(value: float) -> str:
    """Format a tick's value briefly, for example 1,500, 2M or 0.05."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e9):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _draw_line(axes: Axes, line: Line, window: int) -> None:
    colour, style = COLOURS[line.run], "--" if line.dashed else "-"
    marker = "o" if len(line.x) <= MAX_MARKED else None
    y = line.y
    if window > 1 and len(y) > 2:
        axes.plot(line.x, y, style, color=colour, lw=0.8, alpha=0.3)
        y, marker = moving_mean(y, window), None
    inside = "white" if line.dashed else colour
    axes.plot(line.x, y, style, color=colour, lw=1.5, marker=marker, ms=3.2, mfc=inside)
    for at in np.flatnonzero(~np.isfinite(line.y))[:1]:  # where the run diverged
        height = line.y[at - 1] if at else np.nan
        axes.plot(line.x[at], height, "X", color=colour, ms=7, mec="white", zorder=5)


def _name_level(axes: Axes, level: Level, lines: Sequence[Line]) -> None:
    """Write a level's name above its end, or below where a line would run through it."""
    if not len(level.y):
        return
    last = level.y[-max(1, len(level.y) // 2) :]  # the name is about as long as half of it
    low, high = axes.get_ylim()
    room = 0.1 * (high - low)
    gaps = [line.y[-1] - last[-1] for line in lines if len(line.y)]
    is_bent = np.ptp(level.y) > 0
    is_crowded = any(0 < gap < room for gap in gaps) or (is_bent and min(gaps, default=0) > 0)
    below = bool(is_crowded and last.min() - low > room)
    axes.annotate(
        level.name,
        (level.x[-1], last.min() if below else last.max()),
        xytext=(0, -4 if below else 3),
        textcoords="offset points",
        ha="right",
        va="top" if below else "bottom",
        color=level.colour,
        gid="level-name",
    )
