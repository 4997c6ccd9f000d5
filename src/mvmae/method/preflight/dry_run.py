"""`pretrain --dry-run`: what a run would cost, from a few measured steps; writes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from mvmae import terminal
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.loader import loading
from mvmae.data.reading.samples import ViewsDataset
from mvmae.data.sources.base import Source
from mvmae.errors import UserError, counted
from mvmae.method.preflight.measured_step import (
    CPU_BATCH_SIZES,
    GIB,
    USABLE_MEMORY,
    TrainingStep,
    make_step,
    measure_cpu_memory,
)
from mvmae.terminal import duration
from mvmae.training import distributed, memory

READ_SECONDS = 3.0  # spent on reading images
TIMED_STEPS = 3  # of each batch size, after one to warm up
SLOW_STEP = 5.0  # seconds on a CPU; after such a step no larger one is tried
LONG_RUN = 2 * 86_400  # seconds on a CPU


class Cost(NamedTuple):
    """Measurements of one process on one device."""

    step_seconds: float
    """Network and optimiser, for a whole batch."""

    read_seconds: float
    """One image in one process: reading, decoding, its views."""

    memory_gib: float | None
    """At the peak of a step, on a CPU of the whole process; None where unknown."""

    micro_batch_size: int | None
    """What fitted into the GPU's memory, where that is not what was asked for."""


class Forecast(NamedTuple):
    """What the measurements mean for the run."""

    seconds_per_step: float
    seconds_per_epoch: float
    seconds: float
    images_per_second: float
    readers: int
    """Reading processes, as asked for or by default."""

    readers_needed: int
    """Reading processes with which the network never waits."""

    memory_there_gib: float
    """Memory of the device or machine."""


def dry_run(
    config: PretrainConfig,
    source: Source,
    steps_per_epoch: int,
    device: torch.device,
    training_step: TrainingStep,
    notes: Sequence[str] = (),
) -> int:
    """Measure some steps and print what the run would take.

    Args:
        config: Of the run.
        source: Its images.
        steps_per_epoch: Of the run.
        device: Where it would run.
        training_step: `pretrain.training_step`.
        notes: Settings that were inferred.

    Raises:
        UserError: There are several processes, nothing can be read, or one image does not fit.
    """
    if distributed.world_size() > 1:
        share = config.batch_size // distributed.world_size()
        raise UserError(
            "--dry-run measures one process: leave out torchrun, and give the part of the batch "
            f"that one process has (--batch-size {share})"
        )
    views, read_seconds = _read_views(config, source)
    cost = _measure(config, views, read_seconds, device, training_step)
    found = forecast(config, cost, steps_per_epoch, device)
    facts = {"command": "pretrain", "dry_run": True} | cost._asdict() | found._asdict()
    terminal.emit("result", facts)
    console = terminal.people()
    console.print(_table(config, cost, found, device))
    for line in [*notes, *advice(config, cost, found, device)]:
        console.print(line, highlight=False, soft_wrap=True)
    return 0


def _read_views(config: PretrainConfig, source: Source) -> tuple[Tensor, float]:
    """Read views of some images, V x B x C x H x W, and time them in seconds per image.

    Raises:
        UserError: None of several images can be read.
    """
    places = np.random.default_rng(config.seed).permutation(len(source))[: max(CPU_BATCH_SIZES)]
    images = ViewsDataset(source, config)
    views: list[Tensor] = []
    start = time.perf_counter()
    for place in places.tolist():
        sample = images[0, place]
        if not isinstance(sample.views, Tensor):
            path, reason = sample.skipped[-1]
            raise UserError(
                f"none of {len(sample.skipped)} images can be read, for example {path} ({reason})"
            )
        views.append(sample.views)
        if time.perf_counter() - start > READ_SECONDS:
            break
    return torch.stack(views, dim=1), (time.perf_counter() - start) / len(views)


def _measure(
    config: PretrainConfig,
    views: Tensor,
    read_seconds: float,
    device: torch.device,
    training_step: TrainingStep,
) -> Cost:
    """Take some steps; on a GPU with smaller and smaller parts until one fits.

    Raises:
        UserError: Not even one image fits into the GPU's memory.
    """
    if device.type == "cpu":
        seconds, gib = _measure_on_cpu(config, views, training_step)
        return Cost(seconds, read_seconds, gib, None)
    micro_batch_size = config.micro_batch_size
    while True:
        try:
            seconds, gib = _measure_on_gpu(config, micro_batch_size, views, device, training_step)
        except torch.OutOfMemoryError:
            micro_batch_size = smaller_part(micro_batch_size or config.batch_size)
            torch.cuda.empty_cache()
            continue
        return Cost(seconds, read_seconds, gib, micro_batch_size)


def smaller_part(size: int) -> int:
    """Return the next power of two below a size.

    Raises:
        UserError: The size is 1.
    """
    if size <= 1:
        raise UserError(
            "not even one image fits into the GPU's memory: choose a smaller model, or --recompute"
        )
    return 2 ** ((size - 1).bit_length() - 1)


def _measure_on_cpu(
    config: PretrainConfig, views: Tensor, training_step: TrainingStep
) -> tuple[float, float | None]:
    """Seconds of a step, extrapolated from two small batches, and GiB."""
    sizes = sorted({min(size, config.batch_size) for size in CPU_BATCH_SIZES})
    part = min(config.micro_batch_size or config.batch_size, config.batch_size)
    need = measure_cpu_memory(config, sizes[0], views, training_step)
    gib = None if need is None else need.at_peak(part) / GIB
    seconds: list[float] = []
    for size in sizes:
        step = make_step(config, size, None, views, torch.device("cpu"), training_step)
        step()
        seconds.append(min(_seconds(step) for _ in range(TIMED_STEPS)))
        if seconds[-1] > SLOW_STEP:  # so large that time grows in proportion to the batch
            return seconds[-1] * config.batch_size / size, gib
    return extrapolate(sizes, seconds, config.batch_size), gib


def extrapolate(sizes: list[int], values: list[float], size: int) -> float:
    """Value at a size on the line through the first and the last point; never falling."""
    slope = (values[-1] - values[0]) / max(1, sizes[-1] - sizes[0])
    return values[-1] + max(0.0, slope) * (size - sizes[-1])


def _measure_on_gpu(
    config: PretrainConfig,
    micro_batch_size: int | None,
    views: Tensor,
    device: torch.device,
    training_step: TrainingStep,
) -> tuple[float, float]:
    """Seconds and GiB of a step of the whole batch."""
    step = make_step(config, config.batch_size, micro_batch_size, views, device, training_step)
    step()

    def synchronized_step() -> None:
        step()
        torch.cuda.synchronize(device)

    peak = memory.peak_on_gpu(step, device)
    return min(_seconds(synchronized_step) for _ in range(TIMED_STEPS)), peak / GIB


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def forecast(
    config: PretrainConfig, cost: Cost, steps_per_epoch: int, device: torch.device
) -> Forecast:
    """Work out the run from the cost of a step and of an image."""
    readers = loading(config.workers, device.type == "cuda")["num_workers"]
    reading = config.batch_size * cost.read_seconds
    step = max(cost.step_seconds, reading / readers) if readers else cost.step_seconds + reading
    return Forecast(
        seconds_per_step=step,
        seconds_per_epoch=step * steps_per_epoch,
        seconds=step * steps_per_epoch * config.epochs,
        images_per_second=config.batch_size / step,
        readers=readers,
        readers_needed=ceil(reading / cost.step_seconds),
        memory_there_gib=memory.total(device) / GIB,
    )


def _table(config: PretrainConfig, cost: Cost, found: Forecast, device: torch.device) -> Table:
    """The figures that people ask for before a run."""
    where = "GPU" if device.type == "cuda" else "CPU"
    table = Table(
        title=f"{config.model.encoder}/{config.model.patch_size}, "
        f"{counted(config.epochs, 'epoch')} on this {where}",
        title_justify="left",
        show_header=False,
    )
    table.add_column("")
    table.add_column("", justify="right")
    rows = {
        "the whole run": duration(found.seconds),
        "an epoch": duration(found.seconds_per_epoch),
        f"a step of {config.batch_size} images": f"{found.seconds_per_step:.3g} s",
        "images per second": f"{found.images_per_second:.3g}",
        "reading an image, in one process": f"{1000 * cost.read_seconds:.3g} ms",
    }
    if cost.memory_gib is not None:
        rows["memory"] = f"{cost.memory_gib:.2g} of {found.memory_there_gib:.0f} GiB"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def advice(config: PretrainConfig, cost: Cost, found: Forecast, device: torch.device) -> list[str]:
    """Sentences on what to change, if anything."""
    lines = [*_memory_advice(config, cost, found, device), *_reader_advice(found)]
    if device.type == "cpu" and found.seconds > LONG_RUN:
        lines.append(
            "that is long for a CPU: --recipe tiny-cpu is made for one, and fewer --epochs show "
            "whether it is worth it"
        )
    return lines or ["nothing to change"]


def _memory_advice(
    config: PretrainConfig, cost: Cost, found: Forecast, device: torch.device
) -> list[str]:
    if cost.micro_batch_size != config.micro_batch_size and device.type == "cuda":
        return [
            f"a batch of {config.micro_batch_size or config.batch_size} does not fit into this "
            f"GPU: --micro-batch-size {cost.micro_batch_size} does, with the same gradient"
        ]
    usable = USABLE_MEMORY * found.memory_there_gib
    if not 0 < usable < (cost.memory_gib or 0):
        return []
    part = config.micro_batch_size or config.batch_size
    fitting = max(1, int(part * usable / (cost.memory_gib or 1)))
    return [
        f"that is more memory than there is: --micro-batch-size {2 ** (fitting.bit_length() - 1)} "
        "would fit, with the same gradient"
    ]


def _reader_advice(found: Forecast) -> list[str]:
    if found.readers >= found.readers_needed:
        return []
    cores = os.cpu_count() or 1
    line = (
        f"{found.readers} reading processes are too few, the network would wait: use --workers "
        f"{found.readers_needed}"
    )
    if found.readers_needed > cores:
        line += (
            f", more than the {cores} cores here; images stored at the size they are used at, in "
            "tar files, are read faster (mvmae data pack --short-side)"
        )
    return [line]
