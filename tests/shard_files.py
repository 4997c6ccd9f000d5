"""Tar files that tests read."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def image(seed: int = 0) -> bytes:
    """A PNG of 5 x 7 pixels, no two alike."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def tar(file: Path, members: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> Path:
    """Write a tar file of names and contents."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=format) as made:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return file
