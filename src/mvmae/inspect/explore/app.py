"""Routes of the server: turn requests into calls of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mvmae.inspect.explore import request_values
from mvmae.inspect.explore.guard import Guard
from mvmae.inspect.explore.request_values import BadRequestError
from mvmae.inspect.explore.server import Workers
from mvmae.inspect.explore.session import ImageNotFoundError, Session

T = TypeVar("T")
Values = dict[str, Any]
STATIC = {
    "/": ("explore.html", "text/html; charset=utf-8"),
    "/explore.css": ("explore.css", "text/css; charset=utf-8"),
    "/explore.js": ("explore.js", "text/javascript; charset=utf-8"),
    "/requests.js": ("requests.js", "text/javascript; charset=utf-8"),
    "/patch_picker.js": ("patch_picker.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
NO_CACHE = {"cache-control": "no-cache"}
MAX_GALLERY = 200  # images in one answer
MAX_SEED = 2**31 - 1
NUM_TYPICAL = 8


def build_app(
    session: Session, workers: Workers, *, names: Collection[str], allow_addresses: bool = False
) -> Starlette:
    """Build the server.

    Args:
        session: Computes the answers.
        workers: Threads in which it does so.
        names: Host names of the server, see `Guard`.
        allow_addresses: See `Guard`.
    """
    routes = [Route(path, _static(*content)) for path, content in STATIC.items()]
    routes += _get_routes(session, workers) + _post_routes(session, workers)
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, names=names, allow_addresses=allow_addresses)],
        exception_handlers={
            BadRequestError: _bad_request,
            ImageNotFoundError: _image_not_found,
            HTTPException: _http_error,
            ClientDisconnect: _client_left,
            Exception: _internal_error,
        },
    )


def _static(name: str, kind: str) -> Callable[[Request], Any]:
    content = files("mvmae.inspect.explore").joinpath(name).read_bytes()

    async def page(_: Request) -> Response:
        return Response(content, media_type=kind, headers=NO_CACHE)

    return page


def _get_routes(session: Session, workers: Workers) -> list[Route]:
    """Requests without a body."""

    async def about(_: Request) -> Response:
        return JSONResponse(session.about())

    async def progress(_: Request) -> Response:
        return JSONResponse(session.progress())

    async def typical(_: Request) -> Response:
        return JSONResponse(session.typical(NUM_TYPICAL))

    async def gallery(request: Request) -> Response:
        values = {name: _parse_number(text) for name, text in request.query_params.items()}
        offset = request_values.integer(values, "offset", 0, len(session.order), 0)
        count = request_values.integer(values, "count", 1, MAX_GALLERY, 24)
        return JSONResponse(session.gallery(offset, count))

    def image_index(request: Request) -> int:
        values = {"index": _parse_number(request.path_params["index"])}
        return request_values.integer(values, "index", 0, len(session.source) - 1, 0)

    async def card(request: Request) -> Response:
        return JSONResponse(session.card(image_index(request)))

    async def thumbnail(request: Request) -> Response:
        index = image_index(request)
        content = await _run_in(workers.reading, lambda: session.thumbnail(index))
        return Response(content, media_type="image/jpeg", headers=NO_CACHE)

    async def picture(request: Request) -> Response:
        workers.touch()
        name = request.path_params["image"]
        content = await _run_in(workers.reading, lambda: session.picture(name))
        return Response(content, media_type="image/png", headers=NO_CACHE)

    return [
        Route("/api/about", about),
        Route("/api/progress", progress),
        Route("/api/typical", typical),
        Route("/api/gallery", gallery),
        Route("/api/cards/{index}", card),
        Route("/api/thumbnails/{index}", thumbnail),
        Route("/api/images/{image}", picture),
    ]


def _post_routes(session: Session, workers: Workers) -> list[Route]:
    """Uploads, and requests with values in JSON."""

    async def upload(request: Request) -> Response:
        workers.touch()
        limit = request_values.MAX_UPLOAD_BYTES
        content = await request_values.read_body(request, limit, "That file")
        if not content:
            raise BadRequestError("That file is empty.")
        image = await _run_in(workers.reading, lambda: session.upload(content))
        return JSONResponse({"image": image})

    def answer_route(prepare: Callable[[Session, Values], Callable[[], Any]]) -> Any:
        async def answer(request: Request) -> Response:
            workers.touch()
            work = prepare(session, await request_values.read_json(request))
            try:
                return JSONResponse(await _run_in(workers.computing, work))
            finally:
                workers.touch()

        return answer

    answers = {
        "reconstruct": _reconstruct,
        "attention": _attention,
        "similar": _similar,
        "features": _features,
        "neighbours": _neighbours,
    }
    return [
        Route("/api/images", upload, methods=["POST"]),
        *(Route(f"/api/{k}", answer_route(v), methods=["POST"]) for k, v in answers.items()),
    ]


def _reconstruct(session: Session, values: Values) -> Callable[[], Any]:
    decoder = session.networks.decoder
    if decoder is None:
        raise BadRequestError(session.facts.no_decoder)
    image = request_values.image(values)
    ratio = request_values.fraction(values, "mask_ratio", decoder.config.model.mask_ratio)
    seed = request_values.integer(values, "seed", 0, MAX_SEED, 0)
    visible = request_values.patches(values, "visible", decoder.config.model.num_patches)
    return lambda: session.reconstruct(image, ratio, seed, visible)


def _attention(session: Session, values: Values) -> Callable[[], Any]:
    image, heads = request_values.image(values), request_values.flag(values, "heads")
    if values.get("block") is None:
        if heads:
            raise BadRequestError("heads belong to one block: name a block.")
        return lambda: session.attention(image, None, False)
    depth = len(session.networks.opened.encoder.blocks)
    block = request_values.integer(values, "block", 0, depth - 1, 0)
    return lambda: session.attention(image, block, heads)


def _similar(session: Session, values: Values) -> Callable[[], Any]:
    rows, columns = session.networks.opened.encoder.grid
    image = request_values.image(values)
    patch = request_values.integer(values, "patch", 0, rows * columns - 1, 0)
    return lambda: session.similar(image, patch)


def _features(session: Session, values: Values) -> Callable[[], Any]:
    image, alone = request_values.image(values), request_values.flag(values, "alone")
    return lambda: session.features(image, alone)


def _neighbours(session: Session, values: Values) -> Callable[[], Any]:
    image = request_values.image(values)
    count = request_values.integer(values, "count", 1, 50, 12)
    return lambda: session.neighbours(image, count)


async def _run_in(pool: Executor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


def _parse_number(text: str) -> int | str:
    """Parse an integer; other text stays as it is, and `request_values` refuses it."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text


async def _bad_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequestError)
    return JSONResponse({"message": str(error)}, status_code=error.status)


async def _image_not_found(request: Request, error: Exception) -> Response:
    status = 400 if request.method == "POST" and request.url.path == "/api/images" else 404
    return JSONResponse({"message": str(error)}, status_code=status)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        {"message": f"{error.detail}."}, status_code=error.status_code, headers=error.headers
    )


async def _client_left(_: Request, __: Exception) -> Response:
    """The browser left before it had sent everything, for example to reload the page."""
    return Response(status_code=400)


async def _internal_error(_: Request, __: Exception) -> Response:
    """Starlette prints the traceback to the terminal."""
    return JSONResponse(
        {"message": "Something went wrong on the server: the terminal shows what."}, status_code=500
    )
