"""The file and the name of one image in a tar file.

`Packer` runs in processes that may crash or hang.
"""

import io
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from mvmae.config.datatools import DataPackConfig
from mvmae.data.reading.decode import (
    EXTENSIONS,
    Pixels,
    UnreadableImageError,
    Wanted,
    decode,
    decode_deep,
)
from mvmae.data.reading.deep_formats import SUFFIXES, open_image
from mvmae.data.reading.pixel_depth import Values
from mvmae.data.sources.base import Source

PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa")
GRAY_MODES = ("1", "L")
MAX_NAME_BYTES = 200  # of a folder or file: file systems take 255 when unpacked
NUMPY = b"\x93NUMPY"  # how .npy files begin


class Packed(NamedTuple):
    """An image file."""

    content: bytes
    suffix: str
    """With its dot."""

    stays: bool = False
    """Whether it was kept as it was, because re-encoding would have lost something."""


class Refused(NamedTuple):
    """An image that cannot be read."""

    reason: str


class Packer:
    """Makes the file that goes into a tar file from an image of a source."""

    def __init__(self, source: Source, config: DataPackConfig) -> None:
        self.source, self.config = source, config
        self.must_reencode = config.format != "keep" or config.short_side is not None

    def __call__(self, index: int) -> Packed | Refused:
        """Return a file that is known to be readable, or why the image cannot be read."""
        try:
            content = self.source.content(index)
            if isinstance(content, Values):
                return self._pack_array(content, index)
            return self._pack_file(content, self.source.path(index))
        except UnreadableImageError as error:
            return Refused(str(error))
        # The memory limit of the process is --memory; here it is the image's fault.
        except MemoryError:
            return Refused("needs more memory than --memory")

    def _pack_array(self, content: Values, index: int) -> Packed | Refused:
        """Pack an array, without loss unless a lossy format was asked for."""
        image = content.array
        rows, _, channels = image.shape
        if channels > max(3, rows):
            return Refused(
                f"{channels} channels of {rows} rows, which a .npy file cannot tell apart"
            )
        if image.dtype not in (np.uint8, np.bool_) or image.shape[2] not in (1, 3):
            stream = io.BytesIO()
            np.save(stream, image)
            return Packed(stream.getvalue(), ".npy", stays=self.must_reencode)
        pixels = self.source.read(index)
        # A gray array was read as three equal channels, which would triple the file.
        is_gray = bool((pixels[:1] == pixels[1:]).all())
        return self._encode(pixels[:1] if is_gray else pixels, "png")

    def _pack_file(self, content: bytes, path: str) -> Packed:
        found, mode = _header(content)
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
        if content.startswith(NUMPY):
            suffix = ".npy"
        elif suffix not in EXTENSIONS:
            suffix = SUFFIXES.get(found, (".png",))[0]
        as_it_is = Packed(content, suffix)
        # Decoded even where it is kept as it is: what is packed is known to be readable.
        try:
            image = decode(content, 1 if mode in GRAY_MODES else 3)
        except UnreadableImageError:
            # More channels or deeper than 8 bits: kept, because other settings may read it.
            decode_deep(content, Wanted(None, "float"))
            return as_it_is._replace(stays=self.must_reencode)
        short = self.config.short_side
        is_large = short is not None and min(image.shape[1:]) > short
        if self.config.format == "keep" and not is_large:
            return as_it_is
        # Encoding another mode as 8-bit would lose depth or channels.
        if mode not in PLAIN_MODES:
            return as_it_is._replace(stays=True)
        return self._encode(image, "jpeg" if found in ("JPEG", "MPO") else "png")

    def _encode(self, image: Pixels, own: str) -> Packed:
        """Shrink a larger image to --short-side; encode it in --format, or in its own format."""
        array = image.permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        short, sides = self.config.short_side, picture.size
        if short is not None and min(sides) > short:
            width, height = (max(short, round(side * (short / min(sides)))) for side in sides)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        name = own if self.config.format == "keep" else self.config.format
        stream = io.BytesIO()
        options = {} if name == "png" else {"quality": self.config.quality}
        try:
            picture.save(stream, name.upper(), **options)
        except (OSError, ValueError) as error:  # such as more than 65,500 pixels in a JPEG
            raise UnreadableImageError(f"cannot be written as {name}: {error}") from error
        return Packed(stream.getvalue(), ".jpg" if name == "jpeg" else f".{name}")


def _header(content: bytes) -> tuple[str, str]:
    """Return Pillow's names for the format and the mode.

    Empty where pixels are deeper than 8 bits, have other channels than colour, or Pillow fails.
    """
    try:
        with open_image(content) as file:
            tiles = [str(tile) for tile in getattr(file, "tile", ())]
            is_deep = any(";16" in tile for tile in tiles)
            is_stack = file.format == "TIFF" and getattr(file, "n_frames", 1) > 1
            return str(file.format), "" if is_deep or is_stack else file.mode
    except Exception:  # Pillow raises anything
        return "", ""


class ImageNames:
    """Names of images in tar files, by WebDataset's rules.

    The name is the path below the folder that all images have in common, without dots in its last
    part: the files of one image share everything up to the first dot.

    Args:
        source: The images.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        # Folders are compared one by one: a list of ten million paths would take gigabytes.
        folders = (source.member(i).rpartition("/")[0] + "/" for i in range(len(source)))
        self.base = next(folders, "")
        for folder in folders:
            if not folder.startswith(self.base):
                # By characters: commonpath would drop the double slash of a URL.
                common = os.path.commonprefix([self.base, folder])  # noqa: RUF071
                self.base = common[: common.rfind("/") + 1]

    def key(self, index: int) -> str:
        """Name of an image, without suffix; two images may have the same."""
        inside = self.source.member(index)[len(self.base) :]
        parts = [_safe_part(part) for part in inside.split("/") if part not in ("", ".", "..")]
        stem = os.path.splitext(parts[-1])[0] if parts else ""  # noqa: PTH122
        return "/".join([*parts[:-1], stem.replace(".", "_") or "image"])


def _safe_part(part: str) -> str:
    """Remove a leading dot, which would hide the file, and cut a name too long to unpack."""
    part = part.lstrip(".") or "image"
    name = part.encode("utf-8", "surrogateescape")
    if len(name) <= MAX_NAME_BYTES:
        return part
    stem, dot, suffix = part.rpartition(".")
    kept = (stem if dot else part).encode("utf-8", "surrogateescape")[: MAX_NAME_BYTES - 20]
    return kept.decode("utf-8", "ignore") + dot + suffix[:16]


def unique_key(key: str, taken: set[str]) -> str:
    """Return the key, numbered if another image of the tar file has it, and mark it as taken."""
    found, number = key, 1
    while found in taken:
        number += 1
        found = f"{key}-{number}"
    taken.add(found)
    return found
