"""The parts of a page, and the HTML made from them. Nothing in them is trusted.

Text in the parts is plain: the template escapes everything that is not our own markup. A
Content-Security-Policy forbids the page every request and every script but its own. Line breaks
and characters that reverse or hide text are written as escapes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from mvmae.errors import printable
from mvmae.figures import chart_svg
from mvmae.figures.charts import X_LABELS
from mvmae.version import __version__

PERCENT = "\u00a0%"  # with a space at which no line breaks
# A page gets its own images, style and script, whose digest is added, and nothing else.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)


def percent(value: int | float) -> str:
    """Write a percentage with one digit, as results are printed."""
    return f"{value:.1f}{PERCENT}"


def share(value: int | float) -> str:
    """Write a share of 1 as a whole percentage."""
    return f"{100 * value:.0f}{PERCENT}"


def short(path: str, parts: int = 1) -> str:
    """Return the last parts of a path; any other text as it is."""
    pieces = [piece for piece in path.split("/") if piece]
    return "/".join(pieces[-parts:]) or path


class Text(NamedTuple):
    """Paragraphs; a note is set apart."""

    paragraphs: Sequence[str]
    kind: str = "plain"


class Facts(NamedTuple):
    """Names, their values, and small print below these; empty: none."""

    rows: Sequence[tuple[str, str, str]]


class Code(NamedTuple):
    """Code to copy."""

    text: str
    caption: str


class Cell(NamedTuple):
    """One cell of a table."""

    text: str
    value: int | float | None = None
    """What it is sorted by; None: by its text."""

    bar: float | None = None
    """Length of a bar below it, in percent."""

    note: str = ""
    """Small print below it."""

    strong: bool = False
    """Whether its row is set in bold, if it is the first of the row, which names it."""


def figure_cell(
    value: int | float | None,
    write: Callable[[int | float], str] = percent,
    *,
    has_bar: bool = False,
    note: str = "",
) -> Cell:
    """Write a number, by default a percentage, in a cell; a dash where there is none."""
    if value is None:
        return Cell("-")
    return Cell(write(value), value, min(100.0, max(0.0, value)) if has_bar else None, note)


class Table(NamedTuple):
    """Rows under headings."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = False


class Chart(NamedTuple):
    """A chart with a heading and an explanation."""

    title: str
    caption: str
    drawings: Sequence[Markup]
    """SVG elements, one for each unit of x."""

    legend: Sequence[tuple[int, str]] = ()
    """Style and name of each line."""


class Charts(NamedTuple):
    """Charts side by side that share their x axis."""

    charts: Sequence[Chart]
    axes: Sequence[str] = ()
    """Units of x to choose from."""


class Picture(NamedTuple):
    """An image in the page."""

    uri: Markup
    alt: str
    caption: str
    pixelated: bool


class Strip(NamedTuple):
    """Pictures that belong together."""

    title: str
    pictures: Sequence[Picture]


class Gallery(NamedTuple):
    """Strips of pictures, equally many in each."""

    strips: Sequence[Strip]


class Fold(NamedTuple):
    """Parts that are folded away until the reader opens them."""

    summary: str
    blocks: Sequence[Block]


Block = Text | Facts | Code | Table | Charts | Gallery | Fold


class Tile(NamedTuple):
    """A key figure."""

    value: str
    name: str
    note: str = ""


class Section(NamedTuple):
    """A part of a page, with an anchor; left out of the page if it has no blocks."""

    anchor: str
    title: str
    lead: str
    blocks: Sequence[Block]


class Verdict(NamedTuple):
    """The verdict at the top of a page."""

    status: str
    """good, weak, bad or none, which chooses the colour."""

    word: str
    summary: str
    tiles: Sequence[Tile]
    reasons: Sequence[str]
    """The evidence."""


class Page(NamedTuple):
    """A page from top to bottom."""

    title: str
    subtitle: str
    verdict: Verdict
    sections: Sequence[Section]


def render(page: Page) -> bytes:
    """Return the page as the bytes of a file, UTF-8."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=make_safe,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = asset("script.js")
    digest = hashlib.sha256(script.encode()).digest()
    html = environment.from_string(asset("page.html")).render(
        page=page,
        kind_of=lambda part: type(part).__name__,
        style=Markup(asset("style.css")),
        script=Markup(script),
        policy=f"{POLICY}; script-src 'sha256-{base64.b64encode(digest).decode()}'",
        version=__version__,
        written=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        units=X_LABELS,
        colours=chart_svg.COLOURS,
        dash=chart_svg.dash,
    )
    return html.lstrip().encode()


def asset(name: str) -> str:
    """Read a file beside this module."""
    return files("mvmae.inspect.report").joinpath(name).read_text(encoding="utf-8")


def make_safe(value: Any) -> Any:
    """Escape what deceives or cannot be written, and replace the home folder by `~`.

    The template passes all that it inserts through this function, so that no part can forget it.
    Line breaks are escaped too: the name of a file stays on one line. A page is passed on, and
    should not name its author.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = printable(value.replace("\n", "\\n").replace("\t", "\\t"))
    home = str(Path.home()).rstrip("/")
    # Of a whole path only: /home/ann is not the beginning of /home/anna, or of /mnt/home/ann.
    path = rf"(?<![\w./-]){re.escape(home)}(?=/|$|[\s'\",\]])"
    return re.sub(path, "~", text) if len(home) > 1 else text
