"""Read run folders. Any of their files may be missing, damaged or unfinished."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mvmae.config.detect import DetectConfig
from mvmae.config.files import from_json
from mvmae.config.finetune import FinetuneConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.segment import SegmentConfig
from mvmae.encoders import ENCODER_FILE
from mvmae.errors import UserError
from mvmae.storage import metrics_file, run_folder
from mvmae.storage.atomic import read_object
from mvmae.storage.outputs import headings

KINDS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "detect": DetectConfig,
    "segment": SegmentConfig,
}
JUDGED = "judged"  # an encoder from elsewhere, of which there are only results
STALE = 600.0  # seconds without a new line of metrics, after which a run counts as stopped


class Result(NamedTuple):
    """A file of results/."""

    file: str
    command: str
    data: str
    """As the user wrote it; empty where the file does not say."""

    command_line: str
    headline: dict[str, float]
    """The finite metrics that represent the result."""

    content: dict[str, Any]


class Skipped(NamedTuple):
    """An image that could not be read."""

    path: str
    reason: str


class RunFacts(NamedTuple):
    """What a run folder holds."""

    folder: Path
    name: str
    command: str
    """A key of KINDS, or JUDGED."""

    config: dict[str, Any]
    environment: dict[str, Any]
    health: dict[str, Any]
    records: list[dict[str, Any]]
    results: list[Result]
    skipped: list[Skipped]
    finished: bool
    age: float | None
    """Seconds since the last line of metrics.jsonl; None without one."""

    @property
    def pretraining(self) -> PretrainConfig | None:
        """The config of a `pretrain` run; None where this version cannot read it."""
        return self.parsed if isinstance(self.parsed, PretrainConfig) else None

    @property
    def parsed(self) -> Any:
        """The config as the command's class; None where this version cannot read it."""
        if self.command not in KINDS:
            return None
        with suppress(UserError):
            text = json.dumps(self.config)
            return from_json(text, KINDS[self.command], source=run_folder.CONFIG)
        return None


def gather(names: Sequence[str]) -> list[RunFacts]:
    """Read run folders.

    Raises:
        UserError: A run is not a folder, holds no run, or is named twice.
    """
    folders = [_folder(name) for name in names]
    known: dict[Path, str] = {}
    for name, folder in zip(names, folders, strict=True):
        place = folder.resolve()
        if place in known:
            raise UserError(f"{name} is the same run as {known[place]}: name each once")
        known[place] = name
    names_shown = headings(list(map(str, folders)))
    return [_facts(folder, name) for folder, name in zip(folders, names_shown, strict=True)]


def _folder(name: str) -> Path:
    folder = Path(name)
    if "\0" in name or not folder.exists():
        raise UserError(f"no such run: {name!r} (RUN is a run folder)".replace("'", ""))
    if not folder.is_dir():
        raise UserError(f"{name} is a file: name the run folder that contains it")
    if not any(
        (folder / part).exists() for part in (run_folder.CONFIG, metrics_file.FILE, "results")
    ):
        raise UserError(
            f"{name} holds no run: neither {run_folder.CONFIG} nor {metrics_file.FILE} nor results/"
        )
    run_folder.require_format(folder)
    return folder


def _facts(folder: Path, name: str) -> RunFacts:
    config = required_object(folder / run_folder.CONFIG)
    command = command_of(config)
    results = _results(folder)
    metrics = folder / metrics_file.FILE
    return RunFacts(
        folder=folder,
        name=name,
        command=command,
        config=config,
        environment=read_object(folder / "environment.json"),
        health=read_object(folder / "health.json"),
        records=metrics_file.read(folder),
        results=results,
        skipped=_skipped(folder / "skipped.csv"),
        finished=_is_finished(folder, command, results),
        age=max(0.0, time.time() - metrics.stat().st_mtime) if metrics.exists() else None,
    )


def command_of(config: dict[str, Any]) -> str:
    """The command whose fields are most like a config's."""
    if not config:
        return JUDGED
    fields = {command: set(kind.__dataclass_fields__) for command, kind in KINDS.items()}
    return max(fields, key=lambda command: len(fields[command] & config.keys()))


def _is_finished(folder: Path, command: str, results: Sequence[Result]) -> bool:
    if command == JUDGED:
        return True
    if command == "pretrain":
        return (folder / ENCODER_FILE).exists()
    return (folder / "model.safetensors").exists() or any(one.command == command for one in results)


def required_object(file: Path) -> dict[str, Any]:
    """Read a JSON object that must be whole where its file exists.

    Raises:
        UserError: It is damaged.
    """
    if not file.exists():
        return {}
    content = read_object(file)
    if not content:
        raise UserError(f"{file} is damaged: it holds no JSON object")
    return content


def _results(folder: Path) -> list[Result]:
    found = []
    for file in sorted((folder / "results").glob("*.json")):
        content = read_object(file)
        config = content.get("config")
        data = config.get("data") if isinstance(config, dict) else None
        if not isinstance(content.get("command"), str):
            continue
        found.append(
            Result(
                file=os.fsdecode(file.name),
                command=content["command"],
                data=" ".join(map(str, data)) if isinstance(data, list) else str(data or ""),
                command_line=str(content.get("command_line") or ""),
                headline=numbers(content.get("headline")),
                content=content,
            )
        )
    return found


def numbers(content: Any) -> dict[str, float]:
    """Return the finite numbers of a JSON object, by name."""
    if not isinstance(content, dict):
        return {}
    return {
        str(name): float(value)
        for name, value in content.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < float("inf")
    }


def _skipped(file: Path) -> list[Skipped]:
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            rows = [row for row in csv.reader(stream) if len(row) >= 2]
    except (OSError, csv.Error):
        return []
    return [Skipped(row[0], row[1]) for row in rows if row[:2] != ["path", "reason"]]
