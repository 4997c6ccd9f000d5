"""What `pretrain` says of its steps: metrics, health, the verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvmae import encoders, terminal
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.sources.base import Source
from mvmae.errors import DivergedError, counted
from mvmae.method import health
from mvmae.method.model import HEAD_WIDTH, MaskedAutoencoder, View
from mvmae.storage import atomic, metrics_file
from mvmae.storage.metric_specs import in_order
from mvmae.storage.metrics_file import Column
from mvmae.training import distributed
from mvmae.training.log import Log
from mvmae.training.state import State


def introduce(
    log: Log, config: PretrainConfig, source: Source, model: MaskedAutoencoder, state: State
) -> None:
    """Say what is about to happen."""
    size = sum(p.numel() for p in model.encoder.parameters()) / 1e6
    height, width = config.model.height_width
    log.say(
        f"{counted(len(source), 'image')}, {config.model.encoder}/{config.model.patch_size} "
        f"of {size:.1f} M parameters at {height} x {width}, {config.model.num_visible} of "
        f"{config.model.num_patches} patches visible"
    )
    resumed = f", from step {state.step}" if state.step else ""
    log.say(
        f"{counted(config.epochs, 'epoch')} of "
        f"{counted(len(source) // config.batch_size, 'step')} of "
        f"{counted(config.batch_size, 'image')}{resumed} -> {config.out}"
    )


def interval_record(
    config: PretrainConfig,
    state: State,
    view: View,
    names: Iterable[str],
    groups: torch.Tensor | None = None,
) -> dict[str, float]:
    """Mean losses since the last line of metrics, and the health of the last step.

    Args:
        config: Of the run.
        state: Of the run.
        view: Of the last step.
        names: Of the losses, and of what they are compared with.
        groups: Of the images of the last step.

    Raises:
        DivergedError: A loss is not finite.
    """
    state.require_finite(config)
    means = torch.stack(state.pending).double().mean(dim=0)
    state.pending = []
    losses = distributed.mean_over_processes(means).tolist()
    state.last_record = dict(zip(names, losses, strict=True)) | health_of(view, config, groups)
    return state.last_record


@torch.no_grad()
def health_of(
    view: View, config: PretrainConfig, groups: torch.Tensor | None = None
) -> dict[str, float]:
    """What `health.verdict` reads of the embeddings, over all processes."""
    numbers = {}
    if config.objective.contrastive_weight > 0:
        views = view.embedding.float().chunk(config.views.num_views)
        z1, z2 = (distributed.gather_rows(z) for z in views[:2])
        all_groups = None if groups is None else distributed.gather_rows(groups.to(z1.device))
        numbers["chance"] = health.chance_level(len(z1), all_groups)
        numbers |= health.contrast_health(z1, z2, all_groups)
    return numbers


DIVERGED = "diverged"  # a status of health.json beside those of a verdict
EARLY = 100  # steps in which a healthy run may still embed all images alike


def warn_of_collapse(log: Log, state: State, record: Mapping[str, float], warmup: int) -> None:
    """Say at once, though not before the warm-up ends, that all images are embedded alike."""
    if state.warned or state.step < max(EARLY, warmup) or not health.is_collapsed(record):
        return
    state.warned = True
    alike, rank = record["negative_similarity"], record["effective_rank"]
    log.warn(
        f"warning: collapse at step {state.step}: views of different images are {alike:.2f} alike, "
        f"effective rank {rank:.1f}. A lower --base-lr or a larger --batch-size may help"
    )


def farewell(signal: int, config: PretrainConfig, state: State) -> str:
    """What to say when stopped."""
    name = {2: "SIGINT", 15: "SIGTERM"}.get(signal, f"signal {signal}")
    return (
        f"stopped by {name} after step {state.step}, saved. Go on with: "
        f"mvmae pretrain --resume --out {config.out}"
    )


@contextmanager
def divergence_kept(config: PretrainConfig) -> Iterator[None]:
    """Leave in health.json that the loss stopped being a number, where that stops the run.

    A run that goes on from before that point is no longer said to have diverged.
    """
    file = config.out / "health.json"
    if distributed.is_main() and _status_in(file) == DIVERGED:
        file.unlink()
    try:
        yield
    except DivergedError as error:
        if distributed.is_main():
            told = {"status": DIVERGED, "sentence": str(error), "step": error.step}
            atomic.write_json(file, told)
        raise


def _status_in(file: Path) -> str | None:
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError, AttributeError):
        return None


def conclude(log: Log, config: PretrainConfig, state: State) -> None:
    """The verdict, kept in health.json; how the run went, and what to do next."""
    record: dict[str, Any] = state.last_record
    width = config.model.size.width if config.model.head == "none" else HEAD_WIDTH
    verdict = health.verdict(record, width, config.model.in_channels, state.step)
    atomic.write_json(config.out / "health.json", verdict._asdict() | record)
    found = metrics_file.columns(metrics_file.read(config.out))
    log.end_bar()
    for label, said in summary(found, config, state, log.seconds()):
        log.say(f"{label:{LABEL}}{said}")
    if state.unreadable:
        log.warn(f"images that could not be read: {config.out / 'skipped.csv'}")
    log.say(f"health: {verdict.status}. {verdict.sentence}.")
    log.say(
        f"The encoder: {config.out / encoders.ENCODER_FILE}. Judge it: mvmae knn {config.out} "
        f"LABELLED_IMAGES"
    )
    log.say(f"How it went: mvmae curves {config.out}")
    told = {"command": "pretrain", "out": str(config.out), "steps": state.step}
    told |= {"encoder": str(config.out / encoders.ENCODER_FILE), "seconds": round(log.seconds(), 3)}
    told |= {"health": verdict.status, "sentence": verdict.sentence}
    terminal.emit("result", told | record | speed_of(found))


LABEL = 14  # columns before what is said of each


def summary(
    found: Mapping[str, Column], config: PretrainConfig, state: State, seconds: float
) -> Iterator[tuple[str, str]]:
    """How a finished run went, a line each: from the first line of its metrics to the last."""
    yield (
        "steps",
        (
            f"{state.step} of {counted(config.batch_size, 'image')}, "
            f"{counted(config.epochs, 'epoch')}"
        ),
    )
    speed = speed_of(found)
    fast = f", {speed['images_per_second']:.0f} images/s (median)" if speed else ""
    wait = f", {speed['data_wait']:.0%} of the time waiting for data" if speed else ""
    yield "time", f"{terminal.clock(seconds)}{fast}{wait}"
    for row in in_order(found):
        is_term = row.better == "lower" and row.name != "loss"
        if row.name == "loss" or (is_term and "contrastive" in found):  # one term is the loss
            first, last = found[row.name].y[[0, -1]]
            label = f"  {row.short}" if is_term else row.short
            yield label, f"{first:.3f} → {last:.3f}{_beside(found, row.name)}"
    if "knn_top1" in found:
        scores = found["knn_top1"].y
        before = f"{scores[0]:.1f} → " if len(scores) > 1 else ""
        yield "kNN top-1", f"{before}{scores[-1]:.1f} % on {config.eval_data}"


def _beside(found: Mapping[str, Column], name: str) -> str:
    """What one who knows nothing reaches."""
    compared = metrics_file.level(found, name)
    words = metrics_file.level_name(name)
    return f" ({words}: {compared.y[-1]:.3f})" if compared else ""


def speed_of(found: Mapping[str, Column]) -> dict[str, float]:
    """Median images a second, and the share of the time spent waiting for data."""
    if not {"images_per_second", "data_wait"} <= found.keys():
        return {}
    return {
        "images_per_second": float(np.nanmedian(found["images_per_second"].y)),
        "data_wait": round(float(np.nanmean(found["data_wait"].y)), 4),
    }
