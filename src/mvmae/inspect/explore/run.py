"""Explore an encoder on a web page that this machine serves. Read `run` from top to bottom."""

import signal
import socket
import sys
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from mvmae import encoders, terminal
from mvmae.config.figures import ExploreConfig
from mvmae.config.model import ENCODERS
from mvmae.data.sources.base import Source
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedEncoder
from mvmae.encoders.description import format_sizes
from mvmae.errors import UserError, encodable
from mvmae.inspect.choose_images import choose
from mvmae.inspect.explore import embeddings
from mvmae.inspect.explore.embeddings import EmbeddingIndex
from mvmae.inspect.explore.model import Networks
from mvmae.inspect.explore.server import Workers, is_loopback, listen, own_names, page_url
from mvmae.inspect.explore.session import Facts, Session
from mvmae.inspect.model_pictures import open_with_decoder
from mvmae.storage import results
from mvmae.storage.outputs import short_names
from mvmae.training import precision
from mvmae.training.interrupt import Interrupt, exit_status

SHUTDOWN_SECONDS = 2  # that answers under way get at the end


def run(config: ExploreConfig) -> int:
    """Serve the page until Ctrl-C.

    Returns:
        0 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: The encoder, the data or the address cannot be used, or a package is missing.
    """
    require_packages()
    device = precision.choose_device(config.device)
    # A port that cannot be used ends the command before the encoder is loaded.
    with listen(config.host, config.port) as sock:
        networks, no_decoder = open_networks(config, device)
        encoder = networks.opened.encoder
        source = open_source(config.data, encoder.in_channels, networks.opened.depth)
        choose(source, 1, seed=0)  # stops if none of the images can be read
        order = np.random.default_rng(0).permutation(len(source))
        embedded = EmbeddingIndex(source, order[: config.most].tolist(), encoder.embed_dim)
        facts = describe(config, networks.opened, source, no_decoder)
        session = Session(networks, source, order, embedded, facts)
        return serve(config, session, sock)


def require_packages() -> None:
    """Check that the packages of the server are installed.

    Raises:
        UserError: One is missing.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            "mvmae explore needs starlette and uvicorn: pip install 'mvmae[explore]'"
        ) from error


def open_networks(config: ExploreConfig, device: torch.device) -> tuple[Networks, str]:
    """Open the encoder and the autoencoder of a run, or say why there is no autoencoder.

    Raises:
        UserError: The encoder cannot be opened.
    """
    opened = encoders.open_encoder(config.encoder, config.image_size)
    opened.encoder.to(device)
    decoder = None
    reason = f"{config.encoder} is an encoder alone; only a run of mvmae pretrain has a decoder."
    if Path(config.encoder).exists():
        try:
            decoder, reason = open_with_decoder(config.encoder), ""
            decoder.model.to(device)
        except UserError as error:
            reason = encodable(f"{error}.")
    return Networks(opened, decoder, device, config.precision), reason


def describe(config: ExploreConfig, opened: OpenedEncoder, source: Source, reason: str) -> Facts:
    """Describe the encoder and the data for the page."""
    (name,) = short_names([config.encoder])
    encoder = opened.encoder
    sizes = format_sizes(
        {
            "known_as": next((key for key, size in ENCODERS.items() if size == encoder.size), None),
            "patch_size": encoder.patch_size,
            "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
            **encoder.size._asdict(),
        }
    )
    height, width = encoder.image_size
    maker = "" if opened.maker == "mvmae" else f", {opened.maker}"
    images = f"{len(source):,} image{'' if len(source) == 1 else 's'}"
    # The last two parts of a path are clear enough, and fit on a phone.
    data = " ".join("/".join(Path(part).parts[-2:]).lstrip("/") for part in config.data)
    return Facts(
        encodable(name),
        f"{sizes}, {height} x {width} pixels{maker}",
        encodable(f"{data}: {images}"),
        reason,
    )


def serve(config: ExploreConfig, session: Session, sock: socket.socket) -> int:
    """Answer requests until a signal arrives, and embed the data meanwhile.

    Returns:
        Exit status.
    """
    import uvicorn

    from mvmae.inspect.explore.app import build_app

    workers, host = Workers(), config.host
    app = build_app(session, workers, names=own_names(host), allow_addresses=not is_loopback(host))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
    )
    background = threading.Thread(
        target=embed_data, args=(config, session, workers), daemon=True, name="embed"
    )
    url = page_url(sock, host)
    announce(config, session, url, sock)
    with Interrupt() as interrupt:  # uvicorn raises its signals again when it has shut down
        background.start()
        if config.open:
            webbrowser.open(url)  # its requests wait in the socket's queue until the server runs
        if not interrupt.signal:
            server.run(sockets=[sock])
        workers.close()
        background.join(SHUTDOWN_SECONDS)
    terminal.console().print("stopped")
    terminal.emit("result", {"command": "explore", "url": url})
    return 0 if interrupt.signal in (0, signal.SIGINT) else exit_status(interrupt.signal)


def announce(config: ExploreConfig, session: Session, url: str, sock: socket.socket) -> None:
    """Print the address of the page, and who can open it."""
    console = terminal.console()
    port = sock.getsockname()[1]
    if config.port not in (0, port):
        console.print(f"port {config.port} is in use: using {port} instead")
    if session.networks.decoder is None:
        console.print(f"no reconstructions: {session.facts.no_decoder}")
    if not is_loopback(config.host):
        terminal.warn(
            f"anyone who can reach port {port} of this machine can open this page and see the "
            "images: use --host 127.0.0.1 to keep it to this machine"
        )
    console.print(f"{session.facts.name} on {session.facts.data}")
    console.print(f"open {url}    (Ctrl-C stops it)")
    sys.stdout.flush()  # otherwise a program that reads a pipe never sees the address
    terminal.emit("address", {"url": url})


def embed_data(config: ExploreConfig, session: Session, workers: Workers) -> None:
    """Fill the session's embeddings, from the cache if they are there."""
    embedded, file = session.embedded, None
    # Looking at an encoder must not create a folder, and must work for a run that is read-only.
    with suppress(UserError):
        home = results.home(config.encoder, None)
        if home.is_dir():
            file = embeddings.cache_file(home, embedded, session.networks)
    if file and embeddings.load(file, embedded):
        return
    embeddings.embed_in_background(embedded, session.networks, workers)
    if file and embedded.finished and embedded.basis is not None:
        try:
            embeddings.save(file, embedded, embedded.basis)
        except (OSError, UserError) as error:
            terminal.warn(f"the embeddings cannot be cached and will be computed again: {error}")
