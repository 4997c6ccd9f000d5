"""JPEG files to time reading: the user's own, or the built-in photographs at two sizes."""

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
LARGE_SIZE, LARGE_QUALITY = (4000, 3000), 90  # 12 Mpixel, as from a phone
GRAIN = 3.0  # grey levels of a sensor's noise; enlarged pictures without it have half the bytes
JPEG = (".jpg", ".jpeg", ".jfif")


def jpeg_files(config: BenchConfig, scratch: Path) -> list[Path]:
    """Return files to read: drawn at random from `config.data`, or the built-in photographs.

    Raises:
        UserError: The folder does not exist or has no readable JPEG file.
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
    """Return whether both decoders can read a file."""
    try:
        decode(file.read_bytes(), 3)
        load_pil(file)
    except Exception:  # decoders raise many kinds of errors for broken files
        return False
    return True


def photograph(name: str) -> Image.Image:
    """Return a built-in photograph unchanged."""
    package, source = PHOTOGRAPHS[name]
    pixels = decode(package_files(package).joinpath(source).read_bytes(), 3)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def written_photographs(folder: Path) -> list[Path]:
    """Write the built-in photographs as JPEG files of one size."""
    files = []
    for name in PHOTOGRAPHS:
        files.append(folder / f"{name}.jpg")
        fitted = ImageOps.fit(photograph(name), SIZE, Image.Resampling.BICUBIC)
        fitted.save(files[-1], quality=QUALITY)
    return files


def large_photographs(folder: Path, count: int) -> list[Path]:
    """Write some built-in photographs as JPEG files of a camera's size, with grain."""
    files, rng = [], np.random.default_rng(0)
    for name in list(PHOTOGRAPHS)[:count]:
        files.append(folder / f"large-{name}.jpg")
        fitted = ImageOps.fit(photograph(name), LARGE_SIZE, Image.Resampling.BICUBIC)
        width, height = LARGE_SIZE
        grain = GRAIN * rng.standard_normal((height, width, 1), dtype=np.float32)
        pixels = (np.asarray(fitted) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(files[-1], quality=LARGE_QUALITY)
    return files


def describe_files(files: Sequence[Path]) -> dict[str, Any]:
    """Return the number of files and their average size."""
    megapixels = []
    for file in files:
        with Image.open(file) as image:
            megapixels.append(image.width * image.height / 1e6)
    return {
        "count": len(files),
        "mean_kib": round(sum(file.stat().st_size for file in files) / len(files) / 1024, 1),
        "mean_megapixels": round(sum(megapixels) / len(files), 3),
    }
