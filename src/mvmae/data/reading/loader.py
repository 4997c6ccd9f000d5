"""Batches of views and of whole images, read by worker processes.

The order of the images is a function of (seed, epoch) and a batch is a slice of it. So a run can
resume at any step, on any number of processes, with the same batches as without the interruption.

Shapes: V views of an image, B images, C channels, H x W pixels, N patches.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.decode import UnreadableImageError, decode_content
from mvmae.data.reading.resilient_loader import POLL, Watched, note_reading, resilient_batches
from mvmae.data.sources.base import Source
from mvmae.method.augmentations import Augmentations, draw_augmentations, stack_augmentations
from mvmae.method.views import mask_noise, random_views, whole_view

AUGMENTATION_STREAM = 1  # in their seed, which keeps their draws apart from crops and masks
MAX_ATTEMPTS = 64  # other images tried in place of an unreadable one
T = TypeVar("T")


class Skipped(NamedTuple):
    """An image that could not be read."""

    path: str
    reason: str


class Batch(NamedTuple):
    """The images of one process in one step."""

    views: UInt8[Tensor, "V B C H W"] | Float32[Tensor, "V B C H W"]
    """Views of each image, first views first."""

    noise: Float[Tensor, "V B N"]
    """Noise that ranks the patches of each view for masking."""

    skipped: list[Skipped]
    """Images that should have been in the batch and could not be read."""

    is_whole: bool
    """Whether a readable image was found for every row."""

    groups: Int[Tensor, " B"] | None = None
    """Group numbers of the images; None without groups."""

    augmentations: Augmentations | None = None
    """Columns of shape "V B"; None where views keep their colours."""


class Sample(NamedTuple):
    """The views of an image, or of another one in place of an unreadable image."""

    views: Tensor | None
    """Shape V C H W; None where no readable image was found."""

    noise: Float[Tensor, "V N"]
    skipped: list[Skipped]
    index: int
    """Index in the source of the image that was read."""

    augmentations: Augmentations | None = None


class ViewsDataset(Dataset):
    """Views of an image by (epoch, index)."""

    def __init__(self, source: Source, config: PretrainConfig) -> None:
        self.source, self.config = source, config
        self.fast_views: Callable[..., Tensor | None] | None = None
        if config.decode == "fast":
            from mvmae.data.reading import reduced_jpeg

            self.fast_views = reduced_jpeg.fast_views if reduced_jpeg.applies(config) else None

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        config, (_, number) = self.config, index
        rng = np.random.default_rng((config.seed, *index))
        # First, so that masks do not depend on how many images were tried.
        noise = mask_noise(rng, config.views.num_views, config.model.num_patches)
        read = partial(self.views, rng=rng)
        views, number, skipped = first_readable(read, self.source, number, rng)
        # From a separate stream, so that runs without augmentation stay the same bit for bit.
        augmentations = draw_augmentations((config.seed, *index, AUGMENTATION_STREAM), config.views)
        return Sample(views, noise, skipped, number, augmentations)

    def views(self, index: int, rng: np.random.Generator) -> Tensor:
        """Random views of an image, shape V C H W.

        Raises:
            UnreadableImageError: The image cannot be decoded.
        """
        config = self.config
        with note_reading(self.source, index):
            if self.fast_views is None:
                image = self.source.read(index)
            else:
                content = self.source.content(index)
                if isinstance(content, bytes):
                    views = self.fast_views(content, config, rng)
                    if views is not None:
                        return views
                image = decode_content(content, self.source.wanted)
        return random_views(image, config.views, config.model.height_width, rng)


def first_readable(
    read: Callable[[int], T], source: Source, index: int, rng: np.random.Generator
) -> tuple[T | None, int, list[Skipped]]:
    """Call `read` on an image; if that cannot be read, on others drawn from `rng`.

    Returns:
        The result, or None after `MAX_ATTEMPTS` unreadable images; the index of the image that was
        read; the images that were skipped.
    """
    skipped = []
    for _ in range(MAX_ATTEMPTS):
        try:
            return read(index), index, skipped
        except UnreadableImageError as error:
            skipped.append(Skipped(source.path(index), str(error)))
            # From the image's own generator: a resumed run finds the same replacement.
            index = int(rng.integers(len(source)))
    return None, index, skipped


def collate(samples: Sequence[Sample], groups: np.ndarray | None = None) -> Batch:
    """Stack samples to a batch; `groups` holds the group number of every image of the source."""
    views = [sample.views for sample in samples if sample.views is not None]
    stacked = torch.stack(views, dim=1) if views else torch.empty(0, 0, 0, 0, 0, dtype=torch.uint8)
    noise = torch.stack([sample.noise for sample in samples], dim=1)
    skipped = [skip for sample in samples for skip in sample.skipped]
    indices = [sample.index for sample in samples]
    batch_groups = None if groups is None else torch.from_numpy(groups[indices])
    augmentations = stack_augmentations([sample.augmentations for sample in samples])
    is_whole = len(views) == len(samples)
    return Batch(stacked, noise, skipped, is_whole, batch_groups, augmentations)


def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Return the indices of all images, shuffled."""
    return np.random.default_rng((seed, epoch)).permutation(num_images)


class StepSampler:
    """The (epoch, index) pairs of this process's share of each batch.

    The last images of an epoch are left out if they do not fill a batch, as in MAE.

    Args:
        num_images: Images in an epoch.
        seed: Seed of the shuffling.
        batch_size: Images in a step, over all processes.
        steps: Steps of the run.
        rank: Rank of this training process.
        world_size: Number of training processes, which share each batch.
    """

    def __init__(
        self,
        num_images: int,
        seed: int,
        batch_size: int,
        steps: range,
        rank: int,
        world_size: int,
    ) -> None:
        self.num_images, self.seed, self.batch_size = num_images, seed, batch_size
        self.steps, self.rank, self.world_size = steps, rank, world_size

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batch_size = self.batch_size
        per_epoch = self.num_images // batch_size
        first = batch_size * self.rank // self.world_size  # shares need not be equal
        stop = batch_size * (self.rank + 1) // self.world_size
        # One epoch's order at a time: shuffling a million images takes a while.
        known, order = -1, np.empty(0, dtype=np.int64)
        for step in self.steps:
            epoch, place = divmod(step, per_epoch)
            if epoch != known:
                known, order = epoch, epoch_order(self.seed, epoch, self.num_images)
            begin = place * batch_size
            own = order[begin + first : begin + stop]
            yield [(epoch, int(index)) for index in own]


def view_batches(
    source: Source,
    config: PretrainConfig,
    steps: range,
    *,
    rank: int,
    world_size: int,
    cuda: bool,
    groups: Int[np.ndarray, " images"] | None = None,
) -> Iterator[Batch]:
    """Yield the batches of views of some steps, even if reader processes die or hang.

    Args:
        source: The images.
        config: Options of the run.
        steps: Steps of the run.
        rank: Rank of this training process.
        world_size: Number of training processes, which share each batch.
        cuda: Whether the batches go to a GPU.
        groups: Group numbers from `groups.group_numbers`.
    """
    options = loader_options(config.workers, cuda, timeout=POLL)
    order = config.seed, config.batch_size
    watched = Watched(source, options["num_workers"])

    def loader(rest: range) -> DataLoader:
        return DataLoader(
            ViewsDataset(watched, config),
            batch_sampler=StepSampler(len(source), *order, rest, rank, world_size),
            **options,
            collate_fn=partial(collate, groups=groups),
        )

    return resilient_batches(loader, steps, watched, timeout=config.read_timeout)


class WholeBatch(NamedTuple):
    """Whole images with their indices in the source."""

    images: UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"]
    indices: Int[Tensor, " B"]
    skipped: list[Skipped]


class WholeDataset(Dataset):
    """Whole images by index, as evaluations use them."""

    def __init__(
        self,
        source: Source,
        size: tuple[int, int],
        interpolation: str,
        share: float = 1.0,
    ) -> None:
        self.source, self.size, self.interpolation, self.share = source, size, interpolation, share

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, list[Skipped]]:
        try:
            pixels = self.source.read(index)
        except UnreadableImageError as error:
            return None, index, [Skipped(self.source.path(index), str(error))]
        return whole_view(pixels, self.size, self.interpolation, self.share), index, []


def collate_whole(samples: list[tuple[Tensor | None, int, list[Skipped]]]) -> WholeBatch:
    """Stack the images that could be read and their indices, and list the skipped ones."""
    images = [image for image, _, _ in samples if image is not None]
    indices = [index for image, index, _ in samples if image is not None]
    stacked = torch.stack(images) if images else torch.empty(0, 0, 0, 0, dtype=torch.uint8)
    skipped = [skip for _, _, skips in samples for skip in skips]
    return WholeBatch(stacked, torch.tensor(indices, dtype=torch.int64), skipped)


def whole_batches(
    source: Source,
    size: tuple[int, int],
    *,
    interpolation: str,
    batch_size: int,
    workers: int | None,
    cuda: bool,
    share: float = 1.0,
) -> DataLoader:
    """Return a loader of `WholeBatch`es of all images in order, resized by `whole_view`.

    Args:
        source: The images.
        size: Height and width in pixels.
        interpolation: "bicubic" or "bilinear".
        batch_size: Images in a batch.
        workers: Reader processes. Default: depends on the machine.
        cuda: Whether the batches go to a GPU.
        share: As in `whole_view`.
    """
    return DataLoader(
        WholeDataset(source, size, interpolation, share),
        batch_size=batch_size,
        **loader_options(workers, cuda),
        collate_fn=collate_whole,
    )


def loader_options(workers: int | None, cuda: bool, *, timeout: float = 0) -> dict:
    """Return options for DataLoader; on a CPU one worker reads, as the network needs the cores.

    Args:
        workers: Reader processes. Default: on a GPU one per core, at most 16.
        cuda: Whether the batches go to a GPU.
        timeout: Seconds to wait for a batch; 0 waits forever.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        workers = min(16, cores) if cuda else min(1, cores - 1)
    options: dict = {"num_workers": workers, "pin_memory": cuda}
    if workers:  # torch refuses these options where the training process reads
        start = partial(_leave_signals_to_the_parent, _exit_flag())
        options |= {"worker_init_fn": start, "prefetch_factor": 4, "timeout": timeout}
    return options


@cache
def _exit_flag() -> Tensor:
    """A number in shared memory that becomes 1 when the program ends."""
    flag = torch.zeros(1, dtype=torch.uint8).share_memory_()
    atexit.register(flag.fill_, 1)
    return flag


def _leave_signals_to_the_parent(exit_flag: Tensor, _worker: int) -> None:
    """Ignore signals that terminals and Slurm send to every process; the parent handles them.

    SIGTERM still ends a worker once the parent exits: Python sends it if an error kept the loader
    from ending its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if exit_flag.item() else None)
