"""Who may ask, and what a browser may do with the answers."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
    """Answers only who calls the server by its own name, and no other site's pages.

    A web page elsewhere can send requests to this machine. It cannot read the answers, unless its
    own name is made to point here (DNS rebinding): then the Host header has that name. What it
    sends without reading has its Origin, or `Sec-Fetch-Site: cross-site`, which browsers of today
    send with every request to a safe address as this machine's.

    Args:
        app: What answers.
        names: What the server is called.
        addresses: Whether any address in numbers is right, too: they cannot be made to point here.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], addresses: bool) -> None:
        self.app, self.names, self.addresses = app, frozenset(names), addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if complaint := self.complaint(Headers(scope=scope)):
            refused = JSONResponse({"message": complaint}, status_code=400)
            await refused(scope, receive, send_guarded)
            return
        await self.app(scope, receive, send_guarded)

    def complaint(self, headers: Headers) -> str:
        """Why a request is refused; empty where it is not."""
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self.is_own(host):
            return "This server does not go by that name: open the address that mvmae printed."
        if headers.get("sec-fetch-site") == "cross-site" and not _is_visit(headers):
            return "Requests from other sites are refused."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "Requests from other sites are refused."
        return ""

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this server; its port does not matter, for tunnels."""
        try:
            parts = urlsplit(f"//{host}")
            name, _ = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        if parts.netloc != host or "@" in host:
            return False
        if name in self.names:
            return True
        return self.addresses and is_address(name)


def _is_visit(headers: Headers) -> bool:
    """Whether a person follows a link to here: the page then stands alone, and its site sees none.

    Fetch Metadata (W3C): a frame's destination is `iframe`, a script's mode is no `navigate`.
    """
    return (
        headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    )


def is_address(name: str) -> bool:
    """Whether it is an IP address in numbers."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
