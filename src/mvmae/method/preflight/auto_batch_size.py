"""Batch sizes that are left to the machine: the largest that fits into its memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Generator, Tensor

from mvmae import terminal
from mvmae.config.checks import AUTO
from mvmae.config.pretrain import PretrainConfig
from mvmae.errors import UserError
from mvmae.method.preflight.dry_run import CPU_IMAGES, FULL, Train, need_on_cpu, step_of
from mvmae.training import distributed, memory
from mvmae.training.plan import steps_per_epoch

MOST = 4096  # images in a batch, up to which MAE scales the learning rate
STEPS_AN_EPOCH = 8  # at least: a batch of nearly all images is gradient descent in slow motion
LEAST = 16  # images in a batch all the same: the contrast needs others to compare with


def find_batch_size(
    config: PretrainConfig, num_images: int, device: torch.device, train: Train
) -> tuple[PretrainConfig, str]:
    """Find the batch size that the config leaves to the machine, with steps on random pixels.

    Args:
        config: With the pixels' depth and statistics settled.
        num_images: There are.
        device: Of this process.
        train: `pretrain.training_step`.

    Returns:
        The config with numbers; a note for the screen.

    Raises:
        UserError: Not even the least batch fits, or the system does not tell what is used.
    """
    processes = distributed.world_size()
    if config.batch_size == AUTO:
        wanted = min(MOST, num_images, max(LEAST, num_images // STEPS_AN_EPOCH))
        most = power_of_two(max(1, wanted // processes))
        if wanted < max(2, processes):
            raise UserError(
                f"{num_images} images are too few: give at least {max(2, processes)}, and better "
                "hundreds"
            )
    else:
        steps_per_epoch(num_images, config.batch_size)  # raise before trying for long
        most = config.batch_size // processes
    if distributed.is_main():
        said = "trying how many images fit into memory"
        long = (
            ", with some steps: a minute or more for a large model" if device.type == "cpu" else ""
        )
        terminal.people().print(said + long, style="dim")
    memory_share = FULL * memory.there(device)
    if device.type == "cpu":
        memory_share /= distributed.processes_here()
    with distributed.apart():
        size = largest_fitting(config, most, memory_share, device, train)
    size = -distributed.largest(-size, device)  # the least of all processes
    if config.batch_size == AUTO:
        batch = power_of_two(min(size, most)) * processes
        config = replace(config, batch_size=batch)
        return config, _in_words(batch, num_images // batch, is_all=size >= most)
    if size >= most:
        note = f"all {most} images of a batch fit into memory at once"
        return replace(config, micro_batch_size=None), note
    part = power_of_two(size)
    return replace(config, micro_batch_size=part), f"batches in parts of {part} images, which fit"


def _in_words(batch: int, steps: int, *, is_all: bool) -> str:
    if not is_all:
        return f"batches of {batch} images, which fit into memory; the learning rate follows"
    return f"batches of {batch} images, {steps} steps an epoch; the learning rate follows"


def power_of_two(size: int) -> int:
    """The largest up to a size, which is at least 1."""
    return 2 ** (size.bit_length() - 1)


def largest_fitting(
    config: PretrainConfig, most: int, there: float, device: torch.device, train: Train
) -> int:
    """Images in a step that take no more than so many bytes, `there`; at most `most`.

    On a GPU by trying, doubling; on a CPU, where memory that is too little ends programs, from two
    small steps.

    Raises:
        UserError: The least is too much, or the system does not tell what is used.
    """
    least = min(most, 2)
    views = random_views_of(config)
    if device.type == "cpu":
        need = need_on_cpu(config, min(most, min(CPU_IMAGES)), views, train) if there else None
        if need is None:
            raise UserError(
                "auto needs a system that tells how much memory a process takes: give a number"
            )
        size = need.fitting(there)
    else:
        size = 0
        for tried in _sizes(least, most):
            if _gpu_bytes(config, tried, views, device, train) > there:
                break
            size = tried
    if size < least:
        raise UserError(
            f"not even {least} images fit into memory: choose a smaller model, or --recompute"
        )
    return min(size, most)


def random_views_of(config: PretrainConfig) -> Tensor:
    """Pixels of one image, V x 1 x C x H x W, of the kind that the loader gives."""
    shape = (config.views.num_views, 1, config.model.in_channels, *config.model.height_width)
    if config.views.pixel_depth == "8":
        return torch.randint(256, shape, dtype=torch.uint8, generator=Generator())
    return torch.rand(shape, generator=Generator())


def _sizes(least: int, most: int) -> Iterator[int]:
    size = least
    while size < most:
        yield size
        size *= 2
    yield most


def _gpu_bytes(
    config: PretrainConfig, size: int, views: Tensor, device: torch.device, train: Train
) -> float:
    """Bytes at the peak of a step; infinite where they are not to be had."""
    try:
        return memory.peak_on_gpu(step_of(config, size, None, views, device, train), device)
    except torch.OutOfMemoryError:
        return float("inf")
    finally:
        torch.cuda.empty_cache()
