"""A trained detector on the disk: model.safetensors, and model.json that says how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torchvision.models.detection import FasterRCNN

from mvmae import encoders
from mvmae.dense import saved_model
from mvmae.dense.detect.model import DetectorShape, build_detector
from mvmae.dense.detect.state import Job, run_folder
from mvmae.encoders import OpenedEncoder, Preprocessing

COMMAND = "detect"


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
        "encoder": encoders.encoder_metadata(job.opened),
        "detector": job.shape._asdict(),
        "classes": job.data.train.classes,
        "category_ids": job.data.train.ids,
    }
    saved_model.save_model(run_folder(job.config), COMMAND, facts, model)


def open_detector(source: str) -> OpenedDetector:
    """A trained detector, ready to find things.

    Args:
        source: A finished run folder of `mvmae detect`, or its model.safetensors.

    Raises:
        UserError: There is none, or it is damaged.
    """
    return saved_model.open_model(source, COMMAND, "detector", _built)


def _built(facts: Mapping[str, Any], opened: OpenedEncoder) -> OpenedDetector:
    shape = DetectorShape(**facts["detector"])
    classes, ids = [str(name) for name in facts["classes"]], [int(n) for n in facts["category_ids"]]
    if not len(classes) == len(ids) == shape.num_classes:
        raise ValueError(f"{len(classes)} classes, {len(ids)} ids, {shape.num_classes} scores")
    model = build_detector(opened.encoder, shape)
    channels = opened.encoder.in_channels
    return OpenedDetector(model, shape, opened.preprocessing, channels, classes, ids)
