"""Run folders: whether a run may write there, their format number, and their environment."""

import csv
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mvmae.errors import UserError
from mvmae.storage.atomic import read_object
from mvmae.version import __version__

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
LOCK = ".lock"  # held by the process that writes into a folder; .lock.holder names it
FORMAT = 1  # of run folders; raised when an older version could not read them
OURS = (
    *(CONFIG, ENVIRONMENT, "metrics.jsonl", "skipped.csv", "checkpoints", "tensorboard"),
    *("encoder.safetensors", "encoder.json", "health.json", "figures", "report.html"),
    *("results", "cache", "export"),
    *("model.safetensors", "model.json", "best.safetensors", "best.json", "predictions.csv"),
    *("predictions.json", "predictions"),
)  # what --overwrite deletes: everything that any command writes into a run folder, nothing else


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / CONFIG).is_file()


def require_format(folder: Path) -> None:
    """Make sure that this version can read a run folder.

    Folders without our environment.json pass, because mvmae did not write them.

    Raises:
        UserError: It was written before run folders had a format number, or by a newer version.
    """
    facts = read_object(folder / ENVIRONMENT)
    if "mvmae" not in facts or facts.get("format") == FORMAT:
        return
    written, found = f"{folder} was written by mvmae {facts['mvmae']}", facts.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise UserError(
            f"{written} in format {found}, and this is mvmae {__version__}, which reads format "
            f"{FORMAT}: install a newer mvmae"
        )
    raise UserError(
        f"{written}, whose run folders mvmae {__version__} does not read: read it with that "
        "version, or train again"
    )


def claim(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Make sure that a run may write into the folder; change nothing yet.

    Raises:
        UserError: The folder holds another run or other files, or nothing that can be resumed.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: --out must name a folder")
    if resume:
        if not is_run(folder):
            raise UserError(f"no run in {folder} to resume: leave out --resume to begin one")
        require_format(folder)
    elif is_run(folder):
        if not overwrite:
            raise UserError(
                f"{folder} already holds a run: choose another --out, "
                "--resume to continue it, or --overwrite to replace it"
            )
    elif folder.exists() and any(not path.name.startswith(LOCK) for path in folder.iterdir()):
        raise UserError(f"{folder} holds other files: choose an --out that is new or empty")


def make(folder: Path) -> None:
    """Make a folder, with its parents.

    Raises:
        UserError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error


def clear(folder: Path) -> None:
    """Remove the files of a run, and nothing else."""
    for name in OURS:
        remove(folder / name)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, if it exists; what a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def environment(device: torch.device, world_size: int, **facts: Any) -> dict[str, Any]:
    """Describe what results depend on besides the config: versions, machine and commit.

    Args:
        device: Device that computes.
        world_size: Number of processes.
        **facts: More entries.

    Returns:
        The content of environment.json.
    """
    return {
        "mvmae": __version__,
        "format": FORMAT,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "git_commit": _git_commit(),
        **facts,
    }


def _git_commit() -> str | None:
    """Return the commit of the running code, if it runs from a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = Path(__file__).resolve().parent
    # Code that is installed inside another repository must not report that one's commit.
    if not (here.parents[2] / ".git").exists():
        return None
    try:
        done = subprocess.run(
            command, cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def append_skipped(folder: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Add unreadable images to skipped.csv, as (path, reason); each path is listed once."""
    file, known = folder / "skipped.csv", set()
    # surrogateescape: paths may contain bytes that are not UTF-8.
    if file.exists():
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            known = {row[0] for row in csv.reader(stream) if row}
    fresh = {path: reason for path, reason in rows if path not in known}
    if not fresh:
        return
    with file.open("a", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        if not known and stream.tell() == 0:
            writer.writerow(("path", "reason"))
        writer.writerows(fresh.items())
