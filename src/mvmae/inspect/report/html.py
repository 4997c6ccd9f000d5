"""HTML from the parts of a page. Nothing in them is trusted.

The template escapes everything that is not markup of our own; a Content-Security-Policy forbids
the page every request, and every script but its own; letters that a file cannot hold or that turn
the direction of text are written as their numbers.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from mvmae.inspect.report import svg
from mvmae.inspect.report.blocks import UNITS, Page
from mvmae.version import __version__

GENERATOR = "mvmae report"  # in a meta element, by which a page of ours is known
# Control letters, lone surrogates, and what turns or hides text (Unicode's bidirectional controls)
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def render(page: Page) -> bytes:
    """The page as a file's bytes, UTF-8."""
    script = asset("script.js")
    html = _template().render(
        page=page,
        style=Markup(asset("style.css")),
        script=Markup(script),
        policy=policy(script),
        generator=GENERATOR,
        version=__version__,
        units=UNITS,
        swatch=svg.swatch,
    )
    return html.lstrip().encode()


def policy(script: str) -> str:
    """The page may show its own images and style and run its one script; nothing else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def asset(name: str) -> str:
    """A file that lies beside this one."""
    return files("mvmae.inspect.report").joinpath(name).read_text(encoding="utf-8")


def printable(value: Any) -> Any:
    """Text without letters that cannot be written or that deceive; anything else as it is."""
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
