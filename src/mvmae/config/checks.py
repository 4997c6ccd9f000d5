"""Checks of config values, and batch sizes that may be "auto"."""

from __future__ import annotations

import re

from tyro.constructors import PrimitiveConstructorSpec

from mvmae.errors import UserError

AUTO = -1
"""A batch size that the run determines itself."""
MAX_WORKERS = 512  # each is a process: a typing slip would stop the machine


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_regex(pattern: str | None) -> None:
    """Check the expression that finds an image's group in its path.

    Raises:
        UserError: It is empty, or not a regular expression.
    """
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise UserError(
            f"group_regex '{pattern}' is not a regular expression: {error}; 'patient_(\\d+)' is one"
        ) from error
    require(
        pattern != "", "group_regex is empty: leave it out, or write one such as 'patient_(\\d+)'"
    )


def _size(words: list[str]) -> int:
    if words[0] == "auto":
        return AUTO
    try:
        size = int(words[0])
    except ValueError:
        raise ValueError(f"'{words[0]}' is neither a whole number nor auto") from None
    if size < 1:
        raise ValueError(f"at least 1, or auto, not {size}")
    return size


def _in_words(size: int | None) -> list[str]:
    return ["auto" if size == AUTO else str(size)]


SIZE = PrimitiveConstructorSpec(
    nargs=1,
    metavar="INT|auto",
    instance_from_str=_size,
    is_instance=lambda value: isinstance(value, int),
    str_from_instance=_in_words,
)
SIZE_OR_NONE = PrimitiveConstructorSpec(
    nargs=1,
    metavar="None|INT|auto",
    instance_from_str=lambda words: None if words[0] == "None" else _size(words),
    is_instance=lambda value: value is None or isinstance(value, int),
    str_from_instance=_in_words,
)
