"""Open the images that DATA names: the table of source kinds."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from mvmae.config.views import Depth
from mvmae.data.reading.detect_kind import detect_kind, require_channels
from mvmae.data.sources.base import Source, plain_channels, with_depth
from mvmae.data.sources.shard_names import names_shards
from mvmae.errors import UserError

DATA = (
    "DATA is a folder of images, a list (.txt, .csv, .tsv, .parquet), tar files, a .npy file, "
    "torchvision:NAME, hf:NAME, photos or digits"
)
BUILTIN = ("photos", "digits")
LISTS = (".txt", ".csv", ".tsv", ".parquet")


class SourceKind(NamedTuple):
    """A kind of source; its module is imported when one is opened.

    If `split` is not empty, the module also has `open_parts(name, channels)`, which returns the
    training and the test part, or None if a name has no such parts.
    """

    recognises: Callable[[str], bool]
    """Whether a name in DATA is of this kind."""

    module: str
    """Name of the module in `mvmae.data.sources`."""

    opener: str = "open_images"
    """Its function or class that takes the name (the list of names, if `takes_several`) and the
    channels, and returns a source."""

    split: str = ""
    """Origin of a split into training and test part, for messages; empty without parts."""

    takes_several: bool = False
    """Whether several names of this kind are opened together as one source."""


def is_builtin(name: str) -> bool:
    """Whether the name is that of a built-in source.

    Raises:
        UserError: There is also a file or folder of that name here.
    """
    if name in BUILTIN and Path(name).exists():
        raise UserError(
            f"'{name}' is built in, and a folder here has the same name: write ./{name} for the "
            f"folder, builtin:{name} for the other"
        )
    return name.removeprefix("builtin:") in BUILTIN


def _has_prefix(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


def _is_file(*suffixes: str) -> Callable[[str], bool]:
    return lambda name: Path(name).suffix.lower() in suffixes and Path(name).is_file()


# The first that recognises a name opens it; shards come first, as their folder is a folder too.
KINDS = (
    SourceKind(names_shards, "shards", takes_several=True),
    SourceKind(is_builtin, "builtin", split="built in"),
    SourceKind(_has_prefix("torchvision:"), "torchvision_sets", split="its own parts"),
    SourceKind(_has_prefix("hf:"), "hub", split="its own parts"),
    SourceKind(lambda name: Path(name).is_dir(), "folders", takes_several=True),
    SourceKind(_is_file(*LISTS), "lists", "from_list"),
    SourceKind(_is_file(".npy"), "arrays", "ArrayFile"),
)


def open_source(data: Sequence[str], channels: int, depth: Depth = "8") -> Source:
    """Open folders, one list, one array, tar files, or a named set (its training part).

    Args:
        data: DATA as the user wrote it: one name, or several folders or tar files.
        channels: Number of channels of the pixels.
        depth: Depth of the pixels, see `Wanted`.

    Raises:
        UserError: A name does not exist, or is not of a kind that mvmae reads.
    """
    kind = _choose_kind(data)
    open_images = getattr(_load(kind), kind.opener)
    names = data if kind.takes_several else data[0]
    source = with_depth(open_images(names, plain_channels(channels)), channels, depth)
    if channels not in (1, 3):  # gray and colour are converted to each other, others never
        require_channels(detect_kind(source, 0), channels, data)
    return source


def open_parts(name: str, channels: int) -> tuple[tuple[Source, Source], str] | None:
    """Open the training and the test part of a named set that has both.

    Returns:
        The parts, and the origin of the split for messages; None if there are no such parts.

    Raises:
        UserError: The set is unknown, or not on this machine.
    """
    kind = next((one for one in KINDS if one.split and one.recognises(name)), None)
    parts = None if kind is None else _load(kind).open_parts(name, channels)
    return None if kind is None or parts is None else (parts, kind.split)


def _load(kind: SourceKind) -> Any:
    return import_module(f"mvmae.data.sources.{kind.module}")


def _choose_kind(data: Sequence[str]) -> SourceKind:
    """Return the kind of source that the names are, all together.

    Raises:
        UserError: No kind recognises them, or they are of several kinds.
    """
    if not data:
        raise UserError("no DATA: name a folder of images, a list file, photos or digits")
    for kind in KINDS:
        if (len(data) == 1 or kind.takes_several) and all(map(kind.recognises, data)):
            return kind
    if len(data) > 1:
        other = next(name for name in data if not Path(name).is_dir())
        raise UserError(
            f"several DATA must all be folders, or all tar files, and {other} is not a folder"
        )
    if Path(data[0]).exists():
        raise UserError(f"{data[0]} is neither a folder nor a list of images ({', '.join(LISTS)})")
    raise UserError(f"no such folder: {data[0]} ({DATA})")
