"""Images made ready by several processes, and put in their order by the main one.

Which tar file an image goes into depends on the sizes of all before it, so one process writes them,
as one alone does. What costs time, reading and decoding, is shared: each process makes the images
of every so-manieth block ready and writes them into a file beside the tar files, which the main
one copies and removes. Nobody is more than `AHEAD` blocks ahead of it: the disk stays small.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mvmae.config.datatools import DataPackConfig
from mvmae.data.sources.base import Source
from mvmae.datatools.pack.encode import Packed, Refused
from mvmae.datatools.pack.order import in_order
from mvmae.datatools.pack.write import naming
from mvmae.training import distributed, process_store
from mvmae.training.interrupt import Interrupt

BLOCK = 64  # images
AHEAD = 16  # blocks of each process that wait to be written, at most
POLL = 0.02  # seconds


def from_all(
    source: Source, config: DataPackConfig, folder: Path, first: int, interrupt: Interrupt
) -> Generator[tuple[int, Packed | Refused], None, None]:
    """What becomes of each image from `first` on, by all processes; called in the main one.

    It ends early at a signal that any process got, which `interrupt` then has.

    Raises:
        UserError: Another process failed, or is gone.
    """
    ready, at, over = set[int](), 0, threading.Event()
    with ThreadPoolExecutor(1, "packing") as pool:
        ours = pool.submit(
            make_ready,
            *(source, config, folder, first),
            done=lambda: at,
            made=ready.add,
            is_over=over.is_set,
        )
        try:
            for at, span in enumerate(_blocks(first, len(source))):
                process_store.current().publish("packed", at)
                if not _has_come(at, ready, ours, interrupt):
                    return
                file = _file(folder, at)
                yield from zip(span, _read(file), strict=True)
                file.unlink()
        finally:
            over.set()


def _has_come(number: int, ready: set[int], ours: Future[None], interrupt: Interrupt) -> bool:
    """Wait for a block; whether it came, and no signal."""
    while number not in ready:
        ready.update(process_store.current().read_posts())
        if ours.done():
            ours.result()  # raises what went wrong here
        if signal := process_store.current().check(interrupt.signal):
            interrupt.signal = signal
            return False
        time.sleep(POLL)
    return True


def assist(source: Source, config: DataPackConfig, folder: Path) -> int:
    """Make this process's images ready; called in every process but the main one.

    Returns:
        The signal that some process got, or 0.

    Raises:
        UserError: Another process failed.
    """
    first = distributed.from_main(0)
    with Interrupt() as interrupt:
        make_ready(
            *(source, config, folder, first),
            done=lambda: max(0, process_store.current().latest("packed")),
            made=process_store.current().post,
            is_over=lambda: process_store.current().check(interrupt.signal) > 0,
        )
        return process_store.current().check(interrupt.signal)


def make_ready(
    source: Source,
    config: DataPackConfig,
    folder: Path,
    first: int,
    *,
    done: Callable[[], int],
    made: Callable[[int], None],
    is_over: Callable[[], bool],
) -> None:
    """Write this process's blocks, each whole before it is told of.

    Args:
        source: The images.
        config: What is asked for.
        folder: For the blocks.
        first: The image that the first block begins with.
        done: The block that is being copied.
        made: Told the number of a block that is there.
        is_over: Whether to stop, and take away what nobody will read.
    """
    size = distributed.world_size()
    own = list(enumerate(_blocks(first, len(source))))[distributed.rank() :: size]
    places = [place for _, span in own for place in span]
    there: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [_file(folder, at).unlink(missing_ok=True) for at in there])
        images = stack.enter_context(contextlib.closing(in_order(source, config, places)))
        for number, span in own:
            while number - done() > AHEAD * size:
                if is_over():
                    return
                time.sleep(POLL)
            there.append(number)
            if not _write(_file(folder, number), len(span), images, is_over):
                return
            made(number)
        there.clear()


def _blocks(first: int, count: int) -> list[range]:
    return [range(begin, min(begin + BLOCK, count)) for begin in range(first, count, BLOCK)]


def _file(folder: Path, number: int) -> Path:
    return folder / f".block-{number:07}.tmp"


def _write(
    file: Path,
    count: int,
    images: Iterator[tuple[int, Packed | Refused]],
    is_over: Callable[[], bool],
) -> bool:
    """Write so many images behind each other; whether it came to the end."""
    with naming(file), file.open("wb") as stream:
        for _ in range(count):
            if is_over():
                return False
            _, image = next(images)
            content = image.content if isinstance(image, Packed) else b""
            fields = image._asdict() | {"content": len(content)}
            stream.write(json.dumps(fields).encode() + b"\n" + content)
    return True


def _read(file: Path) -> Iterator[Packed | Refused]:
    with file.open("rb") as stream:
        while line := stream.readline():
            fields = json.loads(line)
            content = stream.read(fields.pop("content"))
            yield Refused(**fields) if "reason" in fields else Packed(content, **fields)
