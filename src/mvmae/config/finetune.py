"""Options of `mvmae finetune`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mvmae.config import checks
from mvmae.config.checks import Count, require
from mvmae.config.options import (
    AdamW,
    Compute,
    EncoderOption,
    InputSize,
    LabelledImages,
    Reading,
    RunOutput,
    require_warmup,
)

MAX_MAGNITUDE = 10  # of RandAugment on timm's scale


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunOutput, AdamW, Reading, Compute, InputSize, LabelledImages, EncoderOption):
    """Train an encoder end to end to classify images, as MAE does.

    --recipe NAME (`mvmae recipes` lists them) or --recipe RUN/config.json sets what is not given;
    without it: `small-finetune`, or `paper-finetune` on a machine with CUDA. The defaults shown
    are those of `paper-finetune`: MAE's, with the paper's batch of 512 (MAE: 1024).
    """

    out: Path = Path("runs/finetune")
    """Run folder, which gets everything that the run writes."""

    epochs: Count = 100
    """Passes over the training images."""

    batch_size: Count = 512
    """Images per optimiser step, over all processes."""

    accumulate: Count = 1
    """Parts in which each process handles its images of a step, for less memory."""

    base_lr: Annotated[float, checks.POSITIVE] = 5e-4
    """Learning rate of the head at batch size 256; the rate used is base_lr * batch_size / 256."""

    min_lr: float = 1e-6
    """Learning rate of the head at the end."""

    layer_decay: Annotated[float, checks.SHARE] = 0.65
    """Learning rate of a block relative to that of the block above it."""

    warmup_epochs: float = 5.0
    """Epochs in which the learning rate rises from 0."""

    drop_path: Annotated[float, checks.BELOW_1] = 0.1
    """Probability of skipping the last block's branches; smaller for the blocks before it."""

    label_smoothing: Annotated[float, checks.BELOW_1] = 0.1
    """Share of a label that is spread over all classes."""

    mixup: Annotated[float, checks.NOT_NEGATIVE] = 0.8
    """Alpha of MixUp, which blends images; 0: none."""

    cutmix: Annotated[float, checks.NOT_NEGATIVE] = 1.0
    """Alpha of CutMix, which swaps boxes of images; 0: none. With both, each batch gets one of them
    at random."""

    erasing: Annotated[float, checks.PROBABILITY] = 0.25
    """Probability of replacing a box of an image by noise."""

    rand_augment: Annotated[float, checks.between(0, MAX_MAGNITUDE)] = 9.0
    """Magnitude of RandAugment on timm's scale from 0 to 10; 0: none."""

    crop_scale: checks.CropScale = (0.08, 1.0)
    """Smallest and largest share of the image's area in a crop."""

    flip: Literal["none", "horizontal", "both"] = "horizontal"
    """Flip an image left to right with probability one half, or not; both: also upside down, as
    --views.flip of pretrain."""

    test_share: Annotated[float, checks.SHARE] = 0.875
    """Share of a test image's height and width that is used, in the middle (224 of 256)."""

    ema: Annotated[float | None, checks.BETWEEN_0_AND_1] = None
    """Rate of an exponential average of the weights, for example 0.9999, which is then judged and
    kept; none: the weights themselves."""

    seed: checks.Seed = 0
    """Seed of the head's weights, the order, the crops and all augmentation."""

    eval_every: Count = 1
    """Epochs between two evaluations on the test images (and one at the end)."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network; auto: bf16 on CUDA, fp32 on a CPU. The loss is always fp32."""

    workers: checks.Workers = None
    """Processes that read images, per training process. Default: depends on the machine."""

    def check(self) -> None:
        """Check the learning rates' course."""
        require(
            0 <= self.min_lr <= self.lr,
            f"min_lr {self.min_lr:g} must be between 0 and the peak learning rate {self.lr:g} "
            "(base_lr * batch_size / 256)",
        )
        require_warmup(self.warmup_epochs, self.epochs)

    @property
    def lr(self) -> float:
        """Peak learning rate of the head (MAE's linear scaling)."""
        return self.base_lr * self.batch_size / 256
