"""Views of an image (section 3.1.1): random crops, some mirrored, and the noise that masks them.

Everything random is a function of (seed, epoch, index): a resumed run, any number of workers and
any number of processes see the same views.
"""

from collections.abc import Sequence
from functools import cache
from math import exp, log
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from mvmae.config.views import ViewsConfig

CROP_RATIO = (3 / 4, 4 / 3)  # width to height, as torchvision's RandomResizedCrop
INTERPOLATIONS = ("bicubic", "bilinear")
# Pictures of deep pixels show this many standard deviations on each side of the mean: 99 % of a
# normal distribution.
DISPLAY_DEVIATIONS = 2.5

View = UInt8[Tensor, "C h w"] | Float32[Tensor, "C h w"]
Pixels = UInt8[Tensor, "C H W"] | Float32[Tensor, "C H W"]
"""An image before it is cropped: 8-bit values, or deeper ones as floats."""


class Box(NamedTuple):
    """Position and size of a crop, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float]
) -> Box:
    """Draw a crop of random area and aspect ratio, as torchvision's RandomResizedCrop does.

    torchvision draws from the global generator, so a resumed run could not repeat its draws.

    Args:
        rng: Generator of the draws.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        scale: Smallest and largest area of the crop, as shares of the image.
    """
    for _ in range(10):  # a tall crop of a wide image may not fit
        area = height * width * rng.uniform(*scale)
        ratio = exp(rng.uniform(log(CROP_RATIO[0]), log(CROP_RATIO[1])))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    # The image is a long strip: take the largest crop in its middle.
    h = min(height, max(1, round(width / CROP_RATIO[0])))
    w = min(width, max(1, round(height * CROP_RATIO[1])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def crop(image: Pixels, box: Box, size: tuple[int, int], interpolation: str) -> View:
    """Cut out a box and resize it with antialiasing; 8-bit pixels stay 8-bit pixels.

    The result differs from Pillow's bicubic, which MAE uses, by 0.03 grey levels on average, at 2.6
    times the speed. Bicubic overshoots at edges. Floats have no fixed range, so they are clipped to
    the smallest and largest value of the box in each channel. Otherwise a reflectance could become
    negative beside a bright roof.
    """
    return _crop(image, box, size, interpolation).contiguous()


def _crop(image: Pixels, box: Box, size: tuple[int, int], interpolation: str) -> View:
    """Crop as `crop` does, without the final copy: channels may come last in memory."""
    part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    resized = resize(part, size, interpolation)
    if image.dtype == torch.uint8:
        return resized
    return resized.clamp(part.amin((1, 2), keepdim=True), part.amax((1, 2), keepdim=True))


def resize(image: Pixels, size: Sequence[int], interpolation: str) -> View:
    """Resize with antialiasing; 8-bit pixels stay 8-bit pixels.

    Args:
        image: C x h x w.
        size: New height and width in pixels.
        interpolation: "bicubic" or "bilinear".
    """
    batch = image[None]
    if image.dtype == torch.uint8 and len(image) == 3:  # a third faster, with the same bits
        batch = batch.contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, tuple(size), mode=interpolation, antialias=True)[0]


class Crop(NamedTuple):
    """The part of an image that a view shows, and how it is mirrored."""

    box: Box

    flipped: tuple[int, ...]
    """Dimensions that are mirrored: -1 left to right, -2 top to bottom."""


def random_views(
    image: Pixels, config: ViewsConfig, size: tuple[int, int], rng: np.random.Generator
) -> UInt8[Tensor, "V C h w"] | Float32[Tensor, "V C h w"]:
    """Draw the views of an image before they are masked (section 3.1.1).

    With `targets` "one" every view is the same crop, and only the masks tell them apart.
    """
    height, width = image.shape[1:]
    crops = random_crops(height, width, config, rng)
    return cut_views(image, crops, config, size)


def random_crops(
    height: int, width: int, config: ViewsConfig, rng: np.random.Generator
) -> list[Crop]:
    """Draw the crops of an image: one per view, or with `targets` "one" a single one for all."""
    crops = []
    for _ in range(config.num_views if config.targets == "two" else 1):
        box = random_box(rng, height, width, config.crop_scale)
        sides = {"none": (), "horizontal": (-1,), "both": (-1, -2)}[config.flip]
        crops.append(Crop(box, tuple(side for side in sides if rng.random() < 0.5)))
    return crops


def cut_views(
    image: Pixels, crops: Sequence[Crop], config: ViewsConfig, size: tuple[int, int]
) -> UInt8[Tensor, "V C h w"] | Float32[Tensor, "V C h w"]:
    """Cut the crops out of an image, resize and mirror them, and stack them to views."""
    parts = [_crop(image, one.box, size, config.interpolation) for one in crops]
    return stack_views(parts, crops, config.num_views)


def stack_views(
    parts: Sequence[View], crops: Sequence[Crop], num_views: int
) -> UInt8[Tensor, "V C h w"] | Float32[Tensor, "V C h w"]:
    """Mirror resized parts of an image as their crops say, and stack them to views.

    A single part is repeated for every view.
    """
    shape = num_views, *parts[0].shape
    views = np.empty(shape, dtype=parts[0].numpy().dtype)
    for number, view in enumerate(views):  # numpy mirrors both axes in one copy
        flipped = crops[number % len(crops)].flipped
        sides = [slice(None, None, -1 if side in flipped else 1) for side in (-2, -1)]
        view[...] = parts[number % len(crops)].numpy()[:, *sides]
    return torch.from_numpy(views)


def mask_noise(rng: np.random.Generator, num_views: int, num_patches: int) -> Float[Tensor, "V N"]:
    """Draw noise that ranks the patches of each view; those with the largest noise are hidden."""
    return torch.from_numpy(rng.random((num_views, num_patches), dtype=np.float32))


def whole_view(
    image: Pixels, size: tuple[int, int], interpolation: str = "bicubic", share: float = 1.0
) -> View:
    """Resize the largest centre crop with the aspect ratio of `size`, as evaluations do.

    Args:
        image: The pixels.
        size: New height and width in pixels.
        interpolation: "bicubic" or "bilinear".
        share: Share of the crop's height and width to keep, in its middle; supervised models are
            usually tested with 224/256.
    """
    height, width = image.shape[1:]
    scale = share * min(height / size[0], width / size[1])
    h, w = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    box = Box((height - h) // 2, (width - w) // 2, h, w)
    return crop(image, box, size, interpolation)


def to_display_range(
    images: UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    like: Float32[Tensor, "1 C _ _"] | UInt8[Tensor, "1 C _ _"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Scale pixels to [0, 1] for display: 8-bit pixels by 255, deeper ones by their range.

    Args:
        images: 8-bit pixels, or floats in the unit of mean and deviation.
        mean: One per channel.
        std: One per channel.
        like: Image whose `display_range` to use, if `images` are parts of it. Default: `images`.
    """
    if images.dtype == torch.uint8:
        return to_floats(images)
    low, high = display_range(images if like is None else like, mean, std)
    return ((images - low) / (high - low)).clamp(0, 1)


def display_range(
    images: Float[Tensor, "B C H W"], mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Float[Tensor, "1 C 1 1"], Float[Tensor, "1 C 1 1"]]:
    """Return the values shown as black and as white in each channel of deep images.

    They are `DISPLAY_DEVIATIONS` standard deviations from the mean, within the images' own range.
    """
    middle, spread = (images.new_tensor(s).view(1, -1, 1, 1) for s in (mean, std))
    darkest, brightest = (f((0, 2, 3), keepdim=True) for f in (images.amin, images.amax))
    low = torch.maximum(darkest, middle - DISPLAY_DEVIATIONS * spread)
    high = torch.minimum(brightest, middle + DISPLAY_DEVIATIONS * spread)
    return low, torch.maximum(high, low + 1e-3 * spread)  # not equal: they become a divisor


def to_floats(images: UInt8[Tensor, "*B"] | Float32[Tensor, "*B"]) -> Float32[Tensor, "*B"]:
    """Convert 8-bit pixels to floats in [0, 1], as shares of 255; return floats unchanged."""
    floats = images.float()
    return floats.div_(255) if images.dtype == torch.uint8 else floats


@cache  # a copy from plain memory would wait for the GPU in every step
def _on_device(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "1 C 1 1"]:
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def normalize(
    images: UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
) -> Float[Tensor, "B C H W"]:
    """Move pixels to the device, subtract the mean and divide by the standard deviation.

    8-bit pixels become floats on the device, so that a quarter of the bytes is copied.

    Args:
        images: 8-bit pixels, or floats in the unit of mean and deviation.
        mean: One per channel; for 8-bit pixels a share of 255.
        std: One per channel, in the same unit.
        device: Device to move them to.
    """
    mean_C, std_C = _on_device(mean, device), _on_device(std, device)
    pixels = to_floats(images.to(device, non_blocking=True))
    if pixels.data_ptr() == images.data_ptr():  # the caller's own memory, which must not change
        return pixels.sub(mean_C).div_(std_C)
    return pixels.sub_(mean_C).div_(std_C)
