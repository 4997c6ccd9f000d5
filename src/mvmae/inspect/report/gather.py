"""Read run folders. Any of their files may be missing, damaged or unfinished."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mvmae.config.detect import DetectConfig
from mvmae.config.files import from_json
from mvmae.config.finetune import FinetuneConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.segment import SegmentConfig
from mvmae.encoders import ENCODER_FILE
from mvmae.errors import UserError, abridge
from mvmae.storage import metrics_file, run_folder
from mvmae.storage.atomic import read_object
from mvmae.storage.outputs import short_names

KINDS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "detect": DetectConfig,
    "segment": SegmentConfig,
}
JUDGED = "judged"  # an encoder from elsewhere, of which there are only results


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
    skipped: list[tuple[str, str]]
    """Path and reason of each image that could not be read."""

    finished: bool
    age: float | None
    """Seconds since the last line of metrics.jsonl; None without one."""

    @property
    def options(self) -> Any:
        """The config as the command's class; None where this version cannot read it."""
        kind = KINDS.get(self.command)
        with suppress(UserError):
            return kind and from_json(json.dumps(self.config), kind, source=run_folder.CONFIG)

    @property
    def pretraining(self) -> PretrainConfig | None:
        """The config of a `pretrain` run; None where this version cannot read it."""
        return self.options if self.command == "pretrain" else None


def gather(names: Sequence[str]) -> list[RunFacts]:
    """Read run folders.

    Raises:
        UserError: A run is not a folder, holds no run, or is named twice.
    """
    known: dict[Path, str] = {}
    for name in names:
        _require_run(Path(name))
        place = Path(name).resolve()
        if place in known:
            raise UserError(f"{name} is the same run as {known[place]}: name each once")
        known[place] = name
    return list(map(_facts, map(Path, names), short_names(names)))


def _require_run(folder: Path) -> None:
    if not folder.exists():
        raise UserError(f"no such run: {abridge(str(folder))} (RUN is a run folder)")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: name the run folder that contains it")
    parts = run_folder.CONFIG, metrics_file.FILE, "results"
    if not any((folder / part).exists() for part in parts):
        raise UserError("{} holds no run: neither {} nor {} nor {}/".format(folder, *parts))
    run_folder.require_format(folder)


def _facts(folder: Path, name: str) -> RunFacts:
    config = read_object(folder / run_folder.CONFIG)
    # Other files may be damaged; without its settings a run would be taken for another command's.
    if not config and (folder / run_folder.CONFIG).exists():
        raise UserError(f"{folder / run_folder.CONFIG} is damaged: it holds no JSON object")
    command = recognise_command(config)
    results = list(_read_results(folder))
    product = folder / (ENCODER_FILE if command == "pretrain" else "model.safetensors")
    metrics = folder / metrics_file.FILE
    return RunFacts(
        folder=folder,
        name=name,
        command=command,
        config=config,
        environment=read_object(folder / run_folder.ENVIRONMENT),
        health=read_object(folder / "health.json"),
        records=metrics_file.read(folder),
        results=results,
        skipped=_read_skipped(folder / "skipped.csv"),
        finished=command == JUDGED
        or product.exists()
        or any(one.command == command for one in results),
        age=max(0.0, time.time() - metrics.stat().st_mtime) if metrics.exists() else None,
    )


def recognise_command(config: dict[str, Any]) -> str:
    """The command whose fields are most like a config's."""
    if not config:
        return JUDGED
    # config.json holds the options alone, without the name of the command.
    return max(KINDS, key=lambda name: len(KINDS[name].__dataclass_fields__.keys() & config.keys()))


def part(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a JSON object inside another; empty where there is none."""
    inner = content.get(name)
    return inner if isinstance(inner, dict) else {}


def numbers(content: Any) -> dict[str, float]:
    """Return the finite numbers of a JSON object, by name."""
    found = metrics_file.last([content] if isinstance(content, dict) else [])
    return {name: float(value) for name, value in found.items()}


def _read_results(folder: Path) -> Iterator[Result]:
    for file in sorted((folder / "results").glob("*.json")):
        content = read_object(file)
        data = part(content, "config").get("data")
        if isinstance(content.get("command"), str):
            yield Result(
                file=os.fsdecode(file.name),
                command=content["command"],
                data=" ".join(map(str, data)) if isinstance(data, list) else str(data or ""),
                command_line=str(content.get("command_line") or ""),
                headline=numbers(content.get("headline")),
                content=content,
            )


def _read_skipped(file: Path) -> list[tuple[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            rows = [row for row in csv.reader(stream) if len(row) >= 2]
    except (OSError, csv.Error):
        return []
    return [(row[0], row[1]) for row in rows if row[:2] != ["path", "reason"]]
