"""Checkpoints of training runs, and going on from them: the same settings, the same images."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mvmae import config as configs
from mvmae.engine import checkpoint, distributed
from mvmae.errors import UserError

MAY_DIFFER = {
    *("out", "device", "workers", "read_timeout", "log", "resume", "overwrite"),
    *("save_every_minutes", "save_in_background", "keep_every", "micro_batch_size"),
    *("compile", "recompute", "dry_run"),
}


def file_of(out: Path) -> Path:
    """The newest checkpoint of a run folder."""
    return out / "checkpoints" / "last.pt"


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
    kept = configs.to_json(replace(config, resume=False, overwrite=False))
    whole = {"config": kept, "fingerprint": fingerprint, **content}
    checkpoint.save(config.out / "checkpoints", whole)
    if keep_as is not None:
        checkpoint.keep(config.out / "checkpoints", keep_as)


def load(config: Any, fingerprint: str, keys: Iterable[str]) -> dict[str, Any]:
    """The newest checkpoint of the run in `config.out`.

    Raises:
        UserError: There is none, it is damaged or lacks a key, or is of other settings or images.
    """
    folder = config.out / "checkpoints"
    if not any((folder / name).exists() for name in ("last.pt", "previous.pt")):
        raise UserError(
            f"no checkpoint {file_of(config.out)}: the run was stopped before its first, "
            "begin again with --overwrite"
        )
    saved, file = checkpoint.newest(folder)
    distributed.barrier()  # or a slow process would not find the file that is renamed
    if file.name != "last.pt" and distributed.is_main():
        checkpoint.set_aside(folder)
        print(
            f"mvmae: {folder / 'last.pt'} is damaged or gone: going on from {file}", file=sys.stderr
        )
    verb = type(config).__name__.removesuffix("Config").lower()
    if not saved.keys() >= {"config", "fingerprint", *keys}:
        raise UserError(f"{file} is no checkpoint of mvmae {verb}")
    before = configs.from_json(saved["config"], type(config), source=str(file))
    if changed := differences(before, config):
        raise UserError(
            f"{config.out} was run with {changed}: resume with the same settings "
            f"(mvmae {verb} --resume --out {config.out}), or begin a new run"
        )
    if saved["fingerprint"] != fingerprint:
        data = config.data if isinstance(config.data, str) else " ".join(config.data)
        raise UserError(
            f"the images in {data} are not those that {config.out} began with: "
            "put them back, or begin a new run"
        )
    return saved


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
