"""Routes: from requests to a session's answers."""

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

from mvmae.inspect.explore import questions
from mvmae.inspect.explore.guard import Guard
from mvmae.inspect.explore.questions import BadQuestionError
from mvmae.inspect.explore.session import NoSuchImageError, Session
from mvmae.inspect.explore.workers import Workers

T = TypeVar("T")
STATIC = {
    "/": ("explore.html", "text/html; charset=utf-8"),
    "/explore.css": ("explore.css", "text/css; charset=utf-8"),
    "/explore.js": ("explore.js", "text/javascript; charset=utf-8"),
    "/asking.js": ("asking.js", "text/javascript; charset=utf-8"),
    "/picking.js": ("picking.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
MOST_LISTED = 200  # images of the gallery in one answer
MOST_SEED = 2**31 - 1


def build(
    session: Session, workers: Workers, *, names: Collection[str], addresses: bool = False
) -> Starlette:
    """The server.

    Args:
        session: What answers.
        workers: Where.
        names: What the server is called; see `Guard`.
        addresses: See `Guard`.
    """
    routes = [Route(path, _static(*content)) for path, content in STATIC.items()]
    routes += _reads(session, workers) + _questions(session, workers)
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, names=names, addresses=addresses)],
        exception_handlers={
            BadQuestionError: _bad_question,
            NoSuchImageError: _no_such_image,
            HTTPException: _http_error,
            ClientDisconnect: _nobody_there,
            Exception: _our_fault,
        },
    )


def _static(name: str, kind: str) -> Callable[[Request], Any]:
    content = files("mvmae.inspect.explore").joinpath(name).read_bytes()

    async def page(_: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return page


def _reads(session: Session, workers: Workers) -> list[Route]:
    """What is asked by address alone."""

    async def about(_: Request) -> Response:
        return JSONResponse(session.about())

    async def progress(_: Request) -> Response:
        return JSONResponse(session.progress())

    async def typical(_: Request) -> Response:
        return JSONResponse(session.typical(8))

    async def gallery(request: Request) -> Response:
        asked = {name: _number(text) for name, text in request.query_params.items()}
        offset = questions.whole(asked, "offset", 0, len(session.order), 0)
        count = questions.whole(asked, "count", 1, MOST_LISTED, 24)
        return JSONResponse(session.gallery(offset, count))

    def index_in(request: Request) -> int:
        asked = {"index": _number(request.path_params["index"])}
        return questions.whole(asked, "index", 0, len(session.source) - 1, 0)

    async def card(request: Request) -> Response:
        return JSONResponse(session.card(index_in(request)))

    async def thumbnail(request: Request) -> Response:
        index = index_in(request)
        content = await _in(workers.reading, lambda: session.thumbnail(index))
        return Response(content, media_type="image/jpeg", headers={"cache-control": "no-cache"})

    async def shown(request: Request) -> Response:
        workers.touch()
        name = request.path_params["image"]
        content = await _in(workers.reading, lambda: session.shown(name))
        return Response(content, media_type="image/png", headers={"cache-control": "no-cache"})

    return [
        Route("/api/about", about),
        Route("/api/progress", progress),
        Route("/api/typical", typical),
        Route("/api/gallery", gallery),
        Route("/api/cards/{index}", card),
        Route("/api/thumbnails/{index}", thumbnail),
        Route("/api/images/{image}", shown),
    ]


def _questions(session: Session, workers: Workers) -> list[Route]:
    """What is asked in JSON, and uploads."""

    async def upload(request: Request) -> Response:
        workers.touch()
        content = await questions.body(request, questions.MOST_BYTES, "That file")
        if not content:
            raise BadQuestionError("That file is empty.")
        return JSONResponse({"image": await _in(workers.reading, lambda: session.upload(content))})

    def answering(read: Callable[[Session, dict[str, Any]], Callable[[], Any]]) -> Any:
        async def answer(request: Request) -> Response:
            workers.touch()
            work = read(session, await questions.asked(request))
            try:
                return JSONResponse(await _in(workers.computing, work))
            finally:
                workers.touch()

        return answer

    asked = {
        "reconstruct": _reconstruct,
        "attention": _attention,
        "similar": _similar,
        "features": _features,
        "neighbours": _neighbours,
    }
    return [
        Route("/api/images", upload, methods=["POST"]),
        *(Route(f"/api/{k}", answering(v), methods=["POST"]) for k, v in asked.items()),
    ]


def _reconstruct(session: Session, asked: dict[str, Any]) -> Callable[[], Any]:
    decoder = session.networks.decoder
    if decoder is None:
        raise BadQuestionError(session.facts.no_decoder)
    image = questions.image(asked)
    ratio = questions.share(asked, "mask_ratio", decoder.config.model.mask_ratio)
    seed = questions.whole(asked, "seed", 0, MOST_SEED, 0)
    visible = questions.patches(asked, "visible", decoder.config.model.num_patches)
    return lambda: session.reconstruct(image, ratio, seed, visible)


def _attention(session: Session, asked: dict[str, Any]) -> Callable[[], Any]:
    image, heads = questions.image(asked), questions.flag(asked, "heads")
    if asked.get("block") is None:
        if heads:
            raise BadQuestionError("heads are of one block: name a block.")
        return lambda: session.attention(image, None, False)
    depth = len(session.networks.opened.encoder.blocks)
    block = questions.whole(asked, "block", 0, depth - 1, 0)
    return lambda: session.attention(image, block, heads)


def _similar(session: Session, asked: dict[str, Any]) -> Callable[[], Any]:
    rows, columns = session.networks.opened.encoder.grid
    image = questions.image(asked)
    patch = questions.whole(asked, "patch", 0, rows * columns - 1, 0)
    return lambda: session.similar(image, patch)


def _features(session: Session, asked: dict[str, Any]) -> Callable[[], Any]:
    image, alone = questions.image(asked), questions.flag(asked, "alone")
    return lambda: session.features(image, alone)


def _neighbours(session: Session, asked: dict[str, Any]) -> Callable[[], Any]:
    image, count = questions.image(asked), questions.whole(asked, "count", 1, 50, 12)
    return lambda: session.neighbours(image, count)


async def _in(pool: Executor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


def _number(text: str) -> int | str:
    """A whole number as one, and anything else as it is, to be refused."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text


async def _bad_question(_: Request, error: Exception) -> Response:
    assert isinstance(error, BadQuestionError)
    return JSONResponse({"message": str(error)}, status_code=error.status)


async def _no_such_image(request: Request, error: Exception) -> Response:
    status = 400 if request.method == "POST" and request.url.path == "/api/images" else 404
    return JSONResponse({"message": str(error)}, status_code=status)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        {"message": f"{error.detail}."}, status_code=error.status_code, headers=error.headers
    )


async def _nobody_there(_: Request, __: Exception) -> Response:
    """Whoever asked has left before all was sent, such as by reloading the page."""
    return Response(status_code=400)


async def _our_fault(_: Request, __: Exception) -> Response:
    """The trace goes to the terminal."""
    return JSONResponse(
        {"message": "Something went wrong here; the terminal says more."}, status_code=500
    )
