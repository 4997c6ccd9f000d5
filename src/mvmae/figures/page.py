"""Draw sheets of pictures: rows of cells, some in groups, between a title and a note.

Shapes: H and W pixels, C channels (1 or 3), which may differ between pictures. Lengths and
positions are in inches, font sizes in points.
"""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mvmae.figures.text import BOLD, FAINT, INK, shorten, text_width, wrap

# Lengths are multiples of 0.02, three pixels, so that equal pictures are drawn with equal pixels.
CELL, SMALL_CELL, MANY_COLUMNS = 1.7, 1.2, 8  # a cell's longer side; smaller beyond so many columns
MIN_CELL_WIDTH = 0.62  # of a cell's longer side, which leaves room for headings above portraits
MIN_ASPECT = 0.2  # flatter or narrower pictures are stretched: a line of pixels would vanish
GAP, GROUP_GAP = 0.08, 0.24
MARGIN, NAME = 0.14, 0.18  # around the page; for the upright names left of the rows
MIN_WIDTH = 4.8  # room for title and note even around one small picture
TOP, GROUP_LINE, HEADING_LINE, CAPTION, NOTE_LINE, FOOT = 0.4, 0.24, 0.22, 0.16, 0.14, 0.08
SCALE, SCALE_LINE, LEGEND_LINE, LEGEND_NAME = 1.2, 0.24, 0.2, 1.5
SMALL = 6.5  # points of small print; narrow letters of 6.0 are drawn wider than measured
DPI, MAX_PIXELS, MAX_SIDE = 150, 60e6, 20_000  # viewers fail on larger files
PIXELATED = 128  # pictures of fewer pixels a side are not smoothed: that would suggest more detail

Picture = Float[np.ndarray, "H W C"] | UInt8[np.ndarray, "H W C"]
"""Pixels from 0 to 1, or from 0 to 255 as bytes."""


class Cell(NamedTuple):
    """A picture with words around it."""

    picture: Picture
    heading: str = ""
    captions: Sequence[str] = ()
    """Lines of small print below the picture."""

    frame: str = ""
    """Colour of the frame; empty: no frame."""


class Group(NamedTuple):
    """Cells side by side, apart from other groups of the row."""

    cells: Sequence[Cell]
    heading: str = ""


class Row(NamedTuple):
    """Groups side by side."""

    groups: Sequence[Group]
    name: str = ""
    """Written upwards, left of the row."""

    detail: str = ""
    """Small print, written upwards between the name and the pictures."""

    @property
    def cells(self) -> list[Cell]:
        """Cells of all groups."""
        return [cell for group in self.groups for cell in group.cells]


class Column(NamedTuple):
    """Pictures under a heading, one for each row."""

    heading: str
    pictures: Sequence[Picture]
    captions: Sequence[str] = ()
    """One for each picture, or none."""

    def cell(self, row: int) -> Cell:
        """The cell of a row; only the first row carries the heading."""
        heading = self.heading if row == 0 else ""
        return Cell(self.pictures[row], heading, self.captions[row : row + 1])


class Scale(NamedTuple):
    """A colour scale, drawn as a bar between two labels."""

    colours: str
    """Name of a matplotlib colour map."""

    low: str
    """Label of the lowest value."""

    high: str
    """Label of the highest value."""


def columns_to_rows(
    shared: Sequence[Column],
    names: Sequence[str],
    groups: Sequence[tuple[str, Sequence[Column]]] = (),
) -> list[Row]:
    """Arrange columns as rows: the shared ones, then groups under their headings.

    A single group needs no heading to tell it from others, and joins the shared columns.

    Args:
        shared: Columns that belong to no group.
        names: Names of the rows.
        groups: Headings and columns.
    """
    if len(groups) == 1:
        shared, groups = [*shared, *groups[0][1]], ()
    return [
        Row(
            [
                Group([column.cell(row) for column in columns], heading if row == 0 else "")
                for heading, columns in (("", shared), *groups)
            ],
            name,
        )
        for row, name in enumerate(names)
    ]


def in_blocks(rows: Sequence[Row], most: int) -> list[Row]:
    """Break wide rows into blocks, one below another, of at most `most` columns each.

    Every block has all rows. The rows must have the same number of cells; groups are dissolved.
    """
    return [
        Row([Group(row.cells[block.start : block.stop])], row.name, row.detail)
        for block in split_evenly(len(rows[0].cells), most)
        for row in rows
    ]


def split_evenly(count: int, most: int) -> list[range]:
    """Split range(count) into consecutive ranges of about equal length, at most `most`."""
    length = -(-count // -(-count // most))
    return [range(at, min(at + length, count)) for at in range(0, count, length)]


def draw(
    rows: Sequence[Row],
    *,
    title: str,
    note: str,
    side: float = 0.0,
    scale: Scale | None = None,
    legend: Sequence[tuple[str, str]] = (),
) -> bytes:
    """Draw a PNG of rows of cells, which all have the same size.

    Args:
        rows: At least one, each with at least one cell.
        title: Title above the pictures.
        note: Note below them, in as many lines as it needs.
        side: Longer side of a cell; 0: `CELL`, or `SMALL_CELL` for more than `MANY_COLUMNS`.
        scale: Colour scale above the note, if colours have a meaning.
        legend: Colours and names, drawn above the note.

    Returns:
        The content of the PNG file.
    """
    across = max(len(row.cells) for row in rows)
    side = side or (CELL if across <= MANY_COLUMNS else SMALL_CELL)
    aspects = [_aspect(cell.picture) for row in rows for cell in row.cells]
    size = (
        _whole(side * max(MIN_CELL_WIDTH, *(min(1, 1 / aspect) for aspect in aspects))),
        _whole(side * max(min(1, aspect) for aspect in aspects)),
    )
    left = MARGIN + NAME * any(row.name for row in rows) + NAME * any(row.detail for row in rows)
    spaces = [_space_around(row) for row in rows]
    widths = [
        len(row.cells) * (size[0] + GAP) + len(row.groups) * (GROUP_GAP - GAP) for row in rows
    ]
    width = max(MIN_WIDTH, left + max(widths) - GROUP_GAP + MARGIN)
    # All names of the legend get the same room, so that they are in columns.
    legend = [(colour, shorten(name, LEGEND_NAME, 7.0)) for colour, name in legend]
    step = max((text_width(name, 7.0) for _, name in legend), default=0.0) + 0.36
    fitting = max(1, int((width - 2 * MARGIN) / step))
    legend_rows = -(-len(legend) // fitting)
    bottom = LEGEND_LINE * legend_rows + (SCALE_LINE if scale else 0.0)
    height = sum(above + size[1] + below for above, below in spaces)
    sheet = Sheet(width, height + bottom, title=title, note=note)
    top = TOP
    for row, (above, below) in zip(rows, spaces, strict=True):
        _draw_row(sheet, row, left, top + above, size)
        top += above + size[1] + below
    if scale:
        _draw_scale(sheet, scale, top + SCALE_LINE / 2 - 0.02)
    for number, (colour, name) in enumerate(legend):
        x = MARGIN + number % fitting * step
        y = top + (number // fitting + 0.4) * LEGEND_LINE
        box = Rectangle((x, y - 0.05), 0.1, 0.1, facecolor=colour, edgecolor=FAINT, linewidth=0.4)
        sheet.axes.add_patch(box)
        sheet.write(x + 0.15, y, name, width - 2 * MARGIN, 7.0, ha="left", color=INK)
    return sheet.png()


class Sheet:
    """A white page with a title and a note; positions are measured from its upper left corner.

    Args:
        width: Width of the page, at least `MIN_WIDTH`.
        height: Height of the content, between title and note.
        title: Title above the content, which begins at `TOP`.
        note: Note below the content, in as many lines as it needs.
    """

    def __init__(self, width: float, height: float, *, title: str, note: str) -> None:
        self.width, room = width, width - 2 * MARGIN
        lines = wrap(note, room, SMALL)
        self.height = TOP + height + NOTE_LINE * len(lines) + 2 * FOOT
        dpi = min(DPI, (MAX_PIXELS / (width * self.height)) ** 0.5)
        dpi = min(dpi, MAX_SIDE / max(width, self.height))
        self.figure = Figure(figsize=(width, self.height), dpi=dpi, facecolor="white")
        FigureCanvasAgg(self.figure)
        # One pair of axes for the whole figure: one for each of hundreds of pictures takes seconds.
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        style = {"ha": "left", "color": INK, "weight": "bold"}
        self.write(MARGIN, TOP / 2, title, room / BOLD, 10.0, **style)
        for number, line in enumerate(lines, 1):
            y = TOP + height + FOOT / 2 + NOTE_LINE * number
            self.write(MARGIN, y, line, None, SMALL, ha="left", va="bottom")

    def write(
        self,
        x: float,
        y: float,
        text: str,
        room: float | None,
        points: float,
        **style: Any,
    ) -> None:
        """Write a text centred at (x, y), shortened if it is wider than `room` (None: no limit)."""
        words = text if room is None else shorten(text, room, points)
        place: dict[str, Any] = {"color": FAINT, "ha": "center", "va": "center"}
        self.axes.text(x, y, words, fontsize=points, parse_math=False, **place | style)

    def picture(
        self,
        x: float,
        y: float,
        size: tuple[float, float],
        picture: Picture,
        frame: str = "",
    ) -> None:
        """Draw a picture centred in a box, as large as its aspect ratio allows.

        The box has its upper left corner at (x, y), and `size` is its width and height.
        """
        aspect = _aspect(picture)
        width = min(size[0], size[1] / aspect)
        height = width * aspect
        x, y = x + _whole((size[0] - width) / 2), y + _whole((size[1] - height) / 2)
        # matplotlib warns of values above white, even if they exceed it by a rounding error.
        white = 255 if picture.dtype == np.uint8 else 1
        pixels = picture.clip(0, white)
        self.axes.imshow(
            pixels[..., 0] if picture.shape[2] == 1 else pixels,
            cmap="gray",
            vmin=0,
            vmax=white,
            interpolation="nearest" if max(picture.shape) < PIXELATED else "antialiased",
            extent=(x, x + width, y + height, y),
        )
        if frame:
            self.frame(x, y, (width, height), frame, 1.2)

    def frame(
        self,
        x: float,
        y: float,
        size: tuple[float, float],
        colour: str,
        points: float,
    ) -> None:
        """Draw the border of a rectangle."""
        self.axes.add_patch(
            Rectangle((x, y), *size, fill=False, edgecolor=colour, linewidth=points)
        )

    def png(self) -> bytes:
        """The page as a PNG file."""
        # Drawing has changed the limits of the axes; set them to the whole page.
        self.axes.set(xlim=(0, self.width), ylim=(self.height, 0), aspect="auto")
        buffer = io.BytesIO()
        # Three times as fast as the default of 6, and a tenth larger.
        self.figure.savefig(
            buffer, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 3}
        )
        return buffer.getvalue()


def _aspect(picture: Picture) -> float:
    """Height over width of a picture as it is drawn, which may be stretched (`MIN_ASPECT`)."""
    height, width = picture.shape[:2]
    return min(max(height / width, MIN_ASPECT), 1 / MIN_ASPECT)


def _whole(length: float) -> float:
    """Round a length to whole pixels, so that equal pictures are drawn with equal pixels."""
    return round(length * DPI) / DPI


def _space_around(row: Row) -> tuple[float, float]:
    """Height of the words above and below the pictures of a row, with the gap to the next row."""
    above = GROUP_LINE * any(group.heading for group in row.groups)
    above += HEADING_LINE * any(cell.heading for cell in row.cells)
    return above, CAPTION * max(len(cell.captions) for cell in row.cells) + GAP


def _draw_row(sheet: Sheet, row: Row, left: float, top: float, size: tuple[float, float]) -> None:
    """Draw pictures from `top` downwards, and the words around them."""
    width, height = size
    x, bold = left, {"color": INK, "weight": "bold"}
    style = {"rotation": 90, "color": INK}
    sheet.write(MARGIN + NAME / 2, top + height / 2, row.name, height, 7.0, **style)
    sheet.write(left - NAME / 2, top + height / 2, row.detail, height, SMALL, rotation=90)
    for group in row.groups:
        if group.heading:
            right = x + len(group.cells) * (width + GAP) - GAP
            rule = top - _space_around(row)[0] + 0.2
            sheet.write((x + right) / 2, rule - 0.1, group.heading, (right - x) / BOLD, 8.5, **bold)
            line = Line2D((x, right), (rule, rule), color="#b8bfc6", linewidth=0.6)
            sheet.axes.add_line(line)
        for cell in group.cells:
            middle = x + width / 2
            sheet.write(middle, top - HEADING_LINE / 2, cell.heading, width + GAP, 8.0)
            sheet.picture(x, top, size, cell.picture, cell.frame)
            for number, caption in enumerate(cell.captions):
                y = top + height + CAPTION * (number + 0.5)
                sheet.write(middle, y, caption, width, SMALL, color=FAINT if number else INK)
            x += width + GAP
        x += GROUP_GAP - GAP


def _draw_scale(sheet: Sheet, scale: Scale, y: float) -> None:
    """Draw the colours between their labels."""
    style = {"va": "center_baseline", "ha": "left"}
    begin = MARGIN + text_width(scale.low, SMALL) + 0.06
    sheet.write(MARGIN, y, scale.low, begin, SMALL, **style)
    sheet.axes.imshow(
        np.linspace(0, 1, 256)[None],
        cmap=scale.colours,
        extent=(begin, begin + SCALE, y + 0.04, y - 0.04),
    )
    sheet.write(begin + SCALE + 0.06, y, scale.high, begin + 1, SMALL, **style)
