"""How long a run is, and what is due after which step."""

from __future__ import annotations

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
    """Of the images; a run resumes only with the same ones."""

    eval_every: int
    """Steps between two evaluations."""

    keep_every: int | None = None
    """Steps between two checkpoints that are kept for good."""

    def position(self, step: int) -> dict[str, Any]:
        """How far the run is after a step, in the units people compare."""
        epoch = round(step / self.per_epoch, 4)
        return {"step": step, "epoch": epoch, "images": step * self.batch_size}

    def is_evaluation(self, step: int) -> bool:
        """Whether an evaluation is due after this step; the last step is always evaluated."""
        return step == self.total or step % self.eval_every == 0

    def kept_as(self, step: int) -> str | None:
        """File name under which the checkpoint after this step is kept for good, if it is."""
        if self.keep_every is None or step % self.keep_every:
            return None
        width = len(str(self.total // self.per_epoch))
        return f"epoch-{step // self.per_epoch:0{width}}.pt"


def steps_per_epoch(num_images: int, batch_size: int, accumulate: int = 1) -> int:
    """Count the full batches in an epoch.

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
