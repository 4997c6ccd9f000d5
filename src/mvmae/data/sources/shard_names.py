"""Tar files that the user names: one, several, a pattern, a range in braces, a folder of them."""

import glob
import re
from collections.abc import Sequence
from itertools import chain, product
from math import prod
from pathlib import Path

from mvmae.data.sources.folders import OF_IMAGES_AND_FOLDERS, visible_names
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
    if is_remote(name):
        return True
    return bool(_tars_in(name)) if Path(name).is_dir() else name.lower().endswith(".tar")


def expand(names: Sequence[str]) -> list[str]:
    """List the tar files that names stand for, in the order of the names, each sorted.

    Raises:
        UserError: There are none, or a named file does not exist.
    """
    found: list[str] = []
    for name in names:
        if not is_remote(name) and Path(name).exists():  # even with braces in its name
            found += _tars_in(name) if Path(name).is_dir() else [name]
            continue
        for one in expand_braces(name):
            is_pattern = WILD.search(one) and not is_remote(one)
            # pathlib's glob does not take absolute patterns
            matching = sorted(glob.glob(one, recursive=True)) if is_pattern else [one]  # noqa: PTH207
            if not matching:
                raise UserError(f"no file matches {one}")
            found += matching
    if len(found) > MAX_SHARDS:
        raise UserError(f"{names[0]} names {len(found):,} files: at most {MAX_SHARDS:,} are read")
    for one in found:
        if not is_remote(one) and not Path(one).is_file():
            raise UserError(f"no such file: {one}")
    return list(dict.fromkeys(found))


def _tars_in(folder: str) -> list[str]:
    """The tar files in a folder; none if it also contains images or folders."""
    found = []
    for name, suffix in visible_names(folder):
        if suffix in OF_IMAGES_AND_FOLDERS:
            return []  # at the first image, as there may be millions
        if suffix == ".tar":
            found.append(str(Path(folder, name)))
    return sorted(found)


def expand_braces(name: str) -> list[str]:
    """Expand every {000..146} and {a,b} in a name, with leading zeros.

    Raises:
        UserError: A range counts down, or there are too many names.
    """
    pieces = BRACES.split(name)  # texts, and what is in braces between them
    if len(pieces) == 1:
        return [name]
    choices = [_choices(piece, name) if at % 2 else [piece] for at, piece in enumerate(pieces)]
    if prod(map(len, choices)) > MAX_SHARDS:
        raise UserError(f"{name} stands for more than {MAX_SHARDS:,} files")
    made = map("".join, product(*choices))
    return list(chain(*map(expand_braces, made)))  # braces may have been inside braces


def _choices(inside: str, name: str) -> list[str]:
    limits = RANGE.match(inside)
    if limits is None:
        return inside.split(",")
    low, high = int(limits[1]), int(limits[2])
    if high < low or high - low >= MAX_SHARDS:
        raise UserError(
            f"{name}: {{{inside}}} must count upwards, with at most {MAX_SHARDS:,} numbers"
        )
    # As in a shell, numbers have leading zeros only where the range is written with them.
    width = len(limits[1]) if limits[1].startswith("0") or len(limits[1]) == len(limits[2]) else 0
    return [f"{number:0{width}}" for number in range(low, high + 1)]
