"""The socket that the page is served on."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from mvmae.config.figures import MAX_PORT
from mvmae.errors import UserError

TRIES = 50  # ports after a taken one


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the port, or on the next one that is free.

    Raises:
        UserError: The host is no address of this machine, or no port can be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} is no address that is known here") from error
    last = min(port + TRIES, MAX_PORT)
    for number in [0] if port == 0 else [*range(port, last + 1), 0]:
        if (found := _bound(family, (address[0], number, *address[2:]), host)) is not None:
            return found
    raise UserError(f"the ports from {port} to {last} are taken: choose another --port")


def _bound(family: int, address: tuple, host: str) -> socket.socket | None:
    """A listening socket; none where the port is taken."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":  # elsewhere it would let two programs share a port
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
                f"port {address[1]} may not be used: choose one from 1024 on with --port"
            ) from error
        raise UserError(
            f"--host {host} cannot be served on ({error.strerror}): use 127.0.0.1, or an address "
            "of this machine"
        ) from error
    return sock


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_names(host: str) -> frozenset[str]:
    """Names that a browser may call the server by."""
    mine = {host, "localhost", "127.0.0.1", "::1", socket.gethostname()}
    return frozenset(name.lower() for name in mine)


def url_of(sock: socket.socket, host: str) -> str:
    """The address to type into a browser on this machine."""
    if host in ("", "0.0.0.0", "::"):
        host = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
    return f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}/"
