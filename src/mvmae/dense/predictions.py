"""Images and output folders of `detect --predict` and `segment --predict`."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from mvmae import terminal
from mvmae.data.reading.decode import EXTENSIONS
from mvmae.data.sources.base import Source
from mvmae.data.sources.folders import Files
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError
from mvmae.storage import run_folder
from mvmae.training import distributed

UNFINISHED = ".unfinished"  # inside an output folder that exists already
MAX_NAME_BYTES = 200  # file systems allow 255, and suffixes are added


def require_single_process(option: str) -> None:
    """Reject an option under torchrun, where every process would repeat the work.

    Raises:
        UserError: Several processes were started.
    """
    if distributed.announced_world_size() > 1:
        raise UserError(f"{option} runs in one process: start it without torchrun")


def open_images(name: str, channels: int) -> Source:
    """Open the images of a folder or a list, or one image file.

    Raises:
        UserError: Nothing is there, or it cannot be read.
    """
    path = Path(name)
    if path.suffix.lower() in EXTENSIONS and not path.exists():
        raise UserError(f"no such image: {name}")
    if path.suffix.lower() in EXTENSIONS and path.is_file():
        if channels not in (1, 3):
            raise UserError(f"image files are read with 1 or 3 channels, not {channels}")
        return Files(name, [name], channels)
    return open_source((name,), channels)


def require_replaceable(out: Path, owned: Mapping[str, str], mark: str, *, overwrite: bool) -> None:
    """Require that a folder is new or empty, or holds predictions that may be replaced.

    Args:
        out: Output folder.
        owned: What predictions consist of: names in the folder, with the suffix of the files below
            those that are folders.
        mark: The one name that every set of predictions has.
        overwrite: Whether existing predictions may be replaced.

    Raises:
        UserError: The folder is a file, holds other files, or holds predictions to be kept.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out must name a folder")
    present = {path.name for path in out.iterdir()} - {UNFINISHED} if out.exists() else set()
    if not present:
        return
    foreign = sorted(present - owned.keys()) or sorted(_foreign_files(out, owned))
    if foreign or mark not in present:
        example = foreign[0] if foreign else next(iter(present))
        raise UserError(
            f"{out} holds other files ({example}): choose an --out that is new or empty"
        )
    if not overwrite:
        raise UserError(
            f"{out} already holds predictions: choose another --out, or --overwrite to replace them"
        )


def _foreign_files(out: Path, owned: Mapping[str, str]) -> Iterator[str]:
    """Yield files in the folders of predictions that are not predictions."""
    for name, suffix in owned.items():
        for path in (out / name).rglob("*"):
            if path.is_file() and path.suffix != suffix:
                yield str(path.relative_to(out))


def refuse_own_images(out: Path, source: Source) -> None:
    """Reject an output folder that holds input images, which `--overwrite` would delete.

    Raises:
        UserError: An image is in `out`.
    """
    folder = out.resolve()
    for index in range(len(source)):
        if Path(source.path(index)).resolve().is_relative_to(folder):
            raise UserError(
                f"the images are in {out}, where the predictions would go: choose another --out"
            )


def prediction_names(source: Source) -> list[str]:
    """Return a unique name for each image: its path below the images' common folder.

    The suffix is dropped unless two names would then be equal.
    """
    paths = [Path(os.path.abspath(source.path(index))) for index in range(len(source))]  # noqa: PTH100
    base = Path(os.path.commonpath([path.parent for path in paths]))
    relative = [path.relative_to(base) for path in paths]
    stems = Counter(path.with_suffix("") for path in relative)
    names = [
        path.with_suffix("") if stems[path.with_suffix("")] == 1 else path for path in relative
    ]
    if len(set(names)) < len(names):  # x.jpg beside x.png and x.jpg.tif
        names = relative
    return [str(_shorten(name)) for name in names]


def _shorten(path: Path) -> Path:
    """Replace the end of a long name by its hash, to leave room for a suffix."""
    name = path.name.encode(errors="surrogateescape")
    if len(name) <= MAX_NAME_BYTES:
        return path
    kept = name[: MAX_NAME_BYTES - 20].decode(errors="ignore")
    return path.with_name(f"{kept}-{hashlib.blake2b(name, digest_size=8).hexdigest()}")


@contextmanager
def write_aside(out: Path, owned: Mapping[str, str]) -> Iterator[Path]:
    """Yield a folder to write into; on success its content replaces the predictions in `out`.

    An existing output folder stays the same folder and keeps what is not listed in `owned`, since
    it may be a link or a mounted disk.

    Raises:
        UserError: A folder cannot be made.
    """
    target = out.resolve()
    exists = target.is_dir()
    folder = target / UNFINISHED if exists else target.with_name(f".{target.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    run_folder.make(folder)
    try:
        yield folder
        if not exists:
            folder.rename(target)
            return
        for name in owned:
            run_folder.remove(target / name)
        for path in folder.iterdir():
            path.rename(target / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep_skipped(folder: Path, source: Source, skipped: Sequence[tuple[str, str]]) -> None:
    """Write skipped.csv with the images that could not be read.

    Raises:
        UserError: None of the images could be read.
    """
    if len(skipped) == len(source):
        path, reason = skipped[0]
        raise UserError(
            f"none of the images in {source.name} can be read, for example {path} ({reason})"
        )
    run_folder.append_skipped(folder, skipped)


def report_predictions(
    command: str,
    out: Path,
    *,
    began: float,
    num_images: int,
    num_skipped: int,
    findings: str,
    written: str,
    facts: dict[str, Any],
) -> None:
    """Print what the images contain and where the predictions are; emit the same as JSON.

    Args:
        command: `detect` or `segment`.
        out: Output folder.
        began: Start by `time.perf_counter`.
        num_images: Images given.
        num_skipped: Those that could not be read.
        findings: Summary of the predictions.
        written: Paths of the files.
        facts: Further content of the JSON line.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    num_read = num_images - num_skipped
    console.print(f"{num_read} images in {time.perf_counter() - began:.0f} s; {findings}")
    if num_skipped:
        console.print(f"{num_skipped} images could not be read: {out / 'skipped.csv'}")
    console.print(f"written: {written}")
    counts = {"images": num_read, "skipped": num_skipped}
    terminal.emit("result", {"command": command} | counts | facts)
