"""How long a run is, what is due after which step, and the learning rate of each step."""

from collections.abc import Sequence
from math import cos, pi
from typing import Any, NamedTuple

from mvmae.errors import UserError
from mvmae.training import distributed


class Plan(NamedTuple):
    """How long a run is, and what is due after which step."""

    per_epoch: int
    """Steps in which each image is seen once."""

    total: int
    """Steps in the run."""

    batch_size: int
    """Images in a step, over all processes."""

    fingerprint: str
    """Hash of the training images; a run resumes only with the same ones."""

    eval_every: int
    """Steps between two evaluations."""

    keep_every: int | None = None
    """Steps between two checkpoints that are kept for good."""

    def position(self, step: int) -> dict[str, Any]:
        """How far the run is after a step, in the units that people compare."""
        epoch = round(step / self.per_epoch, 4)
        return {"step": step, "epoch": epoch, "images": step * self.batch_size}

    def is_evaluation(self, step: int) -> bool:
        """Whether an evaluation is due after this step; the last step is always evaluated."""
        return step == self.total or step % self.eval_every == 0

    def name_to_keep(self, step: int) -> str | None:
        """File name under which the checkpoint after this step is kept for good, if it is."""
        if self.keep_every is None or step % self.keep_every:
            return None
        width = len(str(self.total // self.per_epoch))
        return f"epoch-{step // self.per_epoch:0{width}}.pt"


def steps_per_epoch(num_images: int, batch_size: int, accumulate: int = 1) -> int:
    """Count the full batches in an epoch; the images that remain are left out of it.

    Args:
        num_images: Training images.
        batch_size: Images in a step, over all processes.
        accumulate: Parts into which each process divides its share of the batch.

    Raises:
        UserError: There are fewer images than a batch needs, or the batch cannot be divided among
            the processes or into its parts.
    """
    processes = distributed.world_size()
    if batch_size % processes:
        near = max(1, batch_size // processes) * processes
        raise UserError(
            f"batch_size {batch_size} cannot be divided among {processes} processes: {near} can"
        )
    if accumulate > batch_size // processes:
        raise UserError(
            f"accumulate {accumulate} is more than the {batch_size // processes} images that a "
            "process has in a step"
        )
    if num_images < batch_size:
        raise UserError(
            f"{num_images} training images are fewer than a batch of {batch_size}: "
            f"set --batch-size {num_images} or less, or give more images"
        )
    return num_images // batch_size


def warmup_cosine(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    final: float = 0.0,
) -> float:
    """Linear warm-up from 0 to `peak`, then half a cosine down to `final`."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final + (peak - final) * 0.5 * (1 + cos(pi * min(1.0, progress)))


def warmup_drops(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    drops: Sequence[float],
) -> float:
    """Linear warm-up from 0 to `peak`, then a drop to a tenth at each of `drops`.

    The drops are shares of `total_steps`.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * 0.1 ** sum(step >= drop * total_steps for drop in drops)


def warmup_poly(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    power: float = 1.0,
    begin: float = 1e-6,
) -> float:
    """Polynomial decay from `peak` to 0, as in mmcv.

    In the warm-up it is multiplied by a factor that rises linearly from `begin` to 1.
    """
    rate = peak * (1 - min(1.0, step / total_steps)) ** power
    if step >= warmup_steps:
        return rate
    return rate * (1 - (1 - step / warmup_steps) * (1 - begin))
