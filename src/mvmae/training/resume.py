"""Checkpoints of training runs, and going on from them: the same settings, the same images."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from mvmae.config.files import from_json, to_json
from mvmae.errors import UserError
from mvmae.training import checkpoint, distributed, sharded_checkpoint

MAY_DIFFER = {
    *("out", "device", "workers", "read_timeout", "log", "resume", "overwrite"),
    *("save_every_minutes", "save_in_background", "keep_every", "micro_batch_size"),
    *("compile", "recompute", "dry_run"),
}


def file_of(out: Path) -> Path:
    """The newest checkpoint of a run folder, where it is one file."""
    return out / "checkpoints" / "last.pt"


def place_of(config: Any) -> Path:
    """The newest checkpoint of a run: a file, or a folder where the run's state is shared out."""
    is_shared = getattr(config, "sharding", "none") == "full"
    return config.out / "checkpoints" / "last" if is_shared else file_of(config.out)


def is_there(out: Path) -> bool:
    """Whether a run folder holds a checkpoint to go on from."""
    names = ("last.pt", "previous.pt", "last", "previous")
    return any((out / "checkpoints" / name).exists() for name in names)


def save(
    config: Any, fingerprint: str, content: dict[str, Any], *, keep_as: str | None = None
) -> None:
    """Write a checkpoint into the run folder `config.out`.

    Args:
        config: Of the run: a dataclass with `out`, `data`, `resume` and `overwrite`.
        fingerprint: Of the images.
        content: Plain data and tensors.
        keep_as: A file's name under which it is also kept for good.
    """
    checkpoint.save(config.out / "checkpoints", _whole(config, fingerprint, content))
    if keep_as is not None:
        checkpoint.keep(config.out / "checkpoints", keep_as)


def _whole(config: Any, fingerprint: str, content: dict[str, Any]) -> dict[str, Any]:
    kept = to_json(replace(config, resume=False, overwrite=False))
    return {"config": kept, "fingerprint": fingerprint, **content}


def save_shares(
    config: Any,
    fingerprint: str,
    tensors: dict[str, Tensor],
    content: dict[str, Any],
    *,
    keep_as: str | None = None,
) -> None:
    """As `save`, by all processes together.

    Args:
        config: Of the run.
        fingerprint: Of the images.
        tensors: What is shared out among the processes, by name.
        content: The rest; the main process's is written.
        keep_as: A file's name, without whose suffix it is also kept for good.
    """
    folder = config.out / "checkpoints"
    sharded_checkpoint.save(folder, tensors, _whole(config, fingerprint, content))
    if keep_as is not None and distributed.is_main():
        sharded_checkpoint.keep(folder, Path(keep_as).stem)


def load(config: Any, fingerprint: str, keys: Iterable[str]) -> dict[str, Any]:
    """The newest checkpoint of the run in `config.out`.

    Raises:
        UserError: There is none, it is damaged or lacks a key, or is of other settings or images.
    """
    saved, file = _newest(config, checkpoint)
    _require_same(saved, file, config, fingerprint, keys)
    return saved


def load_shares(
    config: Any, fingerprint: str, keys: Iterable[str], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """As `load`, by all processes together: each fills its shares of `tensors`; the rest."""
    saved, folder = _newest(config, sharded_checkpoint)
    _require_same(saved, folder, config, fingerprint, keys)
    sharded_checkpoint.fill(tensors, folder)
    return saved


def _newest(config: Any, kind: ModuleType) -> tuple[dict[str, Any], Path]:
    """The newest whole checkpoint of a kind, and where it is; a damaged one is set aside."""
    last = place_of(config)
    if not any(last.with_stem(name).exists() for name in ("last", "previous")):
        if is_there(config.out):
            raise UserError(f"{config.out} was run with another --sharding: resume with the same")
        raise UserError(
            f"no checkpoint {last}: the run was stopped before its first, "
            "begin again with --overwrite"
        )
    saved, place = kind.newest(last.parent)
    distributed.barrier()  # or a slow process would not find the file that is renamed
    if place != last and distributed.is_main():
        kind.set_aside(last.parent)
        print(f"mvmae: {last} is damaged or gone: going on from {place}", file=sys.stderr)
    return saved, place


def _require_same(
    saved: dict[str, Any], file: Path, config: Any, fingerprint: str, keys: Iterable[str]
) -> None:
    """What `load` raises of a checkpoint that is whole."""
    command = type(config).__name__.removesuffix("Config").lower()
    if not saved.keys() >= {"config", "fingerprint", *keys}:
        raise UserError(f"{file} is no checkpoint of mvmae {command}")
    before = from_json(saved["config"], type(config), source=str(file))
    if changed := differences(before, config):
        raise UserError(
            f"{config.out} was run with {changed}: resume with the same settings "
            f"(mvmae {command} --resume --out {config.out}), or begin a new run"
        )
    if saved["fingerprint"] != fingerprint:
        data = config.data if isinstance(config.data, str) else " ".join(config.data)
        raise UserError(
            f"the images in {data} are not those that {config.out} began with: "
            "put them back, or begin a new run"
        )


def differences(before: Any, now: Any, prefix: str = "") -> str:
    """Fields that changed, and what they were; empty if none did that matters on resuming."""
    words = []
    for field in fields(before):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if old == new or (not prefix and field.name in MAY_DIFFER):
            continue
        name = prefix + field.name
        is_group = hasattr(old, "__dataclass_fields__")
        words.append(differences(old, new, f"{name}.") if is_group else f"{name} {old}, not {new}")
    return "; ".join(words)
