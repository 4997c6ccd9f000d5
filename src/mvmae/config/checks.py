"""What configs check."""

from __future__ import annotations

import re

from mvmae.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


MOST_WORKERS = 512  # a process each; a slip of the keyboard would stop the machine


def require_workers(workers: int | None) -> None:
    """Raise `UserError` for a number of reading processes that cannot be meant."""
    require(workers is None or workers >= 0, "workers must not be negative")
    require(
        workers is None or workers <= MOST_WORKERS,
        f"workers {workers} is more than {MOST_WORKERS} processes",
    )


def require_regex(pattern: str | None) -> None:
    """Check the expression that finds an image's group in its path.

    Raises:
        UserError: It is empty, or no regular expression.
    """
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise UserError(
            f"group_regex '{pattern}' is no regular expression: {error}; 'patient_(\\d+)' is one"
        ) from error
    require(pattern != "", "group_regex is empty: leave it out, or write one as 'patient_(\\d+)'")
