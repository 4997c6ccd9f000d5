"""Queries and their nearest neighbours: a line of pictures for each.

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
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextToPath

INK, FAINT, ACCENT = "#1f2933", "#66707a", "#00796b"
CELL, NARROWEST = 1.25, 0.95  # inches; below every picture there must be room for words
GAP = 0.08  # inches between neighbours
AFTER_QUERY = 0.28  # inches between a query and its neighbours
BELOW = 0.40  # inches for two lines of words under a picture
TOP, BOTTOM, SIDE = 0.48, 0.34, 0.12  # inches around everything
LONGEST = 200  # letters of which any are drawn
FONT, BOLD = "DejaVu Sans", 1.15  # bold letters are so much wider
DPI = 150


class Cell(NamedTuple):
    """A picture and the words under it."""

    image: UInt8[np.ndarray, "H W C"]
    first: str
    """Cut in its middle where it is too long."""

    second: str


class Row(NamedTuple):
    """A query and what is nearest to it, best first."""

    query: Cell
    neighbours: Sequence[Cell]


def draw(rows: Sequence[Row], *, title: str, note: str) -> bytes:
    """A PNG with a line for each query: the query, a gap, its neighbours.

    Args:
        rows: At least one; all pictures have the same shape.
        title: Above the figure.
        note: Below it.
    """
    height, width = rows[0].query.image.shape[:2]
    cell_w = max(CELL * width / max(height, width), NARROWEST)
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
    """A picture in a frame, and its two lines centred under it, no wider than it is."""
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


def shortened(text: str, inches: float, points: float) -> str:
    """The text as the font can draw it, its middle left out where it is wider than that."""
    text = drawable(text)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"
    short, kept = text, len(text)
    while kept > 2 and width_of(short, points) > inches:
        kept -= 1
        short = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def width_of(text: str, points: float) -> float:
    """Inches that a line takes; small letters are drawn up to 6 % wider than they are."""
    font = FontProperties(family=FONT, size=points)
    return 1.06 * TextToPath().get_text_width_height_descent(text, font, ismath=False)[0] / 72


def drawable(text: str) -> str:
    """The text in one line, with a question mark for each character that the font lacks."""
    glyphs = get_font(findfont(FONT)).get_charmap()
    return "".join(letter if ord(letter) in glyphs else "?" for letter in " ".join(text.split()))
