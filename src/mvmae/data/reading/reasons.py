"""Why an image cannot be decoded, in a few plain words, of whatever a decoder raised."""

from __future__ import annotations

import re

from PIL import Image, UnidentifiedImageError

from mvmae.data.reading.pixel_depth import UnreadableImageError

PLACE = re.compile(r"^\[?\w+,? \S+?:\d+(?:\])?,? ?")  # torchvision: "decode_jpeg, /x/y.cpp:171, "
OBJECT = re.compile(r"<[\w.]+ (?:object|file)[^>]*>|\bat 0x[0-9a-f]+")
PATHS = re.compile(r"(?:/[\w.+-]+){2,}(?::\d+)?")
DECODER = re.compile(r"^(?:decoder|codec) error -?\d+( when reading image file)?$")

LONGEST = 200


def unreadable(error: BaseException) -> UnreadableImageError:
    """The same complaint in plain words; what is plain already stays."""
    if isinstance(error, UnreadableImageError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return UnreadableImageError("no image of a kind that is read")
    if isinstance(error, Image.DecompressionBombError):
        return UnreadableImageError("more pixels than are read: could be a decompression bomb")
    if isinstance(error, MemoryError):
        return UnreadableImageError("not enough memory to decode it")
    return UnreadableImageError(plain(str(error)) or f"damaged ({type(error).__name__})")


def plain(words: str) -> str:
    """Without places in a library's source, objects in memory, and lines."""
    words = " ".join(words.split())
    words = PLACE.sub("", words)
    words = PATHS.sub("", OBJECT.sub("", words))
    words = DECODER.sub("damaged data", words)
    words = words.split(" You may ")[0].split(" Please ")[0]
    return words.strip(" .,:;-")[:LONGEST]
