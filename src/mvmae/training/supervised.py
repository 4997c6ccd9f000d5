"""What every supervised training run does between its steps, whatever it learns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mvmae.config.files import from_json, to_json
from mvmae.errors import UserError
from mvmae.storage import atomic, run_folder
from mvmae.training import checkpoint, distributed
from mvmae.training import resume as resuming
from mvmae.training.interrupt import Interrupt
from mvmae.training.state import State


def refuse_own_encoder(encoder: str, out: Path, *, overwrite: bool) -> None:
    """An encoder that `--overwrite` would delete is no place to write to.

    Raises:
        UserError: It lies in `out`.
    """
    path = Path(encoder)
    if overwrite and path.exists() and path.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--overwrite would delete {path}, the encoder: choose another --out")


def refuse_to_replace(config: Any, out: Path) -> None:
    """Let `--overwrite` delete a run of this command only, and never the encoder to begin with.

    A folder mistaken for another would cost a pre-training.

    Raises:
        UserError: `out` holds another command's run, or the encoder.
    """
    refuse_own_encoder(config.encoder, out, overwrite=config.overwrite)
    if not config.overwrite or not run_folder.is_run(out):
        return
    file, command = out / run_folder.CONFIG, type(config).__name__.removesuffix("Config").lower()
    try:
        from_json(file.read_text(encoding="utf-8"), type(config), source=str(file))
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(
            f"--overwrite would delete {out}, which is no run of {command}: choose another --out"
        ) from error


def refuse_unequal_shares(batch_size: int, accumulate: int) -> None:
    """A batch must be shared by the processes, and each share must have its parts.

    Raises:
        UserError: It cannot.
    """
    processes = distributed.world_size()
    if batch_size % processes:
        near = max(1, batch_size // processes) * processes
        raise UserError(
            f"batch_size {batch_size} cannot be shared by {processes} processes: {near} can"
        )
    if accumulate > batch_size // processes:
        raise UserError(
            f"accumulate {accumulate} is more than the {batch_size // processes} images that a "
            "process has in a step"
        )


def begin_folder(config: Any, device: torch.device, **facts: Any) -> None:
    """Make the run folder, with what repeats the run; the other processes wait for it."""
    if distributed.is_main():
        run_folder.make(config.out)
        if config.overwrite:
            run_folder.clear(config.out)
        environment = run_folder.environment(device, distributed.world_size(), **facts)
        atomic.write_json(config.out / "environment.json", environment)
        kept = replace(config, resume=False, overwrite=False)
        atomic.write_text(config.out / run_folder.CONFIG, to_json(kept))
    distributed.barrier()


def is_due(state: State, config: Any, device: torch.device) -> bool:
    """Whether it is time for a checkpoint; asked between lines of metrics, and all agree."""
    if state.step % config.log_every:
        return False
    late = time.monotonic() - state.saved_at >= 60 * config.save_every_minutes
    return bool(distributed.largest(int(late), device))


def stop_signal(interrupt: Interrupt, state: State, config: Any, device: torch.device) -> int:
    """The signal to stop for, if any process got one; several ask each other only now and then."""
    if distributed.world_size() > 1 and state.step % config.log_every:
        return 0
    return distributed.largest(interrupt.signal, device)


def refuse_infinite(state: State, out: Path, remedy: str) -> None:
    """Stop at the first loss since the last line of metrics that is no number.

    Args:
        state: Its `pending` has a loss, or a row of them, for each step.
        out: The run folder.
        remedy: What to do about it, once there has been an update.

    Raises:
        UserError: There is one.
    """
    if not state.pending:
        return
    values = torch.stack(state.pending).reshape(len(state.pending), -1)
    bad = (~values.isfinite()).any(dim=1).nonzero()  # a CPU-GPU synchronisation on CUDA
    if not len(bad):
        return
    step = state.step - len(values) + int(bad[0]) + 1
    kept = (
        f"{out}/checkpoints/last.pt, of step {state.saved_step}, is from before it"
        if state.saved_step
        else "no checkpoint had been saved yet"
    )
    first = "before any update: look at ENCODER, whose weights may be damaged"
    raise UserError(
        f"the loss is not finite at step {step}: {remedy if step > 1 else first}; {kept}"
    )


def farewell(command: str, signal: int, out: Path, step: int) -> str:
    """What to say when stopped."""
    name = {2: "SIGINT", 15: "SIGTERM"}.get(signal, f"signal {signal}")
    return (
        f"stopped by {name} after step {step}, saved. "
        f"Go on with: mvmae {command} --resume --out {out}"
    )


def save(
    state: State,
    config: Any,
    fingerprint: str,
    parts: Mapping[str, Any],
    counted: Sequence[str],
    remedy: str,
) -> None:
    """Write a checkpoint, unless a loss since the last one is not finite.

    Args:
        state: Of the run.
        config: Of the run.
        fingerprint: Of the images.
        parts: What has a state dict, by its name in the checkpoint.
        counted: What else of the state is kept.
        remedy: As for `refuse_infinite`.

    Raises:
        UserError: A loss is not finite; the checkpoint before stays.
    """
    refuse_infinite(state, config.out, remedy)
    rows = distributed.gather_objects(state.skipped)
    state.skipped = []
    if distributed.is_main():
        run_folder.append_skipped(config.out, rows)
        content = {name: part.state_dict() for name, part in parts.items()}
        content |= {name: getattr(state, name) for name in counted}
        resuming.save(config, fingerprint, content)
    state.saved_at, state.saved_step = time.monotonic(), state.step
    distributed.barrier()


def resume(
    state: State,
    config: Any,
    fingerprint: str,
    parts: Mapping[str, Any],
    counted: Sequence[str],
    device: torch.device,
) -> None:
    """Take up what `save` wrote, into a fresh state and its parts.

    Raises:
        UserError: The checkpoint is damaged, or of another model, config or data.
    """
    saved = resuming.load(config, fingerprint, (*parts, *counted))
    source = str(resuming.file_of(config.out))
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            checkpoint.load_weights(part, saved[name], source=source)
        else:
            part.load_state_dict(saved[name])
    for name in counted:
        setattr(state, name, saved[name])
    state.pending = [loss.to(device) for loss in state.pending]
    state.saved_step = state.step
