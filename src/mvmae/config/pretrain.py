"""Options of `mvmae pretrain`, with those of its objective."""

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from mvmae.config import checks
from mvmae.config.checks import AUTO, SIZE, SIZE_OR_NONE, SIZE_RULE, Count, CountOrNone, require
from mvmae.config.model import ModelConfig
from mvmae.config.options import AdamW, Compute, Images, Reading, RunOutput, require_warmup
from mvmae.config.views import ViewsConfig

ReduceDtype = Literal["fp32", "bf16"]
NO_EVAL_DATA = "--eval-data is empty: name labelled images, or leave it out"
SECONDS = checks.must_be("at least 1 second", lambda value: 1 <= value < inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """The objective: reconstruction_weight * L_r + contrastive_weight * L_c (equation 7)."""

    reconstruction_weight: Annotated[float, checks.NOT_NEGATIVE] = 1.0
    """Weight of the reconstruction; 0: the decoder is not trained."""

    contrastive_weight: Annotated[float, checks.NOT_NEGATIVE] = 2.0
    """The paper's lambda, the weight of the contrast; 0: no contrast."""

    temperature: Annotated[float, checks.ABOVE_0] = 0.07
    """The paper's tau, which divides the similarities."""

    reconstruct: Literal["masked", "all"] = "masked"
    """Patches whose error counts: the masked ones (MAE), or all (equation 3 as printed)."""

    normalize_targets: bool = True
    """Normalise target patches by their own mean and variance (as for MAE's weights)."""

    def __post_init__(self) -> None:
        checks.require_rules(self)
        require(
            self.reconstruction_weight > 0 or self.contrastive_weight > 0,
            "both losses have weight 0: there is nothing to learn",
        )

    @property
    def rebuild(self) -> Literal["masked", "all", "none"]:
        """Patches that the decoder predicts."""
        return self.reconstruct if self.reconstruction_weight > 0 else "none"


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunOutput, AdamW, Reading, Compute, Images):
    """Pre-train an encoder from unlabelled images.

    --recipe NAME (`mvmae recipes` lists them) or --recipe RUN/config.json sets what is not given;
    the defaults shown are those of `demo`.
    """

    out: Path = Path("runs/pretrain")
    """Run folder, which gets everything that the run writes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    epochs: Count = 1600
    """Passes over the images."""

    batch_size: Annotated[int, SIZE, SIZE_RULE] = 256
    """Images per optimiser step, over all processes. auto: the largest power of two up to 4096 that
    fits into memory and leaves 8 steps per epoch (but at least 16)."""

    micro_batch_size: Annotated[int | None, SIZE_OR_NONE, SIZE_RULE] = None
    """Images that pass through the model at once in each process. The gradient is still that of the
    whole batch, contrast included, at the cost of a second forward pass of the encoder. auto: what
    fits into memory. Default: all."""

    recompute: bool = False
    """Compute the blocks' activations again in the backward pass: a third more time, far less
    memory."""

    base_lr: Annotated[float, checks.POSITIVE] = 1.5e-4
    """Learning rate at batch size 256; the rate used is base_lr * batch_size / 256."""

    warmup_epochs: float = 40.0
    """Epochs in which the learning rate rises from 0."""

    weight_decay: Annotated[float, checks.NOT_NEGATIVE] = 0.05
    """AdamW's weight decay, on everything except biases and norms."""

    betas: Annotated[tuple[float, float], checks.BELOW_1] = (0.9, 0.95)
    """AdamW's averaging rates."""

    group_regex: str | None = None
    """Part of an image's path that names its group, such as 'patient_(\\d+)': images of one group
    are not negatives of each other in the contrast. Default: a list's column `group`."""

    seed: checks.Seed = 0
    """Seed of the initial weights, the order, the crops and the masks."""

    eval_data: Annotated[str | None, checks.not_empty(NO_EVAL_DATA)] = None
    """Labelled images for kNN while training; never trained on."""

    eval_every: Count = 10
    """Epochs between two kNN evaluations (and one at the end)."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the networks; auto: bf16 on CUDA, fp32 on a CPU. Losses are always fp32."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Let torch.compile fuse the model's small operations; auto: on CUDA. The first step then takes
    a minute, and sums are rounded differently."""

    sharding: Literal["none", "full"] = "none"
    """What each of several processes holds. none: all weights (DDP); full: its share of weights,
    gradients and optimiser state (FSDP2), for models too large for one GPU; checkpoints are then
    folders, from which any number of processes can resume."""

    reduce_dtype: ReduceDtype = "fp32"
    """Precision in which processes sum their gradients; bf16 sends half the bytes, and rounds."""

    workers: checks.Workers = None
    """Processes that read images, per training process. Default: depends on the machine."""

    decode: Literal["exact", "fast"] = "exact"
    """How JPEG files are decoded. exact: whole. fast: no finer than the crops need, many times
    faster for photographs of several megapixels; images less than twice as large as needed give
    the same pixels."""

    read_timeout: Annotated[float, SECONDS] = 600.0
    """Seconds that reading an image may take; then it is skipped like one that cannot be read. Only
    where --workers read."""

    save_in_background: bool = False
    """Continue training while a checkpoint is written from a copy in memory."""

    keep_every: CountOrNone = None
    """Epochs between two checkpoints that are kept permanently, as checkpoints/epoch-100.pt."""

    dry_run: bool = False
    """Only measure some steps and print what the run would take; nothing is written."""

    def check(self) -> None:
        """Check the run, its objective, and what depends on both."""
        self._check_run()
        self._check_objective()
        self.views.pixel_statistics(self.model.in_channels)
        self.views.require_colours(self.model.in_channels)

    def _check_run(self) -> None:
        require(
            self.batch_size != AUTO or self.micro_batch_size is None,
            "--batch-size auto finds what fits as a whole: leave out --micro-batch-size, or give "
            "the batch size as a number",
        )
        checks.require_regex(self.group_regex)
        require_warmup(self.warmup_epochs, self.epochs)
        require(
            not (self.resume and self.dry_run),
            "--dry-run is for runs that have not begun: leave out --resume",
        )
        require(
            not (self.save_in_background and self.sharding == "full"),
            "--save-in-background copies all weights, which --sharding full leaves on no process: "
            "choose one",
        )

    def _check_objective(self) -> None:
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
