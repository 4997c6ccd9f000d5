"""Configs as JSON and back."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
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
    """Take values of JSON's own types only; cattrs would turn 2.7 into 2 and "false" into true."""
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


POSITIONAL = ("encoder", "data", "part")  # options without a flag on the command line


def to_plain(config: Any) -> dict[str, Any]:
    """Return a config as values that JSON can hold."""
    return json.loads(to_json(config))


def to_json(config: Any) -> str:
    """Return a config as JSON that `from_json` reads back."""
    return _json.dumps(config, indent=2) + "\n"


def command_line(command: str, config: Any) -> str:
    """Return the command line for a config: the options that differ from their defaults."""
    return shlex.join(["mvmae", command, *_words(config, type(config), "")])


def _words(config: Any, kind: Any, prefix: str) -> Iterator[str]:
    flags = []
    for field in fields(kind):
        value, default = getattr(config, field.name), _default(field)
        if is_dataclass(value):
            flags += _words(value, type(value), f"{prefix}{field.name}.")
        elif not prefix and field.name in POSITIONAL:
            yield from (str(item) for item in (value if isinstance(value, tuple) else (value,)))
        elif value != default:
            flags += _flag((prefix + field.name).replace("_", "-"), value)
    yield from flags


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--{_negated(name)}"]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{name}", *(str(item) for item in values)]


def _negated(name: str) -> str:
    *groups, last = name.split(".")
    return ".".join([*groups, f"no-{last}"])


def from_json(text: str, kind: type[T], *, source: str) -> T:
    """Read a config of the given class from JSON.

    Args:
        text: JSON.
        kind: Class of the config.
        source: Name of the text in messages.

    Raises:
        UserError: The text is not JSON, or has an unknown key, a wrong type, or a value that
            cannot work.
    """
    try:
        return _json.loads(text, kind)
    except cattrs.BaseValidationError as error:
        messages = cattrs.transform_error(error, source, format_exception=_describe)
        raise UserError("; ".join(messages)) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{source} is not a config: {error}") from error


def _describe(error: BaseException, kind: Any) -> str:
    """Describe what cattrs rejected; cattrs adds the place in the file."""
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
