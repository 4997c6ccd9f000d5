"""A trained segmenter on the disk: model.safetensors, and model.json that says how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from mvmae import encoders
from mvmae.config import SegmentConfig
from mvmae.data.segmentation import Rule
from mvmae.encoders import OpenedEncoder
from mvmae.encoders.product import encoder_from_facts
from mvmae.engine import checkpoint
from mvmae.errors import UserError
from mvmae.models.upernet import Segmenter
from mvmae.tasks.segmenting.judging import Examiner
from mvmae.tasks.segmenting.state import Job, run_folder

FILE = "model.safetensors"
FORMAT = 1  # of model.json
TASK = "segment"


class OpenedSegmenter(NamedTuple):
    """A trained model with what one must know to use it."""

    model: Segmenter
    opened: OpenedEncoder
    """Its encoder."""

    classes: tuple[str, ...]
    rule: Rule
    """What values in the masks it was trained on mean, and in those it writes."""

    crop: int
    stride: int
    short_side: int | None


def save(job: Job, model: nn.Module) -> None:
    """Write model.safetensors and model.json into the run folder, and the encoder alone."""
    config, out = job.config, run_folder(job.config)
    facts = {
        "format": FORMAT,
        "task": TASK,
        "encoder": encoders.facts_of(job.opened),
        "classes": list(job.data.classes),
        "ignored": job.data.test.rule.ignored,
        "channels": config.channels,
        "auxiliary_channels": config.auxiliary_channels if config.auxiliary_weight else None,
        "crop": config.crop,
        "stride": config.window_stride,
        "short_side": config.short_side,
    }
    checkpoint.save_tensors(out / FILE, model.state_dict(), facts)
    encoders.save_encoder(out, job.opened)


def open_segmenter(source: str) -> OpenedSegmenter:
    """A trained model, ready to name pixels.

    Args:
        source: A finished run folder of `mvmae segment`, or its model.safetensors.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = Path(source)
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        hint = " (it has not finished: --resume it)" if (path / "checkpoints").is_dir() else ""
        raise UserError(f"{source} is no finished run of mvmae segment: there is no {file}{hint}")
    tensors, facts = checkpoint.load_tensors(file)
    if facts.get("task") != TASK:
        raise UserError(f"{file} is no segmenter: its .json says nothing of one")
    try:
        opened = encoder_from_facts(facts["encoder"], source=str(file))
        classes, rule = tuple(map(str, facts["classes"])), Rule(facts["ignored"])
        model = Segmenter(
            opened.encoder,
            len(classes),
            channels=facts["channels"],
            auxiliary_channels=facts["auxiliary_channels"],
        )
        made = OpenedSegmenter(
            model.eval(),
            opened,
            classes,
            rule,
            facts["crop"],
            facts["stride"],
            facts["short_side"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file}: its .json does not describe a segmenter: {error!r}") from error
    checkpoint.load_weights(model, tensors, source=str(file))
    return made


def examiner_of(made: OpenedSegmenter, config: SegmentConfig, device: torch.device) -> Examiner:
    """How a trained model looks at images: as in its own tests, where `config` does not choose."""
    return Examiner(
        made.model.to(device),
        made.opened.encoder.patch_size,
        made.crop,
        made.stride,
        made.short_side,
        made.opened.preprocessing,
        device,
        config.precision,
        config.batch_size,
        config.multi_scale,
    )
