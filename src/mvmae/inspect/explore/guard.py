"""Decide who may send requests, and what a browser may do with the answers."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mvmae.inspect.explore.server import is_ip_address

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Answer only requests that address the server by its own name and come from its own page.

    A web page elsewhere can send requests to this machine. It cannot read the answers unless its
    own name is made to point here (DNS rebinding), and then the Host header holds that name. A
    request it sends without reading the answer carries its Origin, or `Sec-Fetch-Site: cross-site`,
    which current browsers add to every request to a trustworthy address such as this machine's.

    Args:
        app: The application to protect.
        names: Host names of the server.
        allow_addresses: Whether to accept any IP address as well: none can be rebound by DNS.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], allow_addresses: bool) -> None:
        self.app, self.names, self.allow_addresses = app, frozenset(names), allow_addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self.app
        if complaint := self.complaint(Headers(scope=scope)):
            app = JSONResponse({"message": complaint}, status_code=400)
        await app(scope, receive, send_with_headers)

    def complaint(self, headers: Headers) -> str:
        """Why a request is refused; empty if it is accepted."""
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self.is_own(host):
            return "This server has another name: open the address that mvmae printed."
        if headers.get("sec-fetch-site") == "cross-site" and not _is_visit(headers):
            return "Requests from other sites are refused."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "Requests from other sites are refused."
        return ""

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this server; any port will do, because of SSH tunnels."""
        try:
            parts = urlsplit(f"//{host}")
            name, _ = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        if parts.netloc != host or "@" in host:
            return False
        return name in self.names or (self.allow_addresses and is_ip_address(name))


def _is_visit(headers: Headers) -> bool:
    """Whether a person follows a link to the page, which the linking site then cannot see.

    Fetch Metadata (W3C): a frame has the destination `iframe`, a script a mode other than
    `navigate`.
    """
    return (
        headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    )
