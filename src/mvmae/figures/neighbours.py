"""Queries and their nearest neighbours, a row of pictures for each query.

Shapes: H and W pixels, C channels 1 or 3.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mvmae.figures.text import ACCENT, BOLD, FAINT, INK, shortened

CELL, MIN_CELL_WIDTH = 1.25, 0.95  # inches; the captions need room below narrow pictures
GAP = 0.08  # inches between neighbours
AFTER_QUERY = 0.28  # inches between a query and its neighbours
BELOW = 0.40  # inches for two lines of captions
TOP, BOTTOM, SIDE = 0.48, 0.34, 0.12  # inches around everything
DPI = 150


class Cell(NamedTuple):
    """A picture and its captions."""

    image: UInt8[np.ndarray, "H W C"]
    first: str
    """Its middle is left out where it is too long."""

    second: str


class Row(NamedTuple):
    """A query and its nearest neighbours, nearest first."""

    query: Cell
    neighbours: Sequence[Cell]


def draw(rows: Sequence[Row], *, title: str, note: str) -> bytes:
    """Draw a PNG with a row for each query: the query, a gap, its neighbours.

    Args:
        rows: At least one; all pictures have the same shape.
        title: Above the figure.
        note: Below it.
    """
    height, width = rows[0].query.image.shape[:2]
    cell_w = max(CELL * width / max(height, width), MIN_CELL_WIDTH)
    cell_h = cell_w * height / width
    columns = max(len(row.neighbours) for row in rows)
    size = (
        max(2 * SIDE + cell_w + AFTER_QUERY + columns * (cell_w + GAP) - GAP, 5.0),
        TOP + len(rows) * (cell_h + BELOW) + BOTTOM,
    )
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def axes(line: int, left: float) -> Axes:
        bottom = size[1] - TOP - (line + 1) * (cell_h + BELOW) + BELOW
        place = (left / size[0], bottom / size[1], cell_w / size[0], cell_h / size[1])
        return figure.add_axes(place)

    for line, row in enumerate(rows):
        _show(axes(line, SIDE), row.query, cell_w, is_query=True)
        for number, cell in enumerate(row.neighbours):
            left = SIDE + cell_w + AFTER_QUERY + number * (cell_w + GAP)
            _show(axes(line, left), cell, cell_w, is_query=False)
    words = {"ha": "left", "parse_math": False}
    left = SIDE / size[0]
    heading = shortened(title, (size[0] - 2 * SIDE) / BOLD, 10.0)
    figure.text(
        left, 1 - 0.14 / size[1], heading, va="top", fontsize=10, weight="bold", color=INK, **words
    )
    small = shortened(note, size[0] - 2 * SIDE, 6.5)
    figure.text(left, 0.1 / size[1], small, va="bottom", fontsize=6.5, color=FAINT, **words)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _show(axis: Axes, cell: Cell, width: float, *, is_query: bool) -> None:
    """Draw a picture in a frame, with two captions no wider than it."""
    axis.imshow(cell.image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set(color=ACCENT if is_query else "#d0d5da", linewidth=2.0 if is_query else 0.6)
    lines = ((cell.first, -4, INK), (cell.second, -13.5, ACCENT if is_query else FAINT))
    for text, below, colour in lines:
        axis.annotate(
            shortened(text, width, 7.0),
            (0.5, 0),
            (0, below),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7,
            color=colour,
            parse_math=False,
        )
