"""What pixels are, and what is asked of a file: so many channels, so deep.

uint8 stands for shares of 255. float32 holds what mean and deviation are measured in: of 8 and 16
bit the share of the full range, of anything else the values in the file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from mvmae.config.views import Depth

Pixels = UInt8[Tensor, "C H W"] | Float32[Tensor, "C H W"]

MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)  # where Pillow refuses too
MOST_VALUES = 4 * MOST_PIXELS  # pixels times channels: 2.9 GB as float32
FULL = {"uint8": 255, "uint16": 65535}  # what integers are shares of
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow and torchvision make gray


class UnreadableImageError(Exception):
    """An image that cannot be decoded; the message says why."""


class Wanted(NamedTuple):
    """What a file is to become."""

    channels: int | None = 3
    """None: as many as it has."""

    depth: Depth = "8"
    """8: uint8; deeper files are cut to it.
    16: float32, integers of 8 or 16 bit as shares of their full range.
    float: float32, the values of the file."""


class Values(NamedTuple):
    """What a file holds, before anything is asked of it."""

    array: Shaped[np.ndarray, "H W C"]
    """Of the file's own kind of numbers."""

    alpha: bool = False
    """Whether the last channel says how opaque the others are."""

    missing: float | None = None
    """The value that stands for no measurement, as GeoTIFF's nodata."""


def depth_of(kind: np.dtype) -> Depth:
    """The least depth that loses nothing of such numbers."""
    if kind.name in ("uint8", "bool"):
        return "8"
    return "16" if kind.name == "uint16" else "float"


def fitted(values: Values, wanted: Wanted) -> Pixels:
    """What is asked for, of what a file holds.

    Raises:
        UnreadableImageError: It has other channels, numbers deeper than are asked for, or none.
    """
    array = values.array
    if array.dtype == bool:
        values = values._replace(array=array.astype(np.uint8) * np.uint8(255))
    if array.dtype.kind not in "buif":
        raise UnreadableImageError(f"numbers of kind {array.dtype} are not read")
    if not array.size:
        raise UnreadableImageError("it has no pixels")
    image = _deep(values, wanted.depth)
    if values.alpha and len(image) != wanted.channels:
        image = _on_white(image, _white(values.array.dtype, wanted.depth))
    return _with_channels(image, wanted.channels, values.array.shape[2]).contiguous()


def _deep(values: Values, depth: Depth) -> Pixels:
    """The numbers as the depth has them; channels first."""
    array, kind = values.array, values.array.dtype.name
    if depth == "float":
        return _tensor(_filled(values))
    if kind not in FULL:
        raise UnreadableImageError(
            f"values of kind {kind} are not read at depth {depth}: --views.depth float reads them"
        )
    if depth == "8":
        return _tensor((array // 257).astype(np.uint8) if kind == "uint16" else array)
    return _tensor(array.astype(np.float32) / np.float32(FULL[kind]))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def _filled(values: Values) -> Float32[np.ndarray, "H W C"]:
    """As float32; where nothing was measured, the mean of what was in that channel of the image.

    Raises:
        UnreadableImageError: Nothing was measured at all.
    """
    array = values.array
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and so counts as missing
        floats = array.astype(np.float32)
    lacks = ~np.isfinite(floats)
    if values.missing is not None:
        lacks |= array == values.missing
    if not lacks.any():
        return floats
    for channel in range(floats.shape[2]):
        here = lacks[..., channel]
        if here.all():
            raise UnreadableImageError(f"channel {channel + 1} has no finite values")
        known = floats[..., channel][~here].mean(dtype=np.float64)
        floats[..., channel][here] = known
    return floats


def _white(kind: np.dtype, depth: Depth) -> float:
    """The most that a value can be, of numbers of that kind at that depth."""
    return {"8": 255.0, "16": 1.0, "float": float(FULL.get(kind.name, 1))}[depth]


def _on_white(image: Tensor, white: float) -> Tensor:
    """Laid on white by its last channel, which says how opaque it is."""
    floats = image.float()
    share = floats[-1:] / white
    laid = floats[:-1] * share + white * (1 - share)
    return laid.round().to(torch.uint8) if image.dtype == torch.uint8 else laid


def _with_channels(image: Tensor, channels: int | None, have: int) -> Tensor:
    """Gray as colour and colour as gray; other numbers of channels stay what they are.

    Args:
        image: The pixels.
        channels: Asked for.
        have: Channels that the file has, for the message.
    """
    if channels is None or len(image) == channels:
        return image
    if len(image) == 1 and channels == 3:
        return image.expand(3, -1, -1)
    if len(image) == 3 and channels == 1:
        if image.dtype == torch.uint8:
            return tv.rgb_to_grayscale(image)
        return (image * image.new_tensor(LUMA).view(3, 1, 1)).sum(0, keepdim=True)
    asked = "was" if channels == 1 else "were"
    raise UnreadableImageError(f"the file has {have} channels, {channels} {asked} asked for")
