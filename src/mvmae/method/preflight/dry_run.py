"""`pretrain --dry-run`: what a run would cost, from a few measured steps; writes nothing."""

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
from mvmae.data.reading.loader import ViewsDataset, loader_options
from mvmae.data.sources.base import Source
from mvmae.errors import UserError, pluralize
from mvmae.method.preflight.measured_step import (
    CPU_BATCH_SIZES,
    GIB,
    USABLE_MEMORY,
    Trial,
    make_step,
    measure_cpu_memory,
    power_of_two,
)
from mvmae.terminal import duration
from mvmae.training import distributed, memory

READ_SECONDS = 3.0  # spent on reading images
TIMED_STEPS = 3  # of each batch size, after one to warm up
SLOW_STEP = 5.0  # seconds on a CPU; after such a step no larger one is tried
LONG_RUN = 2 * 86_400  # seconds after which the advice is not to use a CPU


class Cost(NamedTuple):
    """Measurements of one process on one device."""

    step_seconds: float
    """Network and optimiser, for a whole batch."""

    read_seconds: float = 0.0
    """To read and decode one image and make its views, in one process."""

    memory_gib: float | None = None
    """At the peak of a step: tensors on a GPU, the whole process on a CPU; None if unknown."""

    micro_batch_size: int | None = None
    """On a GPU, images that pass the model at once, so that a step fits; None: the whole batch."""


class Forecast(NamedTuple):
    """What the measurements mean for the run."""

    seconds_per_step: float
    seconds_per_epoch: float
    seconds: float
    """Of the whole run."""

    images_per_second: float
    readers: int
    """Reading processes: `config.workers`, or the default."""

    readers_needed: int
    """Smallest number of reading processes with which the network never waits."""

    memory_there_gib: float
    """Memory of the GPU, or of the machine for a CPU; 0 if unknown."""


def dry_run(
    config: PretrainConfig,
    source: Source,
    steps_per_epoch: int,
    device: torch.device,
    training_step: Callable[..., Any],
    notes: Sequence[str] = (),
) -> int:
    """Measure a few steps, and print the time and memory that the run would take.

    Args:
        config: Options of the run.
        source: Training images.
        steps_per_epoch: Steps in an epoch of the run.
        device: Device that the run would use.
        training_step: `pretrain.training_step`.
        notes: Lines to print about inferred settings.

    Returns:
        0, the exit status.

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
    trial = Trial(config, device, training_step, views)
    measure = _measure_on_cpu if device.type == "cpu" else _measure_on_gpu
    cost = measure(trial)._replace(read_seconds=read_seconds)
    found = forecast(config, cost, steps_per_epoch, device)
    facts = {"command": "pretrain", "dry_run": True} | cost._asdict() | found._asdict()
    terminal.emit("result", facts)
    console = terminal.console()
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


def _measure_on_cpu(trial: Trial) -> Cost:
    """Take steps with two small batches; extrapolate the time and the memory of a whole batch."""
    batch_size = trial.config.batch_size
    sizes = sorted({min(size, batch_size) for size in CPU_BATCH_SIZES})
    need = measure_cpu_memory(trial, sizes[0])
    gib = None
    if need is not None:
        gib = need.peak_bytes(min(trial.config.micro_batch_size or batch_size, batch_size)) / GIB
    seconds: list[float] = []
    for size in sizes:
        step = make_step(trial, size)
        step()
        seconds.append(_time(step, trial.device))
        if seconds[-1] > SLOW_STEP:  # so large that time grows in proportion to the batch
            return Cost(seconds[-1] * batch_size / size, memory_gib=gib)
    return Cost(extrapolate(sizes, seconds, batch_size), memory_gib=gib)


def extrapolate(sizes: list[int], values: list[float], size: int) -> float:
    """Extend the line through the first and the last point to `size`; treat falling as level."""
    slope = (values[-1] - values[0]) / max(1, sizes[-1] - sizes[0])
    return values[-1] + max(0.0, slope) * (size - sizes[-1])


def _measure_on_gpu(trial: Trial) -> Cost:
    """Take steps with the whole batch, in smaller and smaller parts until one fits.

    Raises:
        UserError: Not even one image fits into the GPU's memory.
    """
    part = trial.config.micro_batch_size
    while True:
        try:
            return _measure_parts(trial, part)
        except torch.OutOfMemoryError:
            part = smaller_part(part or trial.config.batch_size)
            torch.cuda.empty_cache()


def _measure_parts(trial: Trial, part: int | None) -> Cost:
    # Returning from here frees the model before a smaller part is tried.
    step = make_step(trial, trial.config.batch_size, part)
    step()
    peak = memory.peak_on_gpu(step, trial.device)
    return Cost(_time(step, trial.device), memory_gib=peak / GIB, micro_batch_size=part)


def smaller_part(size: int) -> int:
    """Return the next power of two below a size.

    Raises:
        UserError: The size is 1.
    """
    if size <= 1:
        raise UserError(
            "not even one image fits into the GPU's memory: choose a smaller model, or --recompute"
        )
    return power_of_two(size - 1)


def _time(step: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of some steps, the one that other programs disturbed least."""
    seconds = []
    for _ in range(TIMED_STEPS):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def forecast(
    config: PretrainConfig, cost: Cost, steps_per_epoch: int, device: torch.device
) -> Forecast:
    """Predict the whole run from the cost of a step and of reading an image.

    Reading processes work while the network computes, so the slower of the two decides. With no
    reading processes, their times add up.
    """
    readers = loader_options(config.workers, device.type == "cuda")["num_workers"]
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
    """Build the table that is printed: time, speed and memory."""
    where = "GPU" if device.type == "cuda" else "CPU"
    model, epochs = config.model, pluralize(config.epochs, "epoch")
    title = f"{model.encoder}/{model.patch_size}, {epochs} on this {where}"
    table = Table("", title=title, title_justify="left", show_header=False)
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
    """Return sentences on which options to change, or one that says that nothing needs to."""
    lines = []
    part = config.micro_batch_size or config.batch_size
    usable = USABLE_MEMORY * found.memory_there_gib
    if device.type == "cuda" and cost.micro_batch_size != config.micro_batch_size:
        lines.append(
            f"a batch of {part} does not fit into this GPU: "
            f"--micro-batch-size {cost.micro_batch_size} does, with the same gradient"
        )
    elif cost.memory_gib is not None and 0 < usable < cost.memory_gib:
        fitting = power_of_two(max(1, int(part * usable / cost.memory_gib)))
        lines.append(
            f"that is more memory than there is: --micro-batch-size {fitting} would fit, with the "
            "same gradient"
        )
    if found.readers < found.readers_needed:
        line = (
            f"{found.readers} reading processes are too few, the network would wait: use --workers "
            f"{found.readers_needed}"
        )
        if found.readers_needed > (cores := os.cpu_count() or 1):
            line += (
                f", more than the {cores} cores here; images stored at the size they are used at, "
                "in tar files, are read faster (mvmae data pack --short-side)"
            )
        lines.append(line)
    if device.type == "cpu" and found.seconds > LONG_RUN:
        lines.append(
            "that is long for a CPU: --recipe tiny-cpu is made for one, and fewer --epochs show "
            "whether it is worth it"
        )
    return lines or ["nothing to change"]
