"""Images with masks: found and checked, cropped for training, whole for evaluation.

Shapes: C channels, H x W pixels of a file, h x w pixels after resizing.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int16, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.findings import print_findings
from mvmae.data.annotations.mask_check import (
    CheckedMasks,
    check_pairs,
    describe_values,
    usable_data,
)
from mvmae.data.annotations.mask_values import IGNORED
from mvmae.data.annotations.masks import FoundPairs, ImageMaskPairs, SegmentationData, find_pairs
from mvmae.data.reading.decode import Pixels
from mvmae.dense.batches import WholeImage, scaled_size, training_batches, whole_images
from mvmae.dense.saved_model import Predictor
from mvmae.dense.train import Job
from mvmae.encoders import Preprocessing
from mvmae.method.views import Box, crop, resize
from mvmae.terminal import Bar
from mvmae.training import distributed

SegmentJob = Job[SegmentConfig, SegmentationData]

MAX_NAMES = 5  # classes named in a warning
MAX_ASPECT = 4  # long side over short side after resizing: ADE20K's 2048 for 512
CROP_ATTEMPTS = 10  # to find a crop that is not dominated by one class
# Defaults of mmsegmentation's PhotoMetricDistortion. Brightness is in 8-bit levels; the hue is a
# share of the circle, 18 of 180.
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 0.1


def open_segmentation(config: SegmentConfig, channels: int) -> tuple[SegmentationData, str]:
    """Open and check the images with masks that a config names.

    Returns:
        The data, and a description of them for the screen.

    Raises:
        UserError: There are none, or they cannot be used.
    """
    found = find_data(config, channels)
    checked = check_masks(found, config.num_classes)
    data = usable_data(found, checked)
    train, test = checked.pixels
    missing = sum(not count for count in train)
    absent = f", {missing} of them in no training mask" if missing else ""
    only = [name for name, a, b in zip(data.classes, train, test, strict=True) if b and not a]
    warning = f"; only in test masks: {', '.join(only[:MAX_NAMES])}" if only else ""
    description = (
        f"{len(data.train)} training images, {len(data.test)} test images ({data.split}); "
        f"{len(data.classes)} classes{absent}{warning}\n"
        f"values in the masks: {describe_values(checked, data.classes)}"
    )
    return data, description


def find_data(config: SegmentConfig, channels: int, **options: Any) -> FoundPairs:
    """Find the images with masks that a config names; `options` are those of `find_pairs`."""
    folders = (config.images, config.masks) if config.images and config.masks else None
    return find_pairs(
        config.data,
        folders=folders,
        channels=channels,
        ignore_index=config.ignore_index,
        test_split=config.test_split,
        names=config.classes,
        **options,
    )


def check_masks(found: FoundPairs, num_classes: int | None) -> CheckedMasks:
    """Read every pair on the main process, and print a table of what is wrong with them.

    Every process must call this; all return the same.
    """
    checked = None
    if distributed.is_main():
        with Bar(len(found.train.pairs) + len(found.test.pairs)) as bar:
            bar.name("checking masks")
            checked = check_pairs(found, num_classes, bar.advance)
        print_findings("images and masks", {"": checked.findings})
    return distributed.from_main(checked)


def base_scale(size: tuple[int, int], short_side: int | None) -> float:
    """Return the factor that resizes an image's short side to `short_side` pixels.

    It is smaller if the long side would exceed `MAX_ASPECT * short_side`, and 1 for None.
    """
    if short_side is None:
        return 1.0
    return min(short_side / min(size), MAX_ASPECT * short_side / max(size))


def resize_classes(classes: Int16[Tensor, "H W"], size: tuple[int, int]) -> Int16[Tensor, "h w"]:
    """Resize a mask to (h, w): each new pixel gets the class at its centre."""
    for axis, new in enumerate(size):
        old = classes.shape[axis]
        indices = ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
        classes = classes.index_select(axis, indices)
    return classes


def crop_batches(
    pairs: ImageMaskPairs,
    config: SegmentConfig,
    preprocessing: Preprocessing,
    steps: range,
    **share: Any,
) -> DataLoader:
    """Load crops and their classes as two tensors; `share` is as in `training_batches`."""
    augment = partial(training_crop, config=config, preprocessing=preprocessing)
    return training_batches(
        pairs, pairs.read_pair, augment, config, steps, stack=torch.stack, **share
    )


def training_crop(
    pixels: Pixels,
    classes: Int16[Tensor, "H W"],
    config: SegmentConfig,
    preprocessing: Preprocessing,
    rng: np.random.Generator,
) -> tuple[UInt8[Tensor, "C side side"], Int16[Tensor, "side side"]]:
    """Crop, resize, flip and distort an image with its mask; pad both at the bottom and right.

    Padding has the mean colour and the class `IGNORED`. Both results have `config.crop` as side.
    """
    box, size = random_crop(rng, classes, config)
    image = crop(pixels, box, size, preprocessing.interpolation)
    rows = slice(box.top, box.top + box.height)
    columns = slice(box.left, box.left + box.width)
    part = resize_classes(classes[rows, columns], size)
    if rng.random() < 0.5 and config.flip == "horizontal":
        image, part = image.flip(-1), part.flip(-1)
    if config.distort:
        image = distort_colours(image, rng)
    side, mean = config.crop, torch.tensor([255 * value for value in preprocessing.mean])
    padded = mean.round().to(torch.uint8)[:, None, None].repeat(1, side, side)
    padded[:, : size[0], : size[1]] = image
    return padded, F.pad(part, (0, side - size[1], 0, side - size[0]), value=IGNORED)


def random_crop(
    rng: np.random.Generator, classes: Int16[Tensor, "H W"], config: SegmentConfig
) -> tuple[Box, tuple[int, int]]:
    """Choose a box in the file's pixels, and the (height, width) that it is to be resized to.

    Cropping before resizing is cheaper than the reverse. Neither side exceeds `config.crop`.
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
    counts = torch.bincount(classes.flatten().int() - IGNORED)[1:]  # the first is that of `IGNORED`
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


def read_images(
    predictor: Predictor, pairs: ImageMaskPairs, indices: Sequence[int]
) -> Iterator[WholeImage]:
    """Read images, resized to the scale of evaluation, with their classes at the file's size."""
    config = predictor.config
    # For several scales, each is resized from the original pixels and not from the base scale.
    short_side = None if config.multi_scale else config.short_side
    read = partial(read_resized, pairs, short_side, predictor.opened.preprocessing.interpolation)
    is_cuda = predictor.device.type == "cuda"
    return whole_images(pairs, read, indices, workers=config.workers, cuda=is_cuda)


def read_resized(
    pairs: ImageMaskPairs, short_side: int | None, interpolation: str, index: int
) -> tuple[UInt8[Tensor, "C h w"], Int16[Tensor, "H W"]]:
    """Read an image, resized to the scale of evaluation, and its classes.

    Raises:
        UnreadableImageError: One of them cannot be read.
    """
    pixels, classes = pairs.read_pair(index)
    return resize_to_base(pixels, short_side, interpolation), classes


def resize_to_base(
    image: Pixels, short_side: int | None, interpolation: str, factor: float = 1.0
) -> UInt8[Tensor, "C h w"]:
    """Resize an image to `factor` times the scale of evaluation."""
    size = (image.shape[1], image.shape[2])
    new_size = scaled_size(size, base_scale(size, short_side) * factor)
    return resize(image, new_size, interpolation)
