"""Draw an ablation table: our figures over seeds, and the paper's on a separate axis.

Shapes: S seeds.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Shaped
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mvmae.figures import charts
from mvmae.figures.text import FAINT, INK, drawable, shorten

OURS, PAPER, GRAY, TINT = "#0f766e", "#b45309", "#8a8f98", "#fdf6ec"
PANEL = 3.5  # inches
NOTE_LETTERS = 15.5  # per inch
TEXT_SHARE = 0.6  # of the data's width, added at the right for figures as text
MIN_RANGE = 1.0  # points of accuracy, so that no panel magnifies noise
STYLE: dict[str, Any] = charts.STYLE | {"font.size": 9, "axes.ymargin": 0.05}


class Row(NamedTuple):
    """A row of the table."""

    name: str
    scores: Mapping[str, Shaped[np.ndarray, " S"]]
    """Of the finished seeds, by panel."""

    differences: Mapping[str, str]
    """Difference to the baseline as text, by panel; empty for the baseline."""

    paper: float | None
    is_baseline: bool
    is_trained: bool


def draw(
    rows: Sequence[Row],
    panels: Mapping[str, str],
    *,
    title: str,
    subtitle: str,
    note: str,
    axis: str,
    kind: str = "png",
) -> bytes:
    """Draw the picture and return the file's bytes.

    Args:
        rows: From top to bottom.
        panels: Titles of the panels, by key of the scores.
        title: Title of the picture.
        subtitle: Continues the title.
        note: Text below the panels.
        axis: Quantity whose values the rows' names are, which is drawn as a curve. Empty: each row
            is a line of dots.
        kind: png or svg.
    """
    draws_curve = bool(axis)
    has_paper = any(row.paper is not None for row in rows)
    count = len(panels) + has_paper
    inches = 3.2 if draws_curve else 1.5 + 0.34 * len(rows)
    stream = io.BytesIO()
    with mpl.rc_context(STYLE):
        width = max(1.75, count) * PANEL + (0.0 if draws_curve else 1.2)
        figure = Figure(figsize=(width, inches), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        all_axes = figure.subplots(1, count, squeeze=False, sharey=not draws_curve)[0]
        for axes, (key, name) in zip(all_axes, panels.items(), strict=False):
            (_curve if draws_curve else _dots)(axes, rows, key)
            _style(axes, name, INK)
        if has_paper:
            (_paper_curve if draws_curve else _paper_dots)(all_axes[-1], rows)
            _style(all_axes[-1], "the paper, not ours", PAPER)
            all_axes[-1].set_facecolor(TINT)
        for axes in all_axes if draws_curve else ():
            axes.set_xlabel(axis, color=FAINT)
        _add_text(figure, title, subtitle, note, width)
        dated = {"png": {"Software": None}, "svg": {"Date": None}}
        figure.savefig(stream, format=kind, dpi=160, metadata=dated[kind])
    return stream.getvalue()


def _add_text(figure: Figure, title: str, subtitle: str, note: str, width: float) -> None:
    full_title = drawable(f"{title}: {subtitle}")
    heading: dict[str, Any] = {"fontsize": 10.0, "fontweight": "bold", "parse_math": False}
    shown = textwrap.fill(shorten(full_title, 1.9 * width, 10.0), int(12.5 * width))
    figure.suptitle(shown, x=0.008, ha="left", color=INK, linespacing=1.3, **heading)
    filled = textwrap.fill(drawable(note), int(NOTE_LETTERS * width))
    figure.supxlabel(
        filled, x=0.008, ha="left", fontsize=8, color=FAINT, linespacing=1.4, parse_math=False
    )


def _style(axes: Axes, name: str, colour: str) -> None:
    axes.set_title(name, fontsize=9.5, color=colour, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(charts.GRID)
    axes.tick_params(length=0, colors=INK)
    axes.set_axisbelow(True)


def _dots(axes: Axes, rows: Sequence[Row], key: str) -> None:
    """Draw a line for each row: its seeds, their mean, and the difference at the right."""
    low, high = _range(rows, key)
    for height, row in enumerate(rows):
        values = row.scores[key]
        if not len(values):
            continue
        colour = OURS if row.is_trained else GRAY
        mean, sd = values.mean(), _deviation(values)
        if not low <= mean <= high:  # a control far from the trained rows
            edge, arrow = (low, "<") if mean < low else (high, ">")
            axes.scatter([edge], [height], s=40, marker=arrow, color=colour)
        else:
            axes.plot([mean - sd, mean + sd], [height, height], color=colour, lw=2.2, alpha=0.45)
            axes.scatter(values, [height] * len(values), s=9, color=colour, alpha=0.55, lw=0)
            face = "white" if row.is_baseline else colour
            axes.scatter([mean], [height], s=44, color=face, edgecolor=colour, lw=1.8, zorder=3)
        if row.is_baseline:
            axes.axvline(mean, color=colour, lw=0.8, ls=(0, (2, 3)), zorder=0)
        difference = row.differences[key].replace("-", "\N{MINUS SIGN}")
        for at, text in (
            (0.79, f"{mean:.1f}"),
            (1.0, "baseline" if row.is_baseline else difference),
        ):
            place = {"xycoords": ("axes fraction", "data"), "ha": "right"}
            _write(axes, text, (at, height), FAINT if row.is_trained else GRAY, **place)
    _name_rows(axes, rows)
    # The right third stays free for the figures, without ticks.
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.set_xlim(low - 0.03 * (high - low), high + TEXT_SHARE * (high - low))


def _deviation(values: Shaped[np.ndarray, " S"]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _write(
    axes: Axes,
    text: str,
    at: tuple[float, float | int],
    colour: str,
    va: str = "center",
    **options: Any,
) -> None:
    axes.annotate(text, at, va=va, fontsize=7.5, color=colour, **options)


def _range(rows: Sequence[Row], key: str) -> tuple[float, float]:
    """Range of the trained rows, extended to the controls that are near.

    Controls far away would squeeze all other rows together; an arrow points to them instead.
    """
    trained, others = (
        [
            value
            for row in rows
            if row.is_trained == is_trained and len(v := row.scores[key])
            for sd in (_deviation(v),)
            for value in (v.mean() - sd, v.mean() + sd, v.min(), v.max())
        ]
        for is_trained in (True, False)
    )
    if not trained:
        return min(others, default=0.0), max(others, default=100.0)
    low, high = min(trained), max(trained)
    near = max(high - low, MIN_RANGE)
    within = [value for value in others if low - near <= value <= high + near]
    low, high = min([low, *within]), max([high, *within])
    edge = 0.05 * max(high - low, MIN_RANGE)
    return float(low - edge), float(high + edge)


def _name_ticks(axis: Axis, rows: Sequence[Row], inches: float) -> None:
    names = [shorten(drawable(row.name), inches, 9.0) for row in rows]
    axis.set_ticks(range(len(rows)), names, parse_math=False)


def _name_rows(axes: Axes, rows: Sequence[Row]) -> None:
    _name_ticks(axes.yaxis, rows, inches=2.2)
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.grid(axis="x", color=charts.GRID, lw=0.7)
    axes.spines["left"].set_visible(False)


def _paper_dots(axes: Axes, rows: Sequence[Row]) -> None:
    for height, row in enumerate(rows):
        if row.paper is None:
            if row.is_trained:
                at = (0.02, height)
                _write(axes, "no figure", at, GRAY, xycoords=("axes fraction", "data"))
            continue
        axes.scatter(
            [row.paper], [height], s=44, marker="D", color="white", edgecolor=PAPER, lw=1.6
        )
        at = (row.paper, height)
        _write(axes, f"{row.paper:.2f}", at, PAPER, xytext=(8, 0), textcoords="offset points")
    _name_rows(axes, rows)
    axes.margins(x=0.22)


def _curve(axes: Axes, rows: Sequence[Row], key: str) -> None:
    """Draw the rows from left to right at even distances, and the controls as levels."""
    trained = [row for row in rows if row.is_trained]
    known = [(at, row) for at, row in enumerate(trained) if len(row.scores[key])]
    means = [row.scores[key].mean() for _, row in known]
    sds = [_deviation(row.scores[key]) for _, row in known]
    positions = [at for at, _ in known]
    axes.errorbar(positions, means, yerr=sds, fmt="none", ecolor=OURS, elinewidth=2.2, alpha=0.45)
    axes.plot(positions, means, color=OURS, lw=1.8, marker="o", ms=6)
    for at, row in known:
        values = row.scores[key]
        axes.scatter([at] * len(values), values, s=11, color=OURS, alpha=0.7, lw=0)
        if row.is_baseline:
            axes.scatter([at], [values.mean()], s=40, color="white", edgecolor=OURS, zorder=4)
    _levels(axes, rows, key)
    _name_values(axes, trained)


def _levels(axes: Axes, rows: Sequence[Row], key: str) -> None:
    """Draw controls as lines if they are near; list their values at the top."""
    low, high = axes.get_ylim()
    room = 0.8 * (high - low)
    texts = []
    for row, dashes in zip([row for row in rows if not row.is_trained], ("--", ":"), strict=False):
        if not len(values := row.scores[key]):
            continue
        level = values.mean()
        texts.append(f"{row.name} {level:.1f}")
        if low - room < level < high + room:
            axes.axhline(level, color=GRAY, lw=1.1, ls=dashes)
    inside = {"xycoords": "axes fraction", "xytext": (0, -2), "textcoords": "offset points"}
    _write(axes, "   ".join(texts), (0.0, 1.0), GRAY, va="top", **inside)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.12 * (top - bottom))


def _name_values(axes: Axes, rows: Sequence[Row]) -> None:
    _name_ticks(axes.xaxis, rows, inches=0.9)
    axes.set_xlim(-0.4, len(rows) - 0.6)
    axes.grid(axis="y", color=charts.GRID, lw=0.7)


def _paper_curve(axes: Axes, rows: Sequence[Row]) -> None:
    trained = [row for row in rows if row.is_trained]
    known = [(at, row.paper) for at, row in enumerate(trained) if row.paper is not None]
    axes.plot(*zip(*known, strict=True), color=PAPER, lw=1.4, ls="-", marker="D", ms=5, mfc="white")
    _name_values(axes, trained)
    axes.margins(y=0.15)
