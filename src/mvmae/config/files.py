"""Configs as JSON and back."""

import json
import shlex
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.preconf.json import make_converter

from mvmae.errors import UserError, suggest

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


POSITIONAL = ("encoder", "data", "part", "table")  # options without a flag on the command line


def to_plain(config: Any) -> dict[str, Any]:
    """Return a config as values that JSON can hold."""
    return json.loads(to_json(config))


def to_json(config: Any) -> str:
    """Return a config as JSON that `from_json` reads back."""
    return _json.dumps(config, indent=2) + "\n"


def command_line(command: str, config: Any) -> str:
    """Return the command line for a config: the options that differ from their defaults."""
    return shlex.join(["mvmae", command, *arguments(config)])


def arguments(config: Any, prefix: str = "") -> list[str]:
    """Return the arguments for a config, those without a flag first."""
    words, flags = [], []
    for field in fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if is_dataclass(value):
            flags += arguments(value, f"{name}.")
        elif name in POSITIONAL:
            words += map(str, value if isinstance(value, tuple) else (value,))
        elif value != default:
            flags += _flag(name.replace("_", "-"), value)
    return [*words, *flags]


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        group, dot, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{group}{dot}no-{last}"]
    values = value if isinstance(value, tuple) else (value,)
    if values and isinstance(values[0], tuple):  # given repeatedly, such as --set of ablate
        return [word for one in values for word in (f"--{name}", *one)]
    return [f"--{name}", *map(str, values)]


def read_json(file: str) -> Any:
    """Read a file of JSON.

    Raises:
        UserError: It cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    except ValueError as error:
        raise UserError(f"{file} is not a config: {error}") from error


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
            return ", ".join(f"unknown key '{key}'{suggest(key, names)}" for key in sorted(unknown))
        case UserError():
            return str(error)
        case KeyError():
            return "a required key is missing"
        case _:
            kind = getattr(kind, "__origin__", kind)  # without the rules of an annotated type
            wanted = getattr(kind, "__name__", str(kind)).replace("typing.", "")
            return f"a value is not {wanted} ({error})"
