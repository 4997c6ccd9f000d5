"""Routes of the server: turn requests into calls of a session."""

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
from mvmae.inspect.explore.request_values import integer
from mvmae.inspect.explore.server import Workers
from mvmae.inspect.explore.session import RequestError, Session

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
    session: Session,
    workers: Workers,
    *,
    names: Collection[str],
    allow_addresses: bool = False,
) -> Starlette:
    """Build the server.

    Args:
        session: Computes the answers.
        workers: Threads in which it does so.
        names: Host names of the server, see `Guard`.
        allow_addresses: See `Guard`.
    """
    errors = (RequestError, HTTPException, ClientDisconnect, Exception)
    return Starlette(
        routes=[*_static_routes(), *_get_routes(session, workers), *_post_routes(session, workers)],
        middleware=[Middleware(Guard, names=names, allow_addresses=allow_addresses)],
        exception_handlers=dict.fromkeys(errors, _explain),
    )


async def _explain(_: Request, error: Exception) -> Response:
    """Answer an error. Of one that is our fault, Starlette prints the traceback to the terminal."""
    if isinstance(error, RequestError):
        return JSONResponse({"message": str(error)}, error.status)
    if isinstance(error, HTTPException):
        return JSONResponse({"message": f"{error.detail}."}, error.status_code, error.headers)
    if isinstance(error, ClientDisconnect):  # for example the page was reloaded during an upload
        return Response(status_code=400)
    message = "Something went wrong on the server: the terminal shows what."
    return JSONResponse({"message": message}, 500)


def _static_routes() -> list[Route]:
    """The files of the page, read once."""

    def route(path: str, name: str, kind: str) -> Route:
        content = files("mvmae.inspect.explore").joinpath(name).read_bytes()

        async def page(_: Request) -> Response:
            return Response(content, media_type=kind, headers=NO_CACHE)

        return Route(path, page)

    return [route(path, *file) for path, file in STATIC.items()]


def _get_routes(session: Session, workers: Workers) -> list[Route]:
    """Requests without a body."""

    def numbers(request: Request) -> Values:
        """Values of the address; text other than a number stays as it is, and is refused later."""
        # Beyond 18 digits a number would not fit into 64 bits.
        texts = dict(request.query_params) | request.path_params
        return {
            name: int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text
            for name, text in texts.items()
        }

    def parse_index(values: Values) -> int:
        return integer(values, "index", 0, len(session.source) - 1, 0)

    def gallery(values: Values) -> Values:
        offset = integer(values, "offset", 0, len(session.order), 0)
        return session.gallery(offset, integer(values, "count", 1, MAX_GALLERY, 24))

    def route(path: str, answer: Callable[[Values], Any]) -> Route:
        async def page(request: Request) -> Response:
            return JSONResponse(answer(numbers(request)))

        return Route(path, page)

    async def thumbnail(request: Request) -> Response:
        index = parse_index(numbers(request))
        content = await _run_in(workers.reading, lambda: session.thumbnail(index))
        return Response(content, media_type="image/jpeg", headers=NO_CACHE)

    async def picture(request: Request) -> Response:
        workers.touch()
        name = request.path_params["image"]
        content = await _run_in(workers.reading, lambda: session.picture(name))
        return Response(content, media_type="image/png", headers=NO_CACHE)

    return [
        route("/api/about", lambda _: session.about()),
        route("/api/progress", lambda _: session.embedded.progress()),
        route("/api/typical", lambda _: session.typical(NUM_TYPICAL)),
        route("/api/gallery", gallery),
        route("/api/cards/{index}", lambda values: session.card(parse_index(values))),
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
            raise RequestError("That file is empty.")
        image = await _run_in(workers.reading, lambda: session.upload(content))
        return JSONResponse({"image": image})

    def route(name: str, answer: Callable[[Session, Values], Any]) -> Route:
        async def page(request: Request) -> Response:
            workers.touch()
            values = await request_values.read_json(request)
            try:
                work = _run_in(workers.computing, lambda: answer(session, values))
                return JSONResponse(await work)
            finally:
                workers.touch()  # the pause of the background begins after the answer

        return Route(f"/api/{name}", page, methods=["POST"])

    return [
        Route("/api/images", upload, methods=["POST"]),
        route("reconstruct", _reconstruct),
        route("attention", _attention),
        route("similar", _similar),
        route("features", _features),
        route("neighbours", _neighbours),
    ]


def _reconstruct(session: Session, values: Values) -> Values:
    decoder = session.networks.decoder
    if decoder is None:
        raise RequestError(session.facts.no_decoder)
    model, image = decoder.config.model, request_values.image(values)
    ratio = request_values.fraction(values, "mask_ratio", model.mask_ratio)
    seed = integer(values, "seed", 0, MAX_SEED, 0)
    visible = request_values.patches(values, "visible", model.num_patches)
    return session.reconstruct(decoder, image, ratio, seed, visible)


def _attention(session: Session, values: Values) -> Values:
    image, heads = request_values.image(values), request_values.flag(values, "heads")
    if values.get("block") is None:
        if heads:
            raise RequestError("heads belong to one block: name a block.")
        return session.attention(image, None, False)
    depth = len(session.networks.opened.encoder.blocks)
    return session.attention(image, integer(values, "block", 0, depth - 1, 0), heads)


def _similar(session: Session, values: Values) -> Values:
    rows, columns = session.networks.opened.encoder.grid
    patch = integer(values, "patch", 0, rows * columns - 1, 0)
    return session.similar(request_values.image(values), patch)


def _features(session: Session, values: Values) -> Values:
    alone = request_values.flag(values, "alone")
    return session.features(request_values.image(values), alone)


def _neighbours(session: Session, values: Values) -> Values:
    count = integer(values, "count", 1, 50, 12)
    return session.neighbours(request_values.image(values), count)


async def _run_in(pool: Executor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
