"""Pixels, and how decoded values become the requested channels and depth.

uint8 pixels are shares of 255. float32 pixels are in the units of `--views.mean` and `--views.std`:
for 8-bit and 16-bit files the share of the full range, for anything else the values in the file.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image
from torch import Tensor

from mvmae.config.views import Depth
from mvmae.method.views import Pixels as Pixels

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)  # Pillow's limit
MAX_VALUES = 4 * MAX_PIXELS  # pixels times channels: 2.9 GB as float32
DEPTHS: dict[str, Depth] = {"bool": "8", "uint8": "8", "uint16": "16"}
FULL_RANGE = {"uint8": 255, "uint16": 65535}
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in Pillow
LUMA_8_BIT = (0.2989, 0.587, 0.114)  # as in torchvision's rgb_to_grayscale


class UnreadableImageError(Exception):
    """An image that cannot be decoded; the message says why."""


class Wanted(NamedTuple):
    """The requested channels and depth."""

    channels: int | None = 3
    """None: as many as the file has."""

    depth: Depth = "8"
    """8: uint8; 16-bit files are reduced to it.
    16: float32, 8-bit and 16-bit integers as shares of their full range.
    float: float32, the values of the file."""


class Values(NamedTuple):
    """The content of a file before it is converted."""

    array: Shaped[np.ndarray, "H W C"]
    """In the file's own number type."""

    alpha: bool = False
    """Whether the last channel is opacity."""

    missing: float | None = None
    """The value that marks a missing measurement, such as GeoTIFF's nodata."""


def lossless_depth(kind: np.dtype) -> Depth:
    """The smallest depth that keeps all values of a number type."""
    return DEPTHS.get(kind.name, "float")


def convert_values(values: Values, wanted: Wanted) -> Pixels:
    """Convert decoded values to the requested channels and depth.

    Raises:
        UnreadableImageError: The file has other channels, deeper values than requested, or no
            pixels.
    """
    array = values.array
    if array.dtype == bool:  # True is white
        values = values._replace(array=array.astype(np.uint8) * np.uint8(255))
    if array.dtype.kind not in "buif":
        raise UnreadableImageError(f"values of type {array.dtype} are not supported")
    if not array.size:
        raise UnreadableImageError("it has no pixels")
    image = _with_depth(values, wanted.depth)
    if values.alpha and len(image) != wanted.channels:
        kind = values.array.dtype.name
        white = {"8": 255.0, "16": 1.0, "float": float(FULL_RANGE.get(kind, 1))}[wanted.depth]
        opacity = image[-1:].float() / white
        blended = image[:-1].float() * opacity + white * (1 - opacity)
        image = blended.round().to(torch.uint8) if image.dtype == torch.uint8 else blended
    return with_channels(image, wanted.channels, values.array.shape[2]).contiguous()


def rgb_to_gray(image: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "1 H W"]:
    """Gray of a colour image, rounded down, to the bit that of torchvision's rgb_to_grayscale."""
    red, green, blue = image.unbind(0)
    gray = red.mul(LUMA_8_BIT[0]).add_(green, alpha=LUMA_8_BIT[1]).add_(blue, alpha=LUMA_8_BIT[2])
    return gray.to(torch.uint8)[None]


def _with_depth(values: Values, depth: Depth) -> Pixels:
    """Values at the requested depth, channels first."""
    array, kind = values.array, values.array.dtype.name
    if depth == "float":
        array = _fill_missing(values)
    elif kind not in FULL_RANGE:
        raise UnreadableImageError(
            f"values of type {kind} are not supported at depth {depth}: "
            "--views.depth float reads them"
        )
    elif depth == "16":
        array = array.astype(np.float32) / np.float32(FULL_RANGE[kind])
    elif kind == "uint16":  # 65535 is 255 times 257
        array = (array // 257).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def _fill_missing(values: Values) -> Float32[np.ndarray, "H W C"]:
    """Values as float32, with missing ones replaced by the mean of the others in their channel.

    Raises:
        UnreadableImageError: A channel has no measured value at all.
    """
    array = values.array
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, and so counts as missing
        floats = array.astype(np.float32)
    missing = ~np.isfinite(floats)
    if values.missing is not None:
        missing |= array == values.missing
    if not missing.any():
        return floats
    for channel in range(floats.shape[2]):
        here = missing[..., channel]
        if here.all():
            raise UnreadableImageError(f"channel {channel + 1} has no finite values")
        # In double precision: a sum of millions of float32 would lose digits.
        known = floats[..., channel][~here].mean(dtype=np.float64)
        floats[..., channel][here] = known
    return floats


def with_channels(image: Tensor, channels: int | None, file_channels: int) -> Tensor:
    """Convert between gray and colour; other numbers of channels must agree.

    Args:
        image: The pixels.
        channels: Requested channels.
        file_channels: Channels of the file, for the message.

    Raises:
        UnreadableImageError: They cannot be converted.
    """
    if channels is None or len(image) == channels:
        return image
    if len(image) == 1 and channels == 3:
        return image.expand(3, -1, -1).contiguous()
    if len(image) == 3 and channels == 1:
        if image.dtype == torch.uint8:
            return rgb_to_gray(image)
        return (image * image.new_tensor(LUMA).view(3, 1, 1)).sum(0, keepdim=True)
    raise UnreadableImageError(f"the file has {file_channels} channels, not {channels}")
