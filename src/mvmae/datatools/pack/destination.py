"""Whether DST may be written, and whether all of SRC would survive that."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

from mvmae.config.datatools import DataPackConfig
from mvmae.data.sources.base import Source
from mvmae.data.sources.class_list import CLASSES
from mvmae.data.sources.hub import PREFIX
from mvmae.data.sources.tar_index import SUFFIX
from mvmae.datatools.pack.write import SKIPPED, STATE
from mvmae.errors import UserError

FACTS = "pack.json"
OURS = (FACTS, CLASSES, SKIPPED, STATE)
SHARD = re.compile(rf"(\d{{6,}})\.tar({re.escape(SUFFIX)})?")


def unfinished_folder(out: Path) -> Path:
    """Where the tar files are until all of them are complete."""
    whole = out.resolve()
    return whole.with_name(f".{whole.name}.unfinished")


def replaced_folder(out: Path) -> Path:
    """Where the old DST is while the new one takes its name."""
    folder = unfinished_folder(out)
    return folder.with_name(folder.name + ".old")


def require_destination(config: DataPackConfig) -> None:
    """Make sure that DST may be written, without changing anything.

    Raises:
        UserError: It is a file, holds files that may not be replaced, or is in a folder that is
            read as a whole.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: DST must be a folder")
    there = list(out.iterdir()) if out.exists() else []
    shards = _count_own_shards(out)
    others = [path.name for path in there if not _is_ours(path, shards)]
    if others:
        raise UserError(
            f"{out} holds other files ({min(others)}): choose a DST that is new or empty"
        )
    if there and not config.overwrite:
        raise UserError(f"{out} already holds tar files: choose another DST, or --overwrite them")
    _require_place(config)


def _require_place(config: DataPackConfig) -> None:
    whole, data = config.out.resolve(), Path(config.data.removeprefix(PREFIX))
    if data.exists() and data.resolve() == whole:
        raise UserError(f"SRC and DST are both {config.out}: choose another DST")
    if data.is_dir() and whole.is_relative_to(data.resolve()):
        raise UserError(f"{config.out} lies inside {data}: choose a DST outside of SRC")
    for folder in whole.parents:
        if _count_own_shards(folder):
            raise UserError(
                f"{config.out} lies inside {folder}, whose tar files could not be read with a "
                "folder beside them: choose another DST"
            )


def _count_own_shards(folder: Path) -> int:
    """Number of tar files that this command wrote to a folder, from its own note there."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return max(0, int(facts["shards"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return 0


def _is_ours(path: Path, shards: int) -> bool:
    """Whether this command wrote a file; tar files beyond its own belong to someone else."""
    if not shards or path.is_dir():
        return False
    match = SHARD.fullmatch(path.name)
    return path.name in OURS or (match is not None and int(match[1]) < shards)


def require_source_survives(source: Source, config: DataPackConfig) -> None:
    """Make sure that no file of SRC is removed with what DST replaces, also through links.

    Raises:
        UserError: One would be.
    """
    folders = (config.out.resolve(), unfinished_folder(config.out), replaced_folder(config.out))
    gone = tuple(f"{folder}{os.sep}" for folder in folders if folder.is_dir())
    if not gone:
        return
    real: dict[str, str] = {}  # folders, each resolved once for its many files
    data = [config.data] if Path(config.data).exists() else []
    for path in itertools.chain(source.files(), data):
        folder, name = os.path.split(path)
        if folder not in real:
            real[folder] = os.path.realpath(folder).rstrip(os.sep) + os.sep
        whole = real[folder] + name
        is_link = os.path.islink(whole)  # noqa: PTH114  # ten million paths
        if whole.startswith(gone) or (is_link and os.path.realpath(whole).startswith(gone)):
            raise UserError(
                f"{path} is part of SRC and lies where DST is written: choose another DST"
            )
