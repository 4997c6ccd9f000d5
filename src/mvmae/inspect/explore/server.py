"""The socket that the page is served on, and the threads that answer.

Networks run in a single thread, so that no other lock is needed: requests queue up there, and the
background adds one batch at a time. Files are decoded in two other threads.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mvmae.config.figures import MAX_PORT
from mvmae.errors import UserError

T = TypeVar("T")
MAX_TRIES = 50  # ports tried after one that is in use


class Workers:
    """The threads that answer, and the time of the last request."""

    def __init__(self) -> None:
        self.computing = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.reading = ThreadPoolExecutor(2, thread_name_prefix="read")
        self._last_request = time.monotonic()

    def compute(self, work: Callable[[], T]) -> T:
        """Run a function in the thread of the networks and wait for its result."""
        return self.computing.submit(work).result()

    def touch(self) -> None:
        """Note that a person asked for something."""
        self._last_request = time.monotonic()

    def idle(self) -> float:
        """Seconds since a person asked for something."""
        return time.monotonic() - self._last_request

    def close(self) -> None:
        """Accept no more work; do not wait for what is running."""
        for pool in (self.computing, self.reading):
            pool.shutdown(wait=False, cancel_futures=True)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket on the port or the next free one.

    Raises:
        UserError: The host is not an address of this machine, or no port is free.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} is not a known address: use 127.0.0.1") from error
    last = min(port + MAX_TRIES, MAX_PORT)
    for number in [0] if port == 0 else [*range(port, last + 1), 0]:
        if (sock := _bind(family, (address[0], number, *address[2:]), host)) is not None:
            return sock
    raise UserError(f"the ports from {port} to {last} are in use: choose another --port")


def _bind(family: int, address: tuple, host: str) -> socket.socket | None:
    """Open a listening socket; None if the port is in use."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":  # on Windows this would let two programs share a port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(128)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        if error.errno == errno.EACCES:
            raise UserError(
                f"port {address[1]} is reserved for the system: choose a --port of 1024 or above"
            ) from error
        raise UserError(
            f"--host {host} cannot be served on ({error.strerror}): use 127.0.0.1, or an address "
            "of this machine"
        ) from error
    return sock


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    return host == "localhost" or (is_ip_address(host) and ipaddress.ip_address(host).is_loopback)


def is_ip_address(name: str) -> bool:
    """Whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def own_names(host: str) -> frozenset[str]:
    """Names under which a browser may address the server."""
    names = {host, "localhost", "127.0.0.1", "::1", socket.gethostname()}
    return frozenset(name.lower() for name in names)


def page_url(sock: socket.socket, host: str) -> str:
    """Address of the page for a browser on this machine."""
    if host in ("", "0.0.0.0", "::"):
        host = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
    return f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}/"
