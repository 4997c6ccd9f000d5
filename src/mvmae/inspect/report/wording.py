"""Numbers, paths and names as the report writes them."""

from __future__ import annotations

import re
from pathlib import Path

PERCENT = "\u00a0%"  # with a space at which no line breaks


def percent(value: int | float) -> str:
    """Write a percentage with one digit, as results are printed."""
    return f"{value:.1f}{PERCENT}"


def share(value: int | float) -> str:
    """Write a share of 1 as a whole percentage."""
    return f"{100 * value:.0f}{PERCENT}"


def count(value: int | float) -> str:
    """Write a whole number with commas."""
    return f"{round(value):,}"


def without_home(text: str) -> str:
    """Replace the user's home folder by `~`: a page that is passed on should not name it."""
    home = str(Path.home()).rstrip("/")
    if len(home) < 2:
        return text
    return re.sub(rf"(?<![\w./-]){re.escape(home)}(?=/|$|[\s'\",\]])", "~", text)


def short(path: str, parts: int = 1) -> str:
    """Return the last parts of a path; any other text as it is."""
    pieces = [piece for piece in path.split("/") if piece]
    return "/".join(pieces[-parts:]) or path


def one_line(text: str) -> str:
    """Escape line breaks and tabs, so that a name stays on one line."""
    return text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
