"""Crops of images with their masks for training, and whole images for evaluation.

The augmentation of an image is a function of (seed, epoch, index), as in pre-training. Shapes: B
crops, C channels, H x W pixels of a file, h x w pixels after resizing.
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

from mvmae import encoders
from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_values import IGNORED
from mvmae.data.annotations.masks import ImageMaskPairs
from mvmae.data.reading.decode import Pixels, UnreadableImageError
from mvmae.data.reading.loader import Skipped, StepSampler, loading
from mvmae.data.reading.samples import first_readable
from mvmae.encoders import OpenedEncoder, Preprocessing
from mvmae.errors import UserError
from mvmae.method.views import Box, crop, resize

MAX_ASPECT = 4  # long side over short side after resizing: ADE20K's 2048 for 512
CROP_ATTEMPTS = 10  # to find a crop that is not dominated by one class
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 0.1


def resize_to_crop(config: SegmentConfig, opened: OpenedEncoder) -> OpenedEncoder:
    """Resize an encoder's positions to crops.

    Raises:
        UserError: The crop is not a multiple of the patch size.
    """
    patch_size, side = opened.encoder.patch_size, config.crop
    if side % patch_size or side < 2 * patch_size:
        nearest = max(2, round(side / patch_size)) * patch_size
        raise UserError(
            f"crop {side} is not a multiple of the encoder's patch size {patch_size}, or is less "
            f"than two patches: set --crop {nearest}"
        )
    return opened._replace(encoder=encoders.resize_encoder(opened.encoder, side))


class CropBatch(NamedTuple):
    """Crops for one process and one step."""

    images: UInt8[Tensor, "B C H W"]
    classes: Int16[Tensor, "B H W"]

    skipped: list[Skipped]
    """Images that could not be read and were replaced by others."""

    is_whole: bool
    """Whether a readable image was found for every position of the batch."""


class WholeImage(NamedTuple):
    """Whole image with its mask; both None if it cannot be read."""

    image: UInt8[Tensor, "C h w"] | None
    """Resized to the base scale."""

    classes: Int16[Tensor, "H W"] | None
    """At the size of the file."""

    index: int
    skipped: list[Skipped]


def base_scale(size: tuple[int, int], short_side: int | None) -> float:
    """Return the factor that brings an image's short side to `short_side` pixels."""
    if short_side is None:
        return 1.0
    return min(short_side / min(size), MAX_ASPECT * short_side / max(size))


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width after resizing by a factor."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_classes(classes: Int16[Tensor, "H W"], size: tuple[int, int]) -> Int16[Tensor, "h w"]:
    """Resize a mask: each new pixel gets the class at its centre."""
    for axis, new in enumerate(size):
        old = classes.shape[axis]
        indices = ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
        classes = classes.index_select(axis, indices)
    return classes


def random_crop(
    rng: np.random.Generator, classes: Int16[Tensor, "H W"], config: SegmentConfig
) -> tuple[Box, tuple[int, int]]:
    """Choose a box at the file's own resolution, and the size that it is resized to.

    Resizing after cropping is cheaper than the reverse. The size is at most the crop's.
    """
    size = (classes.shape[0], classes.shape[1])
    scale = base_scale(size, config.short_side) * rng.uniform(*config.jitter)
    height, width = (min(side, max(1, round(config.crop / scale))) for side in size)
    rows, columns = (min(config.crop, max(1, round(side * scale))) for side in size)
    box = Box(0, 0, height, width)
    for _ in range(CROP_ATTEMPTS):
        top = int(rng.integers(size[0] - height + 1))
        left = int(rng.integers(size[1] - width + 1))
        box = Box(top, left, height, width)
        if (height, width) == size:
            break  # every attempt would give the same box
        part = classes[top : top + height, left : left + width]
        if largest_share(part) < config.most_of_crop:
            break
    return box, (rows, columns)


def largest_share(classes: Int16[Tensor, "H W"]) -> float:
    """Share of the most frequent class among the pixels that count; 1 if there are none."""
    counts = torch.bincount(classes.flatten().int() - IGNORED)[1:]
    total = int(counts.sum())
    return int(counts.max()) / total if total else 1.0


def distort_colours(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Change brightness, contrast, saturation and hue, each with probability one half.

    This is mmsegmentation's `PhotoMetricDistortion`, which BEiT uses: brightness is added and
    contrast multiplied. torchvision's RandomPhotometricDistort also swaps channels, so only its
    functions for saturation and hue are used; grey images have neither.
    """
    # Loading torchvision takes seconds, which evaluation and prediction need not pay for.
    from torchvision.transforms.v2 import functional as tv

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
    image: Pixels, classes: Int16[Tensor, "h w"], side: int, fill: Sequence[float]
) -> tuple[UInt8[Tensor, "C side side"], Int16[Tensor, "side side"]]:
    """Pad image and mask at the bottom and the right; added pixels are ignored."""
    below, right = side - classes.shape[0], side - classes.shape[1]
    if not below and not right:
        return image, classes
    padded = torch.tensor(fill).round().to(torch.uint8)[:, None, None].repeat(1, side, side)
    padded[:, : classes.shape[0], : classes.shape[1]] = image
    return padded, F.pad(classes, (0, right, 0, below), value=IGNORED)


class _Sample(NamedTuple):
    crop: tuple[Tensor, Tensor] | None
    skipped: list[Skipped]


class CropDataset(Dataset):
    """Random crop of an image and its mask, by (epoch, index)."""

    def __init__(
        self, pairs: ImageMaskPairs, config: SegmentConfig, preprocessing: Preprocessing
    ) -> None:
        self.pairs, self.config, self.preprocessing = pairs, config, preprocessing

    def __getitem__(self, index: tuple[int, int]) -> _Sample:
        rng = np.random.default_rng((self.config.seed, *index))
        pair, _, skipped = first_readable(self.pairs.read_pair, self.pairs, index[1], rng)
        if pair is None:
            return _Sample(None, skipped)
        return _Sample(training_crop(*pair, self.config, self.preprocessing, rng), skipped)


def training_crop(
    pixels: Pixels,
    classes: Int16[Tensor, "H W"],
    config: SegmentConfig,
    preprocessing: Preprocessing,
    rng: np.random.Generator,
) -> tuple[UInt8[Tensor, "C side side"], Int16[Tensor, "side side"]]:
    """Crop, resize, flip, distort and pad an image with its mask."""
    box, size = random_crop(rng, classes, config)
    image = crop(pixels, box, size, preprocessing.interpolation)
    rows = slice(box.top, box.top + box.height)
    columns = slice(box.left, box.left + box.width)
    part = resize_classes(classes[rows, columns], size)
    if rng.random() < 0.5 and config.flip == "horizontal":
        image, part = image.flip(-1), part.flip(-1)
    if config.distort:
        image = distort_colours(image, rng)
    fill = [255 * value for value in preprocessing.mean]
    return pad_to_crop(image, part, config.crop, fill)


def _collate(samples: list[_Sample]) -> CropBatch:
    crops = [sample.crop for sample in samples if sample.crop is not None]
    images, classes = [image for image, _ in crops], [part for _, part in crops]
    return CropBatch(
        torch.stack(images) if images else torch.empty(0, 0, 0, 0, dtype=torch.uint8),
        torch.stack(classes) if classes else torch.empty(0, 0, 0, dtype=torch.int16),
        [skip for sample in samples for skip in sample.skipped],
        len(crops) == len(samples),
    )


def crop_batches(
    pairs: ImageMaskPairs,
    config: SegmentConfig,
    preprocessing: Preprocessing,
    steps: range,
    *,
    rank: int,
    world_size: int,
    cuda: bool,
) -> DataLoader:
    """Load the batches of the given steps; iterating yields `CropBatch`."""
    return DataLoader(
        CropDataset(pairs, config, preprocessing),
        batch_sampler=StepSampler(
            len(pairs), config.seed, config.batch_size, steps, rank, world_size
        ),
        **loading(config.workers, cuda),
        collate_fn=_collate,
    )


class WholeDataset(Dataset):
    """Whole image at the base scale, by position among `indices`."""

    def __init__(
        self,
        pairs: ImageMaskPairs,
        indices: Sequence[int],
        config: SegmentConfig,
        interpolation: str,
    ) -> None:
        self.pairs, self.indices = pairs, list(indices)
        self.short_side, self.interpolation = config.short_side, interpolation

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> WholeImage:
        index = self.indices[index]
        try:
            pixels, classes = self.pairs.read_pair(index)
        except UnreadableImageError as error:
            return WholeImage(None, None, index, [Skipped(self.pairs.path(index), str(error))])
        image = resize_to_base(pixels, self.short_side, self.interpolation)
        return WholeImage(image, classes, index, [])


def resize_to_base(
    image: Pixels, short_side: int | None, interpolation: str, factor: float = 1.0
) -> UInt8[Tensor, "C h w"]:
    """Resize an image to `factor` times the scale of evaluation."""
    size = (image.shape[1], image.shape[2])
    new_size = scaled_size(size, base_scale(size, short_side) * factor)
    return resize(image, new_size, interpolation)


def whole_images(
    pairs: ImageMaskPairs,
    indices: Sequence[int],
    config: SegmentConfig,
    interpolation: str,
    *,
    cuda: bool,
) -> DataLoader:
    """Load images one at a time, in order; iterating yields `WholeImage`."""
    dataset = WholeDataset(pairs, indices, config, interpolation)
    return DataLoader(dataset, batch_size=None, **loading(config.workers, cuda))


def patch_classes(
    classes: Int16[Tensor, "H W"], patch_size: int, num_classes: int
) -> Int16[Tensor, " N"]:
    """Return each patch's most frequent class; `IGNORED` if none of its pixels counts."""
    rows, columns = classes.shape[0] // patch_size, classes.shape[1] // patch_size
    patches = classes.unflatten(0, (rows, patch_size)).unflatten(2, (columns, patch_size))
    patches = patches.transpose(1, 2).reshape(rows * columns, -1).long()
    # One bincount for all patches: each has its own range of num_classes + 1 numbers.
    numbers = torch.arange(rows * columns)[:, None] * (num_classes + 1) + patches - IGNORED
    counts = torch.bincount(numbers.flatten(), minlength=rows * columns * (num_classes + 1))
    counts = counts.view(-1, num_classes + 1)[:, 1:]
    return torch.where(counts.sum(dim=1) > 0, counts.argmax(dim=1), IGNORED).to(torch.int16)
