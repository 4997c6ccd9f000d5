"""What the page sends, read with care: anything may come, from anyone who finds the address."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

from starlette.requests import Request

MOST_BYTES = 32 * 2**20  # of an image file
MOST_JSON = 2**18  # of a question: the numbers of all patches of a large grid


class BadQuestionError(Exception):
    """A question that makes no sense; the message says what would."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


async def body(request: Request, most: int, what: str) -> bytes:
    """All bytes of a request, if they are not too many.

    Raises:
        BadQuestionError: They are; what is announced as too much is not even read.
    """
    too_large = BadQuestionError(f"{what} is too large: at most {most // 2**20 or 1} MB.", 413)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 12 or int(announced) > most):
        raise too_large
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > most:
            raise too_large
    return bytes(content)


async def asked(request: Request) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadQuestionError: It is none.
    """
    content = await body(request, MOST_JSON, "That question")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadQuestionError("The question is no JSON.") from error
    if not isinstance(found, dict):
        raise BadQuestionError("The question is no JSON object.")
    return found


def whole(question: dict[str, Any], name: str, low: int, high: int, default: int) -> int:
    """A whole number of a question, from `low` to `high`.

    Raises:
        BadQuestionError: It is none, or lies outside.
    """
    value = question.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise BadQuestionError(f"{name} must be a whole number from {low} to {high}.")
    return value


def share(question: dict[str, Any], name: str, default: float) -> float:
    """A number between 0 and 1.

    Raises:
        BadQuestionError: It is none.
    """
    value = question.get(name, default)
    if type(value) not in (int, float) or not isfinite(value) or not 0 <= value <= 1:
        raise BadQuestionError(f"{name} must be a number from 0 to 1.")
    return float(value)


def flag(question: dict[str, Any], name: str) -> bool:
    """Yes or no; no where it is not said.

    Raises:
        BadQuestionError: It is neither.
    """
    value = question.get(name, False)
    if type(value) is not bool:
        raise BadQuestionError(f"{name} must be true or false.")
    return value


def image(question: dict[str, Any]) -> str:
    """The name of an image; whether there is one is seen later.

    Raises:
        BadQuestionError: It is no text.
    """
    value = question.get("image")
    if not isinstance(value, str) or not 0 < len(value) < 64:
        raise BadQuestionError("image must name an image.")
    return value


def patches(question: dict[str, Any], name: str, total: int) -> list[int] | None:
    """Numbers of patches, not all of them and not none; None where they are not given.

    Raises:
        BadQuestionError: They are no such list.
    """
    value = question.get(name)
    if value is None:
        return None
    good = isinstance(value, list) and all(
        type(one) is int and 0 <= one < total for one in value[: total + 1]
    )
    if not good or not 0 < len(set(value)) < total or len(value) >= total:
        raise BadQuestionError(
            f"{name} must be a list of patches from 0 to {total - 1}: at least one must stay "
            "visible, and one hidden."
        )
    return value
