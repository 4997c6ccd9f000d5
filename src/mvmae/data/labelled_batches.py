"""Batches of labelled images for supervised training: random crops, mirrored and augmented.

As in pre-training, the order is a function of (seed, epoch) and the crop of an image one of
(seed, epoch, index), so any number of workers and processes sees the same images.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mvmae.config.views import IMAGENET_MEAN
from mvmae.data.augment import rand_augment
from mvmae.data.reading import loader
from mvmae.data.reading.loader import Skipped
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


class BatchOptions(NamedTuple):
    """Options of the order, the crops and the augmentation."""

    seed: int
    batch_size: int
    """Images per step, over all processes."""

    size: tuple[int, int]
    """Height and width in pixels."""

    crop_scale: tuple[float, float]
    """Smallest and largest share of the image's area in a crop."""

    interpolation: str
    """"bicubic" or "bilinear"."""

    augment: float = 0.0
    """Magnitude of RandAugment on timm's scale, 0 to 10; 0: crops and flips only."""

    flip: bool = True
    """Whether half of the crops are mirrored."""

    upside_down: bool = False
    """Whether half of them are flipped top to bottom."""


class LabelledDataset(Dataset):
    """A random crop of an image, and its class, by (epoch, index)."""

    def __init__(self, source: Source, options: BatchOptions) -> None:
        self.source, self.options = source, options

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor | None, int, list[Skipped]]:
        options = self.options
        rng = np.random.default_rng((options.seed, *index))
        pixels, place, skipped = loader.first_readable(self.source.read, self.source, index[1], rng)
        if pixels is None:
            return None, 0, skipped
        height, width = pixels.shape[1:]
        box = random_box(rng, height, width, options.crop_scale)
        # Drawn only where used, so that an option that is off leaves the other draws as they are.
        mirrored = options.flip and rng.random() < 0.5
        turned = options.upside_down and rng.random() < 0.5
        image = crop(pixels, box, options.size, options.interpolation)
        image = image.flip(-1) if mirrored else image
        image = image.flip(-2) if turned else image
        if options.augment > 0:
            channels = len(image)  # edges are filled with ImageNet's mean, as in timm
            mean = IMAGENET_MEAN if channels == 3 else (sum(IMAGENET_MEAN) / 3,) * channels
            fill = tuple(float(round(255 * value)) for value in mean)
            image = rand_augment(image, options.augment, rng, fill)
        return image, self.source.label(place), skipped


def _collate(samples: list[tuple[Tensor | None, int, list[Skipped]]]) -> LabelledBatch:
    images, labels, skipped = loader.collate_whole(samples)
    return LabelledBatch(images, labels, skipped, is_whole=len(images) == len(samples))


def labelled_batches(
    source: Source,
    options: BatchOptions,
    steps: range,
    *,
    rank: int,
    world_size: int,
    workers: int | None,
    cuda: bool,
) -> DataLoader:
    """Batches for the given steps of a run; iterating yields `LabelledBatch`.

    Args:
        source: Labelled images; an epoch has as many whole batches as they fill.
        options: Order, crops and augmentation.
        steps: Steps of the run; 0 is the first of the first epoch.
        rank: Number of this training process.
        world_size: Training processes that share a batch.
        workers: Reader processes. None: chosen for the machine.
        cuda: Whether the batches go to a GPU.
    """
    order = options.seed, options.batch_size
    return DataLoader(
        LabelledDataset(source, options),
        batch_sampler=loader.StepSampler(len(source), *order, steps, rank, world_size),
        **loader.loader_options(workers, cuda),
        collate_fn=_collate,
    )
