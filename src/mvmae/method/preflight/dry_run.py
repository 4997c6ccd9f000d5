"""What a run would cost, from a few measured steps; nothing is written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Generator, Tensor

from mvmae import terminal
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.loader import loading
from mvmae.data.reading.samples import Batch, ViewsDataset
from mvmae.data.sources.base import Source
from mvmae.errors import UserError, counted
from mvmae.method.augmentations import draw_augmentations, stack_augmentations
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.views import mask_noise
from mvmae.terminal import duration
from mvmae.training import distributed, memory
from mvmae.training.optim import adamw

READ_SECONDS = 3.0  # spent on reading images
STEPS = 3  # timed of each size, after one to warm up
CPU_IMAGES = (8, 32)  # in the steps measured on a CPU, from which larger ones are extrapolated
SLOW = 5.0  # seconds of a step on a CPU, after which no larger one is tried
MOST_TRIED = 256  # images in a step that is measured on a CPU for its memory
FULL = 0.9  # share of the memory that a run should not exceed
LONG = 2 * 86_400  # seconds on a CPU
GIB = 2**30

Train = Callable[..., Any]


class Cost(NamedTuple):
    """What was measured, for one process on one device."""

    step_seconds: float
    """Of the network and the optimiser, for a whole batch."""

    read_seconds: float
    """Of one image: reading, decoding, its views; in one process."""

    memory_gib: float | None
    """At the peak of a step: on a CPU of the whole process; none where it is not known."""

    micro_batch_size: int | None
    """What fitted into the GPU's memory, where that is not what was asked for."""


class Prospect(NamedTuple):
    """What follows for the run."""

    seconds_per_step: float
    seconds_per_epoch: float
    seconds: float
    images_per_second: float
    readers: int
    """Processes that read, as asked for or by default."""

    readers_needed: int
    """So many that the network never waits."""

    memory_there_gib: float


def dry_run(
    config: PretrainConfig,
    source: Source,
    per_epoch: int,
    device: torch.device,
    train: Train,
    notes: Sequence[str] = (),
) -> int:
    """Measure, and say what the run would take.

    Args:
        config: Of the run.
        source: Its images.
        per_epoch: Steps in an epoch.
        device: Where it would run.
        train: `pretrain.training_step`.
        notes: What was inferred already.

    Raises:
        UserError: There are several processes, nothing can be read, or one image is too much.
    """
    if distributed.world_size() > 1:
        share = config.batch_size // distributed.world_size()
        raise UserError(
            "--dry-run measures one process: leave out torchrun, and give the part of the batch "
            f"that one process has (--batch-size {share})"
        )
    views, read_seconds = views_read(config, source)
    cost = measured(config, views, read_seconds, device, train)
    prospect = prospect_of(config, cost, per_epoch, device)
    facts = {"command": "pretrain", "dry_run": True} | cost._asdict() | prospect._asdict()
    terminal.emit("result", facts)
    console = terminal.people()
    console.print(table_of(config, cost, prospect, device))
    for line in [*notes, *advice(config, cost, prospect, device)]:
        console.print(line, highlight=False, soft_wrap=True)
    return 0


def views_read(config: PretrainConfig, source: Source) -> tuple[Tensor, float]:
    """Views of some images, V x B x C x H x W, and the seconds that one image took.

    Raises:
        UserError: None of several images can be read.
    """
    places = np.random.default_rng(config.seed).permutation(len(source))[: max(CPU_IMAGES)]
    images = ViewsDataset(source, config)
    views: list[Tensor] = []
    began = time.perf_counter()
    for place in places.tolist():
        sample = images[0, place]
        if not isinstance(sample.views, Tensor):
            path, reason = sample.skipped[-1]
            raise UserError(
                f"no image of {len(sample.skipped)} can be read, {path} for one ({reason})"
            )
        views.append(sample.views)
        if time.perf_counter() - began > READ_SECONDS:
            break
    return torch.stack(views, dim=1), (time.perf_counter() - began) / len(views)


def measured(
    config: PretrainConfig,
    views: Tensor,
    read_seconds: float,
    device: torch.device,
    train: Train,
) -> Cost:
    """Take some steps.

    Raises:
        UserError: Not even one image fits into the GPU's memory.
    """
    if device.type == "cpu":
        seconds, memory = measured_on_cpu(config, views, train)
        return Cost(seconds, read_seconds, memory, None)
    micro = config.micro_batch_size
    while True:
        try:
            seconds, memory = measured_on_gpu(config, micro, views, device, train)
        except torch.OutOfMemoryError:
            micro = half_of(micro or config.batch_size)
            torch.cuda.empty_cache()
            continue
        return Cost(seconds, read_seconds, memory, micro)


def half_of(size: int) -> int:
    """The next power of two below.

    Raises:
        UserError: There is none.
    """
    if size <= 1:
        raise UserError(
            "not even one image fits into the GPU's memory: choose a smaller model, or --recompute"
        )
    return 2 ** ((size - 1).bit_length() - 1)


def measured_on_cpu(
    config: PretrainConfig, views: Tensor, train: Train
) -> tuple[float, float | None]:
    """Seconds and GiB of a step: on a straight line through two small batches, and by `Need`."""
    sizes = sorted({min(size, config.batch_size) for size in CPU_IMAGES})
    part = min(config.micro_batch_size or config.batch_size, config.batch_size)
    need = need_on_cpu(config, sizes[0], views, train)
    gib = None if need is None else need.of(part) / GIB
    seconds: list[float] = []
    for size in sizes:
        step = step_of(config, size, None, views, torch.device("cpu"), train)
        step()
        seconds.append(min(_seconds(step) for _ in range(STEPS)))
        if seconds[-1] > SLOW:  # then four times as many images take four times as long
            return seconds[-1] * config.batch_size / size, gib
    return on_line(sizes, seconds, config.batch_size), gib


class Need(NamedTuple):
    """Bytes that training takes on a CPU."""

    process: int
    """Before there is a model."""

    weights: int
    """Weights alone: gradients, and each of AdamW's two averages, are as many."""

    an_image: float
    """What the backward pass needs of an image, all its views together."""

    def of(self, images: int) -> int:
        """At the peak of a step: at its end, or before its backward pass frees activations.

        There are no gradients yet at that moment, as the step before ended with their release.
        """
        return self.process + 3 * self.weights + max(self.weights, round(images * self.an_image))

    def fitting(self, there: float) -> int:
        """Images in a step that takes so many bytes."""
        if (rest := there - self.process - 3 * self.weights) < self.weights:
            return 0
        return int(rest / self.an_image)


@cache
def resident_at_first() -> int | None:
    """Bytes of this process when it is first asked; later it holds what was freed, for reuse."""
    return memory.resident()


def need_on_cpu(config: PretrainConfig, size: int, views: Tensor, train: Train) -> Need | None:
    """What a step takes, from one of `size` images or more; None where the system does not say.

    Few images hide behind the gradients, which come when their activations go; then their number
    is doubled.
    """
    if (process := resident_at_first()) is None:
        return None
    with torch.device("meta"):
        model = MaskedAutoencoder(config.model, Generator())
        weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    while True:
        step = step_of(config, size, None, views, torch.device("cpu"), train)
        step()  # makes AdamW's averages
        beyond = memory.peak_on_cpu(step)
        if beyond > weights or size >= MOST_TRIED:
            return Need(process, weights, (beyond + weights) / size)
        size *= 2


def on_line(sizes: list[int], values: list[float], size: int) -> float:
    """The value at a size, on the line through those of the first and the last; never falling."""
    slope = (values[-1] - values[0]) / max(1, sizes[-1] - sizes[0])
    return values[-1] + max(0.0, slope) * (size - sizes[-1])


def measured_on_gpu(
    config: PretrainConfig, micro: int | None, views: Tensor, device: torch.device, train: Train
) -> tuple[float, float]:
    """Seconds and GiB of a step of the whole batch."""
    step = step_of(config, config.batch_size, micro, views, device, train)
    step()

    def waited_for() -> None:
        step()
        torch.cuda.synchronize(device)

    peak = memory.peak_on_gpu(step, device)
    return min(_seconds(waited_for) for _ in range(STEPS)), peak / GIB


def step_of(
    config: PretrainConfig,
    size: int,
    micro: int | None,
    views: Tensor,
    device: torch.device,
    train: Train,
) -> Callable[[], Any]:
    """A training step of a batch of a size, of weights that stay as they are."""
    model = MaskedAutoencoder(config.model, Generator(), recompute=config.recompute).to(device)
    if config.objective.rebuild == "none":
        model.freeze_decoder()
    optimizer = adamw(model, lr=0.0, betas=config.betas, weight_decay=0.0)
    batch = batch_of(config, size, views)
    config = replace(config, batch_size=size, micro_batch_size=micro)
    return lambda: train(model, optimizer, batch, config, device)


def batch_of(config: PretrainConfig, size: int, views: Tensor) -> Batch:
    """A batch of a size; where fewer images were read, they come again."""
    count = config.views.num_views
    rng = np.random.default_rng(config.seed)
    noise = [mask_noise(rng, count, config.model.num_patches) for _ in range(size)]
    places = torch.arange(size) % views.shape[1]
    drawn = [draw_augmentations((config.seed, i), config.views) for i in range(size)]
    stacked = stack_augmentations(drawn)
    return Batch(views[:, places], torch.stack(noise, dim=1), [], True, augmentations=stacked)


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def prospect_of(
    config: PretrainConfig, cost: Cost, per_epoch: int, device: torch.device
) -> Prospect:
    """What follows from the cost of a step and of an image."""
    readers = loading(config.workers, device.type == "cuda")["num_workers"]
    reading = config.batch_size * cost.read_seconds
    step = max(cost.step_seconds, reading / readers) if readers else cost.step_seconds + reading
    return Prospect(
        seconds_per_step=step,
        seconds_per_epoch=step * per_epoch,
        seconds=step * per_epoch * config.epochs,
        images_per_second=config.batch_size / step,
        readers=readers,
        readers_needed=ceil(reading / cost.step_seconds),
        memory_there_gib=memory.there(device) / GIB,
    )


def table_of(config: PretrainConfig, cost: Cost, prospect: Prospect, device: torch.device) -> Table:
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
        "the whole run": duration(prospect.seconds),
        "an epoch": duration(prospect.seconds_per_epoch),
        f"a step of {config.batch_size} images": f"{prospect.seconds_per_step:.3g} s",
        "images a second": f"{prospect.images_per_second:.3g}",
        "reading an image, in one process": f"{1000 * cost.read_seconds:.3g} ms",
    }
    if cost.memory_gib is not None:
        rows["memory"] = f"{cost.memory_gib:.2g} of {prospect.memory_there_gib:.0f} GiB"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def advice(
    config: PretrainConfig, cost: Cost, prospect: Prospect, device: torch.device
) -> list[str]:
    """What to change, if anything."""
    said = []
    if cost.micro_batch_size != config.micro_batch_size and device.type == "cuda":
        said.append(
            f"a batch of {config.micro_batch_size or config.batch_size} does not fit into this "
            f"GPU: --micro-batch-size {cost.micro_batch_size} does, with the same gradient"
        )
    elif 0 < FULL * prospect.memory_there_gib < (cost.memory_gib or 0):
        part = config.micro_batch_size or config.batch_size
        fits = max(1, int(part * FULL * prospect.memory_there_gib / (cost.memory_gib or 1)))
        said.append(
            f"that is more memory than there is: --micro-batch-size {2 ** (fits.bit_length() - 1)}"
            " would do, with the same gradient"
        )
    if prospect.readers < prospect.readers_needed:
        cores = os.cpu_count() or 1
        said.append(
            f"{prospect.readers} reading processes are too few, the network would wait: --workers "
            f"{prospect.readers_needed} would do"
            + (
                f", more than the {cores} cores here; images of the size they are used at, in tar "
                "files, are read faster (mvmae data pack --short-side)"
                if prospect.readers_needed > cores
                else ""
            )
        )
    if device.type == "cpu" and prospect.seconds > LONG:
        said.append(
            "that is long for a CPU: --recipe tiny-cpu is made for one, and fewer --epochs show "
            "whether it is worth it"
        )
    return said or ["nothing to change"]
