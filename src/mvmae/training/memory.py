"""Memory: what there is, and what work takes at its peak."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], Any]
GROUPS = Path("/sys/fs/cgroup")  # Linux's control groups, as a container sees its own


def there(device: torch.device) -> int:
    """Bytes of the GPU; or of the machine, or as many as its container may have. 0: unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has none
        return 0
    return min([machine, *_limits()])


def _limits() -> Iterator[int]:
    """Of version 2 and version 1."""
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            yield int((GROUPS / file).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue


def resident() -> int | None:
    """Bytes of this process in memory; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_on_gpu(work: Work, device: torch.device) -> int:
    """Bytes of a GPU's tensors at their peak, those from before among them."""
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def peak_on_cpu(work: Work) -> int:
    """Bytes of a CPU's tensors at their peak, beyond what stays when the work is over.

    Summed up from the profiler's record of what is taken and given back, so that nothing else in
    the process counts.
    """
    what: dict[str, Any] = {"activities": [ProfilerActivity.CPU], "profile_memory": True}
    with silence(), profile(**what, acc_events=True) as profiler:  # without, torch 2.11 warns
        work()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    changes: list[Any] = list(profiler.profiler.kineto_results.events())
    taken = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU:
            taken += event.nbytes()
            peak = max(peak, taken)
    return peak - taken


@contextmanager
def silence() -> Iterator[None]:
    """Keep what the profiler's library writes to stderr from the user.

    It tells of GPUs that are not there, and of memory that was taken before it began.
    """
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
