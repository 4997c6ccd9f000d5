"""What a segmentation run is, and what it must remember to go on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, nn

from mvmae import encoders
from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_check import CheckedMasks
from mvmae.data.annotations.masks import SegmentationData, fingerprint
from mvmae.dense.segment.crops import CropSettings
from mvmae.dense.segment.evaluate import Predictor
from mvmae.dense.segment.model import Segmenter
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.training import distributed, loop
from mvmae.training.optim import layerwise_adamw
from mvmae.training.schedule import warmup_poly
from mvmae.training.state import State

COUNTED = ("step", "pending", "drawn", "unreadable", "judged_step")  # in a checkpoint as they are
REMEDY = "begin a new run with a lower --lr, or with --clip-grad 1"
MOST_AT_ONCE = 16  # windows in a test


class Plan(NamedTuple):
    """How long the run is, and on what."""

    per_epoch: int
    """Steps in which each image is seen once."""

    total: int
    fingerprint: str

    def place(self, step: int, batch_size: int) -> dict[str, Any]:
        """How far the run is after so many steps, in the units people compare."""
        epoch = round(step / self.per_epoch, 4)
        return {"step": step, "epoch": epoch, "images": step * batch_size}


class Job(NamedTuple):
    """What does not change in a run."""

    config: SegmentConfig
    opened: OpenedEncoder
    """The encoder to begin with; its weights become those that are trained."""

    data: SegmentationData
    checked: CheckedMasks
    plan: Plan
    device: torch.device

    def lr(self, step: int) -> float:
        """Learning rate of the heads in a step."""
        config = self.config
        return warmup_poly(
            step,
            peak=config.lr,
            warmup_steps=config.warmup_iterations,
            total_steps=self.plan.total,
            power=config.power,
        )

    def is_evaluation(self, step: int) -> bool:
        """Whether the test images are looked at after this step; the last has its own place."""
        return step < self.plan.total and step % self.config.eval_every == 0

    def training(self) -> CropSettings:
        """What happens to an image before it is trained on."""
        return training_of(self.config, self.opened)

    def examiner(self, model: nn.Module, *, multi_scale: bool = False) -> Predictor:
        """How the model looks at test images."""
        return examiner_of(self.config, self.opened, model, self.device, multi_scale=multi_scale)


class Trained(NamedTuple):
    """What the optimiser changes."""

    model: nn.Module
    """A `Segmenter`; batch norm of several GPUs is joined."""

    optimizer: torch.optim.Optimizer


class SegmentState(State):
    """What a step changes besides the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.judged_step = -1  # after which the test images were last looked at


def for_crops(config: SegmentConfig, opened: OpenedEncoder) -> OpenedEncoder:
    """An encoder for crops.

    Raises:
        UserError: The crop is not one of its sizes.
    """
    patch, crop = opened.encoder.patch_size, config.crop
    if crop % patch or crop < 2 * patch:
        near = max(2, round(crop / patch)) * patch
        raise UserError(
            f"crop {crop} is not a multiple of the encoder's patch size {patch}, of 2 at least: "
            f"set --crop {near}"
        )
    return opened._replace(encoder=encoders.resize_encoder(opened.encoder, crop))


def plan_of(config: SegmentConfig, data: SegmentationData) -> Plan:
    """Count the steps.

    Raises:
        UserError: There are fewer images than a batch needs, or the batch cannot be shared out.
    """
    loop.refuse_unequal_shares(config.batch_size, config.accumulate)
    count = len(data.train)
    if count < config.batch_size:
        raise UserError(
            f"{count} training images are fewer than a batch of {config.batch_size}: "
            f"set --batch-size {count} or less, or give more images"
        )
    return Plan(count // config.batch_size, config.iterations, fingerprint(data))


def training_of(config: SegmentConfig, opened: OpenedEncoder) -> CropSettings:
    """What happens to an image before it is trained on."""
    preprocessing = opened.preprocessing
    return CropSettings(
        config.seed,
        config.batch_size,
        config.crop,
        config.short_side,
        config.jitter,
        config.most_of_crop,
        config.flip == "horizontal",
        config.distort,
        preprocessing.interpolation,
        tuple(255 * value for value in preprocessing.mean),
    )


def examiner_of(
    config: SegmentConfig,
    opened: OpenedEncoder,
    model: nn.Module,
    device: torch.device,
    *,
    multi_scale: bool,
) -> Predictor:
    """How a model looks at test images."""
    return Predictor(
        model,
        opened.encoder.patch_size,
        config.crop,
        config.window_stride,
        config.short_side,
        opened.preprocessing,
        device,
        config.precision,
        min(config.batch_size, MOST_AT_ONCE),
        multi_scale,
    )


def trained_of(job: Job) -> Trained:
    """The model, on the device, and its optimiser."""
    config = job.config
    model: nn.Module = Segmenter(
        job.opened.encoder,
        len(job.data.classes),
        channels=config.channels,
        auxiliary_channels=config.auxiliary_channels if config.auxiliary_weight else None,
        dropout=config.dropout,
        drop_path=config.drop_path,
        recompute=config.recompute,
        generator=Generator().manual_seed(config.seed),
    ).to(job.device)
    if job.device.type == "cuda" and distributed.world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # there is none for CPUs
    optimizer = layerwise_adamw(
        model,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )
    return Trained(model, optimizer)


def save(state: SegmentState, job: Job, trained: Trained) -> None:
    """As `supervised.save`, which says what is raised."""
    loop.save(state, job.config, job.plan.fingerprint, trained._asdict(), COUNTED, REMEDY)


def resume(job: Job, trained: Trained) -> SegmentState:
    """As `supervised.resume`, which says what is raised."""
    state = SegmentState()
    loop.resume(state, job.config, job.plan.fingerprint, trained._asdict(), COUNTED, job.device)
    return state


def run_folder(config: SegmentConfig) -> Path:
    """Of a training run, which has one."""
    assert config.out is not None
    return config.out
