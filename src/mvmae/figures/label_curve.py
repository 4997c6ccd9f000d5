"""Accuracy against the number of labels, with a line for each encoder."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.figure import Figure

from mvmae.figures.text import drawable, shorten

COLOURS = ("#d1495b", "#2e6f95", "#66a182", "#edae49", "#7d5ba6", "#00798c")
TITLE_WIDTH = 6.0  # inches
GRAY = "#8a8f98"  # baselines


class Curve(NamedTuple):
    """One encoder's accuracy for each number of labels: mean and deviation over draws."""

    name: str
    counts: Sequence[int]
    means: Sequence[float]
    spreads: Sequence[float]
    is_baseline: bool


def draw(curves: Sequence[Curve], *, title: str, note: str, chance: float) -> bytes:
    """Draw the curves as a PNG, with the names at the ends of the lines."""
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    colours = iter(COLOURS * len(curves))
    dashes = iter(("--", ":", "-.") * len(curves))
    ends = []
    for curve in curves:
        colour = GRAY if curve.is_baseline else next(colours)
        style = next(dashes) if curve.is_baseline else "-"
        axes.plot(curve.counts, curve.means, style, color=colour, marker="o", lw=2, ms=5)
        means, spreads = np.array(curve.means), np.array(curve.spreads)
        low, high = means - spreads, means + spreads
        axes.fill_between(curve.counts, low, high, color=colour, alpha=0.15, lw=0)
        ends.append((curve.means[-1], curve.name, colour))
    axes.axhline(chance, color=GRAY, lw=1, ls=(0, (1, 3)))
    axes.set_xscale("log")
    ticks = sorted({count for curve in curves for count in curve.counts})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labelled images")
    axes.set_ylabel("top-1 in %")
    shown = shorten(title, TITLE_WIDTH, 12.0)
    axes.set_title(shown, loc="left", fontsize=12.0, fontweight="bold", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    _name_ends(axes, [*ends, (chance, "chance", GRAY)], ticks[-1])
    figure.supxlabel(note, fontsize=8, color=GRAY)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _name_ends(axes: matplotlib.axes.Axes, ends: list[tuple[float, str, str]], at: int) -> None:
    """Write each name after the end of its line, moved apart where two would overlap."""
    low, high = axes.get_ylim()
    gap = 0.05 * (high - low)
    place = -float("inf")
    for value, name, colour in sorted(ends):
        place = max(value, place + gap)
        shown = name if len(name) <= 28 else f"...{name[-26:]}"
        axes.annotate(
            drawable(shown),
            (at, place),
            xytext=(10, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
            parse_math=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # over chance's line
        )
