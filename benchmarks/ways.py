"""The ways from a JPEG file to two views that `benchmarks input` times, and their differences."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import Compose
from torchvision.transforms.v2 import functional as tv

from benchmarks.plain import load_pil, mae_transform
from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.decode import decode
from mvmae.data.reading.reduced_jpeg import fast_views
from mvmae.method.views import normalize, random_crops, random_views

Way = Callable[[Path], Any]  # an image file to two normalised views
CPU = torch.device("cpu")


def make_ways(model: ModelConfig) -> dict[str, Way]:
    """Return the ways by their names in the JSON."""
    config = PretrainConfig(model=replace(model, in_channels=3))
    transform = mae_transform(model.height_width, *config.pixel_statistics)
    return {
        "exact": OurViews(config),
        "fast": OurViews(replace(config, decode="fast")),
        "plain": lambda file: [transform(load_pil(file)) for _ in range(2)],
        "plain_decoded_once": lambda file: twice(transform, load_pil(file)),
    }


def twice(transform: Compose, image: Image.Image) -> list[Tensor]:
    """Return two views of one decoded image."""
    return [transform(image), transform(image)]


class Parts(NamedTuple):
    """Seconds that our way spent on an image."""

    read: float
    decode: float
    crop_and_resize: float
    normalize: float


class OurViews:
    """Our way, by `config.decode`; if that is exact, it notes the time of each part.

    It ends in normalised floats, as the plain way does; in training the device makes them.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.config, self.rng = config, np.random.default_rng(0)
        self.parts: list[Parts] = []

    def __call__(self, file: Path) -> Tensor:
        """Return two views, 2 x 3 x H x W."""
        begin = time.perf_counter()
        data = file.read_bytes()
        read = time.perf_counter()
        config, statistics = self.config, self.config.pixel_statistics
        if config.decode == "fast" and (fast := fast_views(data, config, self.rng)) is not None:
            return normalize(fast, *statistics, CPU)
        image = decode(data, 3)
        decoded = time.perf_counter()
        pixels = random_views(image, config.views, config.model.height_width, self.rng)
        cropped = time.perf_counter()
        views = normalize(pixels, *statistics, CPU)
        end = time.perf_counter()
        self.parts.append(Parts(read - begin, decoded - read, cropped - decoded, end - cropped))
        return views

    def milliseconds(self) -> dict[str, float]:
        """Return the mean milliseconds per image, by part."""
        means = np.mean(self.parts, axis=0) * 1000
        return {name: round(float(m), 4) for name, m in zip(Parts._fields, means, strict=True)}


def timing_for_json(rate: float, seconds: list[float]) -> dict[str, Any]:
    """Return one way's speed for the JSON."""
    return {
        "images_per_second": round(rate, 4),
        "seconds_per_round": [round(value, 4) for value in seconds],
    }


class Differences:
    """Distribution of the grey-level differences between pictures of the same crops."""

    def __init__(self) -> None:
        self.counts = np.zeros(256, dtype=np.int64)

    def add(self, ours: UInt8[Tensor, "*B"], theirs: UInt8[Tensor, "*B"]) -> None:
        """Count the differences between two pictures."""
        levels = (ours.short() - theirs.short()).abs().flatten().numpy()
        self.counts += np.bincount(levels, minlength=256)

    def summary(self) -> dict[str, float]:
        """Return the mean, the value that 99.9 % do not exceed, and the largest."""
        shares = self.counts.cumsum() / self.counts.sum()
        return {
            "mean": round(float(self.counts @ np.arange(256) / self.counts.sum()), 4),
            "of_999_in_1000": int(np.searchsorted(shares, 0.999)),
            "largest": int(self.counts.nonzero()[0][-1]),
        }


def differences(
    files: Sequence[Path], model: ModelConfig, images: int
) -> dict[str, dict[str, float]]:
    """Compare our ways with Pillow's bicubic and with each other, on the same crops.

    Args:
        files: JPEG files.
        model: The size of the views.
        images: Images of which two crops are compared; files are read again if there are fewer.
    """
    config = PretrainConfig(model=replace(model, in_channels=3))
    kinds: dict[str, Differences] = {}
    for at in range(images):
        data = files[at % len(files)].read_bytes()
        draws = [np.random.default_rng(at) for _ in range(3)]  # all ways show the same crops
        exact = random_views(decode(data, 3), config.views, model.height_width, draws[0])
        pillow = pillow_views(files[at % len(files)], config, draws[1])
        fast = fast_views(data, config, draws[2])
        fast = exact if fast is None else fast
        pairs = {
            "exact_to_pillow": (exact, pillow),
            "fast_to_pillow": (fast, pillow),
            "fast_to_exact": (fast, exact),
        }
        for name, pair in pairs.items():
            kinds.setdefault(name, Differences()).add(*pair)
    return {name: kind.summary() for name, kind in kinds.items()}


def pillow_views(
    file: Path, config: PretrainConfig, rng: np.random.Generator
) -> UInt8[Tensor, "V C h w"]:
    """Return the views of `random_views`, resized by Pillow as in MAE."""
    image = ImageOps.exif_transpose(load_pil(file))
    views = []
    for box, flipped in random_crops(image.height, image.width, config.views, rng):
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        size = config.model.height_width[::-1]
        resized = image.crop(corners).resize(size, Image.Resampling.BICUBIC)
        views.append(tv.pil_to_tensor(resized).flip(flipped))
    return torch.stack(views)
