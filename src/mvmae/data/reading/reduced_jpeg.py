"""Views of a JPEG file from no more of it than they need (`--decode fast`).

A JPEG file keeps squares of 8 x 8 pixels as cosine waves. Decoding with the longest waves alone
gives the picture at a half, a quarter or an eighth, which costs a fraction of the time. Where the
crops are taken is drawn first, so it is known how fine a picture they need.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from math import ceil, floor

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.decode import MOST_PIXELS, decode_reduced
from mvmae.data.reading.jpeg_header import FLIPS, MAGIC, Header, header_of
from mvmae.errors import UserError
from mvmae.method.views import Box, Crop, joined, random_crops, views_of

REDUCTIONS = (8, 4, 2)
LEAST_SIDE = 8  # of the longer one; below, simplejpeg takes 7/8 of the picture for the whole
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def require_simplejpeg() -> None:
    """Check that the decoder is there.

    Raises:
        UserError: It is not.
    """
    if not has_simplejpeg():
        raise UserError(
            "--decode fast needs the package simplejpeg: pip install 'mvmae[fast]', "
            "or leave out --decode fast"
        )


def has_simplejpeg() -> bool:
    """Whether the package is installed."""
    try:
        return find_spec("simplejpeg") is not None
    except ValueError:  # hidden from Python's import
        return False


def is_for(config: PretrainConfig) -> bool:
    """Whether a run's pixels are those that files are decoded to by other ways than `decode`."""
    return config.views.pixel_depth == "8" and config.model.in_channels in (1, 3)


def fast_views(
    data: bytes, config: PretrainConfig, rng: np.random.Generator
) -> UInt8[Tensor, "V C h w"] | None:
    """The views that `random_views` shows of an image file.

    Where an image is not at least twice as large as its crops need, the same pixels.

    Args:
        data: The whole file.
        config: Of the run.
        rng: Drawn from as by `random_views`.

    Returns:
        None where the file is none that is decoded so, or is damaged: then nothing is drawn.
    """
    header = plain_header(data)
    if header is None:
        return None
    before = rng.bit_generator.state
    crops = random_crops(*header.size, config.views, rng)
    size, channels = config.model.height_width, config.model.in_channels
    reduction = reduction_for(crops, size)
    image = decode_reduced(data, header, reduction, channels)
    if image is None:
        rng.bit_generator.state = before
        return None
    if reduction == 1:
        return views_of(image, crops, config.views, size)
    boxes = [reduced_box(one.box, header, reduction) for one in crops]
    parts = reduced_parts(image, boxes, size, config.views.interpolation)
    return joined(parts, crops, config.views.num_views)


def plain_header(data: bytes) -> Header | None:
    """The header of a JPEG file that other decoders may be trusted with; else none."""
    header = header_of(data) if data.startswith(MAGIC) else None
    if header is None or max(header.size) < LEAST_SIDE:
        return None
    return header if header.stored_height * header.stored_width <= MOST_PIXELS else None


def reduction_for(crops: Sequence[Crop], size: tuple[int, int]) -> int:
    """The largest reduction at which every crop has at least the pixels of a view."""
    for reduction in REDUCTIONS:
        if all(
            box.height >= reduction * size[0] and box.width >= reduction * size[1]
            for box, _ in crops
        ):
            return reduction
    return 1


def reduced_box(box: Box, header: Header, reduction: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box in the reduced picture, in its pixels.

    The last pixel of a row stands for fewer of the image than the others do, where the width is no
    multiple of the reduction; in a mirrored picture it is the first one. The same of columns.
    """
    (height, width), flips = header.size, FLIPS[header.orientation]
    left, top = box.left, box.top
    left += -width % reduction if -1 in flips else 0
    top += -height % reduction if -2 in flips else 0
    edges = left, top, left + box.width, top + box.height
    left_, top_, right_, bottom_ = (edge / reduction for edge in edges)
    return left_, top_, right_, bottom_


def reduced_parts(
    image: UInt8[Tensor, "C H W"],
    boxes: Sequence[tuple[float, float, float, float]],
    size: tuple[int, int],
    interpolation: str,
) -> list[UInt8[Tensor, "C h w"]]:
    """Cut out boxes and resize them.

    By Pillow, whose boxes may begin between two pixels: moved to the nearest whole ones, crops
    differ four times as much from those of the picture that is not reduced.
    """
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    picture = Image.fromarray(array if len(image) == 3 else array[..., 0])
    kind, parts = RESAMPLING[interpolation], []
    for left, top, right, bottom in boxes:
        x, y = floor(left), floor(top)  # cut out first: what lies beside a crop is no part of it
        part = picture.crop((x, y, ceil(right), ceil(bottom)))
        inner = left - x, top - y, right - x, bottom - y
        parts.append(tv.pil_to_tensor(part.resize(size[::-1], kind, box=inner)))
    return parts
