"""One cell of the table: a run folder that is begun, gone on with, or done; and its judgement."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mvmae import encoders, terminal
from mvmae.ablate.plan import PIXELS, SEEDLESS, UNTRAINED, Cell, Plan
from mvmae.config.ablate import AblateConfig
from mvmae.config.evaluation import KnnConfig, ProbeConfig
from mvmae.config.files import from_json, to_plain
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.sources.base import plain_channels, stamp
from mvmae.data.sources.labelled import Labelled
from mvmae.data.sources.open import open_source
from mvmae.encoders import ENCODER_FILE, OpenedEncoder
from mvmae.errors import UserError
from mvmae.evaluation import knn, probe, probe_mae, shared
from mvmae.evaluation.shared import Candidate, Row, Setting
from mvmae.method import pretrain
from mvmae.method.preflight.resolve_config import as_found_out, settle
from mvmae.storage import metrics_file, results, run_folder
from mvmae.terminal import Bar
from mvmae.training import precision, resume

Progress = Literal["new", "begun", "trained"]
TITLES = {"knn": "kNN", "probe": "linear"}  # of the commands' figures, for people
NUM_COMPONENTS = 64  # of pixels, where principal components are judged
JudgeConfig = KnnConfig | ProbeConfig


def progress(cell: Cell, fingerprint: str | None = None) -> Progress:
    """How far the training of a cell is.

    Args:
        cell: One that is trained.
        fingerprint: Of the images; none: whichever they were.

    Raises:
        UserError: Its folder holds a run of other settings or images, or something else.
    """
    folder, config = cell.folder, cell.config
    assert config is not None
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and {cell.name} needs a folder there: choose --out")
    if not run_folder.is_run(folder):
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        ours = {*run_folder.OURS, run_folder.LOCK.removeprefix(".")}
        if {name.removeprefix(".").removesuffix(".tmp") for name in names} - ours:
            raise UserError(f"{folder} holds other files: choose an --out that is new or empty")
        return "new"
    before = from_json(
        (folder / run_folder.CONFIG).read_text(encoding="utf-8"),
        PretrainConfig,
        source=str(folder / run_folder.CONFIG),
    )
    if changed := resume.differences(before, as_found_out(config, before)):
        raise UserError(
            f"{folder} was run with {changed}: ask as before, or choose another --out for what "
            "is asked now"
        )
    known = _facts(folder).get("data_fingerprint")
    if fingerprint is not None and known not in (None, fingerprint):
        raise UserError(
            f"the images in {' '.join(config.data)} are not those that {folder} was trained on: "
            "put them back, or choose another --out"
        )
    done = (folder / ENCODER_FILE).exists() and (folder / "health.json").exists()
    return "trained" if done else "begun"


def _facts(folder: Path) -> dict[str, Any]:
    """What a run says of its data and machine; empty where it says nothing."""
    try:
        facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def num_images(cell: Cell) -> int | None:
    """Images that a cell was trained on, if it has been begun."""
    return _facts(cell.folder).get("num_images")


def seconds(cell: Cell) -> float | None:
    """Wall time of a cell's training so far, all its beginnings together; none before its end."""
    if progress(cell) != "trained":
        return None
    records = metrics_file.read(cell.folder)
    return records[-1].get("seconds") if records else None


def train(cell: Cell) -> int:
    """Begin a cell, or go on with it.

    Returns:
        As of `pretrain`.
    """
    assert cell.config is not None
    match progress(cell):
        case "trained":
            return 0
        case "new":
            shutil.rmtree(cell.folder, ignore_errors=True)  # of one killed as it began
            return pretrain.run(cell.config)
        case _:
            saved = resume.is_there(cell.folder)
            config = replace(cell.config, resume=saved, overwrite=not saved)
            return pretrain.run(config)


def judgements(cell: Cell, asked: AblateConfig) -> list[JudgeConfig]:
    """What is asked of a cell, as `mvmae knn` and `mvmae probe` would be."""
    common: dict[str, Any] = {
        "encoder": str(cell.folder),
        "data": asked.judged_on,
        "baselines": False,
        "seed": cell.seed,
        "device": asked.device,
        "workers": asked.workers,
    }
    judges: list[JudgeConfig] = [KnnConfig(**common, out=cell.folder)]
    if asked.probe == "cached" or (asked.probe == "mae" and cell.key not in SEEDLESS):
        judges.append(ProbeConfig(**common, out=cell.folder, protocol=asked.probe))
    return judges


def command_of(config: JudgeConfig) -> str:
    """The command that asks so."""
    return "knn" if isinstance(config, KnnConfig) else "probe"


def found(cell: Cell, config: JudgeConfig, images: str | None = None) -> dict[str, Any] | None:
    """The result of a judgement, if it was made on these images.

    Args:
        cell: What was judged.
        config: What was asked.
        images: Fingerprint of the labelled images; none: whichever they were.
    """
    wanted = _question(to_plain(config))
    for file in sorted((cell.folder / "results").glob(f"{command_of(config)}-*.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            same = _question(result["config"]) == wanted
            here = images in (None, result["data"]["fingerprint"])
            if same and here and isinstance(result["headline"]["top1"], float | int):
                return result
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # damaged: judged again
    return None


def _question(config: dict[str, Any]) -> dict[str, Any]:
    """What decides a result of this cell, wherever its folder lies."""
    idle = results.IDLE | {"encoder", "data"}
    rest = {name: value for name, value in config.items() if name not in idle}
    return rest | {"data": os.path.normpath(config["data"])}


def is_done(cell: Cell, asked: AblateConfig, images: str | None = None) -> bool:
    """Whether a cell is trained and judged."""
    if cell.config is not None and progress(cell) != "trained":
        return False
    return all(found(cell, config, images) for config in judgements(cell, asked))


def judge(cell: Cell, plan: Plan, data: Labelled, images: str) -> int:
    """Make the judgements that are missing, from features that are computed once.

    Args:
        cell: A trained cell, or a control.
        plan: The table.
        data: The labelled images, for raw pixels.
        images: Their fingerprint.

    Returns:
        0; 130 or 143 when MAE's probe was stopped by SIGINT or SIGTERM, with its state saved.
    """
    asked = plan.asked
    missing = [c for c in judgements(cell, asked) if not found(cell, c, images)]
    if not missing:
        return 0
    run_folder.make(cell.folder)
    if cell.key == UNTRAINED and not (cell.folder / ENCODER_FILE).exists():
        encoders.save_encoder(cell.folder, untrained(cell, plan))
    cached = [c for c in missing if not isinstance(c, ProbeConfig) or c.protocol == "cached"]
    if cached:
        setting = setting_of(cell, plan, data, cached[0])
        count = len(setting.data.train) + len(setting.data.test)
        with Bar(count * _passes(cell, cached)) as bar:
            bar.name(cell.name)
            shown = list(_judged(cell, cached, setting, bar))
        for config, judged in zip(cached, shown, strict=True):
            write(judged, config, setting)
    for config in missing:
        if not isinstance(config, ProbeConfig) or config.protocol == "cached":
            continue
        if status := probe_mae.run(config):
            return status
    return 0


def untrained(cell: Cell, plan: Plan) -> OpenedEncoder:
    """The recipe's encoder before any training, and the pixels that training would give it."""
    config = replace(plan.start, seed=cell.seed, out=cell.folder)
    source = open_source(config.data, plain_channels(config.model.in_channels))
    config, _, _ = settle(config, source)
    like = encoders.random_encoder(config.model, cell.seed)
    return encoders.attach_preprocessing(encoders.untrained_copy(like, cell.seed), config)


def setting_of(cell: Cell, plan: Plan, data: Labelled, config: JudgeConfig) -> Setting:
    """What the parts of `knn` and `probe` need."""
    if cell.key not in SEEDLESS:
        return shared.open_setting(config)
    device = precision.choose_device(config.device)
    no_encoder = encoders.attach_preprocessing(
        encoders.random_encoder(plan.start.model, 0), plan.start
    )
    stamps = {"train": stamp(data.train), "test": stamp(data.test)}
    return Setting(no_encoder, data, "mean", cell.folder, device, time.perf_counter(), stamps, [])


def _passes(cell: Cell, configs: list[JudgeConfig]) -> int:
    """Passes over the images: pixels are shrunk to another size for each command."""
    return len(configs) if cell.key in SEEDLESS else 1


def _judged(
    cell: Cell, configs: list[JudgeConfig], setting: Setting, bar: Bar
) -> Iterator[Candidate]:
    """The features for each judgement."""
    if cell.key not in SEEDLESS:
        once = shared.encoder_candidate(configs[0], setting, str(cell.folder), setting.opened, bar)
        assert once is not None  # there is one process
        yield from [once] * len(configs)
        return
    for config in configs:
        side = knn.PIXEL_SIDE if isinstance(config, KnnConfig) else probe.PIXEL_SIDE
        pixels = shared.pixel_candidate(setting, side=side, workers=config.workers, bar=bar)
        assert pixels is not None
        yield pixels if cell.key == PIXELS else shared.principal_components(pixels, NUM_COMPONENTS)


def write(judged: Candidate, config: JudgeConfig, setting: Setting) -> None:
    """Score the features, and write the result as the command itself would."""
    command = command_of(config)
    scored: Iterator[tuple[Row, Tensor]]
    if isinstance(config, KnnConfig):
        scored = knn.scored(judged, config, setting)
    else:
        scored = probe.scored(judged, config, setting)
    pairs = list(scored)
    counts = [(row, votes) for row, votes in pairs if row.notes.get("k") in (None, knn.USUAL_K)]
    row, votes = next(pair for pair in counts if pair[0].token in (setting.pool, "pixels"))
    predicted = votes.argmax(dim=1)
    with terminal.output({"quiet"}):
        shared.report(
            config,
            setting,
            [row for row, _ in pairs],
            row,
            predicted,
            (judged.train, judged.test),
            command=command,
            title="",
        )
