"""What an encoder makes of images: patches in colour, images most and least typical, pairs.

Shapes: B images, N patch tokens, H and W pixels, C channels 1 or 3. Lengths are in inches.
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

from mvmae.figures.neighbours import ACCENT, BOLD, FAINT, INK, drawable, shortened, width_of

DPI, MOST_DOTS = 150, 30_000  # a side of more is no PNG that programs open
SIDE, TOP, LINE = 0.14, 0.46, 0.13  # around everything; to the first row; a line of the note
CELL, NARROWEST = 1.2, 0.8
GAP = 0.07
GUTTER = 0.42  # left of the pictures, for what their row is
NAME = 0.2  # below a picture, for its name
ACROSS = 8  # pictures in a row
LEAST_WIDTH = 5.2  # of a figure, for its title and note
SMALL, HEADING = 6.5, 10.0  # points


class Sheet:
    """A white page on which things are placed from its upper left corner.

    Args:
        width: Of the page; a narrow one is widened for its words.
        height: Of what is between the title and the note.
        title: Above everything.
        note: Below everything, broken into as many lines as it needs.
    """

    def __init__(self, width: float, height: float, *, title: str, note: str) -> None:
        self.width = max(width, LEAST_WIDTH)
        lines = broken(note, self.width - 2 * SIDE, SMALL)
        self.height = TOP + height + LINE * len(lines) + 0.16
        dpi = min(DPI, MOST_DOTS / max(self.width, self.height))
        self.figure = Figure(figsize=(self.width, self.height), dpi=dpi, facecolor="white")
        FigureCanvasAgg(self.figure)
        heading = shortened(title, (self.width - 2 * SIDE) / BOLD, HEADING)
        self.text(SIDE, 0.13, heading, fontsize=HEADING, weight="bold", va="top")
        for number, line in enumerate(reversed(lines)):
            down = self.height - 0.1 - number * LINE
            self.text(SIDE, down, line, fontsize=SMALL, color=FAINT, va="bottom")

    def axes(self, left: float, down: float, width: float, height: float) -> Axes:
        """Axes in a place, `down` from the top of the page."""
        bottom = self.height - down - height
        place = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def text(self, left: float, down: float, words: str, **style: Any) -> None:
        """Words in a place."""
        style = {"color": INK, "parse_math": False} | style
        place = left / self.width, 1 - down / self.height
        self.figure.text(*place, drawable(words)).set(**style)

    def png(self) -> bytes:
        """The page as the bytes of a PNG file."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


class Coloured(NamedTuple):
    """What one encoder makes of some images."""

    name: str
    said: str
    """In small print beside the name."""

    pictures: Sequence[Float[np.ndarray, "rows columns 3"]]
    """A pixel a patch, in [0, 1]."""


class Shot(NamedTuple):
    """A picture and what is said under it."""

    image: UInt8[np.ndarray, "H W C"]
    first: str
    second: str


def token_picture(
    colours: Float[np.ndarray, "N 3"], grid: tuple[int, int]
) -> Float[np.ndarray, "rows columns 3"]:
    """The colours of an image's patch tokens as a picture, a pixel a patch."""
    return np.asarray(colours, dtype=np.float32).reshape(*grid, 3)


def draw_colours(
    images: Sequence[UInt8[np.ndarray, "H W C"]],
    names: Sequence[str],
    encoders: Sequence[Coloured],
    *,
    title: str,
    note: str,
) -> bytes:
    """A PNG with images in a row and below each what the encoders make of it.

    Args:
        images: At least one, all of one shape.
        names: Of the images, in small print below them.
        encoders: A row each.
        title: Above everything.
        note: Below it.
    """
    cell_w, cell_h = _cell(images[0])
    blocks = rows_of(len(images))
    block_h = (1 + len(encoders)) * (cell_h + GAP) + NAME
    width = SIDE + GUTTER + len(blocks[0]) * (cell_w + GAP) - GAP + SIDE
    sheet = Sheet(width, len(blocks) * block_h, title=title, note=note)
    for number, block in enumerate(blocks):
        for row in range(1 + len(encoders)):
            down = TOP + number * block_h + row * (cell_h + GAP)
            of_row = images if row == 0 else encoders[row - 1].pictures
            name, said = ("image", "") if row == 0 else encoders[row - 1][:2]
            _name_row(sheet, down, cell_h, name, said)
            for column, place in enumerate(block):
                left = SIDE + GUTTER + column * (cell_w + GAP)
                # Patches are shown as they are: a smooth map would claim a finer one.
                smoothing = "antialiased" if row == 0 else "nearest"
                _picture(sheet.axes(left, down, cell_w, cell_h), of_row[place], smoothing)
                if row == len(encoders):
                    said = shortened(names[place], cell_w, 6.0)
                    _centred(sheet, left + cell_w / 2, down + cell_h + 0.05, said, FAINT)
    return sheet.png()


def draw_typical(*, least: Sequence[Shot], most: Sequence[Shot], title: str, note: str) -> bytes:
    """A PNG with the least typical images, and the most typical ones below."""
    cell_w, cell_h = _cell(least[0].image)
    groups = [("least typical", least), ("most typical", most)]
    rows = [
        ("" if row.start else name, [shots[place] for place in row])
        for name, shots in groups
        for row in rows_of(len(shots))
    ]
    row_h, band = cell_h + 0.34, 0.24
    width = 2 * SIDE + max(len(row) for _, row in rows) * (cell_w + GAP) - GAP
    sheet = Sheet(width, len(rows) * row_h + 2 * band, title=title, note=note)
    down = TOP
    for name, row in rows:
        if name:
            colour = INK if name.startswith("most") else "#b3261e"
            sheet.text(SIDE, down + 0.03, name, fontsize=8, color=colour, va="top")
            down += band
        for column, shot in enumerate(row):
            _shot(sheet, SIDE + column * (cell_w + GAP), down, cell_w, cell_h, shot)
        down += row_h
    return sheet.png()


def draw_pairs(
    pairs: Sequence[tuple[Shot, Shot]], said: Sequence[str], *, title: str, note: str
) -> bytes:
    """A PNG of pairs side by side, what is said of each below it."""
    cell_w, cell_h = _cell(pairs[0][0].image)
    pair_w, row_h = 2 * cell_w + 0.03, cell_h + 0.46
    across = min(4, len(pairs))
    rows = -(-len(pairs) // across)
    width = 2 * SIDE + across * (pair_w + 0.22) - 0.22
    sheet = Sheet(width, rows * row_h, title=title, note=note)
    for number, ((one, other), words) in enumerate(zip(pairs, said, strict=True)):
        left = SIDE + number % across * (pair_w + 0.22)
        down = TOP + number // across * row_h
        _shot(sheet, left, down, cell_w, cell_h, one)
        _shot(sheet, left + cell_w + 0.03, down, cell_w, cell_h, other)
        _centred(sheet, left + pair_w / 2, down + cell_h + 0.27, words, ACCENT)
    return sheet.png()


def rows_of(count: int) -> list[range]:
    """Places of so many pictures in rows of about the same length."""
    across = -(-count // -(-count // ACROSS))
    return [range(at, min(at + across, count)) for at in range(0, count, across)]


def broken(text: str, inches: float, points: float) -> list[str]:
    """The text in lines no wider than that; a word that is wider is shortened."""
    lines: list[str] = []
    for word in drawable(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width_of(longer, points) <= inches:
            lines[-1] = longer
        else:
            lines.append(shortened(word, inches, points))
    return lines


def _cell(image: UInt8[np.ndarray, "H W C"]) -> tuple[float, float]:
    """Width and height of a picture on the page."""
    height, width = image.shape[:2]
    cell_w = max(CELL * width / max(height, width), NARROWEST)
    return cell_w, cell_w * height / width


def _picture(axis: Axes, picture: np.ndarray, smoothing: str) -> None:
    top = 255 if picture.dtype == np.uint8 else 1
    axis.imshow(
        picture.squeeze(-1) if picture.shape[-1] == 1 else picture,
        cmap="gray",
        vmin=0,
        vmax=top,
        interpolation=smoothing,
        aspect="auto",
    )
    axis.set_axis_off()


def _shot(sheet: Sheet, left: float, down: float, width: float, height: float, shot: Shot) -> None:
    _picture(sheet.axes(left, down, width, height), shot.image, "antialiased")
    for words, below, colour in ((shot.first, 0.05, INK), (shot.second, 0.16, FAINT)):
        _centred(
            sheet, left + width / 2, down + height + below, shortened(words, width, 6.0), colour
        )


def _centred(sheet: Sheet, middle: float, down: float, words: str, colour: str) -> None:
    sheet.text(middle, down, words, fontsize=6, color=colour, ha="center", va="top")


def _name_row(sheet: Sheet, down: float, height: float, name: str, said: str) -> None:
    upright: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}
    middle = down + height / 2
    first = SIDE + (0.1 if said else 0.24)
    sheet.text(first, middle, shortened(name, height, 7.5), fontsize=7.5, **upright)
    if said:
        words = shortened(said, height, 6.0)
        sheet.text(SIDE + 0.26, middle, words, fontsize=6, color=FAINT, **upright)
