"""What a detection run is, and what it must remember to go on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torchvision.models.detection import FasterRCNN

from mvmae.config.detect import DetectConfig
from mvmae.dense.detect.batches import Jitter
from mvmae.dense.detect.model import DetectorShape, build_detector, synchronise_norms
from mvmae.dense.detect.opening import Detection
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.training import distributed, loop
from mvmae.training.optim import layerwise_adamw
from mvmae.training.schedule import warmup_cosine, warmup_drops
from mvmae.training.state import State

COUNTED = ("step", "pending", "drawn", "unreadable", "judged_step")  # in a checkpoint as they are
REMEDY = "begin a new run with a lower --lr, or with --clip-grad 1"
TERMS = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")


class Plan(NamedTuple):
    """How long the run is, and on what."""

    per_epoch: int
    """Steps in an epoch."""

    total: int
    """Steps in the run."""

    fingerprint: str
    """Of the images and the annotations."""

    def place(self, step: int, config: DetectConfig) -> dict[str, Any]:
        """How far the run is after so many steps, in the units people compare."""
        epoch = round(step / self.per_epoch, 4)
        return {"step": step, "epoch": epoch, "images": step * config.batch_size}


class Job(NamedTuple):
    """What does not change in a run."""

    config: DetectConfig
    opened: OpenedEncoder
    """The encoder to begin with; its weights are not trained, a copy's are."""

    data: Detection
    plan: Plan
    device: torch.device

    @property
    def shape(self) -> DetectorShape:
        """What is built on the encoder."""
        return shape_of(self.config, self.data)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the losses."""
        return tuple(t for t in TERMS if self.data.with_masks or t != "loss_mask")

    def lr(self, step: int) -> float:
        """Learning rate of the last layers in a step."""
        config, plan = self.config, self.plan
        warmup = config.warmup_steps
        if warmup is None:
            warmup = round(config.warmup_epochs * plan.per_epoch)
        times = {"peak": config.lr, "warmup_steps": warmup, "total_steps": plan.total}
        if config.schedule == "cosine":
            return warmup_cosine(step, **times)
        return warmup_drops(step, drops=config.drops, **times)

    def is_evaluation(self, step: int) -> bool:
        """Whether the test images are looked at after this step; the last has its own place."""
        return step < self.plan.total and step % (self.config.eval_every * self.plan.per_epoch) == 0

    def jitter(self) -> Jitter:
        """What happens to an image before it is trained on."""
        config = self.config
        flips = config.flip == "horizontal"
        interpolation = self.opened.preprocessing.interpolation
        return Jitter(
            config.seed,
            config.batch_size,
            config.image_size,
            config.scale_jitter,
            flips,
            interpolation,
        )


class Trained(NamedTuple):
    """What the optimiser changes."""

    model: FasterRCNN
    optimizer: torch.optim.Optimizer


class DetectState(State):
    """What a step changes besides the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.judged_step = -1  # after which the test images were last looked at


def shape_of(config: DetectConfig, data: Detection) -> DetectorShape:
    """What is built on the encoder."""
    same = {name: getattr(config, name) for name in DetectorShape._fields if hasattr(config, name)}
    return DetectorShape(
        num_classes=len(data.train.classes),
        side=config.image_size,
        with_masks=data.with_masks,
        **same,
    )


def plan_of(config: DetectConfig, data: Detection) -> Plan:
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
    per_epoch = count // config.batch_size
    return Plan(per_epoch, per_epoch * config.epochs, data.fingerprint)


def trained_of(job: Job) -> Trained:
    """The model, on the device, and its optimiser."""
    config = job.config
    model = build_detector(
        job.opened.encoder,
        job.shape,
        seed=config.seed,
        drop_path=config.drop_path,
        recompute=config.recompute,
    ).to(job.device)
    if job.device.type == "cuda" and distributed.world_size() > 1:
        model = synchronise_norms(model)
    optimizer = layerwise_adamw(
        model,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )
    return Trained(model, optimizer)


def save(state: DetectState, job: Job, trained: Trained) -> None:
    """As `supervised.save`, which says what is raised."""
    loop.save(state, job.config, job.plan.fingerprint, trained._asdict(), COUNTED, REMEDY)


def resume(job: Job, trained: Trained) -> DetectState:
    """As `supervised.resume`, which says what is raised."""
    state = DetectState()
    loop.resume(state, job.config, job.plan.fingerprint, trained._asdict(), COUNTED, job.device)
    return state


def run_folder(config: DetectConfig) -> Path:
    """Of a training run, which has one."""
    assert config.out is not None
    return config.out
