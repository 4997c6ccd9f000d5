"""Sheets of pictures: a row for each image, columns in groups under headings.

Shapes: H and W pixels, C channels 1 or 3; any picture may have its own. Lengths are inches.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mvmae.figures.text import BOLD, FAINT, INK, shortened, wrapped

CELL, SMALL_CELL, MANY_COLUMNS = 1.7, 1.2, 8  # a cell's longer side; smaller beyond so many columns
GAP, GROUP_GAP = 0.08, 0.24
MIN_CELL_WIDTH = 0.62  # of a cell's longer side, which leaves room for headings above portraits
SIDE, RIGHT = 0.3, 0.1  # margins; the left one holds the names of the rows
MIN_WIDTH = 3.6  # room for title and note even around one small picture
TITLE, GROUP_LINE, HEADING_LINE, CAPTION, NOTE_LINE, FOOT = 0.36, 0.24, 0.22, 0.16, 0.14, 0.12
BAR, BAR_LINE = 1.2, 0.2  # the scale of colours
DPI, MAX_PIXELS, MAX_SIDE = 150, 60e6, 20_000  # viewers fail on larger files
PIXELATED = 128  # pictures with fewer rows of pixels are not smoothed


class Column(NamedTuple):
    """Pictures under a heading, one for each row."""

    heading: str
    pictures: Sequence[Float[np.ndarray, "H W C"]]
    """Values in [0, 1]."""

    captions: Sequence[str] = ()
    """Small print under each picture, or none."""


class Group(NamedTuple):
    """Columns that belong together."""

    heading: str
    """Empty: no heading."""

    columns: Sequence[Column]


class Scale(NamedTuple):
    """The meaning of colours."""

    colours: str
    """Name of a matplotlib colour map."""

    low: str
    high: str


class Layout(NamedTuple):
    """Positions, from the left and from the top."""

    cell_w: float
    cell_h: float
    lefts: list[list[float]]
    """For each column of each group."""

    top: float
    """Top of the first row."""

    step: float
    """Distance from one row to the next."""

    width: float
    height: float
    note: list[str]
    """Broken into lines that fit."""


def draw(
    groups: Sequence[Group],
    *,
    names: Sequence[str],
    title: str,
    note: str,
    scale: Scale | None = None,
) -> bytes:
    """Draw a PNG with a row for each name and the groups side by side.

    Very large figures get fewer pixels per inch: at most 60 million in all and 20,000 a side.

    Args:
        groups: At least one picture; each column has one for each row.
        names: Of the rows, in small print beside them.
        title: Above the figure.
        note: Below it, in as many lines as it needs.
        scale: Drawn above the note, where colours have a meaning.
    """
    layout = _laid_out(groups, len(names), note, BAR_LINE if scale else 0.0)
    width, height = layout.width, layout.height
    dpi = min(DPI, (MAX_PIXELS / (width * height)) ** 0.5, MAX_SIDE / max(width, height))
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    # One pair of axes for the whole figure: one for each of hundreds of pictures takes seconds.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    _pictures(axes, groups, layout)
    _words(axes, groups, names, title, layout)
    if scale:
        _bar(axes, scale, layout)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    buffer = io.BytesIO()
    # Three times as fast as the default of 6, and a tenth larger.
    figure.savefig(
        buffer, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 3}
    )
    return buffer.getvalue()


def _laid_out(groups: Sequence[Group], rows: int, note: str, bar: float) -> Layout:
    columns = [column for group in groups for column in group.columns]
    shapes = [picture.shape[:2] for column in columns for picture in column.pictures]
    side = CELL if len(columns) <= MANY_COLUMNS else SMALL_CELL
    cell_h = _whole(side * max(min(1, height / width) for height, width in shapes))
    cell_w = _whole(
        side * max(MIN_CELL_WIDTH, *(min(1, width / height) for height, width in shapes))
    )
    at, lefts = SIDE, []
    for group in groups:
        lefts.append([at + place * (cell_w + GAP) for place in range(len(group.columns))])
        at = lefts[-1][-1] + cell_w + GROUP_GAP
    width = at - GROUP_GAP + RIGHT
    if width < MIN_WIDTH:
        shift = _whole((MIN_WIDTH - width) / 2)
        lefts, width = [[left + shift for left in group] for group in lefts], MIN_WIDTH
    top = TITLE + HEADING_LINE + (GROUP_LINE if any(group.heading for group in groups) else 0)
    caption = CAPTION if any(column.captions for column in columns) else 0
    lines = wrapped(note, width - SIDE - RIGHT, 6.5)
    step = cell_h + GAP + caption
    height = top + rows * step + bar + FOOT + NOTE_LINE * len(lines)
    return Layout(cell_w, cell_h, lefts, top, step, width, height, lines)


def _whole(length: float) -> float:
    """Round a length to whole pixels, so that equal pictures are drawn with equal pixels."""
    return max(1, round(length * DPI)) / DPI if length else 0.0


def _placed(groups: Sequence[Group], layout: Layout) -> Iterator[tuple[Group, Column, float]]:
    for group, lefts in zip(groups, layout.lefts, strict=True):
        for column, left in zip(group.columns, lefts, strict=True):
            yield group, column, left


def _pictures(axes: Axes, groups: Sequence[Group], layout: Layout) -> None:
    for _, column, left in _placed(groups, layout):
        for row, picture in enumerate(column.pictures):
            height, width = picture.shape[:2]
            scale = min(layout.cell_w / width, layout.cell_h / height)
            w, h = width * scale, height * scale
            x = left + _whole((layout.cell_w - w) / 2)
            y = layout.top + row * layout.step + _whole((layout.cell_h - h) / 2)
            smoothing = "nearest" if height < PIXELATED else "antialiased"
            axes.imshow(
                np.clip(picture, 0, 1).squeeze(-1) if picture.shape[2] == 1 else picture.clip(0, 1),
                cmap="gray",
                vmin=0,
                vmax=1,
                interpolation=smoothing,
                extent=(x, x + w, y + h, y),
            )


def _words(
    axes: Axes, groups: Sequence[Group], names: Sequence[str], title: str, layout: Layout
) -> None:
    middle = layout.width / 2
    room = (layout.width - SIDE - RIGHT) / BOLD
    _write(axes, (middle, TITLE / 2 + 0.02), title, room, 10.0, color=INK, weight="bold")
    for group, lefts in zip(groups, layout.lefts, strict=True):
        if group.heading:
            _head(axes, group.heading, lefts[0], lefts[-1] + layout.cell_w)
    for _, column, left in _placed(groups, layout):
        x = left + layout.cell_w / 2
        place = (x, layout.top - HEADING_LINE / 2)
        _write(axes, place, column.heading, layout.cell_w + GAP, 8.0)
        for row, caption in enumerate(column.captions):
            y = layout.top + row * layout.step + layout.cell_h + CAPTION / 2
            _write(axes, (x, y), caption, layout.cell_w, 6.0)
    for row, name in enumerate(names):
        y = layout.top + row * layout.step + layout.cell_h / 2
        _write(axes, (layout.lefts[0][0] - 0.12, y), name, layout.cell_h, 6.0, rotation=90)
    for line, text in enumerate(layout.note):
        y = layout.height - FOOT / 2 - NOTE_LINE * (len(layout.note) - line - 0.5)
        _write(axes, (middle, y), text, None, 6.5)


def _head(axes: Axes, heading: str, left: float, right: float) -> None:
    """Write a group's heading above a thin rule."""
    y = TITLE + GROUP_LINE - 0.03
    place = ((left + right) / 2, y - 0.11)
    _write(axes, place, heading, (right - left) / BOLD, 8.5, color=INK, weight="bold")
    axes.add_line(Line2D((left, right), (y, y), color="#b8bfc6", linewidth=0.6))


def _write(
    axes: Axes,
    place: tuple[float, float],
    text: str,
    room: float | None,
    points: float,
    **look: Any,
) -> None:
    """Write a text centred at a place, shortened where it is wider than the room."""
    words = text if room is None else shortened(text, room, points)
    drawn: dict[str, Any] = {"color": FAINT, "ha": "center", "va": "center"}
    axes.text(*place, words, fontsize=points, parse_math=False, **drawn | look)


def _bar(axes: Axes, scale: Scale, layout: Layout) -> None:
    """Draw the colour scale between its labels."""
    middle = layout.width / 2
    y = layout.height - FOOT / 2 - NOTE_LINE * len(layout.note) - BAR_LINE / 2
    axes.imshow(
        np.linspace(0, 1, 256)[None],
        cmap=scale.colours,
        extent=(middle - BAR / 2, middle + BAR / 2, y + 0.04, y - 0.04),
    )
    look = {"fontsize": 6.5, "color": FAINT, "va": "center_baseline", "parse_math": False}
    axes.text(middle - BAR / 2 - 0.06, y, scale.low, ha="right", **look)
    axes.text(middle + BAR / 2 + 0.06, y, scale.high, ha="left", **look)
