"""Messages, tables, pictures and result files of `segment`."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_check import CheckedMasks, describe_values
from mvmae.data.annotations.masks import SegmentationData, fingerprint
from mvmae.dense.segment.data import data_name, describe_data
from mvmae.dense.segment.evaluate import Evaluation
from mvmae.dense.train import Job, count_parameters, report_files
from mvmae.figures import segmentation
from mvmae.storage import atomic, results
from mvmae.storage import run_folder as runs
from mvmae.training import distributed
from mvmae.training.log import Log
from mvmae.training.loop import Loop

MAX_ROWS = 30  # classes in the printed table
MAX_CONFUSION = 200  # classes up to which the JSON has the confusion matrix

SegmentJob = Job[SegmentConfig, SegmentationData]


def report_start(
    job: SegmentJob, checked: CheckedMasks, model: nn.Module, log: Log, step: int
) -> None:
    """Print data, model and length of the run."""
    config = job.config
    log.say(describe_data(job.data, checked))
    log.say(f"values in the masks: {describe_values(checked, job.data.classes)}")
    log.say(
        f"{config.encoder} with UperNet of {config.channels} channels, "
        f"{count_parameters(model) / 1e6:.1f} M parameters, crops of {config.crop} pixels"
    )
    resumed = f", from step {step}" if step else ""
    epochs = config.iterations / job.plan.per_epoch
    log.say(
        f"{config.iterations} steps of {config.batch_size} crops, {epochs:.0f} epochs{resumed} "
        f"-> {config.out}"
    )


def report_result(job: SegmentJob, loop: Loop, evaluation: Evaluation) -> None:
    """Write result and picture; print the metrics and what to do next."""
    config, data = job.config, job.data
    runs.append_skipped(job.folder, evaluation.skipped)
    Console().print(class_table(evaluation, data))
    loop.log.say(summary(evaluation))
    content = result_content(evaluation, data) | {
        "world_size": distributed.world_size(),
        "seconds": round(loop.log.seconds(), 1),
    }
    file = write_result(job.folder, config, content, job.device, what="segment")
    title = f"{config.encoder} on {data_name(config)}"
    picture = write_picture(job.folder, evaluation, data, title=title)
    report_files(loop, evaluation.skipped, [file, picture])
    loop.log.say(f"Segment other images: mvmae segment {job.folder} --predict IMAGES --out FOLDER")


def write_result(
    folder: Path, config: SegmentConfig, content: dict[str, Any], device: torch.device, *, what: str
) -> Path:
    """Write a JSON file in results/, named after `what` and the data."""
    name = f"{what}-{results.slug(data_name(config))}"
    return results.write(
        *(folder, "segment", config, content),
        device=device,
        world_size=distributed.world_size(),
        name=name,
    )


def result_content(evaluation: Evaluation, data: SegmentationData) -> dict[str, Any]:
    """Return the content of a result file: metrics, data and skipped images."""
    metrics = evaluation.scores
    pixels = evaluation.confusion.sum(dim=1).tolist()
    rows = zip(data.classes, metrics.iou.tolist(), metrics.accuracy.tolist(), pixels, strict=True)
    content = {
        "headline": evaluation.figures(),
        "per_class": [
            {"class": name, "iou": _round(iou), "accuracy": _round(accuracy), "pixels": count}
            for name, iou, accuracy, count in rows
        ],
        "data": {
            "name": data.name,
            "fingerprint": fingerprint(data),
            "split": data.split,
            "num_train": len(data.train),
            "num_test": len(data.test) - len(evaluation.skipped),
            "classes": list(data.classes),
            "ignored_value": data.test.rule.ignored,
        },
        "skipped": [skip._asdict() for skip in evaluation.skipped],
    }
    if len(data.classes) <= MAX_CONFUSION:
        content["confusion"] = evaluation.confusion.tolist()
    return content


def _round(value: float) -> float | None:
    return None if isnan(value) else round(value, 4)


def class_table(evaluation: Evaluation, data: SegmentationData) -> Table:
    """Return a table of each class's share of the pixels, IoU and accuracy, largest class first."""
    metrics = evaluation.scores
    pixels = evaluation.confusion.sum(dim=1)
    total = max(1, int(pixels.sum()))
    table = Table()
    table.add_column("class")
    for column in ("share", "IoU", "accuracy"):
        table.add_column(column, justify="right")
    order = pixels.argsort(descending=True, stable=True).tolist()
    for number in order[:MAX_ROWS]:
        table.add_row(
            escape(data.classes[number]),
            f"{100 * int(pixels[number]) / total:.1f}",
            _percent(metrics.iou[number].item()),
            _percent(metrics.accuracy[number].item()),
        )
    if len(order) > MAX_ROWS:
        table.add_row(f"and {len(order) - MAX_ROWS} rarer classes", "", "", "")
    table.add_section()
    table.add_row("mean", "", f"{metrics.miou:.1f}", f"{metrics.mean_accuracy:.1f}")
    return table


def _percent(value: float) -> str:
    return "-" if isnan(value) else f"{value:.1f}"


def summary(evaluation: Evaluation) -> str:
    """State the three metrics in one sentence, and what the mean leaves out."""
    metrics = evaluation.scores
    absent = int(metrics.iou.isnan().sum())
    left_out = (
        f"; {absent} {'class is' if absent == 1 else 'classes are'} neither in the masks nor "
        "predicted, and left out of the mean"
        if absent
        else ""
    )
    return (
        f"mIoU {metrics.miou:.1f}, mean accuracy {metrics.mean_accuracy:.1f}, pixel accuracy "
        f"{metrics.pixel_accuracy:.1f} (in %, over the pixels of all test images{left_out})"
    )


def write_picture(
    folder: Path,
    evaluation: Evaluation,
    data: SegmentationData,
    *,
    title: str,
    name: str = "segmentations",
) -> Path:
    """Write figures/NAME.png."""
    file = folder / "figures" / f"{name}.png"
    runs.make(file.parent)
    png = draw_evaluation(evaluation, data, title)
    atomic.write_bytes(file, png)
    return file


def draw_evaluation(evaluation: Evaluation, data: SegmentationData, title: str) -> bytes:
    """Draw masks and predictions of some test images, as PNG."""
    miou = evaluation.scores.miou
    note = (
        f"test images, evenly spaced over {data.name}; mIoU of all {len(data.test)}: {miou:.1f} %"
    )
    return segmentation.draw(evaluation.shown, data.classes, title=title, note=note)
