"""Check the values that the page sends: anyone who finds the address may send anything."""

import json
from math import isfinite
from typing import Any

from starlette.requests import Request

from mvmae.inspect.explore.session import RequestError

MAX_UPLOAD_BYTES = 32 * 2**20
MAX_JSON_BYTES = 2**18  # enough for the numbers of all patches of a large grid


async def read_body(request: Request, limit: int, what: str) -> bytes:
    """Read all bytes of a request.

    Raises:
        RequestError: It is larger than `limit` bytes; if it says so itself, it is not read.
    """
    too_large = RequestError(f"{what} is too large: at most {limit // 2**20 or 1} MB.", 413)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 12 or int(announced) > limit):
        raise too_large
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > limit:
            raise too_large
    return bytes(content)


async def read_json(request: Request) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RequestError: The request is something else.
    """
    content = await read_body(request, MAX_JSON_BYTES, "The request")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError("The request is not JSON.") from error
    if not isinstance(values, dict):
        raise RequestError("The request is not a JSON object.")
    return values


def integer(values: dict[str, Any], name: str, low: int, high: int, default: int) -> int:
    """An integer from `low` to `high`.

    Raises:
        RequestError: It is something else.
    """
    value = values.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise RequestError(f"{name} must be a whole number from {low} to {high}.")
    return value


def fraction(values: dict[str, Any], name: str, default: float) -> float:
    """A number from 0 to 1.

    Raises:
        RequestError: It is something else.
    """
    value = values.get(name, default)
    if type(value) not in (int, float) or not isfinite(value) or not 0 <= value <= 1:
        raise RequestError(f"{name} must be a number from 0 to 1.")
    return float(value)


def flag(values: dict[str, Any], name: str) -> bool:
    """True or false; false if it is missing.

    Raises:
        RequestError: It is something else.
    """
    value = values.get(name, False)
    if type(value) is not bool:
        raise RequestError(f"{name} must be true or false.")
    return value


def image(values: dict[str, Any]) -> str:
    """The name of an image, whether or not it exists.

    Raises:
        RequestError: It is not a short string.
    """
    value = values.get("image")
    if not isinstance(value, str) or not 0 < len(value) < 64:
        raise RequestError("image must name an image.")
    return value


def patches(values: dict[str, Any], name: str, total: int) -> list[int] | None:
    """Numbers of some but not all of `total` patches; None if they are missing.

    Raises:
        RequestError: They are something else.
    """
    value = values.get(name)
    if value is None:
        return None
    # The slice bounds the work for a list of millions, whose length is refused below.
    is_list = isinstance(value, list) and all(
        type(one) is int and 0 <= one < total for one in value[: total + 1]
    )
    if not is_list or not 0 < len(set(value)) < total or len(value) >= total:
        raise RequestError(
            f"{name} must be a list of patches from 0 to {total - 1}: at least one must stay "
            "visible, and one hidden."
        )
    return value
