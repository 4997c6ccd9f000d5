"""Values of image files in the files' own number types: TIFF, .npy, 16-bit PNG, Pillow's formats.

Nothing is scaled or combined here; `pixel_depth.convert_values` does that.
"""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

from mvmae.config.model import MAX_CHANNELS
from mvmae.config.views import Depth
from mvmae.data.reading.jpeg_header import FLIPS, ORIENTATION, TRANSPOSED
from mvmae.data.reading.pixel_depth import (
    MAX_PIXELS,
    MAX_VALUES,
    UnreadableImageError,
    Values,
    lossless_depth,
)

if TYPE_CHECKING:
    import tifffile

SUFFIXES = {  # by Pillow's name of the format
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jfif"),  # what Pillow calls a JPEG file of several pictures
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "DIB": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2",),
    "TGA": (".tga",),
    "NPY": (".npy",),
}
# Pillow knows more formats, some of which start other programs (PostScript).
FORMATS = tuple(name for name in SUFFIXES if name not in ("MPO", "NPY"))
NPY_MAGIC = b"\x93NUMPY"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
MINISWHITE = 0
PLAIN_TIFF = (MINISWHITE, 1, 2)  # photometric: two kinds of gray, RGB; the rest is for Pillow
GDAL_NODATA = 42113  # a tag
ALPHA = (1, 2)  # values of ExtraSamples: opacity, multiplied in or not
PNG_DEPTH, PNG_COLOUR_TYPE = 24, 25  # offsets in a PNG file
GRAY, GRAY_ALPHA, RGBA = 0, 4, 6  # PNG's colour types


class FileFormat(NamedTuple):
    """Channels and depth from a file's header."""

    channels: int
    """Without opacity."""

    depth: Depth
    alpha: bool = False
    pages: int = 1
    """Pages of a TIFF file that become channels."""


def is_stack(data: bytes, channels: int) -> bool:
    """Whether a file is a TIFF with one gray page for each requested channel.

    Of other TIFF files with several pages, the first is read.
    """
    # Most files are not TIFF, and tifffile is not loaded for them.
    if channels == 1 or not data.startswith(TIFF_MAGIC):
        return False
    try:
        with _open_tiff(data) as file:
            page = file.pages.first
            is_gray = not _is_for_pillow(page) and page.samplesperpixel == 1
            return is_gray and _count_channels(file.series[0]) == channels
    except Exception:  # Pillow will say what is wrong with it
        return False


def read_values(data: bytes, channels: int | None) -> Values:
    """Read the values of a file, upright.

    Args:
        data: The whole file.
        channels: Requested channels: with 1 or 3, only the first page of a TIFF file is read,
            unless it has as many pages.

    Raises:
        UnreadableImageError: The file has too many values.
        Exception: Anything that a decoder raises.
    """
    if data.startswith(NPY_MAGIC):
        return Values(_array(data))
    if data.startswith(TIFF_MAGIC):
        return _read_tiff(data, channels)
    return _read_deep_png(data) if _is_deep_png(data) else read_with_pillow(data)


def _is_deep_png(data: bytes) -> bool:
    """Whether a file is a PNG with 16 bits per channel."""
    return data.startswith(PNG_MAGIC) and data[PNG_DEPTH:PNG_COLOUR_TYPE] == b"\x10"


def read_format(data: bytes) -> FileFormat:
    """Read channels and depth from a file's header.

    Raises:
        Exception: Anything that a decoder raises.
    """
    if data.startswith(NPY_MAGIC):
        array = _header(data)[0]
        return FileFormat(_channels_last(array).shape[2], lossless_depth(array.dtype))
    if data.startswith(TIFF_MAGIC):
        return _tiff_format(data)
    if _is_deep_png(data):
        colour = data[PNG_COLOUR_TYPE]
        gray, alpha = colour in (GRAY, GRAY_ALPHA), colour in (GRAY_ALPHA, RGBA)
        return FileFormat(1 if gray else 3, "16", alpha)
    return _pillow_format(data)


def _pillow_format(data: bytes) -> FileFormat:
    with open_image(data) as file:
        gray = file.mode in ("1", "L", "LA", "F") or file.mode.startswith("I")
        is_float = file.mode == "F" or (file.mode == "I" and file.format == "TIFF")
        depth: Depth = "float" if is_float else "16" if file.mode.startswith("I") else "8"
        return FileFormat(1 if gray else 3, depth, file.has_transparency_data)


# numpy


def _header(data: bytes) -> tuple[np.ndarray, int]:
    """An array of the announced shape and type that takes no memory, and the values' offset.

    Raises:
        UnreadableImageError: The header is damaged, or does not describe an image.
    """
    stream = io.BytesIO(data)
    is_old = npy.read_magic(stream) == (1, 0)
    read_header = npy.read_array_header_1_0 if is_old else npy.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.kind not in "buif":
        raise UnreadableImageError(f"an array of {dtype} is not an image")
    if len(shape) not in (2, 3) or 0 in shape:
        raise UnreadableImageError(
            f"an array of shape {' x '.join(map(str, shape))} is not an image: images are H x W, "
            "H x W x C or C x H x W"
        )
    if prod(shape) > MAX_VALUES:
        raise UnreadableImageError("too many values: could be a decompression bomb")
    return np.broadcast_to(np.empty((), dtype), shape), stream.tell()


def _array(data: bytes) -> np.ndarray:
    empty, begin = _header(data)
    need = empty.size * empty.dtype.itemsize
    if len(data) - begin < need:
        raise UnreadableImageError(f"truncated: {need - len(data) + begin} bytes are missing")
    array = npy.read_array(io.BytesIO(data), allow_pickle=False)
    return _native(_channels_last(array))


def _channels_last(array: np.ndarray) -> np.ndarray:
    """Order axes as H x W x C; of three axes, C is the first if it is shorter than the last."""
    if array.ndim == 2:
        return array[..., None]
    return array.transpose(1, 2, 0) if array.shape[0] < array.shape[2] else array


def _native(array: np.ndarray) -> np.ndarray:
    """Convert to this machine's byte order, the only one that torch takes."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


# TIFF


def _open_tiff(data: bytes) -> tifffile.TiffFile:
    import tifffile  # only for TIFF files: reader processes start faster without it

    # It logs every oddity of a file; what matters is raised.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile.TiffFile(io.BytesIO(data))


def _alpha_samples(page: tifffile.TiffPage) -> list[int]:
    return [sample for sample in map(int, page.extrasamples) if sample in ALPHA]


def _is_for_pillow(page: tifffile.TiffPage) -> bool:
    """Whether a page has palettes, other colours, or values that take less than a byte."""
    bits = page.bitspersample
    fewest = bits if isinstance(bits, int) else min(bits)
    return page.photometric not in PLAIN_TIFF or fewest < 8


def _count_channels(series: tifffile.TiffPageSeries) -> int:
    """Number of channels: the product of all axes but height and width."""
    return prod(n for n, axis in zip(series.shape, series.axes, strict=True) if axis not in "YX")


def _tiff_format(data: bytes) -> FileFormat:
    with _open_tiff(data) as file:
        page, series = file.pages.first, file.series[0]
        if _is_for_pillow(page):
            return _pillow_format(data)
        count, samples = _count_channels(series), page.samplesperpixel
        alpha = bool(_alpha_samples(page)) and count == samples
        pages = count // samples if samples else 1
        return FileFormat(count - alpha, lossless_depth(np.dtype(page.dtype)), alpha, pages)


def _read_tiff(data: bytes, channels: int | None) -> Values:
    with _open_tiff(data) as file:
        page, series = file.pages.first, file.series[0]
        if _is_for_pillow(page):
            return read_with_pillow(data)
        fits = _count_channels(series) == channels or channels not in (1, 3)
        is_whole = fits or len(file.pages) == 1
        part = series if is_whole else page
        if page.imagewidth * page.imagelength > MAX_PIXELS or prod(part.shape) > MAX_VALUES:
            raise UnreadableImageError("too many pixels: could be a decompression bomb")
        try:
            array = part.asarray()
        except (ValueError, KeyError, ImportError) as error:
            # tifffile says so where it needs a package that mvmae does not depend on.
            if "imagecodecs" not in str(error) and not isinstance(error, ImportError):
                raise
            return _decompress_with_pillow(data, page, channels if is_whole else 1)
        array = _order_axes(array, part.axes)
        # In such a file, 0 is white.
        if page.photometric == MINISWHITE and array.dtype.kind == "u":
            array = np.iinfo(array.dtype).max - array
        is_alpha = bool(_alpha_samples(page)) and array.shape[2] == page.samplesperpixel
        upright_array = _turn_upright(array, page.tags.valueof(ORIENTATION, 1))
        return Values(_native(upright_array), is_alpha, _missing_value(page))


def _order_axes(array: np.ndarray, axes: str) -> np.ndarray:
    """Order axes as height x width x all others, which are flattened in the file's order."""
    if not {"Y", "X"} <= set(axes):
        raise UnreadableImageError("a TIFF file without height and width")
    rest = [at for at, axis in enumerate(axes) if axis not in "YX"]
    ordered = array.transpose(axes.index("Y"), axes.index("X"), *rest)
    return ordered.reshape(*ordered.shape[:2], -1)


def _turn_upright(array: np.ndarray, orientation: Any) -> np.ndarray:
    """Rotate and mirror as TIFF's orientation tag says; EXIF uses the same numbers."""
    if orientation not in FLIPS:
        return array
    turned = array.swapaxes(0, 1) if orientation >= TRANSPOSED else array
    # `FLIPS` counts the axes of C x H x W from the end, and this is H x W x C.
    return np.flip(turned, tuple(axis + 2 for axis in FLIPS[orientation]))


def _missing_value(page: tifffile.TiffPage) -> float | None:
    """GeoTIFF's nodata, which is stored as text; None for NaN, which counts as missing anyway."""
    try:
        number = float(str(page.tags.valueof(GDAL_NODATA)).strip(" \0"))
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _decompress_with_pillow(data: bytes, page: tifffile.TiffPage, channels: int | None) -> Values:
    """Read with Pillow what tifffile cannot decompress by itself: gray, one page or several.

    Raises:
        UnreadableImageError: Pillow cannot decompress it either.
    """
    if page.samplesperpixel == 1 or page.dtype == np.uint8:
        with open_image(data, ("TIFF",)) as file:
            count = min(getattr(file, "n_frames", 1), channels or MAX_CHANNELS)
            if count == 1 and page.samplesperpixel > 1:
                return read_with_pillow(data)
            arrays = []
            for number in range(count):
                file.seek(number)
                arrays.append(_pillow_values(upright(file)).array)
            return Values(np.concatenate(arrays, axis=2), missing=_missing_value(page))
    name = getattr(page.compression, "name", page.compression)
    raise UnreadableImageError(
        f"compressed with {name} in a way that needs a package: pip install imagecodecs"
    )


# Pillow


@contextlib.contextmanager
def open_image(file: bytes | str | Path, formats: tuple[str, ...] = FORMATS) -> Iterator[ImageFile]:
    """Open an image file, or its content, with Pillow; only its header is read.

    Raises:
        Exception: Anything that Pillow raises.
    """
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and palettes that it then reads; of bombs it still raises.
        warnings.simplefilter("ignore")
        stream = io.BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(stream, formats=formats) as image:
            yield image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an opened image, turned upright as EXIF says."""
    is_turned = image.getexif().get(ORIENTATION) in range(TRANSPOSED, 9)
    return image.size if is_turned else image.size[::-1]


def upright(image: Image.Image) -> Image.Image:
    """Rotate and mirror an image as its EXIF data say; damaged EXIF data are ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises anything, and the pixels are whole
        return image


def _read_deep_png(data: bytes) -> Values:
    """Read a PNG with 16 bits per channel, of which Pillow keeps only the high byte in colour."""
    if data[PNG_COLOUR_TYPE] == GRAY:
        return read_with_pillow(data)
    if data[PNG_COLOUR_TYPE] == GRAY_ALPHA:
        return _read_deep_gray_alpha(data)
    # The unpackers for both byte orders give the two bytes of each value.
    high, low = (_png_bytes(data, order) for order in "BL")
    return Values(high.astype(np.uint16) * 256 + low, alpha=high.shape[2] == 4)


def _png_bytes(data: bytes, order: str) -> np.ndarray:
    with open_image(data, ("PNG",)) as file:
        file.tile = [tile._replace(args=f"{file.mode};16{order}") for tile in file.tile]
        return np.array(upright(file))


def _read_deep_gray_alpha(data: bytes) -> Values:
    """Read gray with opacity as if its four bytes a pixel were colour with opacity."""
    header = data[12:24] + bytes((8, RGBA)) + data[26:29]  # type, size, depth, colour, the rest
    whole = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    with open_image(whole, ("PNG",)) as file:
        array = np.array(upright(file)).astype(np.uint16)
    return Values(array[..., ::2] * 256 + array[..., 1::2], alpha=True)


def read_with_pillow(data: bytes, *, on_white: bool = False) -> Values:
    """Read a file in any of Pillow's modes, upright.

    Args:
        data: The whole file.
        on_white: Whether to blend transparent pixels with white, in whole numbers.

    Raises:
        Exception: Anything that Pillow raises.
    """
    with open_image(data) as file:
        file.load()  # here, because `upright` ignores all errors
        is_tiff = file.format == "TIFF"  # the upright copy does not know
        return _pillow_values(upright(file), is_tiff=is_tiff, on_white=on_white)


def _pillow_values(image: Image.Image, *, is_tiff: bool = True, on_white: bool = False) -> Values:
    """The values of an upright image; in formats other than TIFF, its integers have 16 bits."""
    if image.mode.startswith("I"):
        array = np.array(image)
        if array.dtype != np.uint16 and not is_tiff:
            array = array.astype(np.uint16)
        return Values(_native(array)[..., None])
    if image.mode == "F":
        return Values(np.array(image)[..., None])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if not on_white:
            return Values(np.array(image), alpha=True)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode in ("1", "L"):
        return Values(np.array(image.convert("L"))[..., None])
    return Values(np.array(image.convert("RGB")))
