"""The start of a run: what --overwrite may delete, and the first files of its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mvmae.config.files import from_json, to_json
from mvmae.errors import UserError
from mvmae.storage import atomic, run_folder
from mvmae.training import distributed


def begin_run(config: Any, device: torch.device, **facts: Any) -> None:
    """Make the run folder with what repeats the run; the other processes wait for it.

    Args:
        config: Of the run; its config.json.
        device: Of this process.
        facts: Further entries of environment.json.
    """
    if distributed.is_main():
        run_folder.make(config.out)
        if config.overwrite:
            run_folder.clear(config.out)
        environment = run_folder.environment(device, distributed.world_size(), **facts)
        atomic.write_json(config.out / "environment.json", environment)
        kept = replace(config, resume=False, overwrite=False)
        atomic.write_text(config.out / run_folder.CONFIG, to_json(kept))
    distributed.barrier()


def require_replaceable_run(config: Any) -> None:
    """Let --overwrite delete only a run of this command, and never the encoder it starts from.

    A mistyped folder could cost a pre-training.

    Raises:
        UserError: `config.out` holds another command's run, or the encoder.
    """
    out, encoder = config.out, Path(config.encoder)
    if not config.overwrite:
        return
    if encoder.exists() and encoder.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--overwrite would delete {encoder}, the encoder: choose another --out")
    if not run_folder.is_run(out):
        return
    file, command = out / run_folder.CONFIG, type(config).__name__.removesuffix("Config").lower()
    try:
        from_json(file.read_text(encoding="utf-8"), type(config), source=str(file))
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(
            f"--overwrite would delete {out}, which is not a run of {command}: choose another --out"
        ) from error
