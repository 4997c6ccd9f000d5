"""State to disk and back: whole or not at all, and never a pickle that runs."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, BinaryIO, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mvmae.errors import UserError
from mvmae.storage import atomic

CHECKSUM = "checksum"  # a key in every checkpoint of ours
MOST_KEYS = 10  # listed of those that do not fit


def save(folder: Path, state: dict[str, Any]) -> None:
    """Make `last.pt` of the state; the one before becomes `previous.pt`.

    The file carries a checksum: torch does not look at those of the archive it writes.
    """
    folder.mkdir(exist_ok=True)
    last, fresh = folder / "last.pt", folder / "fresh.pt"
    write_state(fresh, state)
    if last.exists():
        _keep_as_previous(last)
    fresh.replace(last)


def write_state(file: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain data with their checksum, whole or not at all."""
    whole = state | {CHECKSUM: atomic.digest(state)}
    atomic.write_whole(file, lambda stream: _write(whole, stream))


def _write(state: dict[str, Any], stream: BinaryIO) -> None:
    """Write with torch, and say afterwards what the disk said.

    An error that passes through torch's writer comes out as a RuntimeError about an archive.
    """
    calm = _Calm(stream)
    torch.save(state, cast(BinaryIO, calm))
    if calm.failure:
        # A new error: one kept in a variable would hold this frame and itself in a circle, with all
        # weights, and torch 2.15 aborts where it finds those when the interpreter ends.
        raise OSError(*calm.failure)


class _Calm:
    """A stream that keeps its first failure for later; what is written after it is dropped."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.failure: tuple[int | None, str] | None = None

    def write(self, content: bytes | memoryview) -> int:
        if not self.failure:
            try:
                return self.stream.write(content)
            except OSError as error:
                self.failure = (error.errno, error.strerror or str(error))
        return len(memoryview(content).cast("B"))

    def flush(self) -> None:
        """Nothing: `write_whole` does it."""


def newest(folder: Path) -> tuple[dict[str, Any], Path]:
    """The state in `last.pt`, or, where that is damaged or gone, in `previous.pt`; and the file.

    Raises:
        UserError: Neither is whole.
    """
    last, previous = folder / "last.pt", folder / "previous.pt"
    try:
        return load_own(last), last
    except UserError as error:
        if not previous.exists():
            raise
        try:
            return load_own(previous), previous
        except UserError:
            raise UserError(f"{error}; {previous.name} is damaged too") from error


def load_own(file: Path) -> dict[str, Any]:
    """What `write_state` wrote, without its checksum.

    Raises:
        UserError: It is missing, damaged or of another program.
    """
    state = load(file)
    if CHECKSUM not in state:
        raise UserError(f"{file} is damaged or of another program: it has no checksum")
    del state[CHECKSUM]
    return state


def set_aside(folder: Path) -> None:
    """Give a damaged `last.pt` another name, or the next save would make it `previous.pt`."""
    last = folder / "last.pt"
    if last.exists():
        last.replace(folder / "damaged.pt")


def keep(folder: Path, name: str) -> None:
    """Keep the newest checkpoint under a name of its own, for good."""
    last, kept, fresh = folder / "last.pt", folder / name, folder / f".{name}.tmp"
    try:
        fresh.unlink(missing_ok=True)
        try:
            fresh.hardlink_to(last)
        except OSError:  # no hard links on this file system
            shutil.copyfile(last, fresh)
        fresh.replace(kept)
    finally:
        fresh.unlink(missing_ok=True)


def _keep_as_previous(last: Path) -> None:
    """Give the last checkpoint its second name without taking the first, where the disk can."""
    previous, second = last.with_name("previous.pt"), last.with_name("second.pt")
    try:
        second.unlink(missing_ok=True)
        second.hardlink_to(last)
    except OSError:  # no hard links on this file system
        last.replace(previous)
    else:
        second.replace(previous)


def load(file: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, ours or another program's.

    Raises:
        UserError: It is missing, damaged, or holds what is not plain data.
    """
    try:
        # argparse's Namespace is plain data, and the training scripts of MAE, MoCo v3 and DINO keep
        # their arguments in one.
        safe = torch.serialization.safe_globals([argparse.Namespace])
        with safe, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, before it refuses them
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint {file}") from error
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ...
        raise UserError(f"{file} is damaged or no checkpoint: {_why(error)}") from error
    if not isinstance(state, dict):
        raise UserError(f"{file} is no checkpoint: it holds a {type(state).__name__}")
    if state.get(CHECKSUM, "") not in ("", _digest_without_checksum(state)):
        raise UserError(f"{file} is damaged: it is not what its checksum says")
    return state


def _digest_without_checksum(state: dict[str, Any]) -> str | None:
    try:
        return atomic.digest({name: value for name, value in state.items() if name != CHECKSUM})
    except (TypeError, ValueError, RuntimeError):
        return None  # a damaged file, or not ours


def _why(error: Exception) -> str:
    """What torch found wrong, in our words; its own are an essay about `weights_only`."""
    objects = re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)", str(error))
    if objects:
        return (
            f"it holds {objects[1] or objects[2]}, which is no plain data and could run code; "
            "save the state dict alone"
        )
    return "torch cannot read it as tensors and plain data"


def facts_within(file: Path) -> dict[str, Any] | None:
    """What encoder.json said when `mvmae export` wrote a safetensors file; none in other files."""
    if file.suffix != ".safetensors":
        return None
    try:
        with safetensors.safe_open(file, "pt") as opened:
            facts = json.loads((opened.metadata() or {}).get("encoder", "null"))
    except (OSError, ValueError, safetensors.SafetensorError):
        return None
    return facts if isinstance(facts, dict) else None


def save_tensors(file: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors as safetensors, and facts about them as JSON beside them."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic.write_bytes(file, safetensors.torch.save(plain))
    atomic.write_text(file.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")


def load_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        UserError: Either file is missing or damaged.
    """
    facts_file = file.with_suffix(".json")
    tensors = tensors_of(file)
    try:
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no such file: {error.filename}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{facts_file} is damaged: {error}") from error
    if not isinstance(facts, dict):
        raise UserError(f"{facts_file} is damaged: it holds a {type(facts).__name__}")
    return tensors, facts


def tensors_of(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        return safetensors.torch.load(file.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no such file: {file}") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is damaged or no safetensors file: {error}") from error


def listed(keys: list[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(keys) - MOST_KEYS} more" if len(keys) > MOST_KEYS else ""
    return ", ".join(keys[:MOST_KEYS]) + more


def load_weights(model: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    """Give a model its weights; every key must fit.

    Raises:
        UserError: A key is missing or unknown, or a tensor has another shape.
    """
    ours = model.state_dict()
    missing, extra = sorted(ours.keys() - state.keys()), sorted(state.keys() - ours.keys())
    if missing or extra:
        raise UserError(
            f"{source} is of another model: "
            + "; ".join(
                f"{what} keys: {listed(keys)}"
                for what, keys in (("missing", missing), ("unknown", extra))
                if keys
            )
        )
    for key, tensor in state.items():
        if tensor.is_floating_point() != ours[key].is_floating_point():
            raise UserError(f"{source} is of another kind: {key} holds {tensor.dtype}")
        if tensor.shape != ours[key].shape:
            raise UserError(
                f"{source} is of another shape: {key} is {list(tensor.shape)}, "
                f"the model has {list(ours[key].shape)}"
            )
    model.load_state_dict(state)
