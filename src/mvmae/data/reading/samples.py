"""The views of one image by (epoch, index), and batches of them.

Shapes: V views of an image, B images, C channels, H x W pixels, N patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.decode import UnreadableImageError, decode_content
from mvmae.data.reading.resilient_loader import note_reading
from mvmae.data.sources.base import Source
from mvmae.method.augmentations import Augmentations, draw_augmentations, stack_augmentations
from mvmae.method.views import mask_noise, random_views

AUGMENTATIONS = 1  # seeds their draws apart from those of crops and masks
ATTEMPTS = 64  # other images tried in place of an unreadable one
T = TypeVar("T")
FastViews = Callable[[bytes, PretrainConfig, np.random.Generator], Tensor | None]


class Skipped(NamedTuple):
    """An image that could not be read."""

    path: str
    reason: str


class Batch(NamedTuple):
    """The images of one process in one step."""

    views: UInt8[Tensor, "V B C H W"] | Float32[Tensor, "V B C H W"]
    """Views of each image, first views first."""

    noise: Float[Tensor, "V B N"]
    """Ranks the patches of each view for masking."""

    skipped: list[Skipped]
    """Images that should have been in the batch and could not be read."""

    is_whole: bool
    """Whether a readable image was found for every row."""

    groups: Int[Tensor, " B"] | None = None
    """Group numbers of the images; None without groups."""

    augmentations: Augmentations | None = None
    """Columns of shape "V B"; None where views keep their colours."""


class Sample(NamedTuple):
    """What was made of an image, or of another in place of an unreadable one."""

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
        self.fast_views: FastViews | None = None
        if config.decode == "fast":
            from mvmae.data.reading import reduced_jpeg

            self.fast_views = reduced_jpeg.fast_views if reduced_jpeg.applies(config) else None

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        config, (epoch, place) = self.config, index
        rng = np.random.default_rng((config.seed, epoch, place))
        noise = mask_noise(rng, config.views.num_views, config.model.num_patches)
        read = partial(self.views, rng=rng)
        views, place, skipped = first_readable(read, self.source, place, rng)
        augmentations = draw_augmentations((config.seed, *index, AUGMENTATIONS), config.views)
        return Sample(views, noise, skipped, place, augmentations)

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
    """Call `read` on an image and, while it cannot be read, on others drawn from `rng`.

    Returns:
        The result, or None after `ATTEMPTS` unreadable images; the index of the image that was
        read; the images that were skipped.
    """
    skipped = []
    for _ in range(ATTEMPTS):
        try:
            return read(index), index, skipped
        except UnreadableImageError as error:
            skipped.append(Skipped(source.path(index), str(error)))
            index = int(rng.integers(len(source)))
    return None, index, skipped


def collate(samples: Sequence[Sample], groups: np.ndarray | None = None) -> Batch:
    """Stack samples to a batch; `groups` has the group number of each image of the source."""
    views = [sample.views for sample in samples if sample.views is not None]
    stacked = torch.stack(views, dim=1) if views else torch.empty(0, 0, 0, 0, 0, dtype=torch.uint8)
    noise = torch.stack([sample.noise for sample in samples], dim=1)
    skipped = [skip for sample in samples for skip in sample.skipped]
    indices = [sample.index for sample in samples]
    batch_groups = None if groups is None else torch.from_numpy(groups[indices])
    augmentations = stack_augmentations([sample.augmentations for sample in samples])
    is_whole = len(views) == len(samples)
    return Batch(stacked, noise, skipped, is_whole, batch_groups, augmentations)
