"""Two views of a JPEG file: our ways against MAE's transform, on one core, timed in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table

from benchmarks.config import BenchConfig
from benchmarks.photographs import facts_of, jpeg_files, large_photographs
from benchmarks.ways import OurViews, Way, differences, side_of, ways_of

PARITY_IMAGES, LARGE_PARITY_IMAGES = 50, 8  # two crops of each are compared
LARGE_IMAGES, LARGE_ROUNDS = 3, 3  # MAE's transform takes a quarter of a second for one
OURS = ("exact", "fast")
NAMES = {
    "exact": "mvmae",
    "fast": "mvmae --decode fast",
    "plain": "MAE's transform, file read for each view",
    "plain_decoded_once": "MAE's transform, file read once",
}


def measure(config: BenchConfig) -> dict[str, Any]:
    """Time the ways; returns what goes into the JSON.

    Raises:
        UserError: `config.data` is no folder with JPEG files that can be read.
    """
    rounds, images = config.num_rounds, config.num_images
    with tempfile.TemporaryDirectory() as scratch, one_thread(), torch.random.fork_rng():
        torch.manual_seed(0)  # of torchvision's crops
        files = jpeg_files(config, Path(scratch))
        result = {"photographs": measured(files, config, images, rounds, PARITY_IMAGES)}
        if config.data is None:
            large, few = large_photographs(Path(scratch), LARGE_IMAGES), min(rounds, LARGE_ROUNDS)
            found = measured(large, config, len(large), few, LARGE_PARITY_IMAGES)
            result["large_photographs"] = found
    return result


def measured(
    files: Sequence[Path], config: BenchConfig, images: int, rounds: int, compared: int
) -> dict[str, Any]:
    """All ways for some files.

    Args:
        files: JPEG files.
        config: Says how large the views are.
        images: Read in a round; files come again where they are fewer.
        rounds: Of each way, in turn.
        compared: Images whose crops are compared between the ways.
    """
    ways = ways_of(config.model)
    for file in files[:20]:  # warms up
        _ = [way(file) for way in ways.values()]
    exact = ways["exact"]
    assert isinstance(exact, OurViews)
    exact.parts.clear()
    seconds = seconds_in_turn(ways, files, images, rounds)
    rates = {name: round(images / median(times), 4) for name, times in seconds.items()}
    sides = {name: side_of(rates[name], seconds[name]) for name in ways}
    ratios = {name: ratios_of(name, rates, seconds) for name in OURS}
    return sides | {
        "ratios": ratios,
        "milliseconds_of_exact": exact.milliseconds(),
        "differences": differences(files, config.model, compared),
        "files": facts_of(files),
        "images": images,
        "rounds": rounds,
    }


def ratios_of(
    name: str, rates: dict[str, float], seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """How many times as fast as MAE's transform one of our ways is."""
    rounds = zip(seconds[name], seconds["plain"], strict=True)
    return {
        "read_twice": round(rates[name] / rates["plain"], 4),
        "read_once": round(rates[name] / rates["plain_decoded_once"], 4),
        "read_twice_by_round": [round(plain / mine, 4) for mine, plain in rounds],
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


def seconds_in_turn(
    ways: dict[str, Way], files: Sequence[Path], images: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every round of every way; the ways take turns."""
    chosen = [files[at % len(files)] for at in range(images)]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            for file in chosen:
                way(file)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def tables_of(result: dict[str, Any], config: BenchConfig) -> list[Table]:
    """The ways, a row each, for each kind of files."""
    height, width = config.model.height_width
    return [table_of(part, f"{width} x {height}") for part in result.values()]


def table_of(part: dict[str, Any], size: str) -> Table:
    """The ways for some files."""
    facts = part["files"]
    table = Table(
        title=f"two views at {size} of JPEG files of {facts['mean_megapixels']:.2f} Mpixel, "
        f"{facts['mean_kib']:.0f} KiB",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("")
    table.add_column("images/s a core", justify="right")
    table.add_column("ratio", justify="right")
    base = part["plain"]["images_per_second"]
    for key, name in NAMES.items():
        if key in part:
            rate = part[key]["images_per_second"]
            table.add_row(name, f"{rate:.1f}", f"{rate / base:.2f}")
    return table


def notes_of(result: dict[str, Any], config: BenchConfig) -> list[str]:
    """What the tables do not say."""
    notes = [note for part in result.values() for note in notes_of_part(part)]
    if "large_photographs" in result:
        notes.append("the large photographs are the built-in ones, enlarged, with grain")
    return notes


def notes_of_part(part: dict[str, Any]) -> Iterator[str]:
    """What is to be said of some files."""
    size = f"{part['files']['mean_megapixels']:.2f} Mpixel"
    yield f"{size}: medians of {part['rounds']} rounds in turn, {part['images']} images each"
    for name, ratio in part["ratios"].items():
        rounds = ratio["read_twice_by_round"]
        yield (
            f"  {NAMES[name]}: {ratio['read_twice']:.2f} times MAE's transform "
            f"({min(rounds):.2f} to {max(rounds):.2f} by round), {ratio['read_once']:.2f} times "
            "with a file read once"
        )
    parts = part["milliseconds_of_exact"].items()
    times = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in parts)
    yield f"  milliseconds an image of mvmae: {times}"
    found = []
    for name, levels in part["differences"].items():
        ours, theirs = name.split("_to_")
        other = "Pillow's bicubic" if theirs == "pillow" else NAMES[theirs]
        figures = ", ".join(f"{value:.3g}" for value in levels.values())
        found.append(f"{NAMES[ours]} to {other} {figures}")
    yield (
        "  grey levels between the same crops (mean, most of 99.9 % of the pixels, most of all): "
        + "; ".join(found)
    )
