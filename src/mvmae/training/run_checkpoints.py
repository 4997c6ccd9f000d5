"""Checkpoints of a run folder: save the whole state, resume only with the same settings and images.

"Resumed" must mean the same run, or a result would belong to no config.
"""

import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mvmae.config.files import from_json, to_json
from mvmae.errors import UserError
from mvmae.training import checkpoint, distributed

MAY_DIFFER = {  # options that a resumed run may change
    *("out", "device", "workers", "read_timeout", "log", "resume", "overwrite"),
    *("save_every_minutes", "save_in_background", "keep_every", "micro_batch_size"),
    *("compile", "recompute", "dry_run"),
}


class RunCheckpoints:
    """Save and restore the state of a run.

    With --sharding full all processes write a folder together, which any number of processes can
    resume; otherwise the main process writes a file.

    Args:
        folder: Of the checkpoints.
        config: Of the run: a dataclass with `out`, `data`, `resume` and `overwrite`. Default: the
            folder's name says which run it belongs to, so that nothing has to be compared.
        fingerprint: Of the images.
    """

    def __init__(self, folder: Path, config: Any = None, fingerprint: str = "") -> None:
        self.folder, self.config, self.fingerprint = folder, config, fingerprint
        self.is_sharded = getattr(config, "sharding", "none") == "full"
        self._thread: threading.Thread | None = None  # writes a copy during training
        self._failure: BaseException | None = None  # of that thread

    @property
    def newest(self) -> Path:
        """The newest checkpoint: a file, or with --sharding full a folder."""
        return self.folder / ("last" if self.is_sharded else "last.pt")

    def save(
        self,
        parts: Mapping[str, Any],
        plain: dict[str, Any],
        *,
        keep_as: str | None = None,
        in_background: bool = False,
    ) -> None:
        """Write a checkpoint, all processes together.

        Args:
            parts: Objects with a state dict, by name.
            plain: Plain values and small tensors; those of the main process are kept, and the
                "pending" losses of all if the run is sharded.
            keep_as: File name under which it is also kept for good.
            in_background: Whether to return while a copy is written, if the config allows it. The
                copy takes the memory of model and optimiser once more.
        """
        content = {"fingerprint": self.fingerprint} | plain
        if self.config is not None:
            content["config"] = to_json(replace(self.config, resume=False, overwrite=False))
        if self.is_sharded:
            from mvmae.training import sharded_checkpoint
            from mvmae.training.sharding import training_tensors

            content["pending"] = distributed.gather_objects([plain["pending"]])
            tensors = training_tensors(parts["model"], parts["optimizer"])
            sharded_checkpoint.save(self.folder, tensors, content)
            if keep_as is not None and distributed.is_main():
                checkpoint.keep(self.newest, Path(keep_as).stem)
        elif distributed.is_main():
            content |= {name: part.state_dict() for name, part in parts.items()}
            if in_background and getattr(self.config, "save_in_background", False):
                # The interpreter waits for a thread that is not a daemon before it exits, so the
                # file becomes whole.
                copied = tree_map_only(Tensor, lambda t: t.detach().to("cpu", copy=True), content)
                self._thread = threading.Thread(
                    target=self._write_in_thread, args=(copied, keep_as), name="checkpoint"
                )
                self._thread.start()
            else:
                self._write(content, keep_as)

    def _write(self, content: dict[str, Any], keep_as: str | None) -> None:
        checkpoint.save(self.folder, content)
        if keep_as is not None:
            checkpoint.keep(self.newest, keep_as)

    def _write_in_thread(self, content: dict[str, Any], keep_as: str | None) -> None:
        try:
            self._write(content, keep_as)
        except BaseException as error:
            # Drop what would hold the frames and so this object: tensors in such a reference cycle
            # crash torch when the interpreter exits.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            self._failure = error

    def finish(self) -> None:
        """Wait until the checkpoint being written is on the disk, and raise what went wrong."""
        if self._thread is not None:
            self._thread.join()
        failure, self._thread, self._failure = self._failure, None, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # its traceback holds this frame, and this frame would hold it

    def load(self, parts: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Restore the parts from the newest whole checkpoint.

        Args:
            parts: As for `save`.
            names: Of the plain values that it must hold.

        Raises:
            UserError: There is none, it is damaged, or it belongs to other settings or images.
        """
        if self.is_sharded:
            from mvmae.training import sharded_checkpoint
            from mvmae.training.sharding import training_tensors

            saved, folder = self._find_newest(sharded_checkpoint)
            self._require_same_run(saved, folder, names)
            tensors = training_tensors(parts["model"], parts["optimizer"])
            sharded_checkpoint.fill(tensors, folder)
            pending = saved["pending"]
            if len(pending) == distributed.world_size():
                return saved | {"pending": pending[distributed.rank()]}
            # Another number of processes resumes: each takes the mean of all losses.
            means = [torch.stack(step).mean(dim=0) for step in zip(*pending, strict=True)]
            return saved | {"pending": means}
        saved, file = self._find_newest(checkpoint)
        self._require_same_run(saved, file, (*parts, *names))
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                checkpoint.load_weights(part, saved[name], source=str(self.newest))
            else:
                part.load_state_dict(saved[name])
        return saved

    def _find_newest(self, kind: ModuleType) -> tuple[dict[str, Any], Path]:
        """Read the newest whole checkpoint of a kind; a damaged one is set aside."""
        last = self.newest
        if not any(last.with_stem(name).exists() for name in ("last", "previous")):
            raise UserError(
                f"{last.parent.parent} was run with another --sharding: resume with the same"
                if has_checkpoint(last.parent.parent)
                else f"no checkpoint {last}: the run was stopped before its first, "
                "begin again with --overwrite"
            )
        saved, place = kind.load_newest(last.parent)
        distributed.barrier()  # or a slow process would not find the file that is renamed next
        if place != last and distributed.is_main():
            checkpoint.set_aside(last)
            print(f"mvmae: {last} is damaged or missing: resuming from {place}", file=sys.stderr)
        return saved, place

    def _require_same_run(self, saved: dict[str, Any], place: Path, names: Iterable[str]) -> None:
        config = self.config
        if config is None:
            return
        command = type(config).__name__.removesuffix("Config").lower()
        if not saved.keys() >= {"config", "fingerprint", *names}:
            raise UserError(f"{place} is not a checkpoint of mvmae {command}")
        before = from_json(saved["config"], type(config), source=str(place))
        if changed := differences(before, config):
            raise UserError(
                f"{config.out} was run with {changed}: resume with the same settings "
                f"(mvmae {command} --resume --out {config.out}), or begin a new run"
            )
        if saved["fingerprint"] != self.fingerprint:
            data = config.data if isinstance(config.data, str) else " ".join(config.data)
            raise UserError(
                f"the images in {data} are not those that {config.out} began with: "
                "put them back, or begin a new run"
            )


def has_checkpoint(out: Path) -> bool:
    """Whether a run folder holds a checkpoint to resume from."""
    names = ("last.pt", "previous.pt", "last", "previous")
    return any((out / "checkpoints" / name).exists() for name in names)


def differences(before: Any, now: Any, prefix: str = "") -> str:
    """List the changed options that a resumed run must keep, with the values before and now."""
    words = []
    for field in fields(before):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if old == new or (not prefix and field.name in MAY_DIFFER):
            continue
        name = prefix + field.name
        is_group = hasattr(old, "__dataclass_fields__")
        words.append(differences(old, new, f"{name}.") if is_group else f"{name} {old}, not {new}")
    return "; ".join(words)
