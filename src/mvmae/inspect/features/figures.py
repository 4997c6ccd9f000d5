"""Lay out pictures of images on a page: patches in colour, typical images, pairs.

Shapes: H and W pixels, C channels 1 or 3. Lengths are in inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from mvmae.figures.sheet import SIDE, TOP, Sheet, Tile, cell_size
from mvmae.figures.text import ACCENT, FAINT, INK, shortened

CELL, MIN_CELL_WIDTH = 1.2, 0.8  # longer side of a picture; room for its caption
GAP, PAIR_GAP, INNER_GAP = 0.07, 0.22, 0.03  # between pictures, between pairs, inside a pair
GUTTER = 0.42  # left of the pictures, for the labels of the rows
NAME_HEIGHT = 0.2  # one caption line below a picture
CAPTION_HEIGHT = 0.34  # two caption lines
BAND = 0.24  # above a group of rows, for its heading
MAX_COLUMNS, MAX_PAIR_COLUMNS = 8, 4
OUTLIER = "#b3261e"


class EncoderRow(NamedTuple):
    """What one encoder makes of the images."""

    name: str
    detail: str
    """Small print beside the name."""

    pictures: Sequence[Float[np.ndarray, "rows columns 3"]]
    """One pixel per patch, in [0, 1]."""


def draw_colours(
    images: Sequence[UInt8[np.ndarray, "H W C"]],
    names: Sequence[str],
    encoders: Sequence[EncoderRow],
    *,
    title: str,
    note: str,
) -> bytes:
    """Draw images in a row, and below each its patches in the colours of every encoder.

    Args:
        images: At least one, all of the same shape.
        names: Names of the images.
        encoders: One row each.
        title: Heading of the page.
        note: Small print at the bottom.
    """
    size = width, height = cell_size(images[0], CELL, MIN_CELL_WIDTH)
    blocks = split_rows(len(images))
    block_height = (1 + len(encoders)) * (height + GAP) + NAME_HEIGHT
    page_width = SIDE + GUTTER + len(blocks[0]) * (width + GAP) - GAP + SIDE
    sheet = Sheet(page_width, len(blocks) * block_height, title=title, note=note)
    for number, block in enumerate(blocks):
        top = TOP + number * block_height
        for name, detail, pictures in (("image", "", images), *encoders):
            _label_row(sheet, top, height, name, detail)
            for column, image in enumerate(block):
                left = SIDE + GUTTER + column * (width + GAP)
                # Smoothing the patches would suggest a finer map than there is.
                sheet.picture(left, top, size, pictures[image], smooth=pictures is images)
            top += height + GAP
        for column, image in enumerate(block):
            middle = SIDE + GUTTER + column * (width + GAP) + width / 2
            sheet.caption(middle, top - GAP + 0.05, names[image], width, FAINT)
    return sheet.png()


def draw_typical(*, least: Sequence[Tile], most: Sequence[Tile], title: str, note: str) -> bytes:
    """Draw the least typical images, and the most typical ones below."""
    size = width, height = cell_size(least[0].image, CELL, MIN_CELL_WIDTH)
    groups = (("least typical", OUTLIER, least), ("most typical", INK, most))
    rows = [row for _, _, tiles in groups for row in split_rows(len(tiles))]
    row_height = height + CAPTION_HEIGHT
    page_width = 2 * SIDE + max(len(row) for row in rows) * (width + GAP) - GAP
    sheet = Sheet(page_width, len(rows) * row_height + 2 * BAND, title=title, note=note)
    top = TOP
    for heading, colour, tiles in groups:
        sheet.text(SIDE, top + 0.03, heading, fontsize=8, color=colour, va="top")
        top += BAND
        for row in split_rows(len(tiles)):
            for column, place in enumerate(row):
                sheet.tile(SIDE + column * (width + GAP), top, size, tiles[place])
            top += row_height
    return sheet.png()


def draw_pairs(
    pairs: Sequence[tuple[Tile, Tile]], captions: Sequence[str], *, title: str, note: str
) -> bytes:
    """Draw pairs side by side, each with a caption below."""
    size = width, height = cell_size(pairs[0][0].image, CELL, MIN_CELL_WIDTH)
    pair_width, row_height = 2 * width + INNER_GAP, height + 0.46
    across = min(MAX_PAIR_COLUMNS, len(pairs))
    num_rows = -(-len(pairs) // across)
    page_width = 2 * SIDE + across * (pair_width + PAIR_GAP) - PAIR_GAP
    sheet = Sheet(page_width, num_rows * row_height, title=title, note=note)
    for number, ((first, second), caption) in enumerate(zip(pairs, captions, strict=True)):
        left = SIDE + number % across * (pair_width + PAIR_GAP)
        top = TOP + number // across * row_height
        sheet.tile(left, top, size, first)
        sheet.tile(left + width + INNER_GAP, top, size, second)
        sheet.caption(left + pair_width / 2, top + height + 0.27, caption, pair_width, ACCENT)
    return sheet.png()


def split_rows(count: int) -> list[range]:
    """Split pictures, by number, into rows of about equal length."""
    across = -(-count // -(-count // MAX_COLUMNS))
    return [range(at, min(at + across, count)) for at in range(0, count, across)]


def _label_row(sheet: Sheet, top: float, height: float, name: str, detail: str) -> None:
    """Write the name of a row and its detail upright, left of the pictures."""
    style: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}
    middle = top + height / 2
    left = SIDE + (0.1 if detail else 0.24)
    sheet.text(left, middle, shortened(name, height, 7.5), fontsize=7.5, **style)
    sheet.text(
        SIDE + 0.26, middle, shortened(detail, height, 6.0), fontsize=6, color=FAINT, **style
    )
