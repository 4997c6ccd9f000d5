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
from benchmarks.photographs import describe_files, jpeg_files, large_photographs
from benchmarks.ways import OurViews, Way, differences, make_ways, timing_for_json

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
    """Time the ways and return the result for the JSON.

    Raises:
        UserError: `config.data` is not a folder with JPEG files that can be read.
    """
    rounds, images = config.num_rounds, config.num_images
    with tempfile.TemporaryDirectory() as scratch, one_thread(), torch.random.fork_rng():
        torch.manual_seed(0)  # of torchvision's crops
        files = jpeg_files(config, Path(scratch))
        result = {"photographs": measure_files(files, config, images, rounds, PARITY_IMAGES)}
        if config.data is None:
            large, few = large_photographs(Path(scratch), LARGE_IMAGES), min(rounds, LARGE_ROUNDS)
            found = measure_files(large, config, len(large), few, LARGE_PARITY_IMAGES)
            result["large_photographs"] = found
    return result


def measure_files(
    files: Sequence[Path], config: BenchConfig, images: int, rounds: int, compared: int
) -> dict[str, Any]:
    """Time all ways on some files.

    Args:
        files: JPEG files.
        config: The size of the views.
        images: Images read in a round; files are read again if there are fewer.
        rounds: Rounds of each way; the ways take turns.
        compared: Images whose crops are compared between the ways.
    """
    ways = make_ways(config.model)
    for file in files[:20]:  # warms up
        _ = [way(file) for way in ways.values()]
    exact = ways["exact"]
    assert isinstance(exact, OurViews)
    exact.parts.clear()
    seconds = seconds_in_turn(ways, files, images, rounds)
    rates = {name: round(images / median(times), 4) for name, times in seconds.items()}
    sides = {name: timing_for_json(rates[name], seconds[name]) for name in ways}
    ratios = {name: speed_ratios(name, rates, seconds) for name in OURS}
    return sides | {
        "ratios": ratios,
        "milliseconds_of_exact": exact.milliseconds(),
        "differences": differences(files, config.model, compared),
        "files": describe_files(files),
        "images": images,
        "rounds": rounds,
    }


def speed_ratios(
    name: str, rates: dict[str, float], seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """Return how many times as fast as MAE's transform one of our ways is."""
    rounds = zip(seconds[name], seconds["plain"], strict=True)
    return {
        "read_twice": round(rates[name] / rates["plain"], 4),
        "read_once": round(rates[name] / rates["plain_decoded_once"], 4),
        "read_twice_by_round": [round(plain / mine, 4) for mine, plain in rounds],
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread for torch's operations inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds_in_turn(
    ways: dict[str, Way], files: Sequence[Path], images: int, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of every round of every way; the ways take turns."""
    chosen = [files[at % len(files)] for at in range(images)]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            for file in chosen:
                way(file)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def make_tables(result: dict[str, Any], config: BenchConfig) -> list[Table]:
    """Make a table for each kind of files, with a row for each way."""
    height, width = config.model.height_width
    return [make_table(part, f"{width} x {height}") for part in result.values()]


def make_table(part: dict[str, Any], size: str) -> Table:
    """Make the table of the ways for one kind of files."""
    facts = part["files"]
    table = Table(
        title=f"two views at {size} of JPEG files of {facts['mean_megapixels']:.2f} Mpixel, "
        f"{facts['mean_kib']:.0f} KiB",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("")
    table.add_column("images/s per core", justify="right")
    table.add_column("ratio", justify="right")
    base = part["plain"]["images_per_second"]
    for key, name in NAMES.items():
        if key in part:
            rate = part[key]["images_per_second"]
            table.add_row(name, f"{rate:.1f}", f"{rate / base:.2f}")
    return table


def make_notes(result: dict[str, Any], config: BenchConfig) -> list[str]:
    """Make the notes below the tables."""
    notes = [note for part in result.values() for note in part_notes(part)]
    if "large_photographs" in result:
        notes.append("the large photographs are the built-in ones, enlarged, with grain")
    return notes


def part_notes(part: dict[str, Any]) -> Iterator[str]:
    """Yield the notes about one kind of files."""
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
    yield f"  milliseconds per image of mvmae: {times}"
    found = []
    for name, levels in part["differences"].items():
        ours, theirs = name.split("_to_")
        other = "Pillow's bicubic" if theirs == "pillow" else NAMES[theirs]
        figures = ", ".join(f"{value:.3g}" for value in levels.values())
        found.append(f"{NAMES[ours]} to {other} {figures}")
    yield (
        "  grey levels between the same crops (mean, 99.9th percentile, maximum): "
        + "; ".join(found)
    )
