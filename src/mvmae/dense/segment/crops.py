"""Crops of images with their masks for training, and whole images for tests.

What becomes of an image is a function of (seed, epoch, index), as in pre-training. Shapes: B crops,
C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int16, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as tv

from mvmae.data.annotations.mask_values import IGNORED
from mvmae.data.annotations.masks import ImageMaskPairs
from mvmae.data.reading.decode import Pixels, UnreadableImageError
from mvmae.data.reading.loader import Skipped, StepSampler, loading
from mvmae.data.reading.samples import ATTEMPTS
from mvmae.method.views import Box, crop, resize

LONGEST = 4  # times the short side, to which the long one is limited: ADE20K's 2048 for 512
TRIES = 10  # for a crop that one class does not fill
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 0.1


class CropSettings(NamedTuple):
    """What happens to an image before it is trained on."""

    seed: int
    batch_size: int
    """Crops in a step, over all processes."""

    crop: int
    short_side: int | None
    jitter: tuple[float, float]
    most_of_crop: float
    flip: bool
    distort: bool
    interpolation: str
    fill: tuple[float, ...]
    """What stands beyond an image's edge: its encoder's mean pixel, from 0 to 255."""


class CropBatch(NamedTuple):
    """What one process trains on in one step."""

    images: UInt8[Tensor, "B C H W"]
    classes: Int16[Tensor, "B H W"]

    skipped: list[Skipped]
    """Images that were to be in the batch and could not be read."""

    is_whole: bool
    """Whether something readable was found for every place."""


class WholeImage(NamedTuple):
    """A test image with its mask; neither where it cannot be read."""

    image: UInt8[Tensor, "C H W"] | None
    """Resized to the base scale."""

    classes: Int16[Tensor, "rows columns"] | None
    """As in the file."""

    index: int
    skipped: list[Skipped]


def base_scale(size: tuple[int, int], short_side: int | None) -> float:
    """By how much an image is resized so that its short side has so many pixels."""
    if short_side is None:
        return 1.0
    return min(short_side / min(size), LONGEST * short_side / max(size))


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width after resizing."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_classes(
    classes: Int16[Tensor, "H W"], size: tuple[int, int]
) -> Int16[Tensor, "rows columns"]:
    """The class at the middle of each new pixel."""
    for axis, wanted in enumerate(size):
        have = classes.shape[axis]
        places = ((torch.arange(wanted) + 0.5) * (have / wanted)).long().clamp(max=have - 1)
        classes = classes.index_select(axis, places)
    return classes


def random_crop(
    rng: np.random.Generator, classes: Int16[Tensor, "H W"], training: CropSettings
) -> tuple[Box, tuple[int, int]]:
    """Where to cut, and the size that the cut-out is resized to, at most the crop.

    The box is cut at the image's own resolution: only what is kept gets resized.
    """
    size = (classes.shape[0], classes.shape[1])
    scale = base_scale(size, training.short_side) * rng.uniform(*training.jitter)
    sides, wanted = [], []
    for side in size:
        sides.append(min(side, max(1, round(training.crop / scale))))
        wanted.append(min(training.crop, max(1, round(side * scale))))
    height, width = sides
    box = Box(0, 0, height, width)
    for _ in range(TRIES):
        top = int(rng.integers(size[0] - height + 1))
        left = int(rng.integers(size[1] - width + 1))
        box = Box(top, left, height, width)
        if (height, width) == size:
            break  # the same box every time
        if largest_share(classes[top : top + height, left : left + width]) < training.most_of_crop:
            break
    return box, (wanted[0], wanted[1])


def largest_share(classes: Int16[Tensor, "H W"]) -> float:
    """Of the most frequent class among what counts; 1 where nothing or one class does."""
    counts = torch.bincount(classes.flatten().int() - IGNORED)[1:]
    return int(counts.max()) / total if len(counts) and (total := int(counts.sum())) else 1.0


def distort_colours(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Brightness, contrast, saturation and hue changed, each with probability one half.

    mmsegmentation's `PhotoMetricDistortion`, which BEiT uses: brightness is added and contrast
    multiplied. torchvision's RandomPhotometricDistort swaps channels besides, so its saturation and
    hue are called alone; of a gray image there are none.
    """
    applied = rng.random(4) < 0.5
    added = rng.uniform(-BRIGHTNESS, BRIGHTNESS) / 255
    factor, saturation = rng.uniform(*CONTRAST), rng.uniform(*SATURATION)
    hue, contrast_first = rng.uniform(-HUE, HUE), rng.random() < 0.5
    pixels = image.float() / 255
    if applied[0]:
        pixels = (pixels + added).clamp_(0, 1)
    if applied[1] and contrast_first:
        pixels = (pixels * factor).clamp_(0, 1)
    if applied[2] and len(image) == 3:
        pixels = tv.adjust_saturation(pixels, saturation)
    if applied[3] and len(image) == 3:
        pixels = tv.adjust_hue(pixels, hue)
    if applied[1] and not contrast_first:
        pixels = (pixels * factor).clamp_(0, 1)
    return pixels.mul_(255).round_().to(torch.uint8)


def pad_to_crop(
    image: Pixels, classes: Int16[Tensor, "H W"], side: int, fill: Sequence[float]
) -> tuple[UInt8[Tensor, "C side side"], Int16[Tensor, "side side"]]:
    """Both as large as the crop; what is added counts for nothing."""
    below, right = side - classes.shape[0], side - classes.shape[1]
    if not below and not right:
        return image, classes
    whole = torch.tensor(fill).round().to(torch.uint8)[:, None, None].repeat(1, side, side)
    whole[:, : classes.shape[0], : classes.shape[1]] = image
    return whole, F.pad(classes, (0, right, 0, below), value=IGNORED)


class _Sample(NamedTuple):
    image: Tensor | None
    classes: Tensor | None
    skipped: list[Skipped]


class CropDataset(Dataset):
    """A random crop of an image and its mask, by (epoch, index)."""

    def __init__(self, pairs: ImageMaskPairs, training: CropSettings) -> None:
        self.pairs, self.training = pairs, training

    def __getitem__(self, index: tuple[int, int]) -> _Sample:
        training, place = self.training, index[1]
        rng = np.random.default_rng((training.seed, *index))
        skipped = []
        for _ in range(ATTEMPTS):
            try:
                pixels, classes = self.pairs.read_pair(place)
                break
            except UnreadableImageError as error:
                skipped.append(Skipped(self.pairs.path(place), str(error)))
                place = int(rng.integers(len(self.pairs)))
        else:
            return _Sample(None, None, skipped)
        return _Sample(*training_crop(pixels, classes, training, rng), skipped)


def training_crop(
    pixels: Pixels, classes: Int16[Tensor, "H W"], training: CropSettings, rng: np.random.Generator
) -> tuple[UInt8[Tensor, "C side side"], Int16[Tensor, "side side"]]:
    """What an image and its mask are trained as."""
    box, size = random_crop(rng, classes, training)
    image = crop(pixels, box, size, training.interpolation)
    rows = slice(box.top, box.top + box.height)
    columns = slice(box.left, box.left + box.width)
    part = resize_classes(classes[rows, columns], size)
    if rng.random() < 0.5 and training.flip:
        image, part = image.flip(-1), part.flip(-1)
    if training.distort:
        image = distort_colours(image, rng)
    return pad_to_crop(image, part, training.crop, training.fill)


def _collate(samples: list[_Sample]) -> CropBatch:
    images = [sample.image for sample in samples if sample.image is not None]
    classes = [sample.classes for sample in samples if sample.classes is not None]
    return CropBatch(
        torch.stack(images) if images else torch.empty(0, 0, 0, 0, dtype=torch.uint8),
        torch.stack(classes) if classes else torch.empty(0, 0, 0, dtype=torch.int16),
        [skip for sample in samples for skip in sample.skipped],
        len(images) == len(samples),
    )


def crop_batches(
    pairs: ImageMaskPairs,
    training: CropSettings,
    steps: range,
    *,
    rank: int,
    world_size: int,
    workers: int | None,
    cuda: bool,
) -> DataLoader:
    """Batches of crops for the given steps of a run; iterating yields `Batch`."""
    return DataLoader(
        CropDataset(pairs, training),
        batch_sampler=StepSampler(len(pairs), training, steps, rank, world_size),
        **loading(workers, cuda),
        collate_fn=_collate,
    )


class WholeDataset(Dataset):
    """Images as they are tested, by place among `indices`."""

    def __init__(
        self,
        pairs: ImageMaskPairs,
        indices: Sequence[int],
        short_side: int | None,
        interpolation: str,
    ) -> None:
        self.pairs, self.indices = pairs, list(indices)
        self.short_side, self.interpolation = short_side, interpolation

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> WholeImage:
        index = self.indices[index]
        try:
            pixels, classes = self.pairs.read_pair(index)
        except UnreadableImageError as error:
            return WholeImage(None, None, index, [Skipped(self.pairs.path(index), str(error))])
        return WholeImage(
            resize_to_base(pixels, self.short_side, self.interpolation), classes, index, []
        )


def resize_to_base(
    image: Pixels, short_side: int | None, interpolation: str
) -> UInt8[Tensor, "C rows columns"]:
    """An image at the size it is tested at."""
    size = (image.shape[1], image.shape[2])
    wanted = scaled_size(size, base_scale(size, short_side))
    return resize(image, wanted, interpolation)


def whole_images(
    pairs: ImageMaskPairs,
    *,
    short_side: int | None,
    interpolation: str,
    workers: int | None,
    cuda: bool,
    indices: Sequence[int] | None = None,
) -> DataLoader:
    """Images one at a time, in order; iterating yields `Whole`."""
    chosen = range(len(pairs)) if indices is None else indices
    return DataLoader(
        WholeDataset(pairs, chosen, short_side, interpolation),
        batch_size=None,
        **loading(workers, cuda),
    )


def patch_classes(
    classes: Int16[Tensor, "H W"], patch: int, num_classes: int
) -> Int16[Tensor, " N"]:
    """The most frequent class of each patch among what counts; `IGNORED` where nothing does."""
    rows, columns = classes.shape[0] // patch, classes.shape[1] // patch
    cut = classes.unflatten(0, (rows, patch)).unflatten(2, (columns, patch)).transpose(1, 2)
    shifted = cut.reshape(rows * columns, -1).long() - IGNORED
    places = torch.arange(rows * columns)[:, None] * (num_classes + 1) + shifted
    counts = torch.bincount(places.flatten(), minlength=rows * columns * (num_classes + 1))
    counts = counts.view(-1, num_classes + 1)[:, 1:]
    return torch.where(counts.sum(dim=1) > 0, counts.argmax(dim=1), IGNORED).to(torch.int16)
