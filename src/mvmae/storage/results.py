"""What a judgement leaves: RESULTS/results/COMMAND-DATA.json, with all that repeats it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch

from mvmae import terminal
from mvmae.config.files import command_line, to_plain
from mvmae.errors import UserError
from mvmae.storage import atomic, run_folder

LONGEST = 80  # bytes of a file's name that are taken from what the user called things


def home(encoder: str, out: Path | None) -> Path:
    """The folder that gets results/, cache/ and figures/ of what judges an encoder.

    The one asked for; else the run that the encoder is or lies in; else runs/ENCODER.

    Raises:
        UserError: It is a file, lies below one, or may not be written to.
    """
    run = None if _is_named(encoder) else _run_of(Path(encoder))
    folder = out or run or Path("runs") / slug(_short(encoder))
    if folder.suffix == ".json":
        raise UserError(f"--out names a folder, which gets results/: leave out {folder.name}")
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file: --out must name a folder")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{nearest} may not be written to: name another folder with --out")
    return folder


def _is_named(encoder: str) -> bool:
    """Whether it is `timm:NAME` or the like, and no path."""
    return encoder.split(":")[0] in ("random", "timm", "hf")


def _run_of(path: Path) -> Path | None:
    for folder in (path, *path.parents):
        if run_folder.is_run(folder) and (folder / "environment.json").exists():
            return folder
    return None


def _short(encoder: str) -> str:
    """A file's or folder's own name; `timm:NAME` and the like whole."""
    if _is_named(encoder):
        return encoder
    path = Path(encoder)
    if path.is_file() and path.stem in ("encoder", "model", "best", "last"):
        path = path.resolve().parent  # whose name says more
    return path.stem if path.is_file() else path.resolve().name


def slug(text: str) -> str:
    """What can be a file's name of what the user called something."""
    plain = re.sub(r"[^\w.]+", "-", text).encode()[-LONGEST:].decode(errors="ignore")
    return plain.strip("-.") or "data"


def write(
    folder: Path,
    command: str,
    config: Any,
    content: dict[str, Any],
    *,
    device: torch.device,
    world_size: int,
    name: str = "",
) -> Path:
    """Write a result as JSON, whole or not at all.

    Args:
        folder: From `home`.
        command: Of the command line.
        config: What was asked; `mvmae COMMAND --recipe FILE` asks it again.
        content: The figures, and the data's name, fingerprint and sizes.
        device: Where it was computed.
        world_size: Number of processes that computed it.
        name: Of the file, without .json. Default: the command and the data.

    Returns:
        The file.
    """
    run_folder.make(folder / "results")
    file = _free(folder / "results" / f"{name or f'{command}-{slug(config.data)}'}.json", config)
    frame = {
        "command": command,
        "command_line": command_line(command, config),
        "config": to_plain(config),
    }
    environment = run_folder.environment(device, world_size)
    atomic.write_json(file, frame | content | {"environment": environment})
    emit(command, file, content)
    return file


LONG = {"confusion", "skipped"}  # what is left to the file


def emit(command: str, file: Path, content: Mapping[str, Any]) -> None:
    """Print the result for programs: the headline as COMMAND_NAME, then all but `LONG`."""
    figures = {f"{command}_{name}": value for name, value in content.get("headline", {}).items()}
    rest = {name: value for name, value in content.items() if name not in LONG}
    terminal.emit("result", {"command": command, "file": str(file)} | figures | rest)


IDLE = {"out", "device", "workers", "precision", "batch_size", "save_every_minutes"}


def _free(first: Path, config: Any) -> Path:
    """The file, or one with a number behind its name where another question has that one."""
    asked = _question(to_plain(config))
    for number in count(1):
        file = first if number == 1 else first.with_name(f"{first.stem}-{number}.json")
        try:
            known = json.loads(file.read_text(encoding="utf-8"))["config"]
        except (OSError, ValueError, KeyError, TypeError):
            break  # none there, or nothing worth keeping
        if _question(known) == asked:
            break
    return file


def _question(config: dict[str, Any]) -> dict[str, Any]:
    """What decides a result; a path written otherwise is the same path."""
    paths = {name: os.path.normpath(str(config.get(name))) for name in ("encoder", "data")}
    return {name: value for name, value in config.items() if name not in IDLE} | paths
