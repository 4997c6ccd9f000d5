"""A trained segmenter on the disk: model.safetensors, and model.json that says how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from mvmae import encoders
from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_values import Rule
from mvmae.data.annotations.masks import EVERY_FIFTH_IMAGE_TESTS, hash_images
from mvmae.dense import saved_model
from mvmae.dense.segment.evaluate import Predictor
from mvmae.dense.segment.model import Segmenter
from mvmae.dense.segment.state import Job, run_folder
from mvmae.encoders import OpenedEncoder

COMMAND = "segment"


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
    learnt: frozenset[str]
    """Hashes of the images it was trained on, where no folder of their own says which they are."""

    @property
    def looks(self) -> dict[str, int | None]:
        """How it looks at images, by the config's fields."""
        return {"crop": self.crop, "stride": self.stride, "short_side": self.short_side}


def save(job: Job, model: nn.Module) -> None:
    """Write model.safetensors and model.json into the run folder, and the encoder alone."""
    config, out, data = job.config, run_folder(job.config), job.data
    facts = {
        "encoder": encoders.encoder_metadata(job.opened),
        "classes": list(data.classes),
        "ignored": data.test.rule.ignored,
        "foreground": data.test.rule.foreground,
        "channels": config.channels,
        "auxiliary_channels": config.auxiliary_channels if config.auxiliary_weight else None,
        "crop": config.crop,
        "stride": config.window_stride,
        "short_side": config.short_side,
        "learnt": hash_images(data.train) if data.split == EVERY_FIFTH_IMAGE_TESTS else [],
    }
    saved_model.save_model(out, COMMAND, facts, model)
    encoders.save_encoder(out, job.opened)


def open_segmenter(source: str) -> OpenedSegmenter:
    """A trained model, ready to name pixels.

    Args:
        source: A finished run folder of `mvmae segment`, or its model.safetensors.

    Raises:
        UserError: There is none, or it is damaged.
    """
    return saved_model.open_model(source, COMMAND, "segmenter", _built)


def _built(facts: Mapping[str, Any], opened: OpenedEncoder) -> OpenedSegmenter:
    classes = tuple(map(str, facts["classes"]))
    model = Segmenter(
        opened.encoder,
        len(classes),
        channels=facts["channels"],
        auxiliary_channels=facts["auxiliary_channels"],
    )
    rule = Rule(facts["ignored"], facts.get("foreground"))
    looks = facts["crop"], facts["stride"], facts["short_side"]
    return OpenedSegmenter(model, opened, classes, rule, *looks, frozenset(facts.get("learnt", ())))


def examiner_of(made: OpenedSegmenter, config: SegmentConfig, device: torch.device) -> Predictor:
    """How a trained model looks at images: as in its own tests, where `config` does not choose."""
    return Predictor(
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
