"""A table of ablations as a picture: our figures over seeds, and the paper's on an axis of its own.

Shapes: S seeds.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Shaped
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mvmae.figures.text import drawable, shortened

OURS, PAPER, GRAY = "#0f766e", "#b45309", "#8a8f98"
INK, FAINT, GRID, TINT = "#1f2933", "#66707a", "#e4e7eb", "#fdf6ec"
PANEL = 3.5  # inches
LETTERS = 15.5  # of the note, in an inch
ROOM = 0.6  # of the data's width, for their figures
LEAST = 1.0  # point of accuracy: nothing smaller is spread over a whole panel
STYLE: dict[str, Any] = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "mvmae",  # the same table, the same bytes
}


class Row(NamedTuple):
    """A row of the table."""

    name: str
    scores: Mapping[str, Shaped[np.ndarray, " S"]]
    """By panel, of the seeds that are finished."""

    differences: Mapping[str, str]
    """To the baseline, by panel; empty for itself."""

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
    """The picture as a file's bytes.

    Args:
        rows: From top to bottom.
        panels: Keys of scores, and what stands above each.
        title: Above all.
        subtitle: Below the title.
        note: Below all.
        axis: What the rows' names are values of: they become a curve. Empty: a line each.
        kind: png or svg.
    """
    draws_curve = bool(axis)
    has_paper = any(row.paper is not None for row in rows)
    count = len(panels) + has_paper
    height = 3.2 if draws_curve else 1.5 + 0.34 * len(rows)
    stream = io.BytesIO()
    with mpl.rc_context(STYLE):
        width = max(1.75, count) * PANEL + (0.0 if draws_curve else 1.2)
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        places = figure.subplots(1, count, squeeze=False, sharey=not draws_curve)[0]
        for axes, (key, name) in zip(places, panels.items(), strict=False):
            (_curve if draws_curve else _dots)(axes, rows, key)
            _dress(axes, name, INK)
        if has_paper:
            (_paper_curve if draws_curve else _paper_dots)(places[-1], rows)
            _dress(places[-1], "the paper, not ours", PAPER)
            places[-1].set_facecolor(TINT)
        for axes in places if draws_curve else ():
            axes.set_xlabel(axis, color=FAINT)
        _words(figure, title, subtitle, note, width)
        dated = {"png": {"Software": None}, "svg": {"Date": None}}
        figure.savefig(stream, format=kind, dpi=160, metadata=dated[kind])
    return stream.getvalue()


def _words(figure: Figure, title: str, subtitle: str, note: str, width: float) -> None:
    told = drawable(f"{title}: {subtitle}")
    heading: dict[str, Any] = {"fontsize": 10.0, "fontweight": "bold", "parse_math": False}
    shown = textwrap.fill(shortened(told, 1.9 * width, 10.0), int(12.5 * width))
    figure.suptitle(shown, x=0.008, ha="left", color=INK, linespacing=1.3, **heading)
    filled = textwrap.fill(drawable(note), int(LETTERS * width))
    figure.supxlabel(
        filled, x=0.008, ha="left", fontsize=8, color=FAINT, linespacing=1.4, parse_math=False
    )


def _dress(axes: Axes, name: str, colour: str) -> None:
    axes.set_title(name, fontsize=9.5, color=colour, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(length=0, colors=INK)
    axes.set_axisbelow(True)


def _dots(axes: Axes, rows: Sequence[Row], key: str) -> None:
    """A line for each row: its seeds, their mean, and the difference at the right."""
    low, high = _range(rows, key)
    for place, row in enumerate(rows):
        values = row.scores.get(key, np.array([]))
        if not len(values):
            continue
        colour = OURS if row.is_trained else GRAY
        mean, sd = values.mean(), values.std(ddof=1) if len(values) > 1 else 0.0
        if not low <= mean <= high:  # of what was not trained
            edge, arrow = (low, "<") if mean < low else (high, ">")
            axes.scatter([edge], [place], s=40, marker=arrow, color=colour)
        else:
            axes.plot([mean - sd, mean + sd], [place, place], color=colour, lw=2.2, alpha=0.45)
            axes.scatter(values, [place] * len(values), s=9, color=colour, alpha=0.55, lw=0)
            face = "white" if row.is_baseline else colour
            axes.scatter([mean], [place], s=44, color=face, edgecolor=colour, lw=1.8, zorder=3)
        if row.is_baseline:
            axes.axvline(mean, color=colour, lw=0.8, ls=(0, (2, 3)), zorder=0)
        _in_words(axes, place, f"{mean:.1f}", "baseline" if row.is_baseline else "", row, key)
    _rows_named(axes, rows)
    _leave_room(axes, low, high)


def _range(rows: Sequence[Row], key: str) -> tuple[float, float]:
    """What the trained rows take up, and what was not trained where that is near.

    Far from all others it would press them into one place; an arrow points to it.
    """
    trained, others = (
        [
            value
            for row in rows
            if row.is_trained == is_trained and len(v := row.scores.get(key, np.array([])))
            for sd in (v.std(ddof=1) if len(v) > 1 else 0.0,)
            for value in (v.mean() - sd, v.mean() + sd, v.min(), v.max())
        ]
        for is_trained in (True, False)
    )
    if not trained:
        return min(others, default=0.0), max(others, default=100.0)
    low, high = min(trained), max(trained)
    near = max(high - low, LEAST)
    within = [value for value in others if low - near <= value <= high + near]
    low, high = min([low, *within]), max([high, *within])
    edge = 0.05 * max(high - low, LEAST)
    return float(low - edge), float(high + edge)


def _in_words(axes: Axes, place: int, mean: str, said: str, row: Row, key: str) -> None:
    """Mean and difference, in two columns at the right."""
    said = said or row.differences.get(key, "").replace("-", "\N{MINUS SIGN}")
    for at, words in ((0.79, mean), (1.0, said)):
        axes.annotate(
            words,
            (at, place),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            fontsize=7.5,
            color=FAINT if row.is_trained else GRAY,
        )


def _leave_room(axes: Axes, low: float, high: float) -> None:
    """Keep the right third for the figures in words, with no ticks in it."""
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.set_xlim(low - 0.03 * (high - low), high + ROOM * (high - low))


def _rows_named(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_yticks(
        range(len(rows)),
        [shortened(drawable(row.name), 2.2, 9.0) for row in rows],
        parse_math=False,
    )
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.grid(axis="x", color=GRID, lw=0.7)
    axes.spines["left"].set_visible(False)


def _paper_dots(axes: Axes, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        if row.paper is None:
            if row.is_trained:
                axes.annotate(
                    "no figure",
                    (0.02, place),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    fontsize=7.5,
                    color=GRAY,
                )
            continue
        axes.scatter([row.paper], [place], s=44, marker="D", color="white", edgecolor=PAPER, lw=1.6)
        axes.annotate(
            f"{row.paper:.2f}",
            (row.paper, place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=PAPER,
        )
    _rows_named(axes, rows)
    axes.margins(x=0.22)


def _curve(axes: Axes, rows: Sequence[Row], key: str) -> None:
    """The rows from left to right, at even distances; what is not trained as levels."""
    trained = [row for row in rows if row.is_trained]
    known = [(at, row) for at, row in enumerate(trained) if len(row.scores.get(key, ()))]
    means = [row.scores[key].mean() for _, row in known]
    sds = [v.std(ddof=1) if len(v := row.scores[key]) > 1 else 0.0 for _, row in known]
    places = [at for at, _ in known]
    axes.errorbar(places, means, yerr=sds, fmt="none", ecolor=OURS, elinewidth=2.2, alpha=0.45)
    axes.plot(places, means, color=OURS, lw=1.8, marker="o", ms=6)
    for at, row in known:
        values = row.scores[key]
        axes.scatter([at] * len(values), values, s=11, color=OURS, alpha=0.7, lw=0)
        if row.is_baseline:
            axes.scatter([at], [values.mean()], s=40, color="white", edgecolor=OURS, zorder=4)
    _levels(axes, rows, key)
    _values_named(axes, trained)


def _levels(axes: Axes, rows: Sequence[Row], key: str) -> None:
    """What was never trained: a line where it is near, else only its name below."""
    low, high = axes.get_ylim()
    room = 0.8 * (high - low)
    said = []
    for row, dashes in zip([row for row in rows if not row.is_trained], ("--", ":"), strict=False):
        if not len(values := row.scores.get(key, np.array([]))):
            continue
        level = values.mean()
        said.append(f"{row.name} {level:.1f}")
        if low - room < level < high + room:
            axes.axhline(level, color=GRAY, lw=1.1, ls=dashes)
    axes.annotate(
        "   ".join(said),
        (0.0, 1.0),
        xycoords="axes fraction",
        xytext=(0, -2),
        textcoords="offset points",
        va="top",
        fontsize=7.5,
        color=GRAY,
    )
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.12 * (top - bottom))


def _values_named(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_xticks(
        range(len(rows)),
        [shortened(drawable(row.name), 0.9, 9.0) for row in rows],
        parse_math=False,
    )
    axes.set_xlim(-0.4, len(rows) - 0.6)
    axes.grid(axis="y", color=GRID, lw=0.7)


def _paper_curve(axes: Axes, rows: Sequence[Row]) -> None:
    trained = [row for row in rows if row.is_trained]
    known = [(at, row.paper) for at, row in enumerate(trained) if row.paper is not None]
    axes.plot(*zip(*known, strict=True), color=PAPER, lw=1.4, ls="-", marker="D", ms=5, mfc="white")
    _values_named(axes, trained)
    axes.margins(y=0.15)
