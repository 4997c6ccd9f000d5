"""Tar files that the user names: one, several, a pattern, a range in braces, a folder of them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mvmae.data.reading.decode import EXTENSIONS
from mvmae.errors import UserError

COMPRESSED = re.compile(r"\.(tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4))$", re.IGNORECASE)
REMOTE = re.compile(r"^(https?|s3|gs)://")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
WILD = re.compile(r"[*?\[]")
MAX_SHARDS = 1_000_000


def is_remote(name: str) -> bool:
    """Whether a name is an address rather than a path."""
    return REMOTE.match(name) is not None


def names_shards(name: str) -> bool:
    """Whether a name stands for tar files.

    Raises:
        UserError: They are compressed, or at an address of an unsupported kind.
    """
    if "://" in name and not is_remote(name):
        kind = name.partition("://")[0]
        raise UserError(f"{name}: {kind}:// is not supported; http(s)://, s3:// and gs:// are")
    if COMPRESSED.search(name):
        raise UserError(
            f"{name} is a compressed tar file, from which single images cannot be read: unpack it "
            "to a plain .tar; images hardly shrink anyway"
        )
    if is_remote(name) or name.lower().endswith(".tar"):
        return not Path(name).is_dir() if not is_remote(name) else True
    return Path(name).is_dir() and bool(_tars_in(name))


def expand(names: Sequence[str]) -> list[str]:
    """List the tar files that names stand for, in the order of the names, each sorted.

    Raises:
        UserError: There are none, or a named file does not exist.
    """
    found: list[str] = []
    for name in names:
        if not is_remote(name) and Path(name).is_dir():
            found += _tars_in(name)
        elif not is_remote(name) and Path(name).exists():
            found.append(name)
        else:
            for one in expand_braces(name):
                found += _matching(one) if WILD.search(one) and not is_remote(one) else [one]
    if len(found) > MAX_SHARDS:
        raise UserError(f"{names[0]} names {len(found):,} files: at most {MAX_SHARDS:,} are read")
    for one in found:
        if not is_remote(one) and not Path(one).is_file():
            raise UserError(f"no such file: {one}")
    return list(dict.fromkeys(found))


def _tars_in(folder: str) -> list[str]:
    """The tar files in a folder; none if it also contains images or folders."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                if entry.is_dir() or suffix in EXTENSIONS:
                    return []
                if suffix == ".tar":
                    found.append(str(Path(folder, entry.name)))
    except OSError:
        return []
    return sorted(found)


def _matching(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # may be absolute
    if not found:
        raise UserError(f"no file matches {pattern}")
    return found


def expand_braces(name: str) -> list[str]:
    """Expand every {000..146} and {a,b} in a name, with leading zeros.

    Raises:
        UserError: A range counts down, or there are too many names.
    """
    done: list[str] = []
    todo = [name]
    while todo:
        one = todo.pop(0) if len(todo) < 2 else todo.pop()
        match = BRACES.search(one)
        if match is None:
            done.append(one)
            continue
        parts = _parts(match[1], name)
        if len(done) + len(todo) + len(parts) > MAX_SHARDS:
            raise UserError(f"{name} stands for more than {MAX_SHARDS:,} files")
        todo += [one[: match.start()] + part + one[match.end() :] for part in reversed(parts)]
    return done


def _parts(inside: str, name: str) -> list[str]:
    limits = RANGE.match(inside)
    if limits is None:
        return inside.split(",")
    low, high = int(limits[1]), int(limits[2])
    if high < low or high - low >= MAX_SHARDS:
        raise UserError(
            f"{name}: {{{inside}}} must count upwards, with at most {MAX_SHARDS:,} numbers"
        )
    width = len(limits[1]) if limits[1].startswith("0") or len(limits[1]) == len(limits[2]) else 0
    return [f"{number:0{width}}" for number in range(low, high + 1)]
