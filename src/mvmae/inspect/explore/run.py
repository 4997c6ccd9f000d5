"""A web page on this machine to explore an encoder. Read `run` from top to bottom."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mvmae import encoders, terminal
from mvmae.config.figures import ExploreConfig
from mvmae.config.model import ENCODERS
from mvmae.data.sources.base import Source
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedAutoencoder, OpenedEncoder
from mvmae.encoders.description import format_sizes
from mvmae.errors import UserError, encodable
from mvmae.inspect.choose_images import choose
from mvmae.inspect.explore import embeddings as background
from mvmae.inspect.explore.embeddings import Embedded
from mvmae.inspect.explore.listening import is_loopback, listen, own_names, url_of
from mvmae.inspect.explore.model import Networks
from mvmae.inspect.explore.session import Facts, Session
from mvmae.inspect.explore.workers import Workers
from mvmae.inspect.reconstruct import open_with_decoder
from mvmae.storage import results
from mvmae.storage.outputs import headings
from mvmae.training import precision
from mvmae.training.interrupt import Interrupt, exit_status

PATIENCE = 2  # seconds that answers under way get at the end


def run(config: ExploreConfig) -> int:
    """Serve the page until Ctrl-C.

    Returns:
        0 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: The encoder, the data or the address cannot be used, or a package is missing.
    """
    require_packages()
    device = precision.choose_device(config.device)
    with listen(config.host, config.port) as sock:
        networks, no_decoder = open_networks(config, device)
        source = open_source(
            config.data,
            networks.opened.encoder.in_channels,
            networks.opened.depth,
        )
        choose(source, 1, seed=0)  # or none can be read
        order = np.random.default_rng(0).permutation(len(source))
        embedded = Embedded(
            source, order[: config.most].tolist(), networks.opened.encoder.embed_dim
        )
        facts = facts_of(config, networks.opened, source, no_decoder)
        session = Session(networks, source, order, embedded, facts)
        return serve(config, session, sock)


def require_packages() -> None:
    """Make sure that there is something to serve with.

    Raises:
        UserError: There is not.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError("mvmae explore needs: pip install 'mvmae[explore]'") from error


def open_networks(config: ExploreConfig, device: torch.device) -> tuple[Networks, str]:
    """The encoder, the autoencoder where there is one, and why not where there is none.

    Raises:
        UserError: There is no such encoder.
    """
    opened = encoders.open_encoder(config.encoder, config.image_size)
    opened.encoder.to(device)
    decoder, reason = open_decoder(config.encoder)
    if decoder is not None:
        decoder.model.to(device)
    return Networks(opened, decoder, device, config.precision), reason


def open_decoder(name: str) -> tuple[OpenedAutoencoder | None, str]:
    """A run's autoencoder, or why there is none."""
    if not Path(name).exists():
        return None, f"{name} is an encoder alone; only a run of mvmae pretrain has a decoder."
    try:
        return open_with_decoder(name), ""
    except UserError as error:
        return None, encodable(f"{error}.")


def facts_of(config: ExploreConfig, opened: OpenedEncoder, source: Source, reason: str) -> Facts:
    """What the page says of what is explored."""
    (name,) = headings([config.encoder])
    encoder = opened.encoder
    known = next((key for key, size in ENCODERS.items() if size == encoder.size), None)
    words = format_sizes(
        {
            "known_as": known,
            "patch_size": encoder.patch_size,
            "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
            **encoder.size._asdict(),
        }
    )
    height, width = encoder.image_size
    maker = "" if opened.maker == "mvmae" else f", {opened.maker}"
    images = f"{len(source):,} image{'' if len(source) == 1 else 's'}"
    return Facts(
        encodable(name),
        f"{words}, {height} x {width} pixels{maker}",
        encodable(f"{data_in_words(config.data)}: {images}"),
        reason,
    )


def data_in_words(data: Sequence[str]) -> str:
    """The last parts of each path, which say enough and fit a phone."""
    return " ".join("/".join(Path(name).parts[-2:]).lstrip("/") for name in data)


def serve(config: ExploreConfig, session: Session, sock: socket.socket) -> int:
    """Answer until a signal comes; embed the data meanwhile."""
    import uvicorn

    from mvmae.inspect.explore.app import build

    workers, stop = Workers(), threading.Event()
    local = is_loopback(config.host)
    app = build(session, workers, names=own_names(config.host), addresses=not local)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=PATIENCE,
        )
    )
    worker = threading.Thread(
        target=embed_data, args=(config, session, workers, stop), daemon=True, name="embed"
    )
    announce(config, session, url := url_of(sock, config.host), sock)
    with Interrupt() as interrupt:  # which the server passes its signals on to when it is done
        worker.start()
        if config.open:
            webbrowser.open(url)  # what asks before the server runs waits in its queue
        if not interrupt.signal:
            server.run(sockets=[sock])
        stop.set()
        workers.close()
        worker.join(PATIENCE)
    terminal.people().print("ended")
    terminal.emit("result", {"command": "explore", "url": url})
    return 0 if interrupt.signal in (0, signal.SIGINT) else exit_status(interrupt.signal)


def announce(config: ExploreConfig, session: Session, url: str, sock: socket.socket) -> None:
    """Say where the page is, and who can open it."""
    console = terminal.people()
    port = sock.getsockname()[1]
    if config.port not in (0, port):
        console.print(f"port {config.port} is taken: {port} instead")
    if session.networks.decoder is None:
        console.print(f"no reconstructions: {session.facts.no_decoder}")
    if not is_loopback(config.host):
        terminal.warn(
            f"anyone who reaches this machine at port {port} can open this page and see the "
            "images: --host 127.0.0.1 keeps it to this machine"
        )
    console.print(f"{session.facts.name} on {session.facts.data}")
    console.print(f"open {url}    (Ctrl-C ends it)")
    sys.stdout.flush()  # or who reads a pipe waits for the address until the end
    terminal.emit("address", {"url": url})


def embed_data(
    config: ExploreConfig, session: Session, workers: Workers, stop: threading.Event
) -> None:
    """Fill the session's embeddings, from the cache where they are kept there."""
    file = cache_of(config, session)
    if file and background.recall(file, session.embedded):
        return
    background.embed(
        session.embedded,
        session.networks,
        compute=workers.compute,
        idle=workers.idle,
        stop=stop,
    )
    if file and session.embedded.progress().finished and session.embedded.basis is not None:
        keep(file, session.embedded)


def keep(file: Path, embedded: Embedded) -> None:
    """Keep embeddings for the next time; where that is impossible they are made anew."""
    try:
        background.keep(file, embedded)
    except (OSError, UserError) as error:
        terminal.warn(f"the embeddings are not kept: {error}")


def cache_of(config: ExploreConfig, session: Session) -> Path | None:
    """Where embeddings are kept; nowhere where there is no folder of this encoder yet.

    To look at an encoder should make no folder; a run that may not be written to can be looked at.
    """
    try:
        home = results.home(config.encoder, None)
    except UserError:
        return None
    if not home.is_dir():
        return None
    return background.cache_file(home, session.embedded, session.networks)
