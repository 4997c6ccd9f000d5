"""How long a run is, and what is due after which step."""

from __future__ import annotations

from typing import Any, NamedTuple

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.sources.base import Source, fingerprint
from mvmae.errors import UserError
from mvmae.training import distributed
from mvmae.training.schedule import warmup_cosine


class Plan(NamedTuple):
    """How long the run is, and on what."""

    per_epoch: int
    """Steps in an epoch."""

    total: int
    """Steps in the run."""

    fingerprint: str
    """Of the images."""

    def lr(self, step: int, config: PretrainConfig) -> float:
        """Learning rate of a step."""
        warmup = self.warmup(config)
        return warmup_cosine(step, peak=config.lr, warmup_steps=warmup, total_steps=self.total)

    def warmup(self, config: PretrainConfig) -> int:
        """Steps in which the learning rate rises."""
        return round(config.warmup_epochs * self.per_epoch)

    def place(self, step: int, config: PretrainConfig) -> dict[str, Any]:
        """How far the run is after so many steps, in the units people compare."""
        epoch = round(step / self.per_epoch, 4)
        return {"step": step, "epoch": epoch, "images": step * config.batch_size}

    def kept_as(self, step: int, config: PretrainConfig) -> str | None:
        """The name by which the checkpoint after this step is kept for good, if it is."""
        if config.keep_every is None or step % (config.keep_every * self.per_epoch):
            return None
        width = len(str(config.epochs))
        return f"epoch-{step // self.per_epoch:0{width}}.pt"

    def is_evaluation(self, step: int, config: PretrainConfig) -> bool:
        """Whether the encoder is judged after this step."""
        return step == self.total or step % (config.eval_every * self.per_epoch) == 0


def plan_of(config: PretrainConfig, source: Source) -> Plan:
    """Count the steps.

    Raises:
        UserError: There are fewer images than a batch needs, or the batch cannot be shared out.
    """
    per_epoch = steps_of_epoch(config, len(source))
    return Plan(per_epoch, per_epoch * config.epochs, fingerprint(source))


def steps_of_epoch(config: PretrainConfig, num_images: int) -> int:
    """Batches that so many images fill.

    Raises:
        UserError: As `plan_of`.
    """
    processes = distributed.world_size()
    if config.batch_size % processes:
        near = max(1, config.batch_size // processes) * processes
        raise UserError(
            f"batch_size {config.batch_size} cannot be shared by {processes} processes: {near} can"
        )
    per_epoch = num_images // config.batch_size
    if num_images == 1:
        raise UserError(
            "there is 1 image, too few to learn from: give more (an array of many images is named "
            "itself, folder/stack.npy)"
        )
    if per_epoch == 0:
        raise UserError(
            f"{num_images} images are fewer than a batch of {config.batch_size}: "
            f"set --batch-size {num_images} or less, or give more images"
        )
    return per_epoch
