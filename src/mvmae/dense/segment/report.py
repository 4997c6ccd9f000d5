"""What `segment` says and leaves: figures of each class, pictures, JSON."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.masks import SegmentationData, fingerprint
from mvmae.dense.segment.evaluate import Evaluation
from mvmae.dense.segment.opening import data_name, describe_data, describe_values
from mvmae.dense.segment.state import Job, SegmentState, Trained, run_folder
from mvmae.figures import segmentation
from mvmae.storage import results
from mvmae.storage import run_folder as runs
from mvmae.training import checkpoint, distributed
from mvmae.training.log import Log

MOST_ROWS = 30  # classes in the table on the screen
MOST_CONFUSED = 200  # classes up to which the JSON has the confusion matrix


def report_start(log: Log, job: Job, trained: Trained, state: SegmentState) -> None:
    """Say what is about to happen."""
    config = job.config
    size = sum(p.numel() for p in trained.model.parameters()) / 1e6
    log.say(describe_data(job.data, job.checked))
    log.say(f"values in the masks: {describe_values(job.checked, job.data.classes)}")
    log.say(
        f"{config.encoder} with UperNet of {config.channels} channels, {size:.1f} M parameters, "
        f"crops of {config.crop} pixels"
    )
    resumed = f", from step {state.step}" if state.step else ""
    passes = config.iterations / job.plan.per_epoch
    log.say(
        f"{config.iterations} steps of {config.batch_size} crops, {passes:.0f} passes over the "
        f"images{resumed} -> {config.out}"
    )


def report_result(log: Log, job: Job, judgement: Evaluation, state: SegmentState) -> None:
    """The figures, on the screen and in files, and what to do next."""
    config, out = job.config, run_folder(job.config)
    runs.append_skipped(out, judgement.skipped)
    Console().print(class_table(judgement, job.data))
    log.say(summary(judgement))
    content = result_content(judgement, job.data) | {
        "world_size": distributed.world_size(),
        "seconds": round(log.seconds(), 1),
    }
    file = write_result(out, config, content, job.device, what="segment")
    picture = write_picture(
        out, judgement, job.data, title=f"{config.encoder} on {data_name(config)}"
    )
    if state.unreadable or judgement.skipped:
        log.say(f"images that could not be read: {out / 'skipped.csv'}")
    minutes, seconds = divmod(round(log.seconds()), 60)
    log.say(f"{state.step} steps in {minutes}:{seconds:02}. Written: {file} and {picture}")
    log.say(f"Segment other images: mvmae segment {out} --predict IMAGES --out FOLDER")


def write_result(
    folder: Path, config: SegmentConfig, content: dict[str, Any], device: Any, *, what: str
) -> Path:
    """The JSON in results/: `what` and the data's name make its name."""
    name = f"{what}-{results.slug(data_name(config))}"
    return results.write(folder, "segment", config, content, device=device, name=name)


def result_content(judgement: Evaluation, data: SegmentationData) -> dict[str, Any]:
    """What a result says of a judgement."""
    own = judgement.quality
    pixels = judgement.confusion.sum(dim=1).tolist()
    rows = zip(data.classes, own.iou.tolist(), own.accuracy.tolist(), pixels, strict=True)
    content = {
        "headline": judgement.figures(),
        "per_class": [
            {"class": name, "iou": _plain(iou), "accuracy": _plain(accuracy), "pixels": count}
            for name, iou, accuracy, count in rows
        ],
        "data": {
            "name": data.name,
            "fingerprint": fingerprint(data),
            "split": data.split,
            "num_train": len(data.train),
            "num_test": len(data.test) - len(judgement.skipped),
            "classes": list(data.classes),
            "ignored_value": data.test.rule.ignored,
        },
        "skipped": [skip._asdict() for skip in judgement.skipped],
    }
    if len(data.classes) <= MOST_CONFUSED:
        content["confusion"] = judgement.confusion.tolist()
    return content


def _plain(value: float) -> float | None:
    return None if isnan(value) else round(value, 4)


def class_table(judgement: Evaluation, data: SegmentationData) -> Table:
    """A row a class, the most frequent first; of many classes the best and the worst."""
    own = judgement.quality
    pixels = judgement.confusion.sum(dim=1)
    total = max(1, int(pixels.sum()))
    table = Table()
    table.add_column("class")
    for column in ("share", "IoU", "accuracy"):
        table.add_column(column, justify="right")
    order = pixels.argsort(descending=True, stable=True).tolist()
    for number in order[:MOST_ROWS]:
        table.add_row(
            escape(data.classes[number]),
            f"{100 * int(pixels[number]) / total:.1f}",
            _shown(own.iou[number].item()),
            _shown(own.accuracy[number].item()),
        )
    if len(order) > MOST_ROWS:
        table.add_row(f"and {len(order) - MOST_ROWS} rarer classes", "", "", "")
    table.add_section()
    table.add_row("mean", "", f"{own.miou:.1f}", f"{own.mean_accuracy:.1f}")
    return table


def _shown(value: float) -> str:
    return "-" if isnan(value) else f"{value:.1f}"


def summary(judgement: Evaluation) -> str:
    """The three figures, and what the mean leaves out."""
    own = judgement.quality
    absent = int(own.iou.isnan().sum())
    left_out = (
        f"; {absent} {'class is' if absent == 1 else 'classes are'} neither in the masks nor "
        "predicted, and left out of the mean"
        if absent
        else ""
    )
    return (
        f"mIoU {own.miou:.1f}, mean accuracy {own.mean_accuracy:.1f}, pixel accuracy "
        f"{own.pixel_accuracy:.1f} (in %, over the pixels of all test images{left_out})"
    )


def write_picture(
    folder: Path,
    judgement: Evaluation,
    data: SegmentationData,
    *,
    title: str,
    name: str = "segmentations",
) -> Path:
    """Write figures/NAME.png."""
    file = folder / "figures" / f"{name}.png"
    runs.make(file.parent)
    png = draw_evaluation(judgement, data, title)
    checkpoint.write_whole(file, lambda stream: stream.write(png))
    return file


def draw_evaluation(judgement: Evaluation, data: SegmentationData, title: str) -> bytes:
    """Some test images with truth and prediction."""
    own = judgement.quality
    count = len(data.test)
    note = f"test images evenly spread over {data.name}; mIoU of all {count}: {own.miou:.1f} %"
    return segmentation.draw(judgement.shown, data.classes, title=title, note=note)
