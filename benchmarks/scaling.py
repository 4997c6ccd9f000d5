"""Draw how cost grows with a size: rate above, memory below, a column for each size."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

RATE, MEMORY, GRID, FAINT = "#0f766e", "#b45309", "#e4e7eb", "#66707a"
PANEL = (3.1, 2.3)  # inches


class Line(NamedTuple):
    """Measurements along one size."""

    name: str
    values: Sequence[Any]
    """Numbers, or names."""

    points: Sequence[Mapping[str, Any]]
    """`images_per_second`, and `memory_gib` where it is known."""


def draw(lines: Sequence[Line], title: str) -> bytes:
    """Return the picture as PNG."""
    stream = io.BytesIO()
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(
            figsize=(PANEL[0] * len(lines), 2 * PANEL[1]), facecolor="white", layout="constrained"
        )
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        grid = figure.subplots(2, len(lines), squeeze=False)
        for column, line in enumerate(lines):
            _panel(grid[0, column], line, "images_per_second", RATE)
            has_memory = all(point.get("memory_gib") is not None for point in line.points)
            if has_memory:
                _panel(grid[1, column], line, "memory_gib", MEMORY)
            else:
                grid[1, column].axis("off")
            grid[int(has_memory), column].set_xlabel(line.name)
        grid[0, 0].set_ylabel("images per second")
        grid[1, 0].set_ylabel("memory, GiB")
        figure.savefig(stream, format="png", dpi=160)
    return stream.getvalue()


def _panel(axes: Axes, line: Line, key: str, colour: str) -> None:
    numbers = [point[key] for point in line.points]
    places = list(range(len(numbers)))
    axes.plot(places, numbers, marker="o", color=colour, linewidth=1.6, markersize=4)
    axes.set_xticks(places, [str(value).removeprefix("vit_") for value in line.values])
    axes.margins(x=0.12)  # room between the numbers and the axis
    axes.set_ylim(0, max(numbers) * 1.18 or 1)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for place, number in zip(places, numbers, strict=True):
        axes.annotate(
            f"{number:.3g}",
            (place, number),
            textcoords="offset points",
            xytext=(0, 5),
            ha="center",
            fontsize=7.5,
            color=FAINT,
        )
