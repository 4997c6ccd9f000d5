"""Training steps on throw-away weights, to measure what the real ones will take."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.loader import Batch
from mvmae.method.augmentations import draw_augmentations, stack_augmentations
from mvmae.method.model import build_model
from mvmae.method.views import mask_noise
from mvmae.training import memory
from mvmae.training.optim import adamw

CPU_BATCH_SIZES = (8, 32)  # images in the steps measured on a CPU; larger ones are extrapolated
MAX_MEASURED = 256  # images in a step whose memory is measured on a CPU
USABLE_MEMORY = 0.9  # share of the memory that a run should use at most
GIB = 2**30


class Trial(NamedTuple):
    """What is needed to try training steps."""

    config: PretrainConfig
    device: torch.device
    training_step: Callable[..., Any]
    """`pretrain.training_step`; passed on, because `pretrain` imports this package."""

    views: Tensor
    """Pixels, V x B x C x H x W; if B is smaller than a batch, images repeat."""


def make_step(
    trial: Trial, batch_size: int, micro_batch_size: int | None = None
) -> Callable[[], Any]:
    """Return a function that takes a whole training step with learning rate 0.

    Args:
        trial: Config, device and pixels.
        batch_size: Images in the step.
        micro_batch_size: Images that pass the model at once. Default: all.
    """
    config, device = trial.config, trial.device
    model = build_model(config, Generator()).to(device)
    optimizer = adamw(model, lr=0.0, betas=config.betas, weight_decay=0.0)

    rng = np.random.default_rng(config.seed)
    num_views, num_patches = config.views.num_views, config.model.num_patches
    noise = [mask_noise(rng, num_views, num_patches) for _ in range(batch_size)]
    drawn = [draw_augmentations((config.seed, i), config.views) for i in range(batch_size)]
    batch = Batch(
        trial.views[:, torch.arange(batch_size) % trial.views.shape[1]],
        torch.stack(noise, dim=1),
        [],
        True,
        augmentations=stack_augmentations(drawn),
    )
    config = replace(config, batch_size=batch_size, micro_batch_size=micro_batch_size)
    return lambda: trial.training_step(model, optimizer, batch, config, device)


def random_views(config: PretrainConfig) -> Tensor:
    """Random pixels of one image, V x 1 x C x H x W, with the loader's data type."""
    shape = (config.views.num_views, 1, config.model.in_channels, *config.model.height_width)
    if config.views.pixel_depth == "8":
        return torch.randint(256, shape, dtype=torch.uint8, generator=Generator())
    return torch.rand(shape, generator=Generator())


def power_of_two(size: int) -> int:
    """Return the largest power of two up to a size of at least 1."""
    return 2 ** (size.bit_length() - 1)


class CpuMemory(NamedTuple):
    """Bytes that training takes on a CPU."""

    process: int
    """Before the model exists."""

    weights: int
    """Weights alone: the gradients, and each of AdamW's two averages, take the same."""

    per_image: float
    """Activations of one image, all its views, until the backward pass frees them."""

    def peak_bytes(self, images: int) -> int:
        """Bytes at the peak of a step with a number of images.

        The peak is either before the backward pass, when there are activations but no gradients
        yet (the previous step released them), or at the end of the step, when it is reversed.
        """
        changing = max(self.weights, round(images * self.per_image))
        return self.process + 3 * self.weights + changing

    def images_within(self, limit: float) -> int:
        """Number of images in a step that takes at most `limit` bytes."""
        remaining = limit - self.process - 3 * self.weights
        return int(remaining / self.per_image) if remaining >= self.weights else 0


@cache
def initial_resident_bytes() -> int | None:
    """Bytes of this process at the first call; later it keeps freed memory for reuse."""
    return memory.resident()


def measure_cpu_memory(trial: Trial, batch_size: int) -> CpuMemory | None:
    """Measure the memory of a step with at least `batch_size` images.

    The activations of few images are smaller than the gradients that follow them and do not show in
    the peak; the batch is doubled until they do.

    Returns:
        None if the system does not report memory.
    """
    if (process := initial_resident_bytes()) is None:
        return None
    with torch.device("meta"):
        model = build_model(trial.config, Generator())
        weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    while True:
        step = make_step(trial, batch_size)
        step()  # creates AdamW's averages
        peak = memory.peak_on_cpu(step)
        if peak > weights or batch_size >= MAX_MEASURED:
            return CpuMemory(process, weights, (peak + weights) / batch_size)
        batch_size *= 2
