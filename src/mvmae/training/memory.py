"""Memory of the machine, and the peak memory of a piece of work."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], Any]
CGROUPS = Path("/sys/fs/cgroup")  # of the container, seen from inside


def total(device: torch.device) -> int:
    """Bytes of the GPU, or of the machine within its container's limit; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups version 2 and 1
        with suppress(OSError, ValueError):  # missing, or "max"
            limits.append(int((CGROUPS / file).read_text()))
    return min(limits)


def resident() -> int | None:
    """Resident bytes of this process; None if the system does not report them."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_on_gpu(work: Work, device: torch.device) -> int:
    """Bytes of the GPU's tensors at the peak of the work, including those from before."""
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def peak_on_cpu(work: Work) -> int:
    """Bytes of CPU tensors at the peak of the work, beyond what stays allocated afterwards.

    Summed from the profiler's record of allocations, so that nothing else in the process counts.
    """
    with (
        silence_stderr(),
        profile(
            activities=[ProfilerActivity.CPU],
            profile_memory=True,
            acc_events=True,  # or torch 2.11 warns
        ) as profiler,
    ):
        work()
    recorder: Any = profiler.profiler
    allocated = peak = 0
    for event in sorted(recorder.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU:
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak - allocated


@contextmanager
def silence_stderr() -> Iterator[None]:
    """Hide what the profiler's library writes to stderr.

    It reports missing GPUs, and memory that was allocated before it started.
    """
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
