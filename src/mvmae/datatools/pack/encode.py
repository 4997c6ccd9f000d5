"""One image as it goes into a tar file; called in processes that may be lost."""

from __future__ import annotations

import io
import os
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from mvmae.config.datatools import DataPackConfig
from mvmae.data.reading.decode import (
    EXTENSIONS,
    FORMATS,
    Pixels,
    UnreadableImageError,
    Wanted,
    decode,
    decode_deep,
)
from mvmae.data.reading.pixel_depth import Values
from mvmae.data.sources.base import Source

PLAIN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa")
GRAY = ("1", "L")
SUFFIXES = {  # by Pillow's name of a format
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tif",
    "PPM": ".ppm",
    "AVIF": ".avif",
    "JPEG2000": ".jp2",
    "TGA": ".tga",
}
NUMPY = b"\x93NUMPY"


class Packed(NamedTuple):
    """An image file."""

    content: bytes
    suffix: str
    """With its dot."""

    stays: bool = False
    """Whether it was to be written anew and could not without loss."""


class Refused(NamedTuple):
    """An image that cannot be read."""

    reason: str


class Packer:
    """Makes of an image of a source what goes into a tar file.

    Args:
        source: The images.
        config: What is asked for.
    """

    def __init__(self, source: Source, config: DataPackConfig) -> None:
        self.source, self.config = source, config

    def __call__(self, index: int) -> Packed | Refused:
        """An image that is known to be readable, or why it is not."""
        try:
            content = self.source.content(index)
            if isinstance(content, Values):
                return self._of_pixels(content, index)
            return self._of_file(content, self.source.path(index))
        except UnreadableImageError as error:
            return Refused(str(error))
        except MemoryError:
            return Refused("needs more memory than --memory")

    def _of_pixels(self, content: Values, index: int) -> Packed | Refused:
        """Of a source that holds arrays: without loss unless asked otherwise."""
        image = content.array
        rows, _, channels = image.shape
        if channels > max(3, rows):
            return Refused(f"{channels} channels of {rows} rows, which a .npy file cannot tell")
        if image.dtype not in (np.uint8, np.bool_) or image.shape[2] not in (1, 3):
            stream = io.BytesIO()
            np.save(stream, image)
            return Packed(stream.getvalue(), ".npy", stays=self._asks_for_more)
        pixels = self.source.read(index)
        is_gray = bool((pixels[:1] == pixels[1:]).all())
        return self._written(self._shrunken(_picture(pixels[:1] if is_gray else pixels)), "png")

    def _of_file(self, content: bytes, path: str) -> Packed:
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
        found, mode = _header(content)
        suffix = suffix if suffix in EXTENSIONS else SUFFIXES.get(found, ".png")
        suffix = ".npy" if content.startswith(NUMPY) else suffix
        as_it_is = Packed(content, suffix)
        try:
            image = decode(content, 1 if mode in GRAY else 3)
        except UnreadableImageError:
            # With more channels, or numbers deeper than 8 bit: what other settings read is kept.
            decode_deep(content, Wanted(None, "float"))
            return as_it_is._replace(stays=self._asks_for_more)
        short = self.config.short_side
        is_large = short is not None and min(image.shape[1:]) > short
        if self.config.format == "keep" and not is_large:
            return as_it_is
        if mode not in PLAIN:
            return as_it_is._replace(stays=True)
        own = "jpeg" if found in ("JPEG", "MPO") else "png"
        return self._written(self._shrunken(_picture(image)), own)

    @property
    def _asks_for_more(self) -> bool:
        return self.config.format != "keep" or self.config.short_side is not None

    def _shrunken(self, picture: Image.Image) -> Image.Image:
        """With the short side that is asked for; smaller ones as they are."""
        short, width, height = self.config.short_side, *picture.size
        if short is None or min(width, height) <= short:
            return picture
        scale = short / min(width, height)
        size = (max(short, round(width * scale)), max(short, round(height * scale)))
        return picture.resize(size, Image.Resampling.BICUBIC)

    def _written(self, picture: Image.Image, own: str) -> Packed:
        """In the format that is asked for, or in its own."""
        name = own if self.config.format == "keep" else self.config.format
        stream = io.BytesIO()
        options = {} if name == "png" else {"quality": self.config.quality}
        try:
            picture.save(stream, name.upper(), **options)
        except (OSError, ValueError) as error:  # such as more than 65,500 pixels in a JPEG
            raise UnreadableImageError(f"cannot be written as {name}: {error}") from error
        return Packed(stream.getvalue(), ".jpg" if name == "jpeg" else f".{name}")


def _picture(image: Pixels) -> Image.Image:
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _header(content: bytes) -> tuple[str, str]:
    """Pillow's names for the format and for how pixels are kept.

    Empty for what is deeper than 8 bit, has other channels than colour, or is not read by Pillow.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as where it is decoded
            with Image.open(io.BytesIO(content), formats=FORMATS) as file:
                tiles = [str(tile) for tile in getattr(file, "tile", ())]
                is_deep = any(";16" in tile for tile in tiles)
                is_stack = file.format == "TIFF" and getattr(file, "n_frames", 1) > 1
                return str(file.format), "" if is_deep or is_stack else file.mode
    except Exception:  # Pillow raises anything
        return "", ""
