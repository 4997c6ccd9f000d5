"""What `detect --predict` and `segment --predict` share: which images, and where predictions go."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mvmae.data.reading.decode import EXTENSIONS
from mvmae.data.sources.base import Source
from mvmae.data.sources.folders import Files
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError
from mvmae.storage import run_folder

UNFINISHED = ".unfinished"  # in a folder that is there already
LONGEST = 200  # bytes of a picture's name: file systems take 255, with suffixes


def open_images(name: str, channels: int) -> Source:
    """The images of a folder or a list, or one image file.

    Raises:
        UserError: There is nothing there, or nothing that is read.
    """
    path = Path(name)
    if path.suffix.lower() in EXTENSIONS and not path.exists():
        raise UserError(f"no such image: {name}")
    if path.suffix.lower() in EXTENSIONS and path.is_file():
        if channels not in (1, 3):
            raise UserError(f"image files are read with 1 or 3 channels, not {channels}")
        return Files(name, [name], channels)
    return open_source((name,), channels)


def require_replaceable(out: Path, ours: Mapping[str, str], mark: str, *, overwrite: bool) -> None:
    """Make sure that a folder is new or empty, or holds predictions that may go.

    Args:
        out: The folder.
        ours: What predictions consist of: names, and the suffix of the files in those folders.
        mark: The one of them that is never missing.
        overwrite: Whether predictions may go.

    Raises:
        UserError: It does not, or is no folder.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out must name a folder")
    there = {path.name for path in out.iterdir()} - {UNFINISHED} if out.exists() else set()
    if not there:
        return
    others = sorted(there - ours.keys()) or sorted(_strange(out, ours))
    if others or mark not in there:
        named = others[0] if others else next(iter(there))
        raise UserError(f"{out} holds other files ({named}): choose an --out that is new or empty")
    if not overwrite:
        raise UserError(
            f"{out} already holds predictions: choose another --out, or --overwrite to replace them"
        )


def _strange(out: Path, ours: Mapping[str, str]) -> Iterator[str]:
    """Files in the folders of predictions that are no predictions."""
    for name, suffix in ours.items():
        for path in (out / name).rglob("*"):
            if path.is_file() and path.suffix != suffix:
                yield str(path.relative_to(out))


def refuse_own_images(out: Path, source: Source) -> None:
    """Images that `--overwrite` would delete are no place to write to.

    Raises:
        UserError: One lies in `out`.
    """
    whole = out.resolve()
    for index in range(len(source)):
        if Path(source.path(index)).resolve().is_relative_to(whole):
            raise UserError(
                f"the images lie in {out}, where the predictions are to go: choose another --out"
            )


def prediction_names(source: Source) -> list[str]:
    """Each image's path below what they have in common, without suffix unless two would be one."""
    paths = [Path(os.path.abspath(source.path(index))) for index in range(len(source))]  # noqa: PTH100
    base = Path(os.path.commonpath([path.parent for path in paths]))
    inside = [path.relative_to(base) for path in paths]
    plain = Counter(path.with_suffix("") for path in inside)
    names = [path.with_suffix("") if plain[path.with_suffix("")] == 1 else path for path in inside]
    if len(set(names)) < len(names):  # x.jpg beside x.png and x.jpg.tif
        names = inside
    return [str(_shortened(name)) for name in names]


def _shortened(path: Path) -> Path:
    """With room for a suffix: the end of a long name gives way to its hash."""
    name = path.name.encode(errors="surrogateescape")
    if len(name) <= LONGEST:
        return path
    kept = name[: LONGEST - 20].decode(errors="ignore")
    return path.with_name(f"{kept}-{hashlib.blake2b(name, digest_size=8).hexdigest()}")


@contextmanager
def write_aside(out: Path, ours: Mapping[str, str]) -> Iterator[Path]:
    """A folder to write into; when all is well its content stands in `out`, in place of the old.

    A folder that is there already stays, with what is not ours: it may be a link, or a disk.

    Raises:
        UserError: A folder cannot be made.
    """
    whole = out.resolve()
    is_there = whole.is_dir()
    folder = whole / UNFINISHED if is_there else whole.with_name(f".{whole.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    run_folder.make(folder)
    try:
        yield folder
        if not is_there:
            folder.rename(whole)
            return
        for name in ours:
            _remove(whole / name)
        for path in folder.iterdir():
            path.rename(whole / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
