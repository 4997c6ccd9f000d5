"""Timing the parts of pre-training against other packages, all in one run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import input as bench_input
from benchmarks import scale as bench_scale
from benchmarks import step as bench_step
from mvmae import terminal
from mvmae.config.evaluation import BenchConfig
from mvmae.errors import UserError
from mvmae.storage import run_folder
from mvmae.storage.marks import require_place, require_replaceable
from mvmae.storage.outputs import write
from mvmae.training import precision


def run(config: BenchConfig) -> None:
    """Time one part, print the table, and write JSON where asked.

    Raises:
        UserError: The data are missing, or the JSON cannot go where it is told to.
    """
    if config.out:
        if config.out.is_dir():
            raise UserError(f"{config.out} is a folder: --out must name a JSON file")
        require_place(config.out)
        require_replaceable(config.out)
        if config.part == "scale":
            if picture_of(config.out) == config.out:
                raise UserError(
                    f"--out {config.out} must name a JSON file; the picture goes beside"
                )
            require_replaceable(picture_of(config.out))
    if config.part == "step":
        device = precision.choose_device(config.device)
        part, result = bench_step, bench_step.measure(config, device)
        facts = run_folder.environment(device, 1)
    elif config.part == "scale":
        device = precision.choose_device(config.device)
        part, result = bench_scale, bench_scale.measure(config, device)
        facts = run_folder.environment(device, 1)
    else:
        part, result = bench_input, bench_input.measure(config)
        facts = run_folder.environment(torch.device("cpu"), 1, threads=1)
    terminal.emit("result", {"command": "bench"} | told(config) | result)
    console = Console()
    for table in part.tables_of(result, config):
        console.print(table)
    for note in part.notes_of(result, config):
        console.print(note, highlight=False, soft_wrap=True)
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(config.out, told(config) | result | {"environment": facts})
        console.print(f"written: {config.out}", highlight=False, soft_wrap=True)
        if config.part == "scale":
            picture = picture_of(config.out)
            write(picture, bench_scale.picture_of(result, config))
            console.print(f"written: {picture}", highlight=False, soft_wrap=True)


def picture_of(out: Path) -> Path:
    """Where the picture goes that belongs to a JSON file."""
    return out.with_suffix(".png")


def told(config: BenchConfig) -> dict[str, Any]:
    """What was timed, for the JSON: the config with its defaults filled in, but for `out`."""
    fields = asdict(config) | {"rounds": config.num_rounds}
    if config.part == "step":
        kept = ("part", "batch_size", "rounds", "peers", "attention", "compile", "precision")
        return {
            "config": {name: fields[name] for name in kept} | {"model": asdict(config.step_model)}
        }
    if config.part == "scale":
        kept = ("part", "batch_size", "rounds", "precision", "data")
        model = asdict(bench_scale.scale_model(config))
        return {"config": {name: fields[name] for name in kept} | {"model": model}}
    facts = {"images": config.num_images, "size": config.model.height_width}
    return {"config": {name: fields[name] for name in ("part", "data", "rounds")} | facts}
