"""The start of a run: lock its folder, check what --overwrite may delete, write the first files."""

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
from mvmae.training import distributed, precision
from mvmae.training.log import require_log


@contextmanager
def open_run(config: Any) -> Iterator[torch.device]:
    """Join the processes of a training command, and lock its run folder until the end.

    Two runs started into one folder, which happens on clusters, would otherwise mix silently.

    Args:
        config: Of the run: a dataclass with `out`, `device`, `log`, `resume` and `overwrite`.

    Yields:
        The device of this process.

    Raises:
        UserError: The run may not write into the folder, another process holds it, or the device
            or a package is missing.
    """
    device = precision.choose_device(config.device)
    with distributed.process_group(device), ExitStack() as stack:
        if not getattr(config, "dry_run", False):
            if distributed.is_main():
                run_folder.claim(config.out, resume=config.resume, overwrite=config.overwrite)
                stack.enter_context(locked(config.out))
                if config.overwrite and hasattr(config, "encoder"):
                    require_replaceable_run(config)
            distributed.from_main(None)  # the others begin once the folder is locked
        require_log(config.log)
        yield device


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
    """Make the folder of a new run, with config.json and environment.json; all call this together.

    Args:
        config: Of the run; a resumed one has its folder.
        device: Of this process.
        facts: Further entries of environment.json.
    """
    if distributed.is_main() and not config.resume:
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
