"""Batches for pre-training and for evaluation, read by worker processes.

The order of the images is a function of (seed, epoch) and a batch is a slice of it, so that a run
resumes at any step, on any number of processes, with the batches it would have seen.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.reading.resilient_loader import POLL, Watched, resilient_batches
from mvmae.data.reading.samples import Batch, Skipped, ViewsDataset, collate
from mvmae.data.sources.base import Source
from mvmae.method.views import whole_view


def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Every image once, shuffled."""
    return np.random.default_rng((seed, epoch)).permutation(num_images)


class StepSampler:
    """The (epoch, index) pairs of this process's share of each batch.

    Images at the end of an epoch that do not fill a batch are left out, as in MAE.

    Args:
        num_images: Images in an epoch.
        seed: Seed of the shuffling.
        batch_size: Images in a step, over all processes.
        steps: Steps of the run.
        rank: Number of this training process.
        world_size: Training processes that share a batch.
    """

    def __init__(
        self, num_images: int, seed: int, batch_size: int, steps: range, rank: int, world_size: int
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
    """Batches of views for the given steps, even if reader processes die or hang.

    Args:
        source: The images.
        config: Options of the run.
        steps: Steps of the run.
        rank: Number of this training process.
        world_size: Training processes that share a batch.
        cuda: Whether the batches go to a GPU.
        groups: Group numbers from `groups.group_numbers`.
    """
    options = loading(config.workers, cuda, timeout=POLL)
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
    """Images as they are evaluated, by index."""

    def __init__(
        self, source: Source, size: tuple[int, int], interpolation: str, share: float = 1.0
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


def _collate_whole(samples: list[tuple[Tensor | None, int, list[Skipped]]]) -> WholeBatch:
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
    """Every image once, in order, as `whole_view` shows it; yields `WholeBatch`."""
    return DataLoader(
        WholeDataset(source, size, interpolation, share),
        batch_size=batch_size,
        **loading(workers, cuda),
        collate_fn=_collate_whole,
    )


def loading(workers: int | None, cuda: bool, *, timeout: float = 0) -> dict:
    """Options for DataLoader. On a CPU the network needs the cores, so one process reads."""
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
