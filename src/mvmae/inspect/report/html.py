"""The parts of a page, and the HTML made from them. Nothing in them is trusted.

Text in the parts is plain: the template escapes everything that is not our own markup. A
Content-Security-Policy forbids the page every request and every script but its own. Characters
that a file cannot hold, or that reverse or hide text, are written as their code points.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from mvmae.figures import chart_svg
from mvmae.version import __version__

GENERATOR = "mvmae report"  # in a meta element, which tells our pages from other files
UNITS = {"steps": "steps", "images": "images seen", "hours": "hours of training"}
# Control characters, lone surrogates, and what reverses or hides text (bidirectional controls)
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


class Text(NamedTuple):
    """Paragraphs; the kinds note and warning are set apart."""

    paragraphs: Sequence[str]
    kind: str = "plain"
    block: str = "text"


class Facts(NamedTuple):
    """Names and their values."""

    rows: Sequence[tuple[str, str]]
    block: str = "facts"


class Code(NamedTuple):
    """Code to copy."""

    text: str
    caption: str = ""
    block: str = "code"


class Cell(NamedTuple):
    """One cell of a table."""

    text: str
    value: float | None = None
    """What it is sorted by; None: by its text."""

    bar: float | None = None
    """Length of a bar below it, in percent."""

    note: str = ""
    """Small print below it."""


class Row(NamedTuple):
    """One row of a table; its first cell names it."""

    cells: Sequence[Cell]
    strong: bool = False
    """Whether it is set in bold."""


class Table(NamedTuple):
    """Rows under headings."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Row]
    sortable: bool = False
    block: str = "table"


class Chart(NamedTuple):
    """A chart with a heading and an explanation."""

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
    """Parts that are folded away until the reader opens them."""

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
    kicker: str
    subtitle: str
    verdict: Verdict
    sections: Sequence[Section]
    footer: str


def render(page: Page) -> bytes:
    """Return the page as the bytes of a file, UTF-8."""
    script = asset("script.js")
    html = _template().render(
        page=page,
        style=Markup(asset("style.css")),
        script=Markup(script),
        policy=policy(script),
        generator=GENERATOR,
        version=__version__,
        units=UNITS,
        colours=chart_svg.COLOURS,
        dash=chart_svg.dash,
    )
    return html.lstrip().encode()


def policy(script: str) -> str:
    """Allow the page its own images, style and script, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def asset(name: str) -> str:
    """Read a file beside this module."""
    return files("mvmae.inspect.report").joinpath(name).read_text(encoding="utf-8")


def printable(value: Any) -> Any:
    """Replace characters that cannot be written or that deceive by their code points."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(asset("page.html"))
