"""Fine-tuning: an encoder and a classifier trained together on labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

from mvmae.config.checks import require, require_workers
from mvmae.config.evaluation import EncoderArgument, LabelledArgument

STRONGEST = 10  # of RandAugment's magnitudes on timm's scale


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """Train an encoder end to end to tell classes apart, as MAE does.

    --recipe NAME (`mvmae recipes` lists them) or --recipe RUN/config.json sets what is not given;
    without it: `small-finetune`, or `paper-finetune` on a machine with CUDA. The defaults shown
    are those of `paper-finetune`: MAE's, with the paper's batch of 512 (MAE: 1024).
    """

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME."""

    data: LabelledArgument = "photos"
    """Labelled images: SPLIT/CLASS/image, CLASS/image, a .csv list of path,label, or the built-in
    photos or digits."""

    out: Path = Path("runs/finetune")
    """Run folder: everything the run leaves is in here."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels. Default: the encoder's own."""

    in_channels: int | None = None
    """Channels of the images, 3 for colour or 1 for gray. Default: the encoder's own."""

    epochs: int = 100
    """Passes over the training images."""

    batch_size: int = 512
    """Images in an optimiser step, over all processes."""

    accumulate: int = 1
    """Parts in which each process takes its images of a step, for less memory."""

    base_lr: float = 5e-4
    """Learning rate of the head at batch size 256; the rate used is base_lr * batch_size / 256."""

    min_lr: float = 1e-6
    """Learning rate of the head at the end."""

    layer_decay: float = 0.65
    """Learning rate of a block over that of the block above it."""

    warmup_epochs: float = 5.0
    """Epochs in which the learning rate rises from 0."""

    weight_decay: float = 0.05
    """AdamW's weight decay, on everything but biases, norms, tokens and positions."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging rates."""

    clip_grad: float | None = None
    """Largest norm of the gradient; none: not clipped."""

    drop_path: float = 0.1
    """Probability with which the last block's branches are skipped; less in those before."""

    label_smoothing: float = 0.1
    """Share of a label that is spread over all classes."""

    mixup: float = 0.8
    """Alpha of MixUp, which blends images; 0: none."""

    cutmix: float = 1.0
    """Alpha of CutMix, which swaps boxes of images; 0: none. With both, each has every other batch,
    drawn at random."""

    erasing: float = 0.25
    """Probability with which noise replaces a box of an image."""

    rand_augment: float = 9.0
    """Magnitude of RandAugment on timm's scale from 0 to 10; 0: none."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area in a crop."""

    flip: Literal["none", "horizontal", "both"] = "horizontal"
    """Mirror an image with probability one half, or none; both: and turn it upside down likewise,
    as --views.flip of pretrain."""

    test_share: float = 0.875
    """Share of a test image's height and width that is looked at, in the middle (224 of 256)."""

    ema: float | None = None
    """Rate of an exponential average of the weights, 0.9999 for one, which is then what is judged
    and kept; none: the weights themselves."""

    seed: int = 0
    """Of the head's weights, the order, the crops and all augmentation."""

    eval_every: int = 1
    """Epochs between two evaluations on the test images (and one at the end)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA where there is one."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto: bf16 on CUDA, fp32 on a CPU. The loss is always fp32."""

    workers: int | None = None
    """Processes that read images, for each training process. Default: by the machine."""

    log_every: int = 10
    """Steps between two lines of metrics."""

    save_every_minutes: float = 10.0
    """Minutes between two checkpoints (and one at the end)."""

    log: tuple[Literal["tensorboard"], ...] = ()
    """Where else metrics go."""

    resume: bool = False
    """Continue the run in `out` at its exact step."""

    overwrite: bool = False
    """Replace the run in `out`."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "eval_every", "log_every"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1, not {value}")
        self._check_rates()
        self._check_augmentation()
        require(
            self.in_channels is None or self.in_channels >= 1,
            f"in_channels must be at least 1, not {self.in_channels}",
        )
        require(self.save_every_minutes >= 0, "save_every_minutes must be a number from 0 on")
        require_workers(self.workers)
        require(0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1")
        require(self.encoder != "", "ENCODER is empty: name a run folder, a file, timm:NAME, ...")
        require(self.data != "", "DATA is empty: name labelled images")
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")

    def _check_rates(self) -> None:
        require(0 < self.base_lr < inf, f"base_lr must be finite and above 0, not {self.base_lr}")
        require(
            0 <= self.min_lr <= self.lr,
            f"min_lr {self.min_lr:g} must lie between 0 and the peak learning rate {self.lr:g} "
            "(base_lr * batch_size / 256)",
        )
        require(
            0 < self.layer_decay <= 1, f"layer_decay must lie in (0, 1], not {self.layer_decay}"
        )
        require(
            0 <= self.warmup_epochs < self.epochs,
            f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}: set "
            "--warmup-epochs 0, or more epochs",
        )
        require(0 <= self.weight_decay < inf, "weight_decay must be finite and not negative")
        require(all(0 <= beta < 1 for beta in self.betas), "betas must lie in [0, 1)")
        require(self.clip_grad is None or self.clip_grad > 0, "clip_grad must be above 0")
        require(self.ema is None or 0 < self.ema < 1, f"ema must lie in (0, 1), not {self.ema}")

    def _check_augmentation(self) -> None:
        for name in ("drop_path", "label_smoothing"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must lie in [0, 1), not {value}")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            require(0 <= value < inf, f"{name} must be a number from 0 on, not {value}")
        require(0 <= self.erasing <= 1, f"erasing must lie in [0, 1], not {self.erasing}")
        require(
            0 <= self.rand_augment <= STRONGEST,
            f"rand_augment must lie in [0, {STRONGEST}], not {self.rand_augment}",
        )
        low, high = self.crop_scale
        require(
            0 < low <= high <= 1, f"crop_scale {low} {high} must be two rising shares of (0, 1]"
        )
        require(0 < self.test_share <= 1, f"test_share must lie in (0, 1], not {self.test_share}")

    @property
    def lr(self) -> float:
        """Peak learning rate of the head (MAE's linear scaling)."""
        return self.base_lr * self.batch_size / 256
