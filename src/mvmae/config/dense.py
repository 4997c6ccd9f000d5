"""Options that `mvmae detect` and `mvmae segment` share."""

from dataclasses import dataclass
from typing import Annotated, Literal

from mvmae.config import checks
from mvmae.config.checks import Count, require
from mvmae.config.options import AdamW, Compute, EncoderOption, Reading, RunOutput

NO_PREDICT = "--predict is empty: name a folder of images"


@dataclass(frozen=True, kw_only=True)
class DenseTraining(RunOutput, AdamW, Reading, Compute, EncoderOption):
    """Training of an encoder with a head that finds objects or classifies pixels."""

    predict: Annotated[str | None, checks.not_empty(NO_PREDICT)] = None
    """Folder or list of images, or one image: apply the finished run ENCODER to them instead of
    training."""

    flip: Literal["none", "horizontal"] = "horizontal"
    """Flip a training image left to right with probability one half, or not."""

    accumulate: Count = 1
    """Parts in which each process handles its images of a step, for less memory. Batch norm then
    sees one part at a time."""

    recompute: bool = False
    """Compute the blocks' activations again in the backward pass: far less memory, a third more
    time."""

    layer_decay: Annotated[float, checks.SHARE] = 0.65
    """Learning rate of a block relative to that of the block above it."""

    drop_path: Annotated[float, checks.BELOW_1] = 0.1
    """Probability of skipping the last block's branches; smaller for the blocks before it."""

    seed: checks.Seed = 0
    """Seed of the heads' weights, the order, the augmentation and the samples."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network; auto: bf16 on CUDA, fp32 on a CPU. Boxes and losses are always
    fp32."""

    workers: checks.Workers = None
    """Processes that read images, per training process. Default: depends on the machine."""

    log: tuple[Literal["tensorboard"], ...] = ()
    """Where else to write metrics, and pictures of predictions."""

    def check(self) -> None:
        """Require that --predict is not resumed."""
        require(
            self.predict is None or not self.resume,
            "--predict cannot be resumed: leave out --resume",
        )
