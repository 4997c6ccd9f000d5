"""Draw query images and their nearest neighbours: one row of pictures per query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mvmae.figures.sheet import MIN_WIDTH, SIDE, TOP, Sheet, Tile, cell_size
from mvmae.figures.text import ACCENT, shortened

CELL, MIN_CELL_WIDTH = 1.25, 0.95  # longer side of a picture; room for its captions, in inches
GAP, QUERY_GAP = 0.08, 0.28  # between neighbours, and after the query
CAPTION_HEIGHT = 0.4  # two lines below a picture


class Row(NamedTuple):
    """A query and its neighbours, nearest first."""

    query: Tile
    neighbours: Sequence[Tile]


def draw(rows: Sequence[Row], *, title: str, note: str) -> bytes:
    """Draw a row for each query: the query, a gap, its neighbours.

    Args:
        rows: At least one; all pictures have the same shape.
        title: Heading of the page.
        note: Small print at the bottom, shortened to one line.
    """
    size = width, height = cell_size(rows[0].query.image, CELL, MIN_CELL_WIDTH)
    columns = max(len(row.neighbours) for row in rows)
    page_width = 2 * SIDE + width + QUERY_GAP + columns * (width + GAP) - GAP
    note = shortened(note, max(page_width, MIN_WIDTH) - 2 * SIDE, 6.5)
    sheet = Sheet(page_width, len(rows) * (height + CAPTION_HEIGHT), title=title, note=note)
    for number, row in enumerate(rows):
        top = TOP + number * (height + CAPTION_HEIGHT)
        sheet.tile(SIDE, top, size, row.query, points=7.0, frame=(ACCENT, 2.0))
        for column, neighbour in enumerate(row.neighbours):
            left = SIDE + width + QUERY_GAP + column * (width + GAP)
            sheet.tile(left, top, size, neighbour, points=7.0, frame=("#d0d5da", 0.6))
    return sheet.png()
