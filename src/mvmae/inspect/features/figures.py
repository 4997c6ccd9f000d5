"""Lay out pictures of images on a page: patches in colour, typical images, pairs.

Shapes: H and W pixels, C channels 1 or 3. Lengths are in inches.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mvmae.figures.page import wrapped
from mvmae.figures.text import ACCENT, BOLD, FAINT, INK, drawable, shortened

DPI, MAX_DOTS = 150, 30_000  # many programs cannot open a PNG with a longer side
SIDE, TOP, NOTE_LINE = 0.14, 0.46, 0.13  # margin; top of the first row; one line of the note
CELL, MIN_CELL_WIDTH = 1.2, 0.8  # longer side of a picture; room for its caption
GAP, PAIR_GAP, INNER_GAP = 0.07, 0.22, 0.03  # between pictures, between pairs, inside a pair
GUTTER = 0.42  # left of the pictures, for the labels of the rows
NAME_HEIGHT = 0.2  # one caption line below a picture
CAPTION_HEIGHT = 0.34  # two caption lines
BAND = 0.24  # above a group of rows, for its heading
MAX_COLUMNS, MAX_PAIR_COLUMNS = 8, 4
MIN_WIDTH = 5.2  # of a page, for its title and note
OUTLIER = "#b3261e"


class Sheet:
    """A white page with a title and a note; positions are measured from its upper left corner.

    Args:
        width: Width of the content; a narrow page is widened for its title and note.
        height: Height of the content, between title and note.
        title: Heading of the page.
        note: Small print at the bottom, wrapped into as many lines as it needs.
    """

    def __init__(self, width: float, height: float, *, title: str, note: str) -> None:
        self.width = max(width, MIN_WIDTH)
        lines = wrapped(note, self.width - 2 * SIDE, 6.5)
        self.height = TOP + height + NOTE_LINE * len(lines) + 0.16
        dpi = min(DPI, MAX_DOTS / max(self.width, self.height))
        self.figure = Figure(figsize=(self.width, self.height), dpi=dpi, facecolor="white")
        FigureCanvasAgg(self.figure)
        heading = shortened(title, (self.width - 2 * SIDE) / BOLD, 10.0)
        self.text(SIDE, 0.13, heading, fontsize=10, weight="bold", va="top")
        for number, line in enumerate(reversed(lines)):
            bottom = self.height - 0.1 - number * NOTE_LINE
            self.text(SIDE, bottom, line, fontsize=6.5, color=FAINT, va="bottom")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes."""
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def picture(
        self,
        left: float,
        top: float,
        size: tuple[float, float],
        image: UInt8[np.ndarray, "H W C"] | Float[np.ndarray, "H W C"],
        *,
        smooth: bool = True,
    ) -> Axes:
        """Draw an image, of 0 to 255 or 0 to 1, at a width and height; return its axes."""
        axes = self.axes(left, top, *size)
        axes.imshow(
            image.squeeze(-1) if image.shape[-1] == 1 else image,
            cmap="gray",
            vmin=0,
            vmax=255 if image.dtype == np.uint8 else 1,
            interpolation="antialiased" if smooth else "nearest",
            aspect="auto",
        )
        axes.set_axis_off()
        return axes

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Write text."""
        style = {"color": INK, "parse_math": False} | style
        self.figure.text(left / self.width, 1 - top / self.height, drawable(words)).set(**style)

    def caption(self, middle: float, top: float, words: str, width: float, colour: str) -> None:
        """Write a centred line of small print, shortened to a width."""
        words = shortened(words, width, 6.0)
        self.text(middle, top, words, fontsize=6, color=colour, ha="center", va="top")

    def png(self) -> bytes:
        """The page as a PNG file."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


class EncoderRow(NamedTuple):
    """What one encoder makes of the images."""

    name: str
    detail: str
    """Small print beside the name."""

    pictures: Sequence[Float[np.ndarray, "rows columns 3"]]
    """One pixel per patch, in [0, 1]."""


class Tile(NamedTuple):
    """A picture with two lines below it."""

    image: UInt8[np.ndarray, "H W C"]
    name: str
    detail: str


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
    size = width, height = _cell_size(images[0])
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
    size = width, height = _cell_size(least[0].image)
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
                _tile(sheet, SIDE + column * (width + GAP), top, size, tiles[place])
            top += row_height
    return sheet.png()


def draw_pairs(
    pairs: Sequence[tuple[Tile, Tile]], captions: Sequence[str], *, title: str, note: str
) -> bytes:
    """Draw pairs side by side, each with a caption below."""
    size = width, height = _cell_size(pairs[0][0].image)
    pair_width, row_height = 2 * width + INNER_GAP, height + 0.46
    across = min(MAX_PAIR_COLUMNS, len(pairs))
    num_rows = -(-len(pairs) // across)
    page_width = 2 * SIDE + across * (pair_width + PAIR_GAP) - PAIR_GAP
    sheet = Sheet(page_width, num_rows * row_height, title=title, note=note)
    for number, ((first, second), caption) in enumerate(zip(pairs, captions, strict=True)):
        left = SIDE + number % across * (pair_width + PAIR_GAP)
        top = TOP + number // across * row_height
        _tile(sheet, left, top, size, first)
        _tile(sheet, left + width + INNER_GAP, top, size, second)
        sheet.caption(left + pair_width / 2, top + height + 0.27, caption, pair_width, ACCENT)
    return sheet.png()


def split_rows(count: int) -> list[range]:
    """Split pictures, by number, into rows of about equal length."""
    across = -(-count // -(-count // MAX_COLUMNS))
    return [range(at, min(at + across, count)) for at in range(0, count, across)]


def _cell_size(image: UInt8[np.ndarray, "H W C"]) -> tuple[float, float]:
    """Width and height of a picture on the page."""
    height, width = image.shape[:2]
    cell_width = max(CELL * width / max(height, width), MIN_CELL_WIDTH)
    return cell_width, cell_width * height / width


def _tile(sheet: Sheet, left: float, top: float, size: tuple[float, float], tile: Tile) -> None:
    width, height = size
    sheet.picture(left, top, size, tile.image)
    sheet.caption(left + width / 2, top + height + 0.05, tile.name, width, INK)
    sheet.caption(left + width / 2, top + height + 0.16, tile.detail, width, FAINT)


def _label_row(sheet: Sheet, top: float, height: float, name: str, detail: str) -> None:
    """Write the name of a row and its detail upright, left of the pictures."""
    style: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}
    middle = top + height / 2
    left = SIDE + (0.1 if detail else 0.24)
    sheet.text(left, middle, shortened(name, height, 7.5), fontsize=7.5, **style)
    sheet.text(
        SIDE + 0.26, middle, shortened(detail, height, 6.0), fontsize=6, color=FAINT, **style
    )
