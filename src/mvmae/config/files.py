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


@_json.register_structure_hook
def _image_size(value: Any, _: Any) -> int | tuple[int, int]:
    if isinstance(value, int):
        return value
    height, width = value
    return int(height), int(width)


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


def _complaint(error: BaseException, kind: type | None) -> str:
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
