"""What `finetune` says and leaves: the weights, the figures, each prediction.

Shapes: Q test images, K classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from math import isnan, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor

from mvmae import encoders
from mvmae.config.files import command_line
from mvmae.data.reading.loader import Skipped
from mvmae.encoders import OpenedEncoder
from mvmae.errors import counted
from mvmae.evaluation.finetune.classifier import Classifier, timm_keys
from mvmae.evaluation.finetune.state import FinetuneState, Job, Trained
from mvmae.metrics.accuracy import confusion_matrix, per_class_accuracy, topk_accuracy
from mvmae.storage import atomic, results, run_folder
from mvmae.training import checkpoint, distributed
from mvmae.training.log import Log

WORST = 3  # classes named on the screen
FEW_CLASSES = 5  # up to which top-5 says nothing


class Judgement(NamedTuple):
    """What the model makes of the test images."""

    scores: Float[Tensor, "Q K"]
    indices: Int[Tensor, " Q"]
    """Places of the images that could be read."""

    labels: Int[Tensor, " Q"]
    skipped: list[Skipped]

    def figures(self) -> dict[str, float]:
        """Accuracies in percent, and the mean cross-entropy."""
        top1, top5 = (topk_accuracy(self.scores, self.labels, k) for k in (1, 5))
        loss = F.cross_entropy(self.scores, self.labels).item()
        return {"top1": round(top1, 4), "top5": round(top5, 4), "test_loss": round(loss, 6)}


def introduce(log: Log, job: Job, trained: Trained, state: FinetuneState) -> None:
    """Say what is about to happen."""
    config, data = job.config, job.data
    size = sum(p.numel() for p in trained.model.parameters()) / 1e6
    height, width = trained.model.encoder.image_size
    log.say(
        f"{len(data.train)} images of {len(data.train.classes)} classes learn, {len(data.test)} "
        f"test ({data.split}); {config.encoder} with a head, {size:.1f} M parameters at "
        f"{height} x {width}"
    )
    resumed = f", from step {state.step}" if state.step else ""
    log.say(
        f"{counted(config.epochs, 'epoch')} of {counted(job.plan.per_epoch, 'step')} of "
        f"{counted(config.batch_size, 'image')}{resumed} -> {config.out}"
    )


def save_classifier(job: Job, name: str, model: Classifier) -> None:
    """Write NAME.safetensors, with timm's keys, and NAME.json, which says how to use it."""
    facts = encoders.encoder_metadata(_body(job, model)) | {
        "test_share": job.config.test_share,
        "classes": list(job.data.train.classes),
    }
    file = job.config.out / f"{name}.safetensors"
    checkpoint.save_tensors(file, timm_keys(model.state_dict()), facts)


def keep(job: Job, model: Classifier) -> None:
    """Write the classifier as it is at the end, and its encoder."""
    save_classifier(job, "model", model)
    encoders.save_encoder(job.config.out, _body(job, model))


def _body(job: Job, model: Classifier) -> OpenedEncoder:
    return OpenedEncoder(model.encoder, job.opened.preprocessing, "mean", depth=job.opened.depth)


def conclude(log: Log, job: Job, judgement: Judgement, state: FinetuneState) -> None:
    """The figures, on the screen and in files, and what to do next."""
    config, classes = job.config, list(job.data.test.classes)
    predicted = judgement.scores.argmax(dim=1)
    confusion = confusion_matrix(predicted, judgement.labels, len(classes))
    write_predictions(config.out / "predictions.csv", job, judgement)
    file = write_result(log, job, judgement, state, confusion)
    last = judgement.figures()
    log.console.print(table_of(last, state, job, len(classes)), soft_wrap=False)
    log.say(_small_print(last["top1"] / 100, len(judgement.labels), len(classes)))
    if worst := worst_classes(confusion, classes):
        log.say(worst)
    if state.unreadable or judgement.skipped:
        log.say(f"images that could not be read: {config.out / 'skipped.csv'}")
    minutes, seconds = divmod(round(log.seconds()), 60)
    log.say(f"{state.step} steps in {minutes}:{seconds:02}. Written: {file}")
    log.say(
        f"Look at {config.out / 'predictions.csv'} for what is mistaken; the classifier is "
        f"{config.out / 'model.safetensors'} (timm's keys), the encoder alone: "
        f"mvmae knn {config.out} OTHER_LABELLED_IMAGES"
    )


def write_predictions(file: Path, job: Job, judgement: Judgement) -> None:
    """Each test image with its class, what it was taken for, and how surely (0 to 1)."""
    test, classes = job.data.test, job.data.test.classes
    surest = judgement.scores.softmax(dim=1).max(dim=1)
    rows = zip(
        judgement.indices.tolist(), surest.indices.tolist(), surest.values.tolist(), strict=True
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "predicted", "confidence"))
    for index, predicted, confidence in rows:
        own, other = classes[test.label(index)], classes[predicted]
        writer.writerow((test.path(index), own, other, f"{confidence:.4f}"))
    # Paths may hold bytes that are no UTF-8.
    whole = text.getvalue().encode(errors="surrogateescape")
    atomic.write_bytes(file, whole)


def write_result(
    log: Log, job: Job, judgement: Judgement, state: FinetuneState, confusion: Tensor
) -> Path:
    """The JSON in the run's results/."""
    config, data = job.config, job.data
    run_folder.append_skipped(config.out, judgement.skipped)
    last = judgement.figures()
    content = {
        # What is not given comes from a recipe, and which one depends on the machine.
        "command_line": f"{command_line('finetune', config)} --recipe paper-finetune",
        "headline": {"top1": last["top1"], "top5": last["top5"]}
        | {"best_top1": state.best_top1, "best_epoch": state.best_epoch},
        "per_class": _by_class(confusion, data.test.classes),
        "confusion": confusion.tolist(),
        "data": {
            "name": data.test.name,
            "fingerprint": job.plan.fingerprint,
            "split": data.split,
            "num_train": len(data.train),
            "num_test": len(judgement.labels),
            "classes": list(data.test.classes),
        },
        "skipped": [skip._asdict() for skip in judgement.skipped],
        "world_size": distributed.world_size(),
        "seconds": round(log.seconds(), 1),
    }
    return results.write(config.out, "finetune", config, content, device=job.device)


def _by_class(confusion: Tensor, classes: Sequence[str]) -> dict[str, float | None]:
    """Accuracy of each class in percent; none for a class without a test image."""
    values = per_class_accuracy(confusion).tolist()
    return {
        name: None if isnan(value) else round(value, 4)
        for name, value in zip(classes, values, strict=True)
    }


def table_of(last: dict[str, Any], state: FinetuneState, job: Job, num_classes: int) -> Table:
    """The last weights and the best."""
    has_top5 = num_classes > FEW_CLASSES
    table = Table()
    for column in ("weights", "epoch", "top-1", *(["top-5"] if has_top5 else []), "kept as"):
        table.add_column(column, justify="left" if column in ("weights", "kept as") else "right")
    rows = (
        ("last", job.config.epochs, last["top1"], last["top5"], "model"),
        ("best on these images", state.best_epoch, state.best_top1, state.best_top5, "best"),
    )
    for name, epoch, top1, top5, kept in rows:
        figures = [f"{top1:.1f}", *([f"{top5:.1f}"] if has_top5 else [])]
        table.add_row(name, f"{epoch:g}", *figures, f"{kept}.safetensors")
    return table


def _small_print(share: float, count: int, num_classes: int) -> str:
    error = 100 * sqrt(share * (1 - share) / count)
    return (
        f"in %; chance {100 / num_classes:.1f}; sampling error of one figure ±{error:.1f}; the "
        "best is chosen on the test images and so too good: report the last"
    )


def worst_classes(confusion: Tensor, classes: Sequence[str]) -> str:
    """The classes of lowest accuracy and what they are taken for, as a sentence."""
    known = {n: v for n, v in _by_class(confusion, classes).items() if v is not None and v < 100}
    said = []
    for name in sorted(known, key=lambda name: known[name] or 0.0)[:WORST]:
        row = confusion[list(classes).index(name)].clone()
        row[list(classes).index(name)] = 0
        said.append(f"{name} {known[name]:.1f} (often taken for {classes[int(row.argmax())]})")
    return f"worst classes: {', '.join(said)}" if said else ""
