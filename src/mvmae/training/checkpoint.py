"""Checkpoints and weights on disk: written completely or not at all, read without running code."""

import argparse
import contextlib
import json
import os
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
from mvmae.storage import atomic, run_folder

CHECKSUM = "checksum"  # a key in every checkpoint that mvmae writes
MAX_KEYS = 10  # keys named in a message


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the state to `last.pt` in a folder; the old `last.pt` becomes `previous.pt`."""
    folder.mkdir(exist_ok=True)
    last, previous, fresh = (folder / f"{name}.pt" for name in ("last", "previous", "fresh"))
    write_state(fresh, state)
    if last.exists():
        # Hard-link `last.pt` before renaming, so that it exists at every moment for commands that
        # read it during the run. Some file systems have no hard links.
        second = folder / "second.pt"
        try:
            second.unlink(missing_ok=True)
            second.hardlink_to(last)
        except OSError:
            last.replace(previous)
        else:
            second.replace(previous)
    fresh.replace(last)


def write_state(file: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain data with their checksum, completely or not at all.

    torch does not verify the checksums in its archives, so a flipped bit would silently change a
    weight.
    """
    whole = state | {CHECKSUM: atomic.digest(state)}
    atomic.write_whole(file, lambda stream: _write(whole, stream))


def _write(state: dict[str, Any], stream: BinaryIO) -> None:
    """Write with torch, then raise the disk's error, such as "no space left", if there was one.

    torch's writer would turn it into a RuntimeError about an archive.
    """
    writer = _ErrorKeeper(stream)
    torch.save(state, cast(BinaryIO, writer))
    if writer.failure:
        # A new error: one kept in a variable would hold this frame and itself in a cycle, with all
        # weights, and torch 2.15 aborts if it finds those when the interpreter ends.
        raise OSError(*writer.failure)


class _ErrorKeeper:
    """A stream that keeps its first error for later and drops what is written after it."""

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
        """Do nothing: `write_whole` flushes."""


def load_newest(folder: Path) -> tuple[dict[str, Any], Path]:
    """Load `last.pt`, or `previous.pt` if that is damaged or missing.

    Returns:
        The state, and the file that it was read from.

    Raises:
        UserError: Neither can be loaded.
    """
    complaints = []
    for file in (folder / "last.pt", folder / "previous.pt"):
        try:
            return load_own(file), file
        except UserError as error:
            if not complaints or file.exists():
                complaints.append(str(error))
    raise UserError("; ".join(complaints))


def load_own(file: Path) -> dict[str, Any]:
    """Load a state that `write_state` wrote, and drop its checksum.

    Raises:
        UserError: It is missing, damaged or from another program.
    """
    state = load(file)
    if CHECKSUM not in state:
        raise UserError(f"{file} is damaged or from another program: it has no checksum")
    del state[CHECKSUM]
    return state


def set_aside(last: Path) -> None:
    """Rename a damaged `last.pt` to `damaged.pt`, or the next save would make it `previous.pt`."""
    if last.exists():
        damaged = last.with_stem("damaged")
        run_folder.remove(damaged)
        last.rename(damaged)


def keep(last: Path, name: str) -> None:
    """Keep a checkpoint, file or folder, permanently under another name.

    Its files are hard-linked, so that it takes no space until the next checkpoint is saved.
    """
    kept, fresh = last.with_name(name), last.with_name(f".{name}.tmp")
    run_folder.remove(fresh)
    try:
        if last.is_dir():
            shutil.copytree(last, fresh, copy_function=link_or_copy)
            run_folder.remove(kept)  # a folder cannot take the name of another
        else:
            link_or_copy(last, fresh)
        fresh.replace(kept)
    finally:
        run_folder.remove(fresh)


def link_or_copy(file: str | Path, copy: str | Path) -> None:
    """Hard-link a file, or copy it if the file system has no hard links."""
    try:
        os.link(file, copy)
    except OSError:
        shutil.copyfile(file, copy)


def load(file: Path) -> dict[str, Any]:
    """Load a checkpoint of mvmae or of another program onto the CPU.

    Raises:
        UserError: It is missing or damaged, or holds objects other than tensors and plain data.
    """
    try:
        # argparse's Namespace is plain data, and the training scripts of MAE, MoCo v3 and DINO keep
        # their arguments in one.
        safe = torch.serialization.safe_globals([argparse.Namespace])
        with safe, warnings.catch_warnings():
            # torch warns about unusual pickle protocols before it refuses them.
            warnings.simplefilter("ignore")
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint {file}") from error
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ...
        # torch's own message is several paragraphs about `weights_only`.
        reason = "torch cannot read it as tensors and plain data"
        if objects := re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error)):
            reason = (
                f"it holds {objects[1]}, which is not plain data and could run code; save the "
                "state dict alone"
            )
        raise UserError(f"{file} is damaged or not a checkpoint: {reason}") from error
    if not isinstance(state, dict):
        raise UserError(f"{file} is not a checkpoint: it holds a {type(state).__name__}")
    if CHECKSUM in state:
        digest = None
        # Values that `digest` cannot hash are damaged or from another program.
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            digest = atomic.digest({name: state[name] for name in state if name != CHECKSUM})
        if digest != state[CHECKSUM]:
            raise UserError(f"{file} is damaged: its content does not match its checksum")
    return state


def read_metadata(file: Path) -> dict[str, Any] | None:
    """Read the metadata that `mvmae export` writes into a safetensors file's header.

    Returns:
        The content of encoder.json; None for other files.
    """
    if file.suffix != ".safetensors":
        return None
    try:
        with safetensors.safe_open(file, "pt") as opened:
            facts = json.loads((opened.metadata() or {}).get("encoder", "null"))
    except (OSError, ValueError, safetensors.SafetensorError):
        return None
    return facts if isinstance(facts, dict) else None


def save_tensors(file: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors to a safetensors file, and facts about them to a JSON file beside it."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic.write_bytes(file, safetensors.torch.save(plain))
    atomic.write_json(file.with_suffix(".json"), facts)


def load_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load the tensors and the facts that `save_tensors` wrote.

    Raises:
        UserError: Either file is missing or damaged.
    """
    tensors, facts_file = read_tensors(file), file.with_suffix(".json")
    if not facts_file.exists():
        raise UserError(f"no such file: {facts_file}")
    if not (facts := atomic.read_object(facts_file)):
        raise UserError(f"{facts_file} is damaged: it does not hold a JSON object")
    return tensors, facts


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        return safetensors.torch.load(file.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no such file: {file}") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is damaged or not a safetensors file: {error}") from error


def abbreviate_list(keys: list[str]) -> str:
    """Join the first `MAX_KEYS` names, and say how many more there are."""
    more = f" and {len(keys) - MAX_KEYS} more" if len(keys) > MAX_KEYS else ""
    return ", ".join(keys[:MAX_KEYS]) + more


def load_weights(model: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    """Load weights into a model; keys and shapes must match exactly.

    All of them are checked first. `load_state_dict` alone would raise torch's errors, copy some of
    the weights before it fails, and cast integers to floats.

    Args:
        model: The model.
        state: Its state dict.
        source: Where the weights come from, for messages.

    Raises:
        UserError: A key is missing or unknown, or a tensor has another shape or kind of number.
    """
    ours = model.state_dict()
    keys = {
        "missing keys": sorted(ours.keys() - state.keys()),
        "unknown keys": sorted(state.keys() - ours.keys()),
    }
    if misfits := [f"{what}: {abbreviate_list(names)}" for what, names in keys.items() if names]:
        raise UserError(f"{source} does not fit the model: {'; '.join(misfits)}")
    for key, tensor in state.items():
        if tensor.is_floating_point() != ours[key].is_floating_point():
            raise UserError(f"{source} does not fit the model: {key} holds {tensor.dtype}")
        if tensor.shape != ours[key].shape:
            raise UserError(
                f"{source} does not fit the model: {key} has shape {list(tensor.shape)}, "
                f"in the model {list(ours[key].shape)}"
            )
    model.load_state_dict(state)
