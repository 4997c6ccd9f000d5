"""Images made ready by readers that may be lost, one after another."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Sequence

from mvmae.config.datatools import DataPackConfig
from mvmae.data.reading.subprocess_pool import Lost, run_guarded
from mvmae.data.sources.base import Source
from mvmae.datatools.pack.claiming import unfinished
from mvmae.datatools.pack.encode import Packed, Packer, Refused
from mvmae.datatools.pack.waiting import Waiting
from mvmae.training import distributed

MOST_WAITING = 512 << 20  # bytes of images that wait in memory for one before them


def in_order(
    source: Source, config: DataPackConfig, places: Sequence[int]
) -> Generator[tuple[int, Packed | Refused], None, None]:
    """What becomes of each of some images.

    Images come as the processes are done with them. What waits for one before it is held in
    memory, and beyond `MOST_WAITING` on the disk: one may hang for --timeout seconds.
    """
    done = run_guarded(
        Packer(source, config),
        places,
        workers=config.workers or max(1, _cores() // distributed.processes_here()),
        timeout=config.timeout,
        memory=int(config.memory * 2**30),
    )
    due, room = 0, Waiting(MOST_WAITING, unfinished(config.out).parent)
    with contextlib.closing(done), room as waiting:  # type: ignore[type-var]
        for place, packed in done:
            waiting.put(place, Refused(packed.reason) if isinstance(packed, Lost) else packed)
            while due in waiting:
                yield places[due], waiting.pop(due)
                due += 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
