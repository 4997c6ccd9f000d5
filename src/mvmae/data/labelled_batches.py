"""Batches of labelled images for supervised training: random crops, mirrored and augmented.

As in pre-training, the order is a function of (seed, epoch) and the crop of an image one of
(seed, epoch, index), so any number of workers and processes sees the same images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mvmae.config.views import IMAGENET_MEAN
from mvmae.data.augment import rand_augment
from mvmae.data.reading.loader import Skipped, StepSampler, loading
from mvmae.data.reading.samples import readable
from mvmae.data.sources.base import Source
from mvmae.method.views import crop, random_box


class LabelledBatch(NamedTuple):
    """The images of one process in one step."""

    images: UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"]
    labels: Int[Tensor, " B"]

    skipped: list[Skipped]
    """Images that should have been in the batch and could not be read."""

    is_whole: bool
    """Whether a readable image was found for every row."""


class Training(NamedTuple):
    """Options of the order, the crops and the augmentation."""

    seed: int
    batch_size: int
    """Images per step, over all processes."""

    size: tuple[int, int]
    """Height and width in pixels."""

    crop_scale: tuple[float, float]
    interpolation: str
    augment: float
    flip: bool
    upside_down: bool = False


class _Sample(NamedTuple):
    image: Tensor | None
    label: int
    skipped: list[Skipped]


class LabelledDataset(Dataset):
    """A random crop of an image, and its class, by (epoch, index)."""

    def __init__(self, source: Source, training: Training) -> None:
        self.source, self.training = source, training

    def __getitem__(self, index: tuple[int, int]) -> _Sample:
        training = self.training
        rng = np.random.default_rng((training.seed, *index))
        pixels, place, skipped = readable(self.source, index[1], rng)
        if pixels is None:
            return _Sample(None, 0, skipped)
        height, width = pixels.shape[1:]
        box = random_box(rng, height, width, training.crop_scale)
        mirrored = training.flip and rng.random() < 0.5
        turned = training.upside_down and rng.random() < 0.5
        image = crop(pixels, box, training.size, training.interpolation)
        image = image.flip(-1) if mirrored else image
        image = image.flip(-2) if turned else image
        if training.augment > 0:
            image = rand_augment(image, training.augment, rng, _fill(len(image)))
        return _Sample(image, self.source.label(place), skipped)


def _fill(channels: int) -> tuple[float, ...]:
    """The fill colour at the edges: ImageNet's mean, as in timm."""
    mean = IMAGENET_MEAN if channels == 3 else (sum(IMAGENET_MEAN) / 3,) * channels
    return tuple(float(round(255 * value)) for value in mean)


def _collate(samples: list[_Sample]) -> LabelledBatch:
    read = [sample for sample in samples if sample.image is not None]
    images = [sample.image for sample in read if sample.image is not None]
    stacked = torch.stack(images) if images else torch.empty(0, 0, 0, 0, dtype=torch.uint8)
    labels = torch.tensor([sample.label for sample in read], dtype=torch.int64)
    skipped = [skip for sample in samples for skip in sample.skipped]
    return LabelledBatch(stacked, labels, skipped, len(read) == len(samples))


def labelled_batches(
    source: Source,
    *,
    seed: int,
    steps: range,
    batch_size: int,
    size: tuple[int, int],
    crop_scale: tuple[float, float],
    interpolation: str,
    augment: float | bool,
    rank: int,
    world_size: int,
    workers: int | None,
    cuda: bool,
    flip: bool = True,
    upside_down: bool = False,
) -> DataLoader:
    """Batches for the given steps of a run; iterating yields `LabelledBatch`.

    Args:
        source: Labelled images; an epoch has as many whole batches as they fill.
        seed: Seed of the order, the crops and the augmentation.
        steps: Steps of the run; 0 is the first of the first epoch.
        batch_size: Images per step, over all processes.
        size: Height and width in pixels.
        crop_scale: Smallest and largest share of the image's area in a crop.
        interpolation: "bicubic" or "bilinear".
        augment: Magnitude of RandAugment on timm's scale, 0 to 10; False: crops and flips only.
        rank: Number of this training process.
        world_size: Training processes that share a batch.
        workers: Reader processes. None: chosen for the machine.
        cuda: Whether the batches go to a GPU.
        flip: Whether half of the crops are mirrored.
        upside_down: Whether half of them are flipped top to bottom.
    """
    training = Training(
        *(seed, batch_size, size, crop_scale, interpolation, float(augment), flip, upside_down)
    )
    return DataLoader(
        LabelledDataset(source, training),
        batch_sampler=StepSampler(len(source), training, steps, rank, world_size),
        **loading(workers, cuda),
        collate_fn=_collate,
    )
