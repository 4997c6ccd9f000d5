"""The one error that is the user's to mend."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user set or gave cannot work.

    The message is one plain line: what is wrong, and what would be right. The command line
    prints it and exits with status 2; any other exception is our own fault.
    """


def nearest(word: str, names: Iterable[str]) -> str:
    """The end of an error message that names what was probably meant; empty if nothing is near."""
    close = get_close_matches(word, list(names), n=1)
    return f": did you mean '{close[0]}'?" if close else ""
