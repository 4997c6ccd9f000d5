"""Checkpoints that many processes write together and any number of them reads: folders.

The tensors are safetensors files of `torch.distributed.checkpoint`, one a process, without the
pickled index that it writes by default; `state.pt` has the plain data and the SHA-256 of each file.
That package takes a second to load, and is loaded where it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvmae.errors import UserError
from mvmae.training import checkpoint, distributed

STATE = "state.pt"
FILES = "files"  # a key in it


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint of this kind."""
    return (path / STATE).is_file()


def save(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Make `last` of tensors, of which each process has its share; the one before is `previous`.

    Args:
        folder: On a disk that all processes share.
        tensors: By name.
        facts: Plain data and small tensors; those of the main process are kept.
    """
    import torch.distributed.checkpoint as dcp

    fresh = folder / "fresh"
    if distributed.is_main():
        _remove(fresh)
        fresh.mkdir(parents=True)
    distributed.barrier()
    try:
        with _own_errors(), _as_asked():
            writer = dcp.HuggingFaceStorageWriter(str(fresh), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, no_dist=distributed.world_size() == 1)
        sums = distributed.gather_objects(_sums(_share(sorted(fresh.glob("*.safetensors")))))
        if distributed.is_main():
            checkpoint.write_state(fresh / STATE, facts | {FILES: dict(sums)})
            _make_last(fresh)
    except BaseException:
        if distributed.is_main():
            _remove(fresh)
        raise
    distributed.barrier()


def _make_last(fresh: Path) -> None:
    """Rename; at every moment `last` or `previous` is there, and whole."""
    last, previous = fresh.with_name("last"), fresh.with_name("previous")
    if last.exists():
        _remove(previous)
        last.rename(previous)
    fresh.rename(last)


def _remove(folder: Path) -> None:
    """Remove a checkpoint, first what makes it one."""
    with contextlib.suppress(FileNotFoundError):
        (folder / STATE).unlink(missing_ok=True)
        shutil.rmtree(folder)


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """What the disk said to any of the processes, instead of torch's account of them all."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                said = OSError(failure.errno, failure.strerror, failure.filename)
                raise said from None
        raise


@contextlib.contextmanager
def _as_asked() -> Iterator[None]:
    """Without torch's remark that a single process is one, where it is told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _share(files: list[Path]) -> list[Path]:
    """Of files of all processes those that this one reads; where it wrote one, that one."""
    return files[distributed.rank() :: distributed.world_size()]


def _sums(files: list[Path]) -> list[tuple[str, str]]:
    """The names of files and their SHA-256."""
    sums = []
    for file in files:
        with file.open("rb") as stream:
            sums.append((file.name, hashlib.file_digest(stream, "sha256").hexdigest()))
    return sums


def keep(folder: Path, name: str) -> None:
    """Keep the newest checkpoint under a name of its own, for good; the main process alone."""
    last, kept, fresh = folder / "last", folder / name, folder / f".{name}.tmp"
    _remove(fresh)
    try:
        shutil.copytree(last, fresh, copy_function=_second_name)
        _remove(kept)
        fresh.rename(kept)
    finally:
        _remove(fresh)


def _second_name(file: str, copy: str) -> None:
    try:
        os.link(file, copy)
    except OSError:  # no hard links on this file system
        shutil.copyfile(file, copy)


def newest(folder: Path) -> tuple[dict[str, Any], Path]:
    """The facts in `last`, or, where that is damaged or gone, in `previous`; and its folder.

    All processes look together, each at its share of the files, and find the same.

    Raises:
        UserError: Neither is whole.
    """
    complaints = []
    for path in (folder / "last", folder / "previous"):
        facts, complaint = _looked_at(path)
        found = distributed.gather_objects([complaint] if complaint else [])
        complaint = distributed.from_main(found[0] if found else None)
        if not complaint:
            return facts, path
        if not complaints or path.exists():
            complaints.append(complaint)
    raise UserError("; ".join(complaints))


def _looked_at(path: Path) -> tuple[dict[str, Any], str | None]:
    """The facts of a checkpoint, or what is wrong with it as far as this process looks."""
    try:
        facts = _facts(path)
        _require_whole(path, facts, _share(_files(path)))
    except UserError as error:
        return {}, str(error)
    return facts, None


def _facts(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(f"no checkpoint {path}")
    facts = checkpoint.load_own(path / STATE)
    if not isinstance(facts.get(FILES), dict):
        raise UserError(f"{path / STATE} is no checkpoint of several files")
    if sorted(facts[FILES]) != [file.name for file in _files(path)]:
        raise UserError(f"{path} is damaged: its files are not those that {STATE} names")
    return facts


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def _require_whole(path: Path, facts: dict[str, Any], files: list[Path]) -> None:
    try:
        sums = _sums(files)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for name, found in sums:
        if facts[FILES][name] != found:
            raise UserError(f"{path / name} is damaged: it is not what its checksum says")


def set_aside(folder: Path) -> None:
    """Give a damaged `last` another name, or the next save would make it `previous`."""
    last, damaged = folder / "last", folder / "damaged"
    if last.exists():
        _remove(damaged)
        last.rename(damaged)


def fill(tensors: dict[str, Tensor], path: Path) -> None:
    """Read a checkpoint into tensors, each process its shares, whoever wrote them.

    Raises:
        UserError: The names or the shapes are not those of the checkpoint.
    """
    stored = _sizes(path)
    ours = {name: tensor.shape for name, tensor in tensors.items()}
    if stored != ours:
        apart = sorted(name for name in stored | ours if stored.get(name) != ours.get(name))
        raise UserError(f"{path} is of another model: {checkpoint.listed(apart)} differ")
    _read(tensors, path, no_dist=distributed.world_size() == 1)


def _read(tensors: dict[str, Tensor], path: Path, *, no_dist: bool) -> None:
    import torch.distributed.checkpoint as dcp

    with _as_asked():
        reader = dcp.HuggingFaceStorageReader(str(path))
        dcp.load(tensors, storage_reader=reader, no_dist=no_dist)


def _sizes(path: Path) -> dict[str, torch.Size]:
    """The shapes of whole tensors, from the headers of all files.

    Raises:
        UserError: The headers are no such thing, though the checksums fit.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        stored = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        tensors = {k: v for k, v in stored.items() if isinstance(v, TensorStorageMetadata)}
        return {name: tensor.size for name, tensor in tensors.items()}
    except Exception as error:  # a made-up header fails in many ways
        raise UserError(f"{path} is no checkpoint of mvmae: {error!r}") from error


def load(path: Path) -> dict[str, Any]:
    """The facts, and whole weights as `model`, for a process that reads alone.

    Raises:
        UserError: It is missing, damaged or no such checkpoint.
    """
    facts = _facts(path)
    _require_whole(path, facts, _files(path))
    prefix = "model."
    weights = {
        name: torch.empty(size) for name, size in _sizes(path).items() if name.startswith(prefix)
    }
    _read(weights, path, no_dist=True)
    del facts[FILES]
    return facts | {"model": {name.removeprefix(prefix): w for name, w in weights.items()}}
