"""Messages, tables, pictures and result files of `segment`."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.masks import SegmentationData, fingerprint
from mvmae.dense.segment.evaluate import Evaluation
from mvmae.dense.train import Job, class_table, percent, write_picture
from mvmae.figures import segmentation
from mvmae.storage import results
from mvmae.training import distributed
from mvmae.training.loop import Loop

MAX_CONFUSION = 200  # classes up to which the JSON has the confusion matrix

SegmentJob = Job[SegmentConfig, SegmentationData]


def report(job: SegmentJob, evaluation: Evaluation, loop: Loop) -> dict[str, Any]:
    """Print the metrics; return the content of the result."""
    Console().print(table_of_classes(evaluation, job.data))
    loop.log.say(describe(evaluation))
    return result_content(evaluation, job.data)


def write_outputs(
    folder: Path,
    name: str,
    title: str,
    config: SegmentConfig,
    device: torch.device,
    data: SegmentationData,
    evaluation: Evaluation,
    **facts: Any,
) -> str:
    """Write result and picture of an evaluation that makes no run; return where they are."""
    world_size = distributed.world_size()
    file = results.write(
        *(folder, "segment", config, result_content(evaluation, data) | facts),
        device=device,
        world_size=world_size,
        name=f"{name}-{results.slug(data.name)}",
    )
    picture = write_picture(folder, name, draw(evaluation, data, title))
    return f"written: {file} and {picture}"


def result_content(evaluation: Evaluation, data: SegmentationData) -> dict[str, Any]:
    """Return the content of a result file: metrics, data and skipped images."""
    metrics = evaluation.scores
    pixels = evaluation.confusion.sum(dim=1).tolist()
    rows = zip(data.classes, metrics.iou.tolist(), metrics.accuracy.tolist(), pixels, strict=True)
    content = {
        "headline": evaluation.figures(),
        "per_class": [
            {
                "class": name,
                "iou": None if isnan(iou) else round(iou, 4),
                "accuracy": None if isnan(accuracy) else round(accuracy, 4),
                "pixels": count,
            }
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
    if len(data.classes) <= MAX_CONFUSION:  # 1,000 classes would be a million numbers
        content["confusion"] = evaluation.confusion.tolist()
    return content


def table_of_classes(evaluation: Evaluation, data: SegmentationData) -> Table:
    """Return a table of each class's share of the pixels, IoU and accuracy, largest class first."""
    metrics, pixels = evaluation.scores, evaluation.confusion.sum(dim=1)
    total = max(1, int(pixels.sum()))
    rows = [
        (
            data.classes[at],
            f"{100 * int(pixels[at]) / total:.1f}",
            percent(metrics.iou[at].item()),
            percent(metrics.accuracy[at].item()),
        )
        for at in pixels.argsort(descending=True, stable=True).tolist()
    ]
    table = class_table(("share", "IoU", "accuracy"), rows)
    table.add_section()
    table.add_row("mean", "", f"{metrics.miou:.1f}", f"{metrics.mean_accuracy:.1f}")
    return table


def describe(evaluation: Evaluation) -> str:
    """State the three metrics in one sentence, and what the mean leaves out."""
    metrics = evaluation.scores
    absent = int(metrics.iou.isnan().sum())
    left_out = (
        f"; classes left out of the mean, neither in the masks nor predicted: {absent}"
        if absent
        else ""
    )
    return (
        f"mIoU {metrics.miou:.1f}, mean accuracy {metrics.mean_accuracy:.1f}, pixel accuracy "
        f"{metrics.pixel_accuracy:.1f} (in %, over the pixels of all test images{left_out})"
    )


def draw(evaluation: Evaluation, data: SegmentationData, title: str) -> bytes:
    """Draw masks and predictions of some test images, as PNG."""
    miou = evaluation.scores.miou
    note = (
        f"test images, evenly spaced over {data.name}; mIoU of all {len(data.test)}: {miou:.1f} %"
    )
    return segmentation.draw(evaluation.shown, data.classes, title=title, note=note)
