"""`python -m benchmarks step|input|scale`: time parts of pre-training against other packages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import input, scale, step
from benchmarks.config import BenchConfig
from mvmae import terminal
from mvmae.cli.main import num_processes, reported_errors, set_environment
from mvmae.cli.parse import parse_config
from mvmae.errors import UserError
from mvmae.storage import atomic, run_folder
from mvmae.storage.outputs import require_output, write
from mvmae.training import precision


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, run one benchmark and return its exit status, as `mvmae` does."""
    set_environment()
    with reported_errors() as ended:
        ended.status = _main(list(sys.argv[1:] if argv is None else argv))
    return ended.status


def _main(args: list[str]) -> int:
    words, args = terminal.flags(args)
    with terminal.output(words):
        config = parse_config(BenchConfig, None, args, prog="python -m benchmarks")
        if config is None:  # --help
            return 0
        if num_processes() > 1:
            raise UserError("benchmarks run in one process: start them without torchrun")
        run(config)
    return 0


def run(config: BenchConfig) -> None:
    """Time one part, print its tables, and write JSON if asked to.

    Raises:
        UserError: The data are missing, or --out cannot be written.
    """
    if config.out:
        require_writable(config.out, config.part)
    if config.part == "input":
        result = input.measure(config)
        facts = run_folder.environment(torch.device("cpu"), 1, threads=1)
        tables, notes = input.make_tables(result, config), input.make_notes(result, config)
    else:
        device = precision.choose_device(config.device)
        part = step if config.part == "step" else scale
        result = part.measure(config, device)
        facts = run_folder.environment(device, 1)
        tables, notes = part.make_tables(result, config), part.make_notes(result, config)
    settings = settings_for_json(config)
    terminal.emit("result", {"command": "benchmarks"} | settings | result)
    console = Console()
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(config.out, settings | result | {"environment": facts})
        console.print(f"written: {config.out}", highlight=False, soft_wrap=True)
        if config.part == "scale":
            picture = picture_path(config.out)
            write(picture, scale.draw_result(result, config))
            console.print(f"written: {picture}", highlight=False, soft_wrap=True)


def require_writable(out: Path, part: str) -> None:
    """Check that the JSON, and the picture of `scale`, can be written where --out says.

    Raises:
        UserError: They cannot be written there.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder: --out must name a JSON file")
    require_output(out)
    if part == "scale":
        if picture_path(out) == out:
            raise UserError(f"--out {out} must name a JSON file; the picture goes beside it")
        require_output(picture_path(out))


def picture_path(out: Path) -> Path:
    """Return the path of the picture that belongs to a JSON file."""
    return out.with_suffix(".png")


def settings_for_json(config: BenchConfig) -> dict[str, Any]:
    """Return the config for the JSON, with its defaults filled in and without `out`."""
    fields = asdict(config) | {"rounds": config.num_rounds}
    if config.part == "step":
        kept = ("part", "batch_size", "rounds", "peers", "attention", "compile", "precision")
        facts = {"model": asdict(config.step_model)}
    elif config.part == "scale":
        kept = ("part", "batch_size", "rounds", "precision", "data")
        facts = {"model": asdict(scale.scale_model(config))}
    else:
        kept = ("part", "data", "rounds")
        facts = {"images": config.num_images, "size": config.model.height_width}
    return {"config": {name: fields[name] for name in kept} | facts}


if __name__ == "__main__":
    sys.exit(main())
