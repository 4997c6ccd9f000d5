"""Checks of config values, and batch sizes that may be "auto".

A field's type carries the rules for its value, `Annotated[float, SHARE]`, so that a bound is
declared beside the option it limits. What depends on several options is checked by `require`.
"""

import re
from collections.abc import Callable
from functools import cache
from math import inf
from sys import float_info
from typing import Annotated, Any, NamedTuple, get_type_hints

from tyro.constructors import PrimitiveConstructorSpec

from mvmae.errors import UserError

AUTO = -1  # not None: micro_batch_size None means that a batch is not divided
"""A batch size that the run determines itself."""
MAX_WORKERS = 512  # each is a process, so a typing error would freeze the machine


class Rule(NamedTuple):
    """A condition on a value; None, the default of many options, always satisfies it."""

    message: str
    """Error message; {name} and {value} are replaced by those of the option."""

    holds: Callable[[Any], bool]

    is_whole: bool = False
    """Whether `holds` checks a tuple as a whole rather than item by item."""


def must_be(words: str, holds: Callable[[Any], bool]) -> Rule:
    """Make a rule with the message "NAME must be WORDS, not VALUE"."""
    return Rule(f"{{name}} must be {words}, not {{value}}", holds)


def between(low: int | float, high: int | float) -> Rule:
    """Make a rule for numbers from `low` to `high`, both included."""
    return must_be(f"between {low} and {high}", lambda value: low <= value <= high)


def maximum(high: int | float) -> Rule:
    """Make a rule for numbers up to `high`."""
    return must_be(f"at most {high}", lambda value: value <= high)


def not_empty(message: str) -> Rule:
    """Make a rule that a name, or each name in a tuple, is not empty."""
    return Rule(message, bool)


def one_or_more(message: str) -> Rule:
    """Make a rule that a tuple has at least one name, and no empty one."""
    return Rule(message, lambda items: len(items) > 0 and "" not in items, is_whole=True)


def increasing(what: str, high: float) -> Rule:
    """Make a rule for a pair of numbers above 0 and up to `high`, the smaller one first."""
    message = f"{{name}} {{value}} must be two increasing {what}"
    return Rule(message, lambda pair: 0 < pair[0] <= pair[1] <= high, is_whole=True)


def has_suffix(*suffixes: str) -> Rule:
    """Make a rule that a file's name ends in one of the suffixes, in upper or lower case."""
    message = f"--{{name}} {{value}} must end in {' or '.join(suffixes)}"
    return Rule(message, lambda file: file.suffix.lower() in suffixes)


# NaN breaks all of these rules, because its comparisons are false.
AT_LEAST_1 = must_be("at least 1", lambda value: value >= 1)
ABOVE_0 = must_be("above 0", lambda value: value > 0)
POSITIVE = must_be("finite and above 0", lambda value: 0 < value < inf)
NOT_NEGATIVE = must_be("finite and not negative", lambda value: 0 <= value < inf)
PROBABILITY = must_be("in [0, 1]", lambda value: 0 <= value <= 1)
BETWEEN_0_AND_1 = must_be("between 0 and 1", lambda value: 0 < value < 1)
BELOW_1 = must_be("in [0, 1)", lambda value: 0 <= value < 1)
SEED = must_be("between 0 and 2**63 - 1", lambda value: 0 <= value < 2**63)
SHARE = must_be("in (0, 1]", lambda value: 0 < value <= 1)
AT_LEAST_0 = must_be("at least 0", lambda value: value >= 0)
AT_LEAST_2 = must_be("at least 2", lambda value: value >= 2)
DISTINCT = Rule(
    "{name} lists a value twice: {value}",
    lambda items: len(set(items)) == len(items),
    is_whole=True,
)
SIZE_RULE = must_be("at least 1, or auto", lambda value: value >= 1 or value == AUTO)
GRAY_OR_COLOUR = must_be("3 for colour or 1 for gray", lambda channels: channels in (1, 3))

Count = Annotated[int, AT_LEAST_1]
CountOrNone = Annotated[int | None, AT_LEAST_1]
Minutes = Annotated[float, AT_LEAST_0]
Workers = Annotated[int | None, between(0, MAX_WORKERS)]
Seed = Annotated[int, SEED]
CropScale = Annotated[tuple[float, float], increasing("shares in (0, 1]", 1.0)]
Factors = Annotated[tuple[float, float], increasing("numbers above 0", float_info.max)]


@cache  # configs are copied often, and each copy is checked; resolving type hints is slow
def _find_rules(kind: type) -> list[tuple[str, Rule]]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        (name, rule)
        for name, hint in hints.items()
        for rule in getattr(hint, "__metadata__", ())
        if isinstance(rule, Rule)
    ]


def require_rules(config: object) -> None:
    """Check every value against the rules in its field's type.

    Raises:
        UserError: A value breaks one; the message names the option.
    """
    for name, rule in _find_rules(type(config)):
        value = getattr(config, name)
        for item in value if isinstance(value, tuple) and not rule.is_whole else (value,):
            if item is not None and not rule.holds(item):
                text = " ".join(map(str, item)) if isinstance(item, tuple) else item
                raise UserError(rule.message.format(name=name, value=text))


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


def _size_spec(
    metavar: str, parse: Callable[[list[str]], int | None]
) -> PrimitiveConstructorSpec[int | None]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=parse,
        is_instance=lambda value: value is None or isinstance(value, int),
        str_from_instance=lambda size: ["auto" if size == AUTO else str(size)],
    )


SIZE = _size_spec("INT|auto", _size)
SIZE_OR_NONE = _size_spec(
    "None|INT|auto", lambda words: None if words[0] == "None" else _size(words)
)
