"""How the cost of a training step grows with batch, image and model, and the rate of reading.

Each size is measured separately, with random pixels, by the step of `--dry-run`. Reading makes two
views of JPEG files, with different numbers of processes, while nothing trains.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Generator

from benchmarks.config import BenchConfig
from benchmarks.input import jpeg_files
from benchmarks.scaling import Line, draw
from benchmarks.step import compute_dtype, count_gflop, time_calls
from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.loader import view_batches
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.preflight.measured_step import GIB, Trial, make_step
from mvmae.method.pretrain import training_step
from mvmae.terminal import Bar
from mvmae.training.memory import peak_on_cpu

ENCODERS = ("vit_tiny", "vit_small", "vit_base", "vit_large")
QUICK = ModelConfig(encoder="vit_tiny", image_size=64, patch_size=8)
AXES: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {  # the sizes, and those of --quick
    "batch": ((2, 4, 8, 16, 32, 64, 128, 256), (2, 4, 8, 16)),
    "image": ((96, 128, 160, 224, 320), (32, 64, 96)),
    "encoder": (ENCODERS, ("vit_nano", "vit_tiny")),
}
WORKERS = ((0, 1, 2, 4, 8, 16), (0, 1))
LABELS = {"batch": "images in a step", "image": "side of an image", "workers": "processes"}
INPUT_BATCH = 32
STATE = 16  # bytes: a weight, its gradient, AdamW's two averages
PATIENCE = 20.0  # seconds of a step on a CPU, after which larger ones are left out

Point = dict[str, Any]


def measure(config: BenchConfig, device: torch.device) -> dict[str, Any]:
    """Measure every size and return the result for the JSON.

    Raises:
        UserError: `config.data` is not a folder with JPEG files that can be read.
    """
    base = scale_model(config)
    sizes = {name: both[config.quick] for name, both in AXES.items()}
    workers = [count for count in WORKERS[config.quick] if count <= 2 * (os.cpu_count() or 1)]
    points: dict[str, list[Point]] = {name: [] for name in (*sizes, "workers")}
    with Bar(sum(map(len, sizes.values())) + len(workers), "sizes") as bar:
        for axis, values in sizes.items():
            for value in values:
                bar.name(f"{axis} {value}")
                model, batch = change_size(base, config.batch_size, axis, value)
                point = measure_step(config, model, batch, device)
                bar.advance(1)
                if point is None:
                    break
                points[axis].append({"value": value} | point)
                if device.type == "cpu" and point["seconds_per_step"] > PATIENCE:
                    break
        for count in workers:
            bar.name(f"workers {count}")
            rate = input_rate(config, base, count)
            points["workers"].append({"value": count, "images_per_second": round(rate, 2)})
            bar.advance(1)
    dtype = str(compute_dtype(device, config.precision)).removeprefix("torch.")
    return {"points": points, "dtype": dtype}


def scale_model(config: BenchConfig) -> ModelConfig:
    """Return the model whose sizes are changed one at a time."""
    return QUICK if config.quick else config.model


def change_size(base: ModelConfig, batch: int, axis: str, value: Any) -> tuple[ModelConfig, int]:
    """Return the model and the batch with one of their sizes changed."""
    if axis == "batch":
        return base, value
    if axis == "image":
        return replace(base, image_size=value - value % base.patch_size), batch
    return replace(base, encoder=value), batch


def measure_step(
    config: BenchConfig, model: ModelConfig, batch: int, device: torch.device
) -> Point | None:
    """Return rate, products and memory of a step, or None if the GPU's memory is too small."""
    training = PretrainConfig(
        model=model, batch_size=batch, device=config.device, precision=config.precision
    )
    height, width = model.height_width
    views = torch.randint(0, 256, (2, batch, model.in_channels, height, width), dtype=torch.uint8)
    try:
        step = make_step(Trial(training, device, training_step, views), batch)
        gflop = count_gflop(step)  # this first step also creates AdamW's averages
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            step()
            memory = torch.cuda.max_memory_allocated(device)
        else:
            memory = STATE * num_weights(model) + peak_on_cpu(step)
        seconds = min(time_calls(step, device) for _ in range(config.num_rounds))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    return {
        "images_per_second": round(batch / seconds, 4),
        "seconds_per_step": round(seconds, 5),
        "gflop_per_image": round(gflop / batch, 3),
        "gflop_per_second": round(gflop / seconds, 1),
        "memory_gib": round(memory / GIB, 5),
    }


def num_weights(model: ModelConfig) -> int:
    """Return the number of trained weights, counted without allocating them."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in MaskedAutoencoder(model, Generator()).parameters())


def input_rate(config: BenchConfig, model: ModelConfig, workers: int) -> float:
    """Return the JPEG images per second that reading processes turn into two views.

    Raises:
        UserError: There are no JPEG files that can be read.
    """
    batch = min(INPUT_BATCH, config.num_images)
    with tempfile.TemporaryDirectory() as scratch:
        files = jpeg_files(config, Path(scratch))
        if len(files) < batch:
            batch = len(files)
        listed = Path(scratch) / "files.txt"
        listed.write_text("\n".join(str(file.resolve()) for file in files), encoding="utf-8")
        source = open_source([str(listed)], model.in_channels)
        training = PretrainConfig(model=model, batch_size=max(2, batch), workers=workers)
        steps = max(2, config.num_images // batch)
        batches = view_batches(source, training, range(steps + 1), rank=0, world_size=1, cuda=False)
        if next(batches, None) is None:  # processes have started
            raise UserError("too few JPEG images for a batch")
        began = time.perf_counter()
        read = sum(one.views.shape[1] for one in batches)
        return read / (time.perf_counter() - began)


def make_tables(result: dict[str, Any], config: BenchConfig) -> list[Table]:
    """Make the table with a row for each size."""
    model = scale_model(config)
    table = Table(
        title=f"how cost grows from {model.encoder}/{model.patch_size} at "
        f"{model.image_size}, batch {config.batch_size}, two views, {result['dtype']}",
        title_justify="left",
        title_style="bold",
    )
    for column in ("", "size", "images/s", "GFLOP per image", "GFLOP/s", "GiB"):
        table.add_column(column, justify="left" if not column else "right")
    for axis, points in result["points"].items():
        for number, point in enumerate(points):
            memory, gflop = point.get("memory_gib"), point.get("gflop_per_image")
            table.add_row(
                "" if number else axis,
                str(point["value"]),
                f"{point['images_per_second']:.4g}",
                "" if gflop is None else f"{gflop:.3g}",
                f"{point['gflop_per_second']:.0f}" if "gflop_per_second" in point else "",
                "" if memory is None else f"{memory:.2f}",
            )
        table.add_section()
    return [table]


def make_notes(_result: dict[str, Any], config: BenchConfig) -> list[str]:
    """Make the notes below the table."""
    return [
        f"the best of {config.num_rounds} steps each; GiB: tensors at the peak of a step, "
        "weights, gradients and AdamW's averages among them",
        "workers: processes that decode JPEG files and cut two views, while nothing trains",
    ]


def draw_result(result: dict[str, Any], config: BenchConfig) -> bytes:
    """Draw the table as curves; return a PNG."""
    model = scale_model(config)
    lines = [
        Line(LABELS.get(axis, "encoder"), [p["value"] for p in points], points)
        for axis, points in result["points"].items()
        if points
    ]
    title = (
        f"{model.encoder}/{model.patch_size} at {model.image_size} pixels, batch "
        f"{config.batch_size}, two views, {result['dtype']}; one size changed at a time"
    )
    return draw(lines, title)
