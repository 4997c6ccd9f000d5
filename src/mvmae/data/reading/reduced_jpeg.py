"""Views of a JPEG file decoded no finer than they need (`--decode fast`).

A JPEG file stores squares of 8 x 8 pixels as cosine waves. Decoding the longest waves alone gives
the image at a half, a quarter or an eighth of its size, for a fraction of the time. The crops are
drawn before decoding, so the size that they need is known.
"""

from collections.abc import Sequence
from math import ceil, floor

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.decode import MAX_PIXELS, decode_simplejpeg, with_channels
from mvmae.data.reading.jpeg_header import FLIPS, MAGIC, Header, read_header
from mvmae.method.views import Box, Crop, cut_views, random_crops, stack_views

Edges = tuple[float, float, float, float]  # left, top, right and bottom
REDUCTIONS = (8, 4, 2)
MIN_SIDE = 8  # of the longer side; below it, simplejpeg returns 7/8 of the image as the whole
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def applies(config: PretrainConfig) -> bool:
    """Whether `--decode fast` has an effect: on 8-bit gray and colour only."""
    return config.views.pixel_depth == "8" and config.model.in_channels in (1, 3)


def fast_views(
    data: bytes, config: PretrainConfig, rng: np.random.Generator
) -> UInt8[Tensor, "V C h w"] | None:
    """Decode the views that `random_views` would show of an image file.

    The pixels are the same if the image is less than twice as large as its crops need.

    Args:
        data: The whole file.
        config: Options of the run.
        rng: Draws the crops, as in `random_views`.

    Returns:
        The views, or None if the file is unusual or damaged; `rng` is then unchanged.
    """
    header = plain_header(data)
    if header is None:
        return None
    # The exact decoder must draw the same crops if this one fails.
    before = rng.bit_generator.state
    crops = random_crops(*header.size, config.views, rng)
    size, channels = config.model.height_width, config.model.in_channels
    reduction = choose_reduction(crops, size)
    image = decode_simplejpeg(data, header, reduction)
    if image is None:
        rng.bit_generator.state = before
        return None
    image = with_channels(image, channels, len(image))
    if reduction == 1:
        return cut_views(image, crops, config.views, size)
    boxes = [reduced_box(one.box, header, reduction) for one in crops]
    parts = reduced_parts(image, boxes, size, config.views.interpolation)
    return stack_views(parts, crops, config.views.num_views)


def plain_header(data: bytes) -> Header | None:
    """The header of a JPEG file that can be decoded at reduced size, else None."""
    header = read_header(data) if data.startswith(MAGIC) else None
    if header is None or max(header.size) < MIN_SIDE:
        return None
    return header if header.stored_height * header.stored_width <= MAX_PIXELS else None


def choose_reduction(crops: Sequence[Crop], size: tuple[int, int]) -> int:
    """The largest reduction at which every crop still has the pixels of a view."""
    boxes = [crop.box for crop in crops]
    most = min(min(box.height / size[0], box.width / size[1]) for box in boxes)
    return next((reduction for reduction in REDUCTIONS if reduction <= most), 1)


def reduced_box(box: Box, header: Header, reduction: int) -> Edges:
    """Left, top, right and bottom of a box in pixels of the reduced image.

    If the width is not a multiple of the reduction, the last pixel of a row covers fewer pixels of
    the image than the others; in a mirrored image that is the first one. Likewise for columns.
    """
    (height, width), flips = header.size, FLIPS[header.orientation]
    left, top = box.left, box.top
    left += -width % reduction if -1 in flips else 0
    top += -height % reduction if -2 in flips else 0
    right, bottom = left + box.width, top + box.height
    return left / reduction, top / reduction, right / reduction, bottom / reduction


def reduced_parts(
    image: UInt8[Tensor, "C H W"], boxes: Sequence[Edges], size: tuple[int, int], interpolation: str
) -> list[UInt8[Tensor, "C h w"]]:
    """Cut out boxes and resize them.

    With Pillow, whose boxes may begin between two pixels. Boxes rounded to whole pixels give crops
    that differ four times as much from those of the full-size image.
    """
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    picture = Image.fromarray(array if len(image) == 3 else array[..., 0])
    kind, parts = RESAMPLING[interpolation], []
    for left, top, right, bottom in boxes:
        x, y = floor(left), floor(top)  # first, so that pixels beside the crop have no influence
        part = picture.crop((x, y, ceil(right), ceil(bottom)))
        inner = left - x, top - y, right - x, bottom - y
        resized = np.array(part.resize(size[::-1], kind, box=inner))
        parts.append(torch.from_numpy(resized).view(*size, len(image)).permute(2, 0, 1))
    return parts
