"""Print and write what `finetune` finds: the weights, the figures, each prediction.

Shapes: Q test images, K classes.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor

from mvmae import encoders
from mvmae.config.files import command_line
from mvmae.config.finetune import FinetuneConfig
from mvmae.data.reading.loader import Skipped
from mvmae.data.sources.labelled import Labelled
from mvmae.encoders import OpenedEncoder
from mvmae.errors import pluralize
from mvmae.evaluation.finetune.classifier import Classifier, timm_keys
from mvmae.evaluation.result_text import MAX_CLASSES_WITHOUT_TOP5, class_accuracies, data_facts
from mvmae.metrics.accuracy import confusion_matrix, sampling_error, topk_accuracy
from mvmae.storage import results, run_folder
from mvmae.storage.atomic import write_bytes
from mvmae.training import checkpoint, distributed
from mvmae.training.loop import Loop
from mvmae.training.plan import Plan

NUM_WORST = 3  # classes printed


class Job(NamedTuple):
    """The parts of a run that do not change."""

    config: FinetuneConfig
    opened: OpenedEncoder
    """The initial encoder; training changes a copy of it."""

    data: Labelled
    plan: Plan
    device: torch.device


@dataclass
class Counters:
    """What a checkpoint holds besides weights and steps."""

    evaluated_step: int = -1
    """Step of the last evaluation."""

    best_top1: float = -1.0
    best_top5: float = 0.0
    best_epoch: float = 0.0


class Evaluation(NamedTuple):
    """The model's scores of the test images."""

    scores: Float[Tensor, "Q K"]
    indices: Int[Tensor, " Q"]
    """Indices of the images that could be read."""

    labels: Int[Tensor, " Q"]
    skipped: list[Skipped]

    def figures(self) -> dict[str, float]:
        """Accuracies in percent, and the mean cross-entropy."""
        top1, top5 = (topk_accuracy(self.scores, self.labels, k) for k in (1, 5))
        loss = F.cross_entropy(self.scores, self.labels).item()
        return {"top1": round(top1, 4), "top5": round(top5, 4), "test_loss": round(loss, 6)}


def introduce(loop: Loop, job: Job, model: Classifier) -> None:
    """Print what is about to run."""
    config, data = job.config, job.data
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    height, width = model.encoder.image_size
    loop.log.say(
        f"{len(data.train)} training and {len(data.test)} test images of "
        f"{len(data.train.classes)} classes ({data.split}); {config.encoder} with a head, "
        f"{millions:.1f} M parameters at {height} x {width}"
    )
    resumed = f", from step {loop.step}" if loop.step else ""
    loop.log.say(
        f"{pluralize(config.epochs, 'epoch')} of {pluralize(job.plan.per_epoch, 'step')} of "
        f"{pluralize(config.batch_size, 'image')}{resumed} -> {config.out}"
    )


def save_classifier(job: Job, name: str, model: Classifier) -> None:
    """Write NAME.safetensors with timm's keys, and NAME.json, which describes how to use it."""
    metadata = encoders.encoder_metadata(_as_opened(job, model)) | {
        "test_share": job.config.test_share,
        "classes": list(job.data.train.classes),
    }
    file = job.config.out / f"{name}.safetensors"
    checkpoint.save_tensors(file, timm_keys(model.state_dict()), metadata)


def save_final(job: Job, model: Classifier) -> None:
    """Write the final classifier, and its encoder alone."""
    save_classifier(job, "model", model)
    encoders.save_encoder(job.config.out, _as_opened(job, model))


def _as_opened(job: Job, model: Classifier) -> OpenedEncoder:
    return OpenedEncoder(model.encoder, job.opened.preprocessing, "mean", depth=job.opened.depth)


def conclude(loop: Loop, job: Job, evaluation: Evaluation, counters: Counters) -> None:
    """Print and write the figures, and suggest what to do next."""
    config, classes, log = job.config, list(job.data.test.classes), loop.log
    predictions = evaluation.scores.argmax(dim=1)
    confusion = confusion_matrix(predictions, evaluation.labels, len(classes))
    write_predictions(config.out / "predictions.csv", job, evaluation)
    file = write_result(job, evaluation, counters, confusion, log.seconds())
    last, count = evaluation.figures(), len(evaluation.labels)
    log.console.print(build_table(last, counters, config.epochs, len(classes)), soft_wrap=False)
    error = sampling_error(last["top1"] / 100, count)
    log.say(
        f"in %; chance level {100 / len(classes):.1f}; sampling error of one figure ±{error:.1f}; "
        "the best was selected on the test images and is therefore too optimistic: report the last"
    )
    if worst := describe_worst_classes(confusion, classes):
        log.say(worst)
    if loop.unreadable or evaluation.skipped:
        log.say(f"images that could not be read: {config.out / 'skipped.csv'}")
    minutes, seconds = divmod(round(log.seconds()), 60)
    log.say(f"{loop.step} steps in {minutes}:{seconds:02}. Written: {file}")
    log.say(
        f"See {config.out / 'predictions.csv'} for mistakes; the classifier is "
        f"{config.out / 'model.safetensors'} (timm's keys). To use the encoder alone: "
        f"mvmae knn {config.out} OTHER_LABELLED_IMAGES"
    )


def write_predictions(file: Path, job: Job, evaluation: Evaluation) -> None:
    """Write each test image with its class, the predicted class, and its probability (0 to 1)."""
    test, classes = job.data.test, job.data.test.classes
    best = evaluation.scores.softmax(dim=1).max(dim=1)
    rows = zip(
        evaluation.indices.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "predicted", "confidence"))
    for index, predicted, confidence in rows:
        label = classes[test.label(index)]
        writer.writerow((test.path(index), label, classes[predicted], f"{confidence:.4f}"))
    # Paths may contain bytes that are not UTF-8.
    write_bytes(file, text.getvalue().encode(errors="surrogateescape"))


def write_result(
    job: Job,
    evaluation: Evaluation,
    counters: Counters,
    confusion: Tensor,
    seconds: float,
) -> Path:
    """Write the JSON in the run's results/, and unreadable test images to skipped.csv."""
    config, data = job.config, job.data
    run_folder.append_skipped(config.out, evaluation.skipped)
    last = evaluation.figures()
    content = {
        # Options left out come from a recipe, and the default recipe depends on the machine.
        "command_line": f"{command_line('finetune', config)} --recipe paper-finetune",
        "headline": {"top1": last["top1"], "top5": last["top5"]}
        | {"best_top1": counters.best_top1, "best_epoch": counters.best_epoch},
        "per_class": class_accuracies(confusion, data.test.classes),
        "confusion": confusion.tolist(),
        "data": data_facts(data)
        | {"num_train": len(data.train), "num_test": len(evaluation.labels)},
        "skipped": [skip._asdict() for skip in evaluation.skipped],
        "world_size": distributed.world_size(),
        "seconds": round(seconds, 1),
    }
    return results.write(
        *(config.out, "finetune", config, content),
        device=job.device,
        world_size=distributed.world_size(),
    )


def build_table(last: dict[str, Any], counters: Counters, epochs: int, num_classes: int) -> Table:
    """Build the table of the last and the best weights."""
    has_top5 = num_classes > MAX_CLASSES_WITHOUT_TOP5
    table = Table()
    for column in ("weights", "epoch", "top-1", *(["top-5"] if has_top5 else []), "kept as"):
        table.add_column(column, justify="left" if column in ("weights", "kept as") else "right")
    rows = (
        ("last", epochs, last["top1"], last["top5"], "model"),
        (
            *("best on these images", counters.best_epoch),
            *(counters.best_top1, counters.best_top5, "best"),
        ),
    )
    for name, epoch, top1, top5, kept in rows:
        figures = [f"{top1:.1f}", *([f"{top5:.1f}"] if has_top5 else [])]
        table.add_row(name, f"{epoch:g}", *figures, f"{kept}.safetensors")
    return table


def describe_worst_classes(confusion: Int[Tensor, "K K"], classes: Sequence[str]) -> str:
    """Describe the classes of lowest accuracy and what they are mistaken for in one line."""
    accuracies = class_accuracies(confusion, classes)
    known = {name: value for name, value in accuracies.items() if value is not None and value < 100}
    described = []
    for name in sorted(known, key=lambda name: known[name])[:NUM_WORST]:
        number = list(classes).index(name)
        row = confusion[number].clone()
        row[number] = 0
        mistaken = classes[int(row.argmax())]
        described.append(f"{name} {known[name]:.1f} (often taken for {mistaken})")
    return f"worst classes: {', '.join(described)}" if described else ""
