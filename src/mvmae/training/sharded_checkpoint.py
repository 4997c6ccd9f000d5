"""Checkpoints that all processes write together and any number of them can read: folders.

The tensors are safetensors files of `torch.distributed.checkpoint`, one per process, without the
pickled index that it writes by default; `state.pt` has the plain data and the SHA-256 of each file.
That package takes a second to load, so it is imported where it is used.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvmae.errors import UserError
from mvmae.storage import run_folder
from mvmae.training import checkpoint, distributed

STATE = "state.pt"
FILES = "files"  # a key in it
MODEL = "model."  # how the names of weights begin


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint of this kind."""
    return (path / STATE).is_file()


def save(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write `last` from tensors of which each process has its shard; the old one is `previous`.

    Args:
        folder: On a disk that all processes share.
        tensors: By name.
        facts: Plain data and small tensors; those of the main process are kept.
    """
    import torch.distributed.checkpoint as dcp

    fresh, last, previous = folder / "fresh", folder / "last", folder / "previous"
    if distributed.is_main():
        run_folder.remove(fresh)
        fresh.mkdir(parents=True)
    distributed.barrier()
    try:
        with _torch_checkpoint_io():
            writer = dcp.HuggingFaceStorageWriter(str(fresh), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, no_dist=distributed.world_size() == 1)
        digests = distributed.gather_objects(_digests(_own_share(_files(fresh))))
        if distributed.is_main():
            checkpoint.write_state(fresh / STATE, facts | {FILES: dict(digests)})
            # A kill between any two of these leaves `last` or `previous`, and it is whole.
            if last.exists():
                run_folder.remove(previous)
                last.rename(previous)
            fresh.rename(last)
    except BaseException:
        if distributed.is_main():
            run_folder.remove(fresh)
        raise
    distributed.barrier()


@contextlib.contextmanager
def _torch_checkpoint_io() -> Iterator[None]:
    """Raise the disk's own error of any process, and hide the warning about a single process.

    torch would raise one error that lists the tracebacks of all processes, and a full disk would
    look like a bug.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                raise OSError(failure.errno, failure.strerror, failure.filename) from None
        raise


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def _own_share(files: list[Path]) -> list[Path]:
    """Return the files that this process reads, so that together all are read once."""
    return files[distributed.rank() :: distributed.world_size()]


def _digests(files: list[Path]) -> list[tuple[str, str]]:
    """Names of files and their SHA-256."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append((file.name, hashlib.file_digest(stream, "sha256").hexdigest()))
    return digests


def load_newest(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return the plain data of `last`, or of `previous` if that is damaged or gone; and its path.

    All processes call this together. Each checks its share of the files, and all return the same.

    Raises:
        UserError: Neither is whole.
    """
    complaints = []
    for path in (folder / "last", folder / "previous"):
        facts, found = {}, []
        try:
            facts = _read_state(path, _own_share(_files(path)))
        except UserError as error:
            found.append(str(error))
        found = distributed.gather_objects(found)
        complaint = distributed.from_main(found[0] if found else None)
        if complaint is None:
            return facts, path
        if not complaints or path.exists():
            complaints.append(complaint)
    raise UserError("; ".join(complaints))


def _read_state(path: Path, files: list[Path]) -> dict[str, Any]:
    """Read the plain data of a checkpoint, and check the digests of some of its files.

    Raises:
        UserError: It is missing or damaged.
    """
    if not path.is_dir():
        raise UserError(f"no checkpoint {path}")
    facts = checkpoint.load_own(path / STATE)
    recorded = facts.pop(FILES, None)
    if not isinstance(recorded, dict) or sorted(recorded) != [file.name for file in _files(path)]:
        raise UserError(f"{path} is damaged: its files are not those that {STATE} names")
    try:
        digests = _digests(files)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for name, digest in digests:
        if recorded[name] != digest:
            raise UserError(f"{path / name} is damaged: its content does not match its checksum")
    return facts


def fill(tensors: dict[str, Tensor], path: Path) -> None:
    """Read a checkpoint into tensors, each process its shards, whoever wrote them.

    Raises:
        UserError: The names or the shapes differ from those of the checkpoint.
    """
    stored = _sizes(path)
    ours = {name: tensor.shape for name, tensor in tensors.items()}
    if stored != ours:
        different = sorted(name for name in stored | ours if stored.get(name) != ours.get(name))
        raise UserError(
            f"{path} does not fit the model: {checkpoint.abbreviate_list(different)} differ"
        )
    _read(tensors, path, no_dist=distributed.world_size() == 1)


def _read(tensors: dict[str, Tensor], path: Path, *, no_dist: bool) -> None:
    import torch.distributed.checkpoint as dcp

    with _torch_checkpoint_io():
        reader = dcp.HuggingFaceStorageReader(str(path))
        dcp.load(tensors, storage_reader=reader, no_dist=no_dist)


def _sizes(path: Path) -> dict[str, torch.Size]:
    """Shapes of the whole tensors, from the headers of all files.

    Raises:
        UserError: The headers cannot be read, although the checksums fit.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        stored = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        tensors = {k: v for k, v in stored.items() if isinstance(v, TensorStorageMetadata)}
        return {name: tensor.size for name, tensor in tensors.items()}
    except Exception as error:  # a made-up header fails in many ways
        raise UserError(f"{path} is not a checkpoint of mvmae: {error!r}") from error


def load(path: Path) -> dict[str, Any]:
    """Read the plain data, and whole weights as `model`, in a process that reads alone.

    Raises:
        UserError: It is missing, damaged or another kind of checkpoint.
    """
    facts = _read_state(path, _files(path))
    sizes = {name: size for name, size in _sizes(path).items() if name.startswith(MODEL)}
    weights = {name: torch.empty(size) for name, size in sizes.items()}
    _read(weights, path, no_dist=True)
    return facts | {"model": {name.removeprefix(MODEL): w for name, w in weights.items()}}
