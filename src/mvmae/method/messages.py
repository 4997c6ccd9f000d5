"""Messages of `pretrain`: its start, a collapse, the verdict, the summary."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mvmae import terminal
from mvmae.config.pretrain import PretrainConfig
from mvmae.encoders.encoder_json import ENCODER_FILE
from mvmae.errors import DivergedError, pluralize
from mvmae.method import health
from mvmae.method.model import HEAD_WIDTH, MaskedAutoencoder, View
from mvmae.storage import atomic, metrics_file
from mvmae.storage.metric_specs import sort_metrics
from mvmae.storage.metrics_file import Column
from mvmae.training import distributed
from mvmae.training.loop import Loop

DIVERGED = "diverged"  # a status of health.json besides those of a verdict
MIN_COLLAPSE_STEP = 100  # a healthy run may embed all images alike in its first steps
LABEL_WIDTH = 14  # characters


@dataclass
class Counters:
    """State of the messages, saved in checkpoints so that a resumed run continues with it."""

    last_record: dict[str, float] = field(default_factory=dict)
    """The newest losses, health and kNN accuracy."""

    warned: bool = False
    """Whether a collapse was reported."""


def introduce(
    loop: Loop,
    config: PretrainConfig,
    model: MaskedAutoencoder,
    num_images: int,
    notes: Sequence[str],
) -> None:
    """Print the size of the task and what was inferred."""
    size = sum(p.numel() for p in model.encoder.parameters()) / 1e6
    height, width = config.model.height_width
    resumed = f", from step {loop.step}" if loop.step else ""
    for line in (
        f"{pluralize(num_images, 'image')}, {config.model.encoder}/{config.model.patch_size} "
        f"with {size:.1f} M parameters at {height} x {width}, {config.model.num_visible} of "
        f"{config.model.num_patches} patches visible",
        f"{pluralize(config.epochs, 'epoch')} of {pluralize(loop.plan.per_epoch, 'step')} of "
        f"{pluralize(config.batch_size, 'image')}{resumed} -> {config.out}",
        *notes,
    ):
        loop.log.say(line)


@torch.no_grad()
def embedding_health(
    view: View, config: PretrainConfig, groups: Int[Tensor, " B"] | None
) -> dict[str, float]:
    """Measure `chance_level` and `contrast_health` on one step, over all processes.

    Every process must call this. More than two views are judged by the first two.

    Args:
        view: Output of the model for the V views of B images in this process: its V * B embeddings
            begin with the first view of each image, then the second.
        config: Options of the run.
        groups: Group of each image of this process.

    Returns:
        Empty if the run has no contrastive loss.
    """
    if config.objective.contrastive_weight == 0:
        return {}
    first, second = view.embedding.float().chunk(config.views.num_views)[:2]
    z1, z2 = distributed.gather_rows(first), distributed.gather_rows(second)
    all_groups = None if groups is None else distributed.gather_rows(groups.to(z1.device))
    chance = {"chance": health.chance_level(len(z1), all_groups)}
    return chance | health.contrast_health(z1, z2, all_groups)


def warn_of_collapse(loop: Loop, counters: Counters, warmup: int) -> None:
    """Warn once, after the warm-up, when all images are embedded alike."""
    record = counters.last_record
    is_early = loop.step < max(MIN_COLLAPSE_STEP, warmup)
    if counters.warned or is_early or not health.is_collapsed(record):
        return
    counters.warned = True
    similarity, rank = record["negative_similarity"], record["effective_rank"]
    loop.log.warn(
        f"warning: collapse at step {loop.step}: views of different images have a mean similarity "
        f"of {similarity:.2f}, effective rank {rank:.1f}. A lower --base-lr or a larger "
        "--batch-size may help"
    )


@contextmanager
def divergence_recorded(folder: Path) -> Iterator[None]:
    """Record in health.json at which step a diverging loss stopped the run.

    First delete such a record of an earlier attempt, because a resumed run starts before that step.
    """
    file = folder / "health.json"
    if distributed.is_main() and atomic.read_object(file).get("status") == DIVERGED:
        file.unlink()
    try:
        yield
    except DivergedError as error:
        if distributed.is_main():
            record = {"status": DIVERGED, "sentence": str(error), "step": error.step}
            atomic.write_json(file, record)
        raise


def conclude(loop: Loop, config: PretrainConfig, counters: Counters) -> None:
    """Write the verdict to health.json; print how the run went and what to do next."""
    log, record = loop.log, counters.last_record
    width = config.model.size.width if config.model.head == "none" else HEAD_WIDTH
    verdict = health.verdict(record, width, config.model.in_channels, loop.step)
    atomic.write_json(config.out / "health.json", verdict._asdict() | record)
    columns = metrics_file.columns(metrics_file.read(config.out))
    log.end_bar()
    for label, text in summary(columns, config, loop.step, log.seconds()):
        log.say(f"{label:{LABEL_WIDTH}}{text}")
    if loop.unreadable:
        log.warn(f"images that could not be read: {config.out / 'skipped.csv'}")
    encoder = config.out / ENCODER_FILE
    log.say(f"health: {verdict.status}. {verdict.sentence}.")
    log.say(f"The encoder: {encoder}. Judge it: mvmae knn {config.out} LABELLED_IMAGES")
    log.say(f"How it went: mvmae curves {config.out}")
    result: dict[str, Any] = {
        "command": "pretrain",
        "out": str(config.out),
        "steps": loop.step,
        "encoder": str(encoder),
        "seconds": round(log.seconds(), 3),
        "health": verdict.status,
        "sentence": verdict.sentence,
    }
    terminal.emit("result", result | record | speed(columns))


def summary(
    columns: Mapping[str, Column], config: PretrainConfig, steps: int, seconds: float
) -> Iterator[tuple[str, str]]:
    """Yield label and text of each line about a finished run, such as "loss" and "2.1 → 0.8"."""
    yield (
        "steps",
        f"{steps} of {pluralize(config.batch_size, 'image')}, {pluralize(config.epochs, 'epoch')}",
    )
    words = ""
    if found := speed(columns):
        words = (
            f", {found['images_per_second']:.0f} images/s (median), {found['data_wait']:.0%} of "
            "the time waiting for data"
        )
    yield "time", f"{terminal.clock(seconds)}{words}"
    losses = [row for row in sort_metrics(columns) if row.better == "lower"]
    for row in losses:
        is_term = row.name != "loss"
        # Plain MAE's only term is the loss itself; a contrast alone is shown for its chance level.
        if not is_term or len(losses) > 2 or row.name == "contrastive":
            first, last = columns[row.name].y[[0, -1]]
            level = metrics_file.level(columns, row.name)
            name = metrics_file.level_name(row.name)
            level_text = f" ({name}: {level.y[-1]:.3f})" if level else ""
            label = f"  {row.short}" if is_term else row.short
            yield label, f"{first:.3f} → {last:.3f}{level_text}"
    if "knn_top1" in columns:
        scores = columns["knn_top1"].y
        before = f"{scores[0]:.1f} → " if len(scores) > 1 else ""
        yield "kNN top-1", f"{before}{scores[-1]:.1f} % on {config.eval_data}"


def speed(columns: Mapping[str, Column]) -> dict[str, float]:
    """Median images per second, and the mean share of the time spent waiting for data."""
    if not {"images_per_second", "data_wait"} <= columns.keys():
        return {}
    return {
        "images_per_second": float(np.nanmedian(columns["images_per_second"].y)),
        "data_wait": round(float(np.nanmean(columns["data_wait"].y)), 4),
    }
