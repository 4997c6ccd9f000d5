"""Bytes of an image file to pixels.

8-bit gray and colour, which nearly all images are: JPEG goes through torchvision's decoder,
everything else through Pillow, and both give the picture upright, as EXIF says. What is deeper or
has other channels: `decode_deep`.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as tv

from mvmae.data.reading import jpeg_header
from mvmae.data.reading.deep_formats import FORMATS, TIFF_MAGIC, is_array, is_stack, values_of
from mvmae.data.reading.pixel_depth import (
    MOST_PIXELS,
    Pixels,
    UnreadableImageError,
    Values,
    Wanted,
    fitted,
)
from mvmae.data.reading.quiet import hush_libtiff
from mvmae.data.reading.reasons import unreadable

EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".tga", ".npy"),
    )
)
WHITE = (255, 255, 255, 255)
hush_libtiff()


def decode(data: bytes, channels: int) -> UInt8[Tensor, "C H W"]:
    """Decode an image file to 8-bit gray or colour.

    Gray becomes colour and colour gray as `channels` asks. What is transparent is laid on white,
    of an animation the first frame is taken, and 16-bit values are scaled from their full range.

    Args:
        data: The whole file.
        channels: 3 for colour, 1 for gray.

    Raises:
        UnreadableImageError: The bytes are no image, are damaged, or of a kind not read.
    """
    try:
        if is_array(data) or is_stack(data, channels):
            return fitted(values_of(data, channels), Wanted(channels))
        image = _decode_jpeg(data) if data.startswith(jpeg_header.MAGIC) else None
        image = _decode_pillow(data) if image is None else image
        return _with_channels(image, channels)
    except UnidentifiedImageError as error:
        if not data.startswith(TIFF_MAGIC):
            raise unreadable(error) from error
        return decode_deep(data, Wanted(channels))  # bands, which Pillow does not know
    except Exception as error:  # decoders raise anything: OSError, ValueError, TypeError, ...
        raise unreadable(error) from error


def decode_deep(data: bytes, wanted: Wanted) -> Pixels:
    """Decode an image file to any number of channels, of 8 bit or deeper.

    Pages and bands of a TIFF file and the third axis of an array are channels. Otherwise as
    `decode`; where four channels are asked for, colour with transparency has four.

    Args:
        data: The whole file.
        wanted: What it is to become.

    Raises:
        UnreadableImageError: The bytes are no image, are damaged, of a kind not read, or hold
            another number of channels or deeper numbers than are asked for.
    """
    try:
        return fitted(values_of(data, wanted.channels), wanted)
    except Exception as error:
        raise unreadable(error) from error


def decode_content(content: bytes | Values, wanted: Wanted) -> Pixels:
    """Decode an image file, or convert an array, to the requested channels and depth.

    Raises:
        UnreadableImageError: As `decode` and `decode_deep`.
    """
    if isinstance(content, Values):
        return fitted(content, wanted)
    if wanted.depth == "8" and wanted.channels in (1, 3):
        return decode(content, wanted.channels)
    return decode_deep(content, wanted)


def decode_reduced(
    data: bytes, header: jpeg_header.Header, reduction: int, channels: int
) -> UInt8[Tensor, "C h w"] | None:
    """Decode a JPEG file to a smaller picture, by less of its cosine transform, upright.

    Where nothing is reduced the pixels are those of `decode`. Needs simplejpeg.

    Args:
        data: The whole file.
        header: Of the file.
        reduction: 1, 2, 4 or 8: by what height and width are divided, rounded up.
        channels: 3 for colour, 1 for gray.

    Returns:
        The pixels; none where the decoder complains of anything, even of what `decode` lets pass.
    """
    import simplejpeg

    height, width = -(-header.stored_height // reduction), -(-header.stored_width // reduction)
    kind = "RGB" if header.channels == 3 else "GRAY"
    try:
        array = simplejpeg.decode_jpeg(data, kind, min_height=height, min_width=width)
    except (ValueError, RuntimeError):
        return None
    if array.shape[:2] != (height, width):
        return None
    image = torch.from_numpy(array).permute(2, 0, 1)
    return _with_channels(jpeg_header.upright(image, header.orientation), channels)


def _decode_jpeg(data: bytes) -> Pixels | None:
    """Pixels of a gray or colour JPEG; none for CMYK, whose colours only Pillow gets right."""
    if (size := jpeg_header.pixels_announced(data)) > MOST_PIXELS:
        raise UnreadableImageError(f"{size} pixels: could be a decompression bomb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the buffer is not writable, and nothing writes to it
        encoded = torch.frombuffer(data, dtype=torch.uint8)
        # torchvision 0.29 calls its decoders deprecated.
        image = decode_jpeg(encoded, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    assert isinstance(image, Tensor)
    return None if len(image) == 4 else image


def _decode_pillow(data: bytes) -> Pixels:
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and palettes that it then reads; of bombs it still raises.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            file.load()
            return torch.from_numpy(_eight_bit(ImageOps.exif_transpose(file))).permute(2, 0, 1)


def _eight_bit(image: Image.Image) -> np.ndarray:
    """Height x width x channels, 1 or 3, of any of Pillow's modes."""
    if image.mode.startswith("I"):
        values = np.array(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImageError("32-bit integers beyond 16 bit are not read")
        return (values // 257).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise UnreadableImageError(
            "floating-point images are not read at depth 8: --views.depth float reads them"
        )
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, WHITE)
        return np.array(Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB"))
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"))[..., None]
    return np.array(image.convert("RGB"))


def _with_channels(image: Pixels, channels: int) -> UInt8[Tensor, "K H W"]:
    if len(image) == channels:
        return image
    if channels == 3:
        return image[:1].expand(3, -1, -1).contiguous()
    if channels == 1:
        return tv.rgb_to_grayscale(image[:3])
    raise UnreadableImageError(f"the file has {len(image)} channels, {channels} were asked for")
