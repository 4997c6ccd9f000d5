"""Images packed by several processes, and written in their order by the main one.

The tar file of an image depends on the sizes of all images before it, so one process writes the tar
files, exactly as a single process would. Reading and decoding, which take the time, are shared: of
n processes each packs every n-th block of images into a file beside the tar files, which the main
process copies and removes. No process is more than `MAX_BLOCKS_AHEAD` blocks ahead of it, so that
the disk does not fill up.
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
from mvmae.datatools.pack.order import pack_in_order
from mvmae.datatools.pack.write import with_filename
from mvmae.training import distributed, process_store
from mvmae.training.interrupt import Interrupt

BLOCK_IMAGES = 64
MAX_BLOCKS_AHEAD = 16  # of each process, waiting to be copied
POLL_SECONDS = 0.02


def pack_with_all(
    source: Source, config: DataPackConfig, folder: Path, first: int, interrupt: Interrupt
) -> Generator[tuple[int, Packed | Refused], None, None]:
    """Yield each image from `first` on, packed by all processes; called in the main process.

    Ends early if any process gets a signal, which `interrupt` then holds.

    Raises:
        UserError: Another process failed or disappeared.
    """
    ready, at, over = set[int](), 0, threading.Event()
    with ThreadPoolExecutor(1, "packing") as pool:
        ours = pool.submit(
            write_blocks,
            *(source, config, folder, first),
            done=lambda: at,
            made=ready.add,
            is_over=over.is_set,
        )
        try:
            for at, span in enumerate(_blocks(first, len(source))):
                process_store.current().publish("packed", at)
                if not _wait_for_block(at, ready, ours, interrupt):
                    return
                file = _file(folder, at)
                yield from zip(span, _read(file), strict=True)
                file.unlink()
        finally:
            over.set()


def _wait_for_block(number: int, ready: set[int], ours: Future[None], interrupt: Interrupt) -> bool:
    """Wait for a block; return whether it came before any signal."""
    while number not in ready:
        ready.update(process_store.current().read_posts())
        if ours.done():
            ours.result()  # raises what went wrong here
        if signal := process_store.current().check(interrupt.signal):
            interrupt.signal = signal
            return False
        time.sleep(POLL_SECONDS)
    return True


def assist_main(source: Source, config: DataPackConfig, folder: Path) -> int:
    """Pack this process's images; called in every process but the main one.

    Returns:
        The signal that a process got, or 0.

    Raises:
        UserError: Another process failed.
    """
    first = distributed.from_main(0)
    with Interrupt() as interrupt:
        write_blocks(
            *(source, config, folder, first),
            done=lambda: max(0, process_store.current().latest("packed")),
            made=process_store.current().post,
            is_over=lambda: process_store.current().check(interrupt.signal) > 0,
        )
        return process_store.current().check(interrupt.signal)


def write_blocks(
    source: Source,
    config: DataPackConfig,
    folder: Path,
    first: int,
    *,
    done: Callable[[], int],
    made: Callable[[int], None],
    is_over: Callable[[], bool],
) -> None:
    """Write this process's blocks, and announce each when it is complete.

    Args:
        source: The images.
        config: Options of `data pack`.
        folder: Where the blocks are written.
        first: Index of the first image of the first block.
        done: Returns the number of the block that is being copied.
        made: Called with the number of each complete block.
        is_over: Returns whether to stop, and to remove blocks that will not be copied.
    """
    size = distributed.world_size()
    own = list(enumerate(_blocks(first, len(source))))[distributed.rank() :: size]
    places = [place for _, span in own for place in span]
    there: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [_file(folder, at).unlink(missing_ok=True) for at in there])
        images = stack.enter_context(contextlib.closing(pack_in_order(source, config, places)))
        for number, span in own:
            while number - done() > MAX_BLOCKS_AHEAD * size:
                if is_over():
                    return
                time.sleep(POLL_SECONDS)
            there.append(number)
            if not _write(_file(folder, number), len(span), images, is_over):
                return
            made(number)
        there.clear()


def _blocks(first: int, count: int) -> list[range]:
    return [
        range(begin, min(begin + BLOCK_IMAGES, count))
        for begin in range(first, count, BLOCK_IMAGES)
    ]


def _file(folder: Path, number: int) -> Path:
    return folder / f".block-{number:07}.tmp"


def _write(
    file: Path,
    count: int,
    images: Iterator[tuple[int, Packed | Refused]],
    is_over: Callable[[], bool],
) -> bool:
    """Write the next images one after another; return whether all were written."""
    with with_filename(file), file.open("wb") as stream:
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
