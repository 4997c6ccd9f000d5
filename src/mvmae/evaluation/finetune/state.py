"""What a fine-tuning run is, and what it must remember to go on as if it had never stopped."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mvmae.config.finetune import FinetuneConfig
from mvmae.data.sources.base import fingerprint
from mvmae.data.sources.labelled import Labelled
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.evaluation.finetune.classifier import Classifier
from mvmae.training import supervised
from mvmae.training.optim import layerwise_adamw
from mvmae.training.schedule import warmup_cosine
from mvmae.training.state import State
from mvmae.training.supervised import refuse_unequal_shares

COUNTED = (  # of the state, what a checkpoint holds as it is
    *("step", "pending", "drawn", "unreadable"),
    *("judged_step", "best_top1", "best_top5", "best_epoch"),
)


REMEDY = "begin a new run with a lower --base-lr, or with --clip-grad 1"


class Plan(NamedTuple):
    """How long the run is, and on what."""

    per_epoch: int
    """Steps in an epoch."""

    total: int
    """Steps in the run."""

    fingerprint: str
    """Of the training images and of the test images."""

    def lr(self, step: int, config: FinetuneConfig) -> float:
        """Learning rate of the head in a step."""
        return warmup_cosine(
            step,
            peak=config.lr,
            warmup_steps=round(config.warmup_epochs * self.per_epoch),
            total_steps=self.total,
            final=config.min_lr,
        )

    def place(self, step: int, config: FinetuneConfig) -> dict[str, Any]:
        """How far the run is after so many steps, in the units people compare."""
        epoch = round(step / self.per_epoch, 4)
        return {"step": step, "epoch": epoch, "images": step * config.batch_size}

    def is_evaluation(self, step: int, config: FinetuneConfig) -> bool:
        """Whether the test images are looked at after this step; the last has its own place."""
        return step < self.total and step % (config.eval_every * self.per_epoch) == 0


def plan_of(config: FinetuneConfig, data: Labelled) -> Plan:
    """Count the steps.

    Raises:
        UserError: There are fewer images than a batch needs, or the batch cannot be shared out.
    """
    count = len(data.train)
    refuse_unequal_shares(config.batch_size, config.accumulate)
    if count < config.batch_size:
        raise UserError(
            f"{count} training images are fewer than a batch of {config.batch_size}: "
            f"set --batch-size {count} or less, or give more images"
        )
    per_epoch = count // config.batch_size
    both = f"{fingerprint(data.train)}-{fingerprint(data.test)}"
    return Plan(per_epoch, per_epoch * config.epochs, both)


class Job(NamedTuple):
    """What does not change in a run."""

    config: FinetuneConfig
    opened: OpenedEncoder
    """The encoder to begin with; its weights are not trained, a copy's are."""

    data: Labelled
    plan: Plan
    device: torch.device


class Trained(NamedTuple):
    """What the optimiser changes, and the average that follows it."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds the state of."""
        return {name: part for name, part in self._asdict().items() if part is not None}

    @property
    def product(self) -> Classifier:
        """What is judged and kept."""
        return self.average.module if self.average else self.model  # type: ignore[return-value]


def trained_of(model: Classifier, config: FinetuneConfig) -> Trained:
    """A model with its optimiser and, where asked for, the average of its weights."""
    optimizer = layerwise_adamw(
        model,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )
    if config.ema is None:
        return Trained(model, optimizer, None)
    follow = get_ema_multi_avg_fn(config.ema)
    return Trained(model, optimizer, AveragedModel(model, multi_avg_fn=follow))


class FinetuneState(State):
    """What a step changes besides the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.judged_step = -1  # after which the test images were last looked at
        self.best_top1, self.best_top5, self.best_epoch = -1.0, 0.0, 0.0


def save(state: FinetuneState, config: FinetuneConfig, trained: Trained, fingerprint: str) -> None:
    """As `supervised.save`, which says what is raised."""
    supervised.save(state, config, fingerprint, trained.parts, COUNTED, REMEDY)


def resume(config: FinetuneConfig, trained: Trained, fingerprint: str) -> FinetuneState:
    """As `supervised.resume`, which says what is raised."""
    state, device = FinetuneState(), next(trained.model.parameters()).device
    supervised.resume(state, config, fingerprint, trained.parts, COUNTED, device)
    return state
