"""A trained detector on the disk: model.safetensors, and model.json that says how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torchvision.models.detection import FasterRCNN

from mvmae import encoders
from mvmae.encoders import OpenedEncoder, Preprocessing
from mvmae.encoders.product import encoder_from_facts
from mvmae.engine import checkpoint
from mvmae.errors import UserError
from mvmae.models.detector import DetectorShape, detector_of
from mvmae.tasks.detecting.state import Job, run_folder

FILE = "model.safetensors"
FORMAT = 1  # of model.json
TASK = "detect"


class OpenedDetector(NamedTuple):
    """A trained detector with what one must know to use it."""

    model: FasterRCNN
    shape: DetectorShape
    preprocessing: Preprocessing
    in_channels: int
    classes: list[str]
    ids: list[int]
    """Of the classes, in the annotations that were learnt."""


def save(job: Job, model: FasterRCNN) -> None:
    """Write model.safetensors and model.json into the run folder."""
    facts = {
        "format": FORMAT,
        "task": TASK,
        "encoder": encoders.facts_of(job.opened),
        "detector": job.shape._asdict(),
        "classes": job.data.train.classes,
        "category_ids": job.data.train.ids,
    }
    checkpoint.save_tensors(run_folder(job.config) / FILE, model.state_dict(), facts)


def open_detector(source: str) -> OpenedDetector:
    """A trained detector, ready to find things.

    Args:
        source: A finished run folder of `mvmae detect`, or its model.safetensors.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = Path(source)
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        hint = " (it has not finished: --resume it)" if (path / "checkpoints").is_dir() else ""
        raise UserError(f"{source} is no finished run of mvmae detect: there is no {file}{hint}")
    tensors, facts = checkpoint.load_tensors(file)
    if facts.get("task") != TASK:
        raise UserError(f"{file} is no detector: its .json says nothing of one")
    try:
        opened = encoder_from_facts(facts["encoder"], source=str(file))
        made = _built(opened, facts)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file}: its .json does not describe a detector: {error!r}") from error
    checkpoint.load_weights(made.model, tensors, source=str(file))
    made.model.eval()
    return made


def _built(opened: OpenedEncoder, facts: dict) -> OpenedDetector:
    shape = DetectorShape(**facts["detector"])
    classes, ids = [str(name) for name in facts["classes"]], [int(n) for n in facts["category_ids"]]
    if not len(classes) == len(ids) == shape.num_classes:
        raise ValueError(f"{len(classes)} classes, {len(ids)} ids, {shape.num_classes} scores")
    model = detector_of(opened.encoder, shape)
    channels = opened.encoder.in_channels
    return OpenedDetector(model, shape, opened.preprocessing, channels, classes, ids)
