"""One image's views, by number, and what a batch of them is."""

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
from mvmae.data.reading import reduced_jpeg
from mvmae.data.reading.decode import Pixels, UnreadableImageError, decode_content
from mvmae.data.reading.resilient_loader import reading
from mvmae.data.sources.base import Source
from mvmae.method.augmentations import Augmentations, draw_augmentations, stack_augmentations
from mvmae.method.views import Crop, mask_noise, random_views

AUGMENTATIONS = 1  # seeds their draws apart from those of crops and masks
ATTEMPTS = 64  # other images tried in place of an unreadable one
T = TypeVar("T")


class Skipped(NamedTuple):
    """An image that could not be read."""

    path: str
    reason: str


class Batch(NamedTuple):
    """What one process trains on in one step."""

    views: UInt8[Tensor, "V B C H W"] | Float32[Tensor, "V B C H W"]
    """Views of each image, first views first."""

    noise: Float[Tensor, "V B N"]
    """What ranks the patches of each view for masking."""

    skipped: list[Skipped]
    """Images that were to be in the batch and could not be read."""

    is_whole: bool
    """Whether something readable was found for every place."""

    groups: Int[Tensor, " B"] | None = None
    """Numbers of the groups that the images belong to, where there are groups."""

    augmentations: Augmentations | None = None
    """Columns of shape "V B"; None where views keep their colours."""


class File(NamedTuple):
    """An image file that is still to be decoded."""

    data: bytes

    size: tuple[int, int]
    """Height and width of its picture in pixels."""

    crops: list[Crop]
    """What its views show, as `random_crops` draws it."""


OfFile = Callable[[bytes, PretrainConfig, np.random.Generator], Tensor | File | None]


class Sample(NamedTuple):
    """What was made of an image, or of another in place of an unreadable one."""

    views: Tensor | File | None
    """None where none was found that could be read."""

    noise: Float[Tensor, "V N"]
    skipped: list[Skipped]
    place: int
    """In the source, of the image that was read."""

    index: tuple[int, int]
    """Epoch and place that were asked for."""

    augmentations: Augmentations | None = None
    """Columns of shape "V"."""


class ViewsDataset(Dataset):
    """Views of an image by (epoch, index).

    Args:
        source: The images.
        config: Of the run.
        of_file: What is made of a file's bytes in place of views; None from it means that the file
            is to be decoded as usual. Default: by `config.decode` nothing, or fast views.

    Raises:
        UserError: `config.decode` is "fast", and the package for that is missing.
    """

    def __init__(
        self, source: Source, config: PretrainConfig, of_file: OfFile | None = None
    ) -> None:
        self.source, self.config, self.of_file = source, config, of_file
        if config.decode == "fast" and reduced_jpeg.is_for(config):
            reduced_jpeg.require_simplejpeg()
            self.of_file = reduced_jpeg.fast_views

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        config, (epoch, place) = self.config, index
        rng = np.random.default_rng((config.seed, epoch, place))
        noise = mask_noise(rng, config.views.num_views, config.model.num_patches)
        read = partial(self.views, rng=rng)
        views, place, skipped = first_readable(read, self.source, place, rng)
        drawn = draw_augmentations((config.seed, *index, AUGMENTATIONS), config.views)
        return Sample(views, noise, skipped, place, index, drawn)

    def views(self, place: int, rng: np.random.Generator) -> Tensor | File:
        """Views of the image at a place, or what is made of its file.

        Raises:
            UnreadableImageError: It cannot be decoded.
        """
        config = self.config
        with reading(self.source, place):
            if self.of_file is None:
                image = self.source.read(place)
            else:
                content = self.source.content(place)
                made = self.of_file(content, config, rng) if isinstance(content, bytes) else None
                if made is not None:
                    return made
                image = decode_content(content, self.source.wanted)
        return random_views(image, config.views, config.model.height_width, rng)


def readable(
    source: Source, place: int, rng: np.random.Generator
) -> tuple[Pixels | None, int, list[Skipped]]:
    """The image at a place, or another in place of an unreadable one; see `first_readable`."""
    return first_readable(source.read, source, place, rng)


def first_readable(
    read: Callable[[int], T], source: Source, place: int, rng: np.random.Generator
) -> tuple[T | None, int, list[Skipped]]:
    """What is read at a place, or at another in place of an unreadable one.

    Returns:
        That, or none where none of `ATTEMPTS` could be read; its place; what was skipped.
    """
    skipped = []
    for _ in range(ATTEMPTS):
        try:
            return read(place), place, skipped
        except UnreadableImageError as error:
            skipped.append(Skipped(source.path(place), str(error)))
            place = int(rng.integers(len(source)))
    return None, place, skipped


def collate(samples: Sequence[Sample], groups: np.ndarray | None = None) -> Batch:
    """A batch of samples that are views; `groups` has a number for each image of the source."""
    views = [sample.views for sample in samples if isinstance(sample.views, Tensor)]
    stacked = torch.stack(views, dim=1) if views else torch.empty(0, 0, 0, 0, 0, dtype=torch.uint8)
    noise = torch.stack([sample.noise for sample in samples], dim=1)
    skipped = [skip for sample in samples for skip in sample.skipped]
    places = [sample.place for sample in samples]
    grouped = None if groups is None else torch.from_numpy(groups[places])
    drawn = stack_augmentations([sample.augmentations for sample in samples])
    return Batch(stacked, noise, skipped, len(views) == len(samples), grouped, drawn)
