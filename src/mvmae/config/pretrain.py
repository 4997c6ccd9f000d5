"""Pre-training: the model, the views, the objective, and the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.batch_sizes import AUTO as AUTO
from mvmae.config.batch_sizes import SIZE, SIZE_OR_NONE
from mvmae.config.checks import require, require_regex, require_workers
from mvmae.config.model import ModelConfig
from mvmae.config.views import ViewsConfig

ReduceDtype = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What is minimised: reconstruction_weight * L_r + contrastive_weight * L_c (equation 7)."""

    reconstruction_weight: float = 1.0
    """Weight of the reconstruction; 0 leaves the decoder untrained."""

    contrastive_weight: float = 2.0
    """The paper's lambda; 0 is no contrast."""

    temperature: float = 0.07
    """The paper's tau, by which similarities are divided."""

    reconstruct: Literal["masked", "all"] = "masked"
    """Patches whose error counts: the masked ones (MAE), or all (equation 3 as printed)."""

    normalize_targets: bool = True
    """Whether target patches are normalised by their own mean and variance (MAE's weights)."""

    def __post_init__(self) -> None:
        weights = self.reconstruction_weight, self.contrastive_weight
        require(
            all(0 <= weight < inf for weight in weights),
            "the weights of the two losses must be finite and not negative",
        )
        require(max(weights) > 0, "both losses have weight 0: there is nothing to learn")
        require(self.temperature > 0, f"temperature must be above 0, not {self.temperature}")

    @property
    def rebuild(self) -> Literal["masked", "all", "none"]:
        """Patches that the decoder predicts."""
        return self.reconstruct if self.reconstruction_weight > 0 else "none"


DataArgument = Annotated[Positional[tuple[str, ...]], arg(metavar="DATA")]


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """Pre-train an encoder from unlabelled images.

    --recipe NAME (`mvmae recipes` lists them) or --recipe RUN/config.json sets what is not given;
    the defaults shown are those of `demo`.
    """

    data: DataArgument = ("photos",)
    """Folders of images (searched to the bottom), list files (.txt, .csv), or the built-in photos
    or digits."""

    out: Path = Path("runs/pretrain")
    """Run folder: everything the run leaves is in here."""

    model: ModelConfig = field(default_factory=ModelConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    epochs: int = 1600
    """Passes over the images."""

    batch_size: Annotated[int, SIZE] = 256
    """Images in an optimiser step, over all processes. auto: the largest power of two that fits
    into memory and leaves 8 steps an epoch or is 16, up to 4096."""

    micro_batch_size: Annotated[int | None, SIZE_OR_NONE] = None
    """Images that pass the model at once in each process; the gradient is the whole batch's all the
    same, contrast included, for the encoder's forward pass twice. auto: what fits into memory.
    Default: all."""

    recompute: bool = False
    """Compute the blocks' activations again in the backward pass: a third more time, far less
    memory."""

    base_lr: float = 1.5e-4
    """Learning rate at batch size 256; the rate used is base_lr * batch_size / 256."""

    warmup_epochs: float = 40.0
    """Epochs in which the learning rate rises from 0."""

    weight_decay: float = 0.05
    """AdamW's weight decay, on everything but biases and norms."""

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging rates."""

    clip_grad: float | None = None
    """Largest norm of the gradient; none: not clipped."""

    group_regex: str | None = None
    """What of an image's path says which belong together, as 'patient_(\\d+)': images of one group
    are no negatives of each other in the contrast. Default: a list's column `group`."""

    seed: int = 0
    """Of the initial weights, the order, the crops and the masks."""

    eval_data: str | None = None
    """Labelled images for kNN while training; never trained on."""

    eval_every: int = 10
    """Epochs between two kNN evaluations (and one at the end)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA where there is one."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks; auto: bf16 on CUDA, fp32 on a CPU. Losses are always fp32."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch.compile fuses the model's small operations; auto: on CUDA. The first step then
    takes a minute, and sums are rounded elsewhere."""

    sharding: Literal["none", "full"] = "none"
    """What each of several processes holds. none: all weights (DDP); full: its share of weights,
    gradients and optimiser state (FSDP2), for models too large for one GPU; checkpoints are then
    folders, which any number of processes resumes."""

    reduce_dtype: ReduceDtype = "fp32"
    """Arithmetic in which processes sum their gradients; bf16 sends half the bytes, and rounds."""

    workers: int | None = None
    """Processes that read images, for each training process. Default: by the machine."""

    decode: Literal["exact", "fast"] = "exact"
    """How JPEG files are decoded. exact: whole. fast: no finer than the crops need, many times
    faster for photographs of several megapixels; images less than twice as large as needed give
    the same pixels."""

    read_timeout: float = 600.0
    """Seconds that reading an image may take; then it is passed over, as one that cannot be read.
    Only where --workers read."""

    log_every: int = 10
    """Steps between two lines of metrics."""

    save_every_minutes: float = 10.0
    """Minutes between two checkpoints (and one at the end)."""

    save_in_background: bool = False
    """Whether training goes on while a checkpoint is written, from a copy in memory."""

    keep_every: int | None = None
    """Epochs between two checkpoints that are kept for good, as checkpoints/epoch-100.pt."""

    log: tuple[Literal["tensorboard"], ...] = ()
    """Where else metrics go."""

    dry_run: bool = False
    """Only measure some steps and say what the run would take; nothing is written."""

    resume: bool = False
    """Continue the run in `out` at its exact step."""

    overwrite: bool = False
    """Replace the run in `out`."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_every", "log_every", "micro_batch_size"):
            value = getattr(self, name)
            is_found = name.endswith("batch_size") and value == AUTO
            require(
                value is None or is_found or value >= 1, f"{name} must be at least 1, not {value}"
            )
        require(
            self.batch_size != AUTO or self.micro_batch_size is None,
            "--batch-size auto finds what fits as a whole: leave out --micro-batch-size, or give "
            "the batch size as a number",
        )
        require(0 < self.base_lr < inf, f"base_lr must be finite and above 0, not {self.base_lr}")
        require(self.save_every_minutes >= 0, "save_every_minutes must be a number from 0 on")
        require(
            1 <= self.read_timeout < inf,
            f"read_timeout must be at least 1 second, not {self.read_timeout:g}",
        )
        require(
            self.keep_every is None or self.keep_every >= 1,
            f"keep_every must be at least 1 epoch, not {self.keep_every}",
        )
        require(
            0 <= self.warmup_epochs < self.epochs,
            f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}: set "
            "--warmup-epochs 0, or more epochs",
        )
        require(0 <= self.weight_decay < inf, "weight_decay must be finite and not negative")
        require(all(0 <= beta < 1 for beta in self.betas), "betas must lie in [0, 1)")
        require(self.clip_grad is None or self.clip_grad > 0, "clip_grad must be above 0")
        require_workers(self.workers)
        require_regex(self.group_regex)
        require(0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1")
        require(all(self.data), "DATA is empty: name a folder, a list file, photos or digits")
        require(self.eval_data != "", "--eval-data is empty: name labelled images, or leave it out")
        require(
            not (self.resume and self.dry_run),
            "--dry-run is for runs that have not begun: leave out --resume",
        )
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")
        require(
            not (self.save_in_background and self.sharding == "full"),
            "--save-in-background copies all weights, which --sharding full leaves on no process: "
            "choose one",
        )
        if self.objective.contrastive_weight > 0:
            require(
                self.views.num_views > 1,
                "contrast needs two views or more: set views.num_views 2, "
                "or objective.contrastive_weight 0",
            )
            require(
                self.batch_size != 1,
                "contrast needs other images to compare with: batch_size must be at least 2, "
                "or objective.contrastive_weight 0",
            )
        else:
            require(
                self.model.head == "none",
                "model.head has no effect without contrast: leave it at 'none', "
                "or set objective.contrastive_weight above 0",
            )
        self.views.pixel_statistics(self.model.in_channels)
        self.views.require_colours(self.model.in_channels)
        require(
            self.objective.reconstruct == "masked" or self.model.decoded_share == 1,
            "objective.reconstruct 'all' rebuilds every patch: leave model.decoded_share at 1",
        )
        require(
            self.model.patch_size > 1
            or self.model.in_channels > 1
            or not self.objective.normalize_targets,
            "a patch of one number has no variance: set objective.normalize_targets false, "
            "or a larger model.patch_size",
        )

    @property
    def lr(self) -> float:
        """Peak learning rate (MAE's linear scaling)."""
        return self.base_lr * self.batch_size / 256

    @property
    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel."""
        return self.views.pixel_statistics(self.model.in_channels)
