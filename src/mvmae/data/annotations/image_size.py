"""The size of an image, from its header alone."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

from mvmae.data.reading.decode import FORMATS

ORIENTATION = 0x0112  # EXIF tag
SWAPS_SIDES = (5, 6, 7, 8)  # values of that tag that swap height and width


def upright_size(path: Path | str) -> tuple[int, int]:
    """Read the height and width of an image, turned upright as EXIF says.

    Raises:
        Exception: Whatever Pillow raises: OSError, SyntaxError, ValueError and others.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as when the image is decoded
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            is_turned = image.getexif().get(ORIENTATION) in SWAPS_SIDES
    return (width, height) if is_turned else (height, width)
