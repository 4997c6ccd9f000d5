"""JPEG files to time the input with: one's own, or the built-in photographs at two sizes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.config import BenchConfig
from benchmarks.plain import load_pil
from mvmae.data.reading.decode import decode
from mvmae.data.sources.builtin import PHOTOGRAPHS
from mvmae.data.sources.folders import open_images
from mvmae.errors import UserError

SIZE, QUALITY = (500, 375), 85  # width and height, about those of ImageNet's photographs
LARGE_SIZE, LARGE_QUALITY = (4000, 3000), 90  # 12 Mpixel, as of a telephone
GRAIN = 3.0  # grey levels: a sensor's noise; without it, enlarged pictures are half as many bytes
JPEG = (".jpg", ".jpeg", ".jfif")


def jpeg_files(config: BenchConfig, scratch: Path) -> list[Path]:
    """Files to read: a random draw of `config.data`, or the built-in photographs.

    Raises:
        UserError: There is no such folder, or no JPEG file in it that can be read.
    """
    if config.data is None:
        return written_photographs(scratch)
    if not Path(config.data).is_dir():
        raise UserError(f"no such folder: {config.data} (--data is a folder of JPEG images)")
    paths = [Path(path) for path in open_images([config.data], 3).paths]
    found = [path for path in paths if path.suffix.lower() in JPEG]
    if not found:
        raise UserError(f"no JPEG images below {config.data}: looked for {', '.join(JPEG)}")
    order = np.random.default_rng(0).permutation(len(found))[: config.num_images]
    files = [found[at] for at in order if is_readable(found[at])]
    if not files:
        raise UserError(f"none of the JPEG images below {config.data} can be read")
    return files


def is_readable(file: Path) -> bool:
    """Whether both decoders make a picture of it."""
    try:
        decode(file.read_bytes(), 3)
        load_pil(file)
    except Exception:  # whatever a decoder says of a broken file, it is not timed
        return False
    return True


def photograph(name: str) -> Image.Image:
    """A built-in photograph, as it is."""
    package, source = PHOTOGRAPHS[name]
    pixels = decode(package_files(package).joinpath(source).read_bytes(), 3)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def written_photographs(folder: Path) -> list[Path]:
    """The built-in photographs as JPEG files of one size."""
    files = []
    for name in PHOTOGRAPHS:
        files.append(folder / f"{name}.jpg")
        fitted = ImageOps.fit(photograph(name), SIZE, Image.Resampling.BICUBIC)
        fitted.save(files[-1], quality=QUALITY)
    return files


def large_photographs(folder: Path, count: int) -> list[Path]:
    """Some of the built-in photographs, enlarged to a camera's size and grainy, as JPEG files."""
    files, rng = [], np.random.default_rng(0)
    for name in list(PHOTOGRAPHS)[:count]:
        files.append(folder / f"large-{name}.jpg")
        fitted = ImageOps.fit(photograph(name), LARGE_SIZE, Image.Resampling.BICUBIC)
        width, height = LARGE_SIZE
        grain = GRAIN * rng.standard_normal((height, width, 1), dtype=np.float32)
        pixels = (np.asarray(fitted) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(files[-1], quality=LARGE_QUALITY)
    return files


def facts_of(files: Sequence[Path]) -> dict[str, Any]:
    """How many files are read in turn, and how large they are on average."""
    megapixels = []
    for file in files:
        with Image.open(file) as image:
            megapixels.append(image.width * image.height / 1e6)
    return {
        "count": len(files),
        "mean_kib": round(sum(file.stat().st_size for file in files) / len(files) / 1024, 1),
        "mean_megapixels": round(sum(megapixels) / len(files), 3),
    }
