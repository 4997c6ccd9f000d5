"""The socket that the page is served on, and the threads that answer.

Networks run in a single thread, so that no other lock is needed: requests queue up there, and the
background adds one batch at a time. Files are decoded in two other threads.
"""

import errno
import ipaddress
import os
import socket
import threading
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
        self.stopped = threading.Event()
        # One thread for the networks: answers stay in order, and nothing else needs a lock.
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
        self.stopped.set()
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
    # Like other servers, answer IPv4 too at the address `::` that stands for all of this machine.
    is_dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    last = min(port + MAX_TRIES, MAX_PORT)
    for number in [0] if port == 0 else [*range(port, last + 1), 0]:
        place = (address[0], number, *address[2:])
        try:
            return socket.create_server(place, family=family, dualstack_ipv6=is_dual)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            if error.errno == errno.EACCES:
                raise UserError(
                    f"port {number} is reserved for the system: choose a --port of 1024 or above"
                ) from error
            raise UserError(
                f"--host {host} cannot be served on ({os.strerror(error.errno or 0)}): use "
                "127.0.0.1, or an address of this machine"
            ) from error
    raise UserError(f"the ports from {port} to {last} are in use: choose another --port")


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
    # A browser cannot open the address that stands for all addresses of a machine.
    if host in ("", "0.0.0.0", "::"):
        host = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
    return f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}/"
