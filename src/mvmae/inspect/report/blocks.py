"""What a page is made of. Text in it is plain: the page escapes all of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from mvmae.inspect.report import svg
from mvmae.inspect.report.svg import Level, Line

SMALL = 96  # pixels: below, an image is kept as it is and shown as its pixels
LARGEST = 256  # pixels of a side that are worth carrying in a page
QUALITY = 88  # of JPEG


class Text(NamedTuple):
    """Paragraphs; a `kind` of note or warning sets them apart."""

    paragraphs: Sequence[str]
    kind: str = "plain"
    block: str = "text"


class Facts(NamedTuple):
    """Names and what they are."""

    rows: Sequence[tuple[str, str]]
    block: str = "facts"


class Code(NamedTuple):
    """Something to copy."""

    text: str
    caption: str = ""
    block: str = "code"


class Cell(NamedTuple):
    """One place of a table."""

    text: str
    value: float | None = None
    """What it is sorted by; none: by its text."""

    bar: float | None = None
    """Length of a bar under it, in percent."""

    note: str = ""
    """In small print below."""


class Row(NamedTuple):
    """One line of a table; its first cell names it."""

    cells: Sequence[Cell]
    strong: bool = False
    """Whether it is the line that counts."""


class Table(NamedTuple):
    """Lines under headings."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Row]
    sortable: bool = False
    block: str = "table"


class Chart(NamedTuple):
    """Lines with a heading and words that say how to read them."""

    title: str
    caption: str
    drawings: Sequence[str]
    """SVG elements, one for each unit of x."""

    legend: Sequence[tuple[int, str]] = ()
    """Style and name of each line."""


class Charts(NamedTuple):
    """Charts side by side that share their x axis."""

    charts: Sequence[Chart]
    axes: Sequence[str] = ()
    """Units of x to choose from."""

    block: str = "charts"


class Picture(NamedTuple):
    """An image in the page."""

    uri: str
    alt: str
    caption: str
    pixelated: bool


class Strip(NamedTuple):
    """Pictures that belong together."""

    title: str
    pictures: Sequence[Picture]


class Gallery(NamedTuple):
    """Strips of pictures."""

    strips: Sequence[Strip]
    columns: int
    block: str = "gallery"


class Fold(NamedTuple):
    """What is shown when asked for."""

    summary: str
    blocks: Sequence[Block]
    block: str = "fold"


Block = Text | Facts | Code | Table | Charts | Gallery | Fold


class Tile(NamedTuple):
    """A key figure."""

    value: str
    name: str
    note: str = ""


class Section(NamedTuple):
    """A part of a page, with an anchor."""

    anchor: str
    title: str
    lead: str
    blocks: Sequence[Block]


class Verdict(NamedTuple):
    """What it comes to."""

    status: str
    """good, weak, bad or none: the colour."""

    word: str
    summary: str
    tiles: Sequence[Tile]
    reasons: Sequence[str]
    """What it rests on."""


class Page(NamedTuple):
    """A page from top to bottom."""

    title: str
    kicker: str
    subtitle: str
    verdict: Verdict
    sections: Sequence[Section]
    footer: str


UNITS = {"steps": "steps", "images": "images seen", "hours": "hours of training"}


def chart(
    title: str,
    caption: str,
    by_axis: dict[str, Sequence[Line]],
    *,
    levels: Sequence[Level] = (),
    log_x: bool = False,
    x_name: str = "",
    always_named: bool = False,
) -> Chart:
    """A chart drawn once for each unit of x.

    Args:
        title: Over it.
        caption: How to read it.
        by_axis: The lines, by the unit of their x.
        levels: Heights to compare with.
        log_x: See `svg.draw`.
        x_name: Default: the unit.
        always_named: Whether a single line gets a legend too.
    """
    drawings = [
        svg.draw(
            lines,
            label=f"{title}, against {x_name or UNITS[axis]}. {summary(lines, levels)}",
            x_name=x_name or UNITS[axis],
            levels=levels,
            log_x=log_x,
            axis=axis,
        )
        for axis, lines in by_axis.items()
    ]
    first = next(iter(by_axis.values()))
    legend = [(line.style, line.name) for line in first] if always_named or len(first) > 1 else []
    return Chart(title, caption, drawings, legend)


def summary(lines: Sequence[Line], levels: Sequence[Level]) -> str:
    """A chart in words: where each line begins and ends."""
    said = []
    for line in lines:
        values = [value for value in line.ys if isfinite(value)]
        if values:
            said.append(f"{line.name}: from {values[0]:.3g} to {values[-1]:.3g}")
    said += [f"{level.name}: {level.y:.3g}" for level in levels]
    return "; ".join(said) + "."


def picture(pixels: Float[np.ndarray, "H W C"], *, alt: str, caption: str) -> Picture:
    """An image as a data URI: PNG where it is small, JPEG otherwise.

    Args:
        pixels: In [0, 1], 1 or 3 channels.
        alt: What is to be seen.
        caption: Under it.
    """
    grey = np.clip(np.nan_to_num(pixels, nan=0.5), 0, 1)
    image = Image.fromarray(
        np.round(255 * grey).astype(np.uint8).squeeze(axis=2)
        if grey.shape[2] == 1
        else np.round(255 * grey).astype(np.uint8)
    )
    is_small = max(image.size) <= SMALL
    image.thumbnail((LARGEST, LARGEST))
    stream = io.BytesIO()
    if is_small:
        image.save(stream, "PNG", optimize=True)
    else:
        image.save(stream, "JPEG", quality=QUALITY)
    kind = "png" if is_small else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Picture(uri, alt, caption, is_small)
