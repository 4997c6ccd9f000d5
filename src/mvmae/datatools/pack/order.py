"""Images in their order, packed by processes that may crash or hang, and by those of `torchrun`.

The tar file of an image depends on the sizes of all images before it, so one process writes the tar
files, exactly as a single process would. Reading and decoding, which take the time, are shared: of
n processes each packs every n-th block of images into a file beside the tar files, which the main
process copies and removes. No process is more than `MAX_BLOCKS_AHEAD` blocks ahead of it, so that
the disk does not fill up.
"""

import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from mvmae.config.datatools import DataPackConfig
from mvmae.data.reading.subprocess_pool import Lost, num_cores, run_guarded
from mvmae.data.sources.base import Source
from mvmae.datatools.pack.encode import Packed, Packer, Refused
from mvmae.datatools.pack.write import with_filename
from mvmae.training import distributed, process_store
from mvmae.training.interrupt import Interrupt

MAX_WAITING_BYTES = 512 << 20  # images held in memory until those before them are done
BLOCK_IMAGES = 64
MAX_BLOCKS_AHEAD = 16  # of each process, waiting to be copied
POLL_SECONDS = 0.02
FINISHED = sys.maxsize  # published in place of a block's number when the tar files are complete


def pack_in_order(
    source: Source, config: DataPackConfig, folder: Path, indices: Sequence[int]
) -> Generator[tuple[int, Packed | Refused], None, None]:
    """Pack some images and yield each with its index, in their order.

    Processes finish in any order, and one image may take --timeout seconds. Images that wait for
    an earlier one are held in memory, and beyond `MAX_WAITING_BYTES` on the disk of `folder`.
    """
    done = run_guarded(
        Packer(source, config),
        indices,
        # The processes of `torchrun` on this machine share its cores.
        workers=config.workers or max(1, num_cores() // distributed.processes_here()),
        timeout=config.timeout,
        memory=int(config.memory * 2**30),
    )
    due, waiting = 0, Waiting(MAX_WAITING_BYTES, folder.parent)
    with contextlib.closing(done), contextlib.closing(waiting):  # type: ignore[type-var]
        for at, packed in done:
            waiting.add(at, Refused(packed.reason) if isinstance(packed, Lost) else packed)
            while due in waiting.images:
                yield indices[due], waiting.pop(due)
                due += 1


class Waiting:
    """Images that are done before their turn: in memory and, beyond a limit, in an unnamed file.

    Args:
        limit: Bytes that are held in memory.
        folder: On the disk that has room for the rest.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        self.limit, self.folder, self.held, self._end = limit, folder, 0, 0
        self.images: dict[int, Packed | Refused] = {}
        self._spilled: dict[int, tuple[int, int]] = {}  # start in the file, and number of bytes
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # see `close`

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):  # a full disk was reported by the write before
            self._file.close()

    def add(self, at: int, image: Packed | Refused) -> None:
        """Keep an image until its turn."""
        if isinstance(image, Packed):
            size = len(image.content)
            # The first one is kept in any case, because it may be the one that is due.
            if self.held + size > self.limit and self.images:
                with with_filename(self.folder):  # the file has no name
                    self._file.seek(self._end)
                    self._file.write(image.content)
                    self._file.flush()
                self._spilled[at] = self._end, size
                self._end += size
                image = image._replace(content=b"")
            else:
                self.held += size
        self.images[at] = image

    def pop(self, at: int) -> Packed | Refused:
        """Return the image whose turn it is."""
        image = self.images.pop(at)
        if isinstance(image, Refused):
            return image
        if at not in self._spilled:
            self.held -= len(image.content)
            return image
        start, size = self._spilled.pop(at)
        self._file.seek(start)
        image = image._replace(content=self._file.read(size))
        if not self._spilled:  # all were read: use the file from its beginning again
            self._file.truncate(0)
            self._end = 0
        return image


def pack_with_all(
    source: Source,
    config: DataPackConfig,
    folder: Path,
    first: int,
    interrupt: Interrupt,
) -> Generator[tuple[int, Packed | Refused], None, None]:
    """Yield each image from `first` on, packed by all processes; called in the main process.

    Ends early if any process gets a signal, which `interrupt` then holds.

    Raises:
        UserError: Another process failed or disappeared.
    """
    # This process packs in a thread: decoding happens in subprocesses, so it mostly waits for them.
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
                file = _file(folder, at)
                if (stream := _open_block(file, at, ready, ours, interrupt)) is None:
                    return
                with stream:
                    for index in span:
                        fields = json.loads(stream.readline())
                        content = stream.read(fields.pop("content"))
                        is_refused = "reason" in fields
                        yield index, Refused(**fields) if is_refused else Packed(content, **fields)
                file.unlink(missing_ok=True)
        finally:
            over.set()


def _open_block(
    file: Path,
    number: int,
    ready: set[int],
    ours: Future[None],
    interrupt: Interrupt,
) -> BinaryIO | None:
    """Wait for a block and open it; None if a signal comes first."""
    while True:
        if number in ready:
            # A process that stops removes its blocks; the signal or error that stopped it follows.
            with contextlib.suppress(FileNotFoundError):
                return file.open("rb")
        ready.update(process_store.current().read_posts())
        if ours.done():
            ours.result()  # raises what went wrong here
        if signal := process_store.current().check(interrupt.signal):
            interrupt.signal = signal
            return None
        time.sleep(POLL_SECONDS)


def assist_main(source: Source, config: DataPackConfig, folder: Path) -> int:
    """Pack this process's images; called in every process but the main one.

    Returns:
        The signal that a process got, or 0.

    Raises:
        UserError: Another process failed.
    """
    store = process_store.current()
    first = distributed.from_main(0)
    with Interrupt() as interrupt:
        write_blocks(
            *(source, config, folder, first),
            done=lambda: max(0, store.latest("packed")),
            made=store.post,
            is_over=lambda: store.check(interrupt.signal) > 0 or store.latest("packed") == FINISHED,
        )
        return store.check(interrupt.signal)


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
        is_over: Returns whether all is done or to stop; blocks that are left are removed.
    """
    size = distributed.world_size()
    # Every n-th block rather than a contiguous share, so that all blocks are near the copied one.
    own = list(enumerate(_blocks(first, len(source))))[distributed.rank() :: size]
    places = [place for _, span in own for place in span]
    there: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [_file(folder, at).unlink(missing_ok=True) for at in there])
        images = pack_in_order(source, config, folder, places)
        stack.enter_context(contextlib.closing(images))
        for number, span in own:
            while number - done() > MAX_BLOCKS_AHEAD * size:
                if is_over():
                    return
                time.sleep(POLL_SECONDS)
            there.append(number)
            file = _file(folder, number)
            with with_filename(file), file.open("wb") as stream:
                for _ in span:
                    if is_over():
                        return
                    _, image = next(images)
                    content = image.content if isinstance(image, Packed) else b""
                    fields = image._asdict() | {"content": len(content)}
                    stream.write(json.dumps(fields).encode() + b"\n" + content)
            made(number)
        # Few images are packed long before the main process has copied them. A process that left
        # then would get Ctrl-C while it ends, where Python no longer makes a status of 130 of it.
        while not is_over():
            time.sleep(POLL_SECONDS)


def _blocks(first: int, count: int) -> list[range]:
    return [
        range(begin, min(begin + BLOCK_IMAGES, count))
        for begin in range(first, count, BLOCK_IMAGES)
    ]


def _file(folder: Path, number: int) -> Path:
    return folder / f".block-{number:07}.tmp"
