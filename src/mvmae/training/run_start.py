"""The start of a run: lock its folder, check what --overwrite may delete, write the first files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mvmae.config.files import from_json, to_json
from mvmae.errors import UserError
from mvmae.storage import atomic, run_folder
from mvmae.storage.lock import locked
from mvmae.training import distributed


@contextmanager
def claim_run(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Check that a run may write into a folder, and lock it until the end of the block.

    Two runs started into one folder, which happens on clusters, would otherwise mix silently.

    Raises:
        UserError: The folder holds another run or other files, or another process holds it.
    """
    run_folder.claim(folder, resume=resume, overwrite=overwrite)
    distributed.barrier()  # or a quick process would find the folder begun by another
    with ExitStack() as stack:
        distributed.on_main(lambda: stack.enter_context(locked(folder)))
        yield


@contextmanager
def claim_shared_folder(folder: Path) -> Iterator[None]:
    """Lock a folder into which the processes of one command write.

    A single process needs no lock there: it writes nothing that it has to find again.

    Raises:
        UserError: Another command holds the lock.
    """
    if distributed.world_size() == 1:
        yield
        return
    with locked(folder) if distributed.is_main() else nullcontext():
        distributed.from_main(None)  # the others begin once the folder is locked
        yield
    if distributed.is_main():
        with suppress(OSError):  # not empty, or removed already
            folder.rmdir()


def begin_run(config: Any, device: torch.device, **facts: Any) -> None:
    """Make the run folder with config.json and environment.json; the other processes wait for it.

    Args:
        config: Of the run.
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
    """Require that --overwrite deletes only a run of this command, and not the run's encoder.

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
