"""Two views of a JPEG file: our way against MAE's transform, on one core, timed in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files as package_files
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.table import Table
from torchvision.transforms import Compose
from torchvision.transforms.v2 import functional as tv

from mvmae.config import BenchConfig, ViewsConfig
from mvmae.data.decode import decode
from mvmae.data.sources.builtin import PHOTOGRAPHS
from mvmae.data.sources.files import from_folders
from mvmae.data.views import crop, normalized, random_box, random_views
from mvmae.errors import UserError
from mvmae.tasks.benching.plain import load_pil, mae_transform

PHOTO_SIZE = (500, 375)  # width and height, about those of ImageNet's photographs
PHOTO_QUALITY = 85
PARITY_CROPS = 100
JPEG = (".jpg", ".jpeg", ".jfif")
VIEWS = ViewsConfig()
MEAN, STD = VIEWS.pixel_statistics(3)

Way = Callable[[Path], Any]  # an image file to two normalised views


def measure(config: BenchConfig) -> dict[str, Any]:
    """Time the ways; returns what goes into the JSON.

    Raises:
        UserError: `config.data` is no folder with JPEG files that can be read.
    """
    size = config.model.height_width
    with tempfile.TemporaryDirectory() as scratch, one_thread(), torch.random.fork_rng():
        torch.manual_seed(0)  # of torchvision's crops
        files = jpeg_files(config, Path(scratch))
        ours, transform = OurViews(size), mae_transform(size, MEAN, STD)
        ways: dict[str, Way] = {
            "ours": ours,
            "plain": lambda file: [transform(load_pil(file)) for _ in range(2)],
            "plain_decoded_once": lambda file: twice(transform, load_pil(file)),
        }
        for file in files[:20]:  # warms up
            _ = [way(file) for way in ways.values()]
        ours.parts.clear()
        seconds = seconds_in_turn(ways, files, config)
        facts = {
            "milliseconds_of_ours": ours.milliseconds(),
            "difference_to_pillow": difference_to_pillow(files, size),
            "files": facts_of(files),
        }
    rates = {name: round(config.num_images / median(times), 4) for name, times in seconds.items()}
    rounds = zip(seconds["ours"], seconds["plain"], strict=True)
    return {
        **{name: side_of(rates[name], seconds[name]) for name in ways},
        "ratio": round(rates["ours"] / rates["plain"], 4),
        "ratio_decoded_once": round(rates["ours"] / rates["plain_decoded_once"], 4),
        "ratio_of_rounds": [round(plain / mine, 4) for mine, plain in rounds],
        **facts,
    }


def side_of(rate: float, seconds: list[float]) -> dict[str, Any]:
    """One way for the JSON."""
    return {
        "images_per_second": rate,
        "seconds_per_round": [round(value, 4) for value in seconds],
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's operations, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Parts(NamedTuple):
    """Seconds that our way spent on an image."""

    read_and_decode: float
    crop_and_resize: float
    normalize: float


class OurViews:
    """Our way, which notes what it spends its time on.

    It ends in normalised floats, as the plain way does; in training these arise on the device.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size, self.rng = size, np.random.default_rng(0)
        self.device = torch.device("cpu")
        self.parts: list[Parts] = []

    def __call__(self, file: Path) -> torch.Tensor:
        """Two views, 2 x 3 x H x W."""
        begin = time.perf_counter()
        image = decode(file.read_bytes(), 3)
        decoded = time.perf_counter()
        pixels = random_views(image, VIEWS, self.size, self.rng)
        cropped = time.perf_counter()
        views = normalized(pixels, MEAN, STD, self.device)
        end = time.perf_counter()
        self.parts.append(Parts(decoded - begin, cropped - decoded, end - cropped))
        return views

    def milliseconds(self) -> dict[str, float]:
        """Of an image, by part: means over what was timed."""
        means = np.mean(self.parts, axis=0) * 1000
        return {name: round(float(m), 4) for name, m in zip(Parts._fields, means, strict=True)}


def twice(transform: Compose, image: Image.Image) -> list[torch.Tensor]:
    """Two views of one decoded image."""
    return [transform(image), transform(image)]


def seconds_in_turn(
    ways: dict[str, Way], files: Sequence[Path], config: BenchConfig
) -> dict[str, list[float]]:
    """Seconds of every round of every way; the ways take turns."""
    chosen = [files[at % len(files)] for at in range(config.num_images)]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(config.num_rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            for file in chosen:
                way(file)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def jpeg_files(config: BenchConfig, scratch: Path) -> list[Path]:
    """Files to read: a random draw of `config.data`, or the built-in photographs.

    Raises:
        UserError: There is no such folder, or no JPEG file in it that can be read.
    """
    if config.data is None:
        return written_photographs(scratch)
    if not Path(config.data).is_dir():
        raise UserError(f"no such folder: {config.data} (--data is a folder of JPEG images)")
    paths = [Path(path) for path in from_folders([config.data], 3).paths]
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


def written_photographs(folder: Path) -> list[Path]:
    """The built-in photographs as JPEG files of one size."""
    files = []
    for name, (package, source) in PHOTOGRAPHS.items():
        pixels = decode(package_files(package).joinpath(source).read_bytes(), 3)
        photograph = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        files.append(folder / f"{name}.jpg")
        fitted = ImageOps.fit(photograph, PHOTO_SIZE, Image.Resampling.BICUBIC)
        fitted.save(files[-1], quality=PHOTO_QUALITY)
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


def difference_to_pillow(files: Sequence[Path], size: tuple[int, int]) -> dict[str, Any]:
    """Grey levels between our crops and Pillow's bicubic of the same boxes, decoding included."""
    rng = np.random.default_rng(0)
    means, largest = [], 0.0
    for at in range(PARITY_CROPS):
        file = files[at % len(files)]
        image, pillow = decode(file.read_bytes(), 3), ImageOps.exif_transpose(load_pil(file))
        _, height, width = image.shape
        box = random_box(rng, height, width, VIEWS.crop_scale)
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        theirs = pillow.crop(corners).resize(size[::-1], Image.Resampling.BICUBIC)
        mine = crop(image, box, size, VIEWS.interpolation)
        error = (mine.float() - tv.pil_to_tensor(theirs).float()).abs()
        means.append(float(error.mean()))
        largest = max(largest, float(error.max()))
    return {"mean": round(sum(means) / len(means), 4), "largest": largest, "crops": len(means)}


def tables_of(result: dict[str, Any], config: BenchConfig) -> list[Table]:
    """The ways, a row each."""
    facts = result["files"]
    table = Table(
        title=f"two views at {config.model.height_width[1]} x {config.model.height_width[0]} of "
        f"JPEG files of {facts['mean_megapixels']:.2f} Mpixel, {facts['mean_kib']:.0f} KiB",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("")
    table.add_column("images/s a core", justify="right")
    table.add_column("ratio", justify="right")
    base = result["plain"]["images_per_second"]
    for name, key in (
        ("mvmae", "ours"),
        ("MAE's transform, file read for each view", "plain"),
        ("MAE's transform, file read once", "plain_decoded_once"),
    ):
        rate = result[key]["images_per_second"]
        table.add_row(name, f"{rate:.1f}", f"{rate / base:.2f}")
    return [table]


def notes_of(result: dict[str, Any], config: BenchConfig) -> list[str]:
    """What the table does not say."""
    rounds, parts = result["ratio_of_rounds"], result["milliseconds_of_ours"]
    difference = result["difference_to_pillow"]
    return [
        f"medians of {config.num_rounds} rounds in turn, {config.num_images} images each; "
        f"the ratio was {min(rounds):.2f} to {max(rounds):.2f} by round, "
        f"{result['ratio_decoded_once']:.2f} to a file read once",
        "milliseconds an image of ours: "
        + ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in parts.items()),
        f"difference to Pillow's bicubic of the same boxes: {difference['mean']:.3f} grey levels "
        f"on average, {difference['largest']:.0f} at most, over {difference['crops']} crops",
    ]
