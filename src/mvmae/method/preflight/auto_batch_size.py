"""`--batch-size auto` and `--micro-batch-size auto`: the largest that fits into memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from mvmae import terminal
from mvmae.config.checks import AUTO
from mvmae.config.pretrain import PretrainConfig
from mvmae.errors import UserError
from mvmae.method.preflight.measured_step import (
    CPU_BATCH_SIZES,
    USABLE_MEMORY,
    Trial,
    make_step,
    measure_cpu_memory,
    power_of_two,
    random_views,
)
from mvmae.training import distributed, memory
from mvmae.training.plan import steps_per_epoch

MAX_BATCH = 4096  # images; MAE's batch size, up to which it scales the learning rate
MIN_STEPS_PER_EPOCH = 8  # with fewer, training approaches slow full-batch gradient descent
MIN_BATCH = 16  # images, even for fewer steps per epoch: the contrast needs others to compare with


def find_batch_size(
    config: PretrainConfig, num_images: int, device: torch.device, training_step: Callable[..., Any]
) -> tuple[PretrainConfig, str]:
    """Replace `auto` in `batch_size` or `micro_batch_size` by the largest number that fits.

    Takes training steps on random pixels. Every process must call this.

    Args:
        config: Options of the run, with pixel depth and statistics resolved.
        num_images: Training images.
        device: Device of this process.
        training_step: `pretrain.training_step`.

    Returns:
        The config with numbers in place of `auto`, and a note for the screen.

    Raises:
        UserError: Not even the smallest batch fits, or the system does not report memory.
    """
    processes = distributed.world_size()
    largest = _largest_allowed(config, num_images)
    if distributed.is_main():
        slow = ": a minute or more for a large model" if device.type == "cpu" else ""
        terminal.console().print(f"trying how many images fit into memory{slow}", style="dim")
    limit = USABLE_MEMORY * memory.total(device)
    if device.type == "cpu":
        limit /= distributed.processes_here()
    with distributed.apart():
        trial = Trial(config, device, training_step, random_views(config))
        size = _largest_fitting(trial, largest, limit)
    size = -distributed.max_over_processes(-size, device)  # the smallest of all processes
    if config.batch_size == AUTO:
        batch_size = power_of_two(min(size, largest)) * processes
        steps = num_images // batch_size
        reason = f"{steps} steps per epoch" if size >= largest else "which fit into memory"
        note = f"batches of {batch_size} images, {reason}; the learning rate is scaled to them"
        return replace(config, batch_size=batch_size), note
    if size >= largest:
        note = f"all {largest} images of a batch fit into memory at once"
        return replace(config, micro_batch_size=None), note
    part = power_of_two(size)
    return replace(config, micro_batch_size=part), f"batches in parts of {part} images, which fit"


def _largest_allowed(config: PretrainConfig, num_images: int) -> int:
    """Return the largest number of images per process and step that is worth trying.

    Raises:
        UserError: There are too few images.
    """
    processes = distributed.world_size()
    if config.batch_size != AUTO:
        steps_per_epoch(num_images, config.batch_size)  # only for the errors that it raises
        return config.batch_size // processes
    wanted = min(MAX_BATCH, num_images, max(MIN_BATCH, num_images // MIN_STEPS_PER_EPOCH))
    if wanted < max(2, processes):
        raise UserError(
            f"{num_images} images are too few: give at least {max(2, processes)}, and better "
            "hundreds"
        )
    return power_of_two(max(1, wanted // processes))


def _largest_fitting(trial: Trial, largest: int, limit: float) -> int:
    """Return how many images, up to `largest`, a step within `limit` bytes can have.

    On a GPU, the batch is doubled until it no longer fits. On a CPU, memory is extrapolated from a
    small step, because a system that runs out of memory kills processes.

    Raises:
        UserError: The smallest batch does not fit, or the system does not report memory.
    """
    smallest, size = min(largest, 2), 0
    if trial.device.type == "cpu":
        start = min(largest, min(CPU_BATCH_SIZES))
        # A limit of 0 means that the machine's memory is unknown.
        need = measure_cpu_memory(trial, start) if limit else None
        if need is None:
            raise UserError("auto needs a system that reports memory: give a number instead")
        size = need.images_within(limit)
    else:
        candidate = smallest
        while candidate > size and _fits_on_gpu(trial, candidate, limit):
            size, candidate = candidate, min(2 * candidate, largest)
    if size < smallest:
        raise UserError(
            f"not even {smallest} images fit into memory: choose a smaller model, or --recompute"
        )
    return min(size, largest)


def _fits_on_gpu(trial: Trial, batch_size: int, limit: float) -> bool:
    try:
        return memory.peak_on_gpu(make_step(trial, batch_size), trial.device) <= limit
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
