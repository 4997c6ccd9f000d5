"""Decode image files to pixels.

Nearly all images are 8-bit gray or colour: simplejpeg decodes JPEG files and Pillow the others.
Both return the picture upright, as its EXIF orientation says. For deeper files and other numbers of
channels, see `decode_deep`.
"""

import contextlib
import ctypes
import re
from itertools import chain

import numpy as np
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mvmae.data.reading import jpeg_header
from mvmae.data.reading.deep_formats import (
    NPY_MAGIC,
    SUFFIXES,
    TIFF_MAGIC,
    is_stack,
    read_values,
    read_with_pillow,
)
from mvmae.data.reading.pixel_depth import (
    MAX_PIXELS,
    Pixels,
    UnreadableImageError,
    Values,
    Wanted,
    convert_values,
    with_channels,
)

EXTENSIONS = frozenset(chain(*SUFFIXES.values()))
TIFF_HANDLERS = ("TIFFSetWarningHandler", "TIFFSetErrorHandler")
LOADED_LIBRARIES = "/proc/self/maps"  # Linux only; elsewhere libtiff writes to stderr

REASONS: dict[type[BaseException], str] = {
    UnidentifiedImageError: "not an image of a supported kind",
    Image.DecompressionBombError: "too many pixels: could be a decompression bomb",
    MemoryError: "not enough memory to decode it",
}
# What decoders add to their messages: memory addresses, source files, error codes.
OBJECT = re.compile(r"<[\w.]+ (?:object|file)[^>]*>|\bat 0x[0-9a-f]+")
SOURCE_PATH = re.compile(r"(?:/[\w.+-]+){2,}(?::\d+)?")
ERROR_CODE = re.compile(r"^(?:decoder|codec) error -?\d+( when reading image file)?$")
MAX_REASON = 200  # characters


def decode(data: bytes, channels: int) -> UInt8[Tensor, "C H W"]:
    """Decode an image file to 8-bit gray or colour.

    Gray becomes colour and colour gray as `channels` requires. Transparent pixels are blended with
    white, of an animation the first frame is taken, and 16-bit values are scaled from their full
    range.

    Args:
        data: The whole file.
        channels: 3 for colour, 1 for gray.

    Raises:
        UnreadableImageError: The bytes are not an image, are damaged, or of an unsupported kind.
    """
    try:
        # Stacks must not reach Pillow, which would read only their first page.
        if data.startswith(NPY_MAGIC) or is_stack(data, channels):
            return convert_values(read_values(data, channels), Wanted(channels))
        image = _decode_jpeg(data) if data.startswith(jpeg_header.MAGIC) else None
        if image is None:
            image = _eight_bit(read_with_pillow(data, on_white=True).array)
        return with_channels(image, channels, len(image))
    except UnidentifiedImageError as error:
        if not data.startswith(TIFF_MAGIC):
            raise unreadable(error) from error
        return decode_deep(data, Wanted(channels))  # several bands, which Pillow cannot read
    except Exception as error:  # decoders raise anything: OSError, ValueError, TypeError, ...
        raise unreadable(error) from error


def decode_deep(data: bytes, wanted: Wanted) -> Pixels:
    """Decode an image file to any number of channels, with 8 bits or more.

    Pages and bands of a TIFF file and the third axis of an array become channels. With four
    requested channels, colour with transparency keeps its alpha channel. Otherwise as `decode`.

    Args:
        data: The whole file.
        wanted: Requested channels and depth.

    Raises:
        UnreadableImageError: The bytes are not an image, are damaged, of an unsupported kind, or
            have other channels or deeper values than requested.
    """
    try:
        return convert_values(read_values(data, wanted.channels), wanted)
    except Exception as error:  # as in `decode`
        raise unreadable(error) from error


def decode_content(content: bytes | Values, wanted: Wanted) -> Pixels:
    """Decode an image file, or convert an array, to the requested channels and depth.

    Args:
        content: The whole file, or an array of values.
        wanted: Requested channels and depth.

    Returns:
        Pixels, C x H x W.

    Raises:
        UnreadableImageError: As `decode` and `decode_deep`.
    """
    if isinstance(content, Values):
        return convert_values(content, wanted)
    if wanted.depth == "8" and wanted.channels in (1, 3):
        return decode(content, wanted.channels)
    return decode_deep(content, wanted)


def unreadable(error: BaseException) -> UnreadableImageError:
    """Convert any exception of a decoder to an error that gives the reason in plain words."""
    if isinstance(error, UnreadableImageError):
        return error
    known = next((reason for kind, reason in REASONS.items() if isinstance(error, kind)), "")
    reason = known or plain_reason(str(error))
    return UnreadableImageError(reason or f"damaged ({type(error).__name__})")


def plain_reason(message: str) -> str:
    """Remove source paths, memory addresses, line breaks and advice from a decoder's message."""
    message = " ".join(message.split())
    message = SOURCE_PATH.sub("", OBJECT.sub("", message))
    message = ERROR_CODE.sub("damaged data", message)
    message = message.split(" You may ")[0].split(" Please ")[0]
    return message.strip(" .,:;-")[:MAX_REASON]


def _decode_jpeg(data: bytes) -> Pixels | None:
    """Decode a JPEG file of the usual kind; return None for one that Pillow should decode.

    Pillow gets the colours of CMYK right, and accepts faults after which simplejpeg gives up.
    """
    # simplejpeg does not limit the size that a header may announce.
    if (size := jpeg_header.announced_pixels(data)) > MAX_PIXELS:
        raise UnreadableImageError(f"{size} pixels: could be a decompression bomb")
    header = jpeg_header.read_header(data)
    return None if header is None else decode_simplejpeg(data, header, 1)


def decode_simplejpeg(data: bytes, header: jpeg_header.Header, reduction: int) -> Pixels | None:
    """Decode a JPEG file at full or reduced size; reduced sizes use part of its cosine transform.

    Args:
        data: The whole file.
        header: The header of the file.
        reduction: 1, 2, 4 or 8: the divisor of height and width, which are rounded up.

    Returns:
        Upright pixels in the file's channels; None if the decoder reports any fault, even one that
        `decode` accepts.
    """
    # simplejpeg chooses the reduction: the largest that leaves at least these sides.
    height, width = -(-header.stored_height // reduction), -(-header.stored_width // reduction)
    kind = "RGB" if header.channels == 3 else "GRAY"
    try:
        array = simplejpeg.decode_jpeg(data, kind, min_height=height, min_width=width)
    except (ValueError, RuntimeError):
        return None
    if array.shape[:2] != (height, width):
        return None
    return jpeg_header.upright(torch.from_numpy(array).permute(2, 0, 1), header.orientation)


def _eight_bit(values: np.ndarray) -> UInt8[Tensor, "C H W"]:
    """Scale the values of a file, H x W x C, to 8 bits.

    The channels stay last in memory, where the kernel that resizes crops needs them: otherwise it
    would rearrange each crop.
    """
    if values.dtype.kind == "f":
        raise UnreadableImageError(
            "floating-point images are not supported at depth 8: --views.depth float reads them"
        )
    if values.dtype != np.uint8:
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImageError("32-bit integers beyond 16 bit are not supported")
        values = (values // 257).astype(np.uint8)  # 65535 / 257 = 255
    return torch.from_numpy(values).permute(2, 0, 1)


def silence_libtiff() -> None:
    """Remove the message handlers of Pillow's libtiff, which write to stderr.

    Pillow raises what matters. A null handler prints nothing (libtiff, TIFFError(3)). Handlers
    belong to the process: another library that wants messages sets its own.
    """
    with contextlib.suppress(OSError, AttributeError):
        with open(LOADED_LIBRARIES, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            paths = {line.split(maxsplit=5)[-1].strip() for line in lines if "libtiff" in line}
        for path in paths:
            library = ctypes.CDLL(path)  # the loaded one again
            for name in TIFF_HANDLERS:
                setter = getattr(library, name)
                setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
                setter(None)


silence_libtiff()
