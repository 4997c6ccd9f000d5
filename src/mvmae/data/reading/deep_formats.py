"""Values of image files in the files' own number types: TIFF, .npy, 16-bit PNG, Pillow's formats.

Nothing is scaled or combined here; `pixel_depth.convert_values` does that.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from mvmae.config.model import MAX_CHANNELS
from mvmae.config.views import Depth
from mvmae.data.reading.pixel_depth import (
    MAX_PIXELS,
    MAX_VALUES,
    UnreadableImageError,
    Values,
    depth_of,
)

if TYPE_CHECKING:
    import tifffile

FORMATS = (  # Pillow knows more, some of which start other programs (PostScript)
    *("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF"),
    *("TIFF", "PPM", "AVIF", "JPEG2000", "TGA"),
)
NPY_MAGIC = b"\x93NUMPY"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
MINISWHITE = 0
PLAIN_TIFF = (MINISWHITE, 1, 2)  # photometric: two kinds of gray, RGB; the rest is for Pillow
GDAL_NODATA, ORIENTATION = 42113, 274  # tags
ALPHA = (1, 2)  # values of ExtraSamples: opacity, multiplied in or not
PNG_COLOUR_TYPE = 25  # offsets in the header of a PNG file; the depth stands before it
GRAY, GRAY_ALPHA, RGBA = 0, 4, 6  # PNG's colour types


class FileFormat(NamedTuple):
    """Channels and depth from a file's header."""

    channels: int
    """Without opacity."""

    depth: Depth
    alpha: bool = False
    pages: int = 1
    """Pages of a TIFF file that become channels."""


def is_array(data: bytes) -> bool:
    """Whether a file is in numpy's format."""
    return data.startswith(NPY_MAGIC)


def is_stack(data: bytes, channels: int) -> bool:
    """Whether a file is a TIFF with one gray page for each requested channel.

    Of other TIFF files with several pages, the first is read.
    """
    if channels == 1 or not data.startswith(TIFF_MAGIC):
        return False
    try:
        with _open_tiff(data) as file:
            page = file.pages.first
            if page.photometric not in PLAIN_TIFF or _has_small_numbers(page):
                return False
            return page.samplesperpixel == 1 and _count(file.series[0]) == channels
    except Exception:  # Pillow will say what is wrong with it
        return False


def values_of(data: bytes, channels: int | None) -> Values:
    """Read the values of a file, upright.

    Args:
        data: The whole file.
        channels: Requested channels: with 1 or 3, only the first page of a TIFF file is read,
            unless it has as many pages.

    Raises:
        UnreadableImageError: The file has too many values.
        Exception: Anything that a decoder raises.
    """
    if is_array(data):
        return Values(_array(data))
    if data.startswith(TIFF_MAGIC):
        return _tiff(data, channels)
    if is_deep_png(data):
        return _deep_png(data)
    return _by_pillow(data)


def is_deep_png(data: bytes) -> bool:
    """Whether a file is a PNG of 16 bits a channel."""
    return data.startswith(PNG_MAGIC) and data[PNG_COLOUR_TYPE - 1 : PNG_COLOUR_TYPE] == b"\x10"


def read_format(data: bytes) -> FileFormat:
    """Read channels and depth from a file's header.

    Raises:
        Exception: Anything that a decoder raises.
    """
    if is_array(data):
        array = _header(data)[0]
        return FileFormat(_channels_last(array).shape[2], depth_of(array.dtype))
    if data.startswith(TIFF_MAGIC):
        return _facts_of_tiff(data)
    if is_deep_png(data):
        colour = data[PNG_COLOUR_TYPE]
        return FileFormat(
            1 if colour in (GRAY, GRAY_ALPHA) else 3, "16", colour in (GRAY_ALPHA, RGBA)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `_by_pillow`
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            return _facts_of_pillow(file)


def _facts_of_pillow(file: Image.Image) -> FileFormat:
    gray = file.mode in ("1", "L", "LA", "F") or file.mode.startswith("I")
    depth: Depth = "8"
    if file.mode.startswith("I"):
        depth = "float" if file.mode == "I" and file.format == "TIFF" else "16"
    if file.mode == "F":
        depth = "float"
    return FileFormat(1 if gray else 3, depth, file.has_transparency_data)


# numpy


def _header(data: bytes) -> tuple[np.ndarray, int]:
    """An array of the announced shape and type that takes no memory, and the values' offset.

    Raises:
        UnreadableImageError: The header is damaged, or does not describe an image.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
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
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return _native(_channels_last(array))


def _channels_last(array: np.ndarray) -> np.ndarray:
    """Order axes as H x W x C; of three axes, C is the first if it is shorter than the last."""
    if array.ndim == 2:
        return array[..., None]
    return array.transpose(1, 2, 0) if array.shape[0] < array.shape[2] else array


def _native(array: np.ndarray) -> np.ndarray:
    """Convert to this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


# TIFF


def _open_tiff(data: bytes) -> tifffile.TiffFile:
    import tifffile  # only for TIFF files: reader processes start faster without it

    # It logs every oddity of a file; what matters is raised.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile.TiffFile(io.BytesIO(data))


def _alpha_samples(page: tifffile.TiffPage) -> list[int]:
    return [sample for sample in map(int, page.extrasamples) if sample in ALPHA]


def _has_small_numbers(page: tifffile.TiffPage) -> bool:
    """Whether a value takes less than a byte."""
    bits = page.bitspersample
    return bits < 8 if isinstance(bits, int) else min(bits) < 8


def _count(series: tifffile.TiffPageSeries) -> int:
    """Number of channels: the product of all axes but height and width."""
    return prod(n for n, axis in zip(series.shape, series.axes, strict=True) if axis not in "YX")


def _facts_of_tiff(data: bytes) -> FileFormat:
    with _open_tiff(data) as file:
        page, series = file.pages.first, file.series[0]
        if page.photometric not in PLAIN_TIFF or _has_small_numbers(page):
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                return _facts_of_pillow(opened)
        count, samples = _count(series), page.samplesperpixel
        alpha = bool(_alpha_samples(page)) and count == samples
        pages = count // samples if samples else 1
        return FileFormat(count - alpha, depth_of(np.dtype(page.dtype)), alpha, pages)


def _tiff(data: bytes, channels: int | None) -> Values:
    with _open_tiff(data) as file:
        page = file.pages.first
        if page.photometric not in PLAIN_TIFF or _has_small_numbers(page):
            return _by_pillow(data)
        whole = file.series[0]
        is_whole = _count(whole) == channels or len(file.pages) == 1 or channels not in (1, 3)
        _require_moderate_size(whole.shape if is_whole else page.shape, page)
        try:
            array = whole.asarray() if is_whole else page.asarray()
        except (ValueError, KeyError, ImportError) as error:
            if "imagecodecs" not in str(error) and not isinstance(error, ImportError):
                raise
            return _compressed(data, page, channels if is_whole else 1)
        array = _axes_in_order(array, whole.axes if is_whole else page.axes)
        if page.photometric == MINISWHITE and array.dtype.kind == "u":
            array = np.iinfo(array.dtype).max - array
        is_alpha = bool(_alpha_samples(page)) and array.shape[2] == page.samplesperpixel
        tags = page.tags
        return Values(
            _native(_upright_array(array, tags.valueof(ORIENTATION, 1))),
            is_alpha,
            _number(tags.valueof(GDAL_NODATA)),
        )


def _require_moderate_size(shape: tuple[int, ...], page: tifffile.TiffPage) -> None:
    if page.imagewidth * page.imagelength > MAX_PIXELS or prod(shape) > MAX_VALUES:
        raise UnreadableImageError("too many pixels: could be a decompression bomb")


def _axes_in_order(array: np.ndarray, axes: str) -> np.ndarray:
    """Order axes as height x width x all others, which are flattened in the file's order."""
    if not {"Y", "X"} <= set(axes):
        raise UnreadableImageError("a TIFF file without height and width")
    rest = [at for at, axis in enumerate(axes) if axis not in "YX"]
    ordered = array.transpose(axes.index("Y"), axes.index("X"), *rest)
    return ordered.reshape(*ordered.shape[:2], -1)


def _upright_array(array: np.ndarray, orientation: object) -> np.ndarray:
    """Rotate and mirror as TIFF's orientation tag says; EXIF uses the same numbers."""
    match orientation:
        case 2:
            return array[:, ::-1]
        case 3:
            return array[::-1, ::-1]
        case 4:
            return array[::-1]
        case 5:
            return array.swapaxes(0, 1)
        case 6:
            return array.swapaxes(0, 1)[:, ::-1]
        case 7:
            return array[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return array.swapaxes(0, 1)[::-1]
    return array


def _number(text: object) -> float | None:
    """GeoTIFF's nodata, which is stored as text; None for NaN, which counts as missing anyway."""
    try:
        number = float(str(text).strip(" \0"))
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _compressed(data: bytes, page: tifffile.TiffPage, channels: int | None) -> Values:
    """Read with Pillow what tifffile cannot decompress by itself: gray, one page or several.

    Raises:
        UnreadableImageError: Pillow cannot decompress it either.
    """
    missing = _number(page.tags.valueof(GDAL_NODATA))
    if page.samplesperpixel == 1 or page.dtype == np.uint8:
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as file:
            count = min(getattr(file, "n_frames", 1), channels or MAX_CHANNELS)
            if count == 1 and page.samplesperpixel > 1:
                return _by_pillow(data)
            arrays = [_frame(file, number) for number in range(count)]
            return Values(np.concatenate(arrays, axis=2), missing=missing)
    name = getattr(page.compression, "name", page.compression)
    raise UnreadableImageError(
        f"compressed with {name} in a way that needs a package: pip install imagecodecs"
    )


def _frame(file: Image.Image, number: int) -> np.ndarray:
    file.seek(number)
    return _pillow_values(upright(file)).array


# Pillow


def upright(image: Image.Image) -> Image.Image:
    """Rotate and mirror an image as its EXIF data say; damaged EXIF data are ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises anything, and the pixels are whole
        return image


def _deep_png(data: bytes) -> Values:
    """Read a PNG of 16 bits a channel, of which Pillow keeps only the high byte in colour."""
    if data[PNG_COLOUR_TYPE] == GRAY:
        return _by_pillow(data)
    if data[PNG_COLOUR_TYPE] == GRAY_ALPHA:
        return _deep_gray_alpha(data)
    # The unpackers for both byte orders give the two bytes of each value.
    high, low = (_png_bytes(data, order) for order in "BL")
    return Values(high.astype(np.uint16) * 256 + low, alpha=high.shape[2] == 4)


def _png_bytes(data: bytes, order: str) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as file:
        file.tile = [tile._replace(args=f"{file.mode};16{order}") for tile in file.tile]
        return np.array(upright(file))


def _deep_gray_alpha(data: bytes) -> Values:
    """Read gray with opacity as if its four bytes a pixel were colour with opacity."""
    header = data[12:24] + bytes((8, RGBA)) + data[26:29]  # type, size, depth, colour, the rest
    whole = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    with Image.open(io.BytesIO(whole), formats=("PNG",)) as file:
        array = np.array(upright(file)).astype(np.uint16)
    return Values(array[..., ::2] * 256 + array[..., 1::2], alpha=True)


def _by_pillow(data: bytes) -> Values:
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and palettes that it then reads; of bombs it still raises.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            file.load()
            is_tiff = file.format == "TIFF"
            return _pillow_values(upright(file), is_tiff=is_tiff)


def _pillow_values(image: Image.Image, *, is_tiff: bool = True) -> Values:
    """The values of a Pillow image in any mode.

    Args:
        image: An upright image.
        is_tiff: Whether 32-bit integers can be real; in other formats they hold 16 bits.
    """
    if image.mode.startswith("I"):
        array = np.array(image)
        if array.dtype != np.uint16 and not is_tiff:
            array = array.astype(np.uint16)
        return Values(_native(array)[..., None])
    if image.mode == "F":
        return Values(np.array(image)[..., None])
    if image.has_transparency_data:
        return Values(np.array(image.convert("RGBA")), alpha=True)
    if image.mode in ("1", "L"):
        return Values(np.array(image.convert("L"))[..., None])
    return Values(np.array(image.convert("RGB")))
