"""Results of evaluations: FOLDER/results/COMMAND-DATA.json, with all that is needed to repeat them.

FOLDER is that of `home`.
"""

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
from mvmae.storage.outputs import ENCODER_PREFIXES

# File systems allow 255 bytes. A name gets a command before it and a suffix after it.
MAX_NAME_BYTES = 80
OMITTED = {"confusion", "skipped"}  # entries that are only in the file: they may be very long
# Options that do not change a result: a command repeated with other values replaces its file.
IDLE = {"out", "device", "workers", "precision", "batch_size", "save_every_minutes"}


def home(encoder: str, out: Path | None) -> Path:
    """Return the folder that gets results/, cache/ and figures/ of an encoder's evaluations.

    It is `out`, or the run that contains the encoder, or runs/ENCODER.

    Raises:
        UserError: It is a file, is below a file, or is not writable.
    """
    folder = out or _find_run(encoder) or Path("runs") / slug(_short_name(encoder))
    if folder.suffix == ".json":
        raise UserError(f"--out names a folder, which gets results/: leave out {folder.name}")
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file: --out must name a folder")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{nearest} is not writable: name another folder with --out")
    return folder


def _find_run(encoder: str) -> Path | None:
    """Find the run folder that an encoder is, or is in."""
    if encoder.startswith(ENCODER_PREFIXES):
        return None
    for folder in (Path(encoder), *Path(encoder).parents):
        # transformers' folders have a config.json too, but no environment.json.
        if run_folder.is_run(folder) and (folder / run_folder.ENVIRONMENT).exists():
            return folder
    return None


def _short_name(encoder: str) -> str:
    """Return a file's or folder's own name; `timm:NAME` and the like stay whole."""
    if encoder.startswith(ENCODER_PREFIXES):
        return encoder
    path = Path(encoder)
    if path.is_file() and path.stem in ("encoder", "model", "best", "last"):
        path = path.resolve().parent  # its name says more
    return path.stem if path.is_file() else path.resolve().name


def slug(text: str) -> str:
    """Turn a name that the user gave into a file name that every file system accepts.

    Long names lose their beginning.
    """
    # The cut may fall within a character, whose remaining bytes are ignored.
    plain = re.sub(r"[^\w.]+", "-", text).encode()[-MAX_NAME_BYTES:].decode(errors="ignore")
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
        folder: The folder that `home` returns; results/ is made in it.
        command: Name of the command, such as `knn`.
        config: Options of the command; `mvmae COMMAND --recipe FILE` repeats it.
        content: The figures, and the data's name, fingerprint and sizes.
        device: Device that computed the result.
        world_size: Number of processes that computed it.
        name: File name without .json. Default: the command and the data.

    Returns:
        The written file; a number is added to its name if other options have taken the name.

    Raises:
        UserError: The folder or the file cannot be made.
    """
    run_folder.make(folder / "results")
    file = _choose_file(
        folder / "results" / f"{name or f'{command}-{slug(config.data)}'}.json", config
    )
    facts = {"command": command, "command_line": command_line(command, config)}
    facts |= {"config": to_plain(config)} | content
    facts["environment"] = run_folder.environment(device, world_size)
    atomic.write_json(file, facts)
    emit(command, file, content)
    return file


def emit(command: str, file: Path, content: Mapping[str, Any]) -> None:
    """Print the result for programs, without the entries in `OMITTED`.

    Figures of the headline are repeated with the command in their names, such as `knn_top1`.
    """
    figures = {f"{command}_{name}": value for name, value in content.get("headline", {}).items()}
    rest = {name: value for name, value in content.items() if name not in OMITTED}
    terminal.emit("result", {"command": command, "file": str(file)} | figures | rest)


def _choose_file(first: Path, config: Any) -> Path:
    """Return `first`, or the first numbered variant of it without a result of other options."""
    question = _question(to_plain(config))
    for number in count(1):
        file = first if number == 1 else first.with_name(f"{first.stem}-{number}.json")
        known = atomic.read_object(file).get("config")
        if not isinstance(known, dict) or _question(known) == question:
            break  # a new file, or a result of the same options
    return file


def _question(config: dict[str, Any]) -> dict[str, Any]:
    """Return the options that decide a result, with each path in one spelling."""
    paths = {name: os.path.normpath(str(config.get(name))) for name in ("encoder", "data")}
    return {name: value for name, value in config.items() if name not in IDLE} | paths
