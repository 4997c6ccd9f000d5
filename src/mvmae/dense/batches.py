"""Annotated images for `detect` and `segment`: augmented in training, whole for evaluation.

The two commands differ in what they read and how they augment it, which they pass as functions.
Shapes: C channels, H x W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mvmae.config.detect import DetectConfig
from mvmae.config.segment import SegmentConfig
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.reading.loader import Skipped, StepSampler, first_readable, loader_options
from mvmae.data.sources.base import Source


class TrainingBatch(NamedTuple):
    """Augmented images with their annotations, for one process and one step."""

    images: Any
    """8-bit pixels of shape C H W: a list, or one tensor where `stack` made one."""

    targets: Any
    """Annotation of each image, as a list or one tensor like `images`."""

    skipped: list[Skipped]
    """Images that could not be read and were replaced by others."""

    is_whole: bool
    """Whether a readable image was found for every position of the batch."""


class _AugmentedImages(Dataset):
    """Images with annotations by (epoch, index), each with the unreadable ones that it replaces."""

    def __init__(self, source: Source, seed: int, read: Callable, augment: Callable) -> None:
        self.source, self.seed, self.read, self.augment = source, seed, read, augment

    def __getitem__(self, index: tuple[int, int]) -> tuple[Any, list[Skipped]]:
        # A function of (seed, epoch, index): the number of workers and processes changes nothing.
        rng = np.random.default_rng((self.seed, *index))
        found, _, skipped = first_readable(self.read, self.source, index[1], rng)
        return (None if found is None else self.augment(*found, rng=rng)), skipped


def _collate(samples: list[tuple[Any, list[Skipped]]], stack: Callable) -> TrainingBatch:
    found = [image for image, _ in samples if image is not None]
    skipped = [skip for _, skips in samples for skip in skips]
    if not found:  # `torch.stack` refuses an empty list; the loop ends the run in this case
        return TrainingBatch([], [], skipped, is_whole=False)
    images, targets = (stack(column) for column in zip(*found, strict=True))
    return TrainingBatch(images, targets, skipped, len(found) == len(samples))


def training_batches(
    source: Source,
    read: Callable[[int], tuple[Any, Any]],
    augment: Callable[..., tuple[Any, Any]],
    config: DetectConfig | SegmentConfig,
    steps: range,
    *,
    stack: Callable = list,
    rank: int = 0,
    world_size: int = 1,
    cuda: bool,
) -> DataLoader:
    """Load the batches of the given steps; iterating yields `TrainingBatch`.

    Args:
        source: Training images.
        read: Returns an image and its annotation by index. Like `augment`, it must be picklable,
            because some systems start reading processes afresh.
        augment: Augments an image and its annotation with the generator `rng`.
        config: Options of the command.
        steps: Steps of the run; 0 is the first of the first epoch.
        stack: Joins the images of a batch, and separately their annotations: `list`, or
            `torch.stack` if all have the same shape.
        rank: Rank of this training process.
        world_size: Number of training processes that share a batch.
        cuda: Whether the batches go to a GPU.
    """
    return DataLoader(
        _AugmentedImages(source, config.seed, read, augment),
        batch_sampler=StepSampler(
            len(source), config.seed, config.batch_size, steps, rank, world_size
        ),
        **loader_options(config.workers, cuda),
        collate_fn=partial(_collate, stack=stack),
    )


class WholeImage(NamedTuple):
    """An image to evaluate or predict."""

    index: int
    """Position in its source."""

    content: Any
    """What `read` returned; None if the image cannot be read."""

    skipped: list[Skipped]


class _WholeImages(Dataset):
    def __init__(self, source: Source, read: Callable) -> None:
        self.source, self.read = source, read

    def __getitem__(self, index: int) -> WholeImage:
        try:
            return WholeImage(index, self.read(index), [])
        except UnreadableImageError as error:
            return WholeImage(index, None, [Skipped(self.source.path(index), str(error))])


def whole_images(
    source: Source,
    read: Callable[[int], Any],
    indices: Sequence[int],
    *,
    workers: int | None,
    cuda: bool,
    batch_size: int = 1,
) -> Iterator[WholeImage]:
    """Read each image once, in the order of `indices`.

    Args:
        source: The images.
        read: Returns the content of an image by index; picklable.
        indices: Which images.
        workers: Reading processes. None: the default of `loader_options`.
        cuda: Whether the images go to a GPU.
        batch_size: Images that a reading process hands over at a time; they are yielded singly.
    """
    return chain.from_iterable(
        DataLoader(
            _WholeImages(source, read),
            sampler=list(indices),
            batch_size=batch_size,
            **loader_options(workers, cuda),
            collate_fn=list,
        )
    )


def scaled_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Height and width after resizing by a factor; at least one pixel."""
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
