"""What image files hold, in their own numbers: TIFF, .npy, PNG of 16 bit, and what Pillow reads.

Nothing is scaled or joined here; `pixels.fitted` makes of it what is asked for.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from math import prod
from typing import NamedTuple

import numpy as np
import tifffile
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_png

from mvmae.config.model import MOST_CHANNELS
from mvmae.config.views import Depth
from mvmae.data.reading.pixel_depth import (
    MOST_PIXELS,
    MOST_VALUES,
    UnreadableImageError,
    Values,
    depth_of,
)

FORMATS = (  # Pillow knows more, some of which start other programs (PostScript)
    *("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF"),
    *("TIFF", "PPM", "AVIF", "JPEG2000", "TGA"),
)
NPY_MAGIC = b"\x93NUMPY"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
MINISWHITE = 0
PLAIN_TIFF = (MINISWHITE, 1, 2)  # and gray, RGB: photometric; Pillow knows palettes and inks
GDAL_NODATA, ORIENTATION = 42113, 274  # tags
ALPHA = (1, 2)  # of ExtraSamples: multiplied in or not

# It logs every oddity of a file, and what counts is raised.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class Facts(NamedTuple):
    """What a file's header says, before anything is decoded."""

    channels: int
    """Without one that says how opaque the others are."""

    depth: Depth
    alpha: bool = False
    pages: int = 1
    """Of a TIFF file, where they are its channels."""


def is_array(data: bytes) -> bool:
    """Whether a file is numpy's."""
    return data.startswith(NPY_MAGIC)


def is_stack(data: bytes, channels: int) -> bool:
    """Whether a file is a TIFF of as many gray pages as channels are asked for.

    Of other TIFF files with several pages the first is read.
    """
    if channels == 1 or not data.startswith(TIFF_MAGIC):
        return False
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            if page.photometric not in PLAIN_TIFF or _has_small_numbers(page):
                return False
            return page.samplesperpixel == 1 and _count(file.series[0]) == channels
    except Exception:  # Pillow will say what is wrong with it
        return False


def values_of(data: bytes, channels: int | None) -> Values:
    """What a file holds, upright.

    Args:
        data: The whole file.
        channels: Asked for: of a TIFF of several pages the first is taken where 1 or 3 are, and
            the pages are not as many.

    Raises:
        UnreadableImageError: It holds more than is read.
        Exception: Anything that a decoder raises.
    """
    if is_array(data):
        return Values(_array(data))
    if data.startswith(TIFF_MAGIC):
        return _tiff(data, channels)
    if data.startswith(PNG_MAGIC) and data[24:25] == b"\x10":
        return _deep_png(data)
    return _by_pillow(data)


def facts_of(data: bytes) -> Facts:
    """What the header says.

    Raises:
        Exception: Anything that a decoder raises.
    """
    if is_array(data):
        array = _header(data)[0]
        return Facts(_channels_last(array).shape[2], depth_of(array.dtype))
    if data.startswith(TIFF_MAGIC):
        return _facts_of_tiff(data)
    if data.startswith(PNG_MAGIC) and data[24:25] == b"\x10":
        return Facts({0: 1, 4: 1}.get(data[25], 3), "16", data[25] in (4, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as below
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            return _facts_of_pillow(file)


def _facts_of_pillow(file: Image.Image) -> Facts:
    gray = file.mode in ("1", "L", "LA", "F") or file.mode.startswith("I")
    depth: Depth = "8"
    if file.mode.startswith("I"):
        depth = "float" if file.mode == "I" and file.format == "TIFF" else "16"
    if file.mode == "F":
        depth = "float"
    return Facts(1 if gray else 3, depth, file.has_transparency_data)


# numpy


def _header(data: bytes) -> tuple[np.ndarray, int]:
    """An array of the announced shape and kind that takes no memory, and where the values begin.

    Raises:
        UnreadableImageError: It is damaged, holds objects, or is no image.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.kind not in "buif":
        raise UnreadableImageError(f"an array of {dtype} is no image")
    if len(shape) not in (2, 3) or 0 in shape:
        raise UnreadableImageError(
            f"an array of shape {' x '.join(map(str, shape))} is no image: H x W, H x W x C or "
            "C x H x W is"
        )
    if prod(shape) > MOST_VALUES:
        raise UnreadableImageError("more values than are read: could be a decompression bomb")
    return np.broadcast_to(np.empty((), dtype), shape), stream.tell()


def _array(data: bytes) -> np.ndarray:
    empty, begin = _header(data)
    need = empty.size * empty.dtype.itemsize
    if len(data) - begin < need:
        raise UnreadableImageError(f"truncated: {need - len(data) + begin} bytes are lacking")
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return _native(_channels_last(array))


def _channels_last(array: np.ndarray) -> np.ndarray:
    """Height x width x channels: of three axes the shorter of first and last, else the last."""
    if array.ndim == 2:
        return array[..., None]
    return array.transpose(1, 2, 0) if array.shape[0] < array.shape[2] else array


def _native(array: np.ndarray) -> np.ndarray:
    """In this machine's order of bytes."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


# TIFF


def _alpha_samples(page: tifffile.TiffPage) -> list[int]:
    return [sample for sample in map(int, page.extrasamples) if sample in ALPHA]


def _has_small_numbers(page: tifffile.TiffPage) -> bool:
    """Whether a value has less than a byte."""
    bits = page.bitspersample
    return bits < 8 if isinstance(bits, int) else min(bits) < 8


def _count(series: tifffile.TiffPageSeries) -> int:
    """Channels: all that is neither height nor width."""
    return prod(n for n, axis in zip(series.shape, series.axes, strict=True) if axis not in "YX")


def _facts_of_tiff(data: bytes) -> Facts:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page, series = file.pages.first, file.series[0]
        if page.photometric not in PLAIN_TIFF or _has_small_numbers(page):
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                return _facts_of_pillow(opened)
        count, samples = _count(series), page.samplesperpixel
        alpha = bool(_alpha_samples(page)) and count == samples
        pages = count // samples if samples else 1
        return Facts(count - alpha, depth_of(np.dtype(page.dtype)), alpha, pages)


def _tiff(data: bytes, channels: int | None) -> Values:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        if page.photometric not in PLAIN_TIFF or _has_small_numbers(page):
            return _by_pillow(data)
        whole = file.series[0]
        is_whole = _count(whole) == channels or len(file.pages) == 1 or channels not in (1, 3)
        _refuse_much(whole.shape if is_whole else page.shape, page)
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
            _native(_upright(array, tags.valueof(ORIENTATION, 1))),
            is_alpha,
            _number(tags.valueof(GDAL_NODATA)),
        )


def _refuse_much(shape: tuple[int, ...], page: tifffile.TiffPage) -> None:
    if page.imagewidth * page.imagelength > MOST_PIXELS or prod(shape) > MOST_VALUES:
        raise UnreadableImageError("more pixels than are read: could be a decompression bomb")


def _axes_in_order(array: np.ndarray, axes: str) -> np.ndarray:
    """Height x width x all that is left, in the order in which it is kept."""
    if not {"Y", "X"} <= set(axes):
        raise UnreadableImageError("a TIFF file without height and width")
    rest = [at for at, axis in enumerate(axes) if axis not in "YX"]
    ordered = array.transpose(axes.index("Y"), axes.index("X"), *rest)
    return ordered.reshape(*ordered.shape[:2], -1)


def _upright(array: np.ndarray, orientation: object) -> np.ndarray:
    """Turned and mirrored as the tag says, which is EXIF's too."""
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


def _number(words: object) -> float | None:
    """GeoTIFF's nodata, which is text; NaN needs no telling."""
    try:
        number = float(str(words).strip(" \0"))
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _compressed(data: bytes, page: tifffile.TiffPage, channels: int | None) -> Values:
    """What tifffile alone cannot decompress and Pillow can: gray, a page or several.

    Raises:
        UnreadableImageError: Neither can.
    """
    missing = _number(page.tags.valueof(GDAL_NODATA))
    if page.samplesperpixel == 1 or page.dtype == np.uint8:
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as file:
            count = min(getattr(file, "n_frames", 1), channels or MOST_CHANNELS)
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
    return _numbers(ImageOps.exif_transpose(file)).array


# Pillow and torchvision


def _deep_png(data: bytes) -> Values:
    """16 bit a channel, which Pillow would cut to 8 in colour."""
    width, height = struct.unpack(">II", data[16:24])
    if width * height > MOST_PIXELS:
        raise UnreadableImageError("more pixels than are read: could be a decompression bomb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the buffer is not writable, and nothing writes to it
        encoded = torch.frombuffer(data, dtype=torch.uint8)
        # torchvision 0.29 calls its decoders deprecated.
        image = decode_png(encoded, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    array = image.permute(1, 2, 0).numpy()
    if array.dtype != np.uint16:
        raise UnreadableImageError("a PNG of 16 bit that is none")
    return Values(array, alpha=array.shape[2] in (2, 4))


def _by_pillow(data: bytes) -> Values:
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and palettes that it then reads; of bombs it still raises.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            file.load()
            is_tiff = file.format == "TIFF"
            return _numbers(ImageOps.exif_transpose(file), is_tiff=is_tiff)


def _numbers(image: Image.Image, *, is_tiff: bool = True) -> Values:
    """Of any of Pillow's modes.

    Args:
        image: Upright.
        is_tiff: Whether 32-bit integers are meant; elsewhere they hold 16 bit.
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
