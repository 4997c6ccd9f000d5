"""The folder of a run: claiming it, and what it says of itself."""

from __future__ import annotations

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
from mvmae.version import __version__

CONFIG = "config.json"
LOCK = ".lock"  # with the id of the process that writes into a folder
OURS = (
    *(CONFIG, "environment.json", "metrics.jsonl", "skipped.csv", "checkpoints", "tensorboard"),
    *("encoder.safetensors", "encoder.json", "health.json", "figures", "report.html"),
    *("results", "cache", "export"),
    *("model.safetensors", "model.json", "best.safetensors", "best.json", "predictions.csv"),
    *("predictions.json", "predictions"),
)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / CONFIG).is_file()


def claim(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Make sure that a run may write into the folder; change nothing yet.

    Raises:
        UserError: The folder holds another run or other files, or nothing to resume.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: --out must name a folder")
    if resume:
        if not is_run(folder):
            raise UserError(f"no run in {folder} to resume: leave out --resume to begin one")
    elif is_run(folder):
        if not overwrite:
            raise UserError(
                f"{folder} already holds a run: choose another --out, "
                "--resume to continue it, or --overwrite to replace it"
            )
    elif folder.exists() and any(not path.name.startswith(LOCK) for path in folder.iterdir()):
        raise UserError(f"{folder} holds other files: choose an --out that is new or empty")


def make(folder: Path) -> None:
    """Make the run folder.

    Raises:
        UserError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error


def clear(folder: Path) -> None:
    """Remove what a run left, and nothing else."""
    for name in OURS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def environment(device: torch.device, world_size: int, **facts: Any) -> dict[str, Any]:
    """Versions, machine and commit: what a number depends on and the config does not say."""
    return {
        "mvmae": __version__,
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
    """The commit of the code that runs, where it runs from a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = Path(__file__).resolve().parent
    if not (here.parents[2] / ".git").exists():  # installed, perhaps inside another repository
        return None
    try:
        done = subprocess.run(
            command, cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def append_skipped(folder: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Add images that could not be read to skipped.csv, each once."""
    file = folder / "skipped.csv"
    known = _skipped_paths(file)
    fresh = {path: reason for path, reason in rows if path not in known}
    if not fresh:
        return
    with file.open("a", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        if not known and stream.tell() == 0:
            writer.writerow(("path", "reason"))
        writer.writerows(fresh.items())


def _skipped_paths(file: Path) -> set[str]:
    if not file.exists():
        return set()
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return {row[0] for row in csv.reader(stream) if row}
