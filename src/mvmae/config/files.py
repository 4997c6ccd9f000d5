"""Configs as JSON and back."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.preconf.json import make_converter

from mvmae.errors import UserError, nearest

T = TypeVar("T")

_json = make_converter(forbid_extra_keys=True)  # a misspelt key is an error, not a default
_json.register_unstructure_hook(Path, str)
_json.register_structure_hook(Path, lambda value, _: Path(value))


def _exactly(value: Any, kind: Any) -> Any:
    """JSON's own kinds as they are; cattrs would make 2 of 2.7 and true of "false"."""
    if type(value) is kind or (kind is float and type(value) is int):
        return kind(value)
    raise TypeError(repr(value))


for _kind in (bool, int, float, str):
    _json.register_structure_hook(_kind, _exactly)


def _list(value: Any, _: Any) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise TypeError(repr(value))  # a word would become its letters


_json.register_structure_hook_func(lambda kind: kind == tuple[str, ...], _list)


def _image_size(value: Any, _: Any) -> int | tuple[int, int]:
    sides = value if isinstance(value, list) else [value]
    if any(type(side) is not int for side in sides) or len(sides) != (1 + isinstance(value, list)):
        raise TypeError(repr(value))
    return (sides[0], sides[1]) if isinstance(value, list) else value


_json.register_structure_hook_func(lambda kind: kind == int | tuple[int, int], _image_size)


def to_json(config: Any) -> str:
    """A config as JSON that `from_json` reads back."""
    return _json.dumps(config, indent=2) + "\n"


def from_json(text: str, kind: type[T], *, source: str) -> T:
    """A config of the given class from JSON; `source` names it in errors.

    Raises:
        UserError: The text is not JSON, or has an unknown key, a wrong type, or a value that
            cannot work.
    """
    try:
        return _json.loads(text, kind)
    except cattrs.BaseValidationError as error:
        complaints = cattrs.transform_error(error, source, format_exception=_complaint)
        raise UserError("; ".join(complaints)) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{source} is not a config: {error}") from error


def _complaint(error: BaseException, kind: Any) -> str:
    """What cattrs found wrong, in plain words; the place in the file is added by cattrs."""
    match error:
        case ForbiddenExtraKeysError(cl=owner, extra_fields=unknown) if owner and unknown:
            names = [field.name for field in fields(owner)]
            return ", ".join(f"unknown key '{key}'{nearest(key, names)}" for key in sorted(unknown))
        case UserError():
            return str(error)
        case KeyError():
            return "a required key is missing"
        case _:
            wanted = getattr(kind, "__name__", str(kind)).replace("typing.", "")
            return f"a value is not {wanted} ({error})"
