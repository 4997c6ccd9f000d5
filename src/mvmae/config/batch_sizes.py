"""Batch sizes as they are typed: a number, "auto", or, where that means all, "None"."""

from __future__ import annotations

from tyro.constructors import PrimitiveConstructorSpec

AUTO = -1
"""A batch size that the run finds out."""


def _size(words: list[str]) -> int:
    if words[0] == "auto":
        return AUTO
    try:
        size = int(words[0])
    except ValueError:
        raise ValueError(f"'{words[0]}' is no whole number, and not auto") from None
    if size < 1:
        raise ValueError(f"at least 1, or auto, not {size}")
    return size


SIZE = PrimitiveConstructorSpec(
    nargs=1,
    metavar="INT|auto",
    instance_from_str=_size,
    is_instance=lambda value: isinstance(value, int),
    str_from_instance=lambda value: ["auto" if value == AUTO else str(value)],
)
SIZE_OR_NONE = PrimitiveConstructorSpec(
    nargs=1,
    metavar="None|INT|auto",
    instance_from_str=lambda words: None if words[0] == "None" else _size(words),
    is_instance=lambda value: value is None or isinstance(value, int),
    str_from_instance=lambda value: ["auto" if value == AUTO else str(value)],
)
