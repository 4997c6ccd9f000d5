"""Detection: an encoder, a pyramid and the heads of Mask R-CNN trained together on boxes."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.checks import require, require_workers
from mvmae.config.evaluation import EncoderArgument

CocoArgument = Annotated[Positional[str], arg(metavar="DATA")]


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectConfig:
    """Train a detector on an encoder: Mask R-CNN, or Faster R-CNN where there are no masks.

    mvmae detect ENCODER DATA trains; mvmae detect RUN --predict IMAGES --out FOLDER uses what it
    made. --recipe NAME (`mvmae recipes` lists them) or --recipe RUN/config.json sets what is not
    given; without it: `small`, or `li2021` on a machine with CUDA. The defaults shown are those of
    `li2021`, by which MAE and the paper were judged on COCO.
    """

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME. With --predict: the run folder of a detector."""

    data: CocoArgument = ""
    """Folder in COCO's layout: annotations/instances_SPLIT.json, and images/SPLIT or SPLIT. Boxes
    with masks (polygons or RLE), or boxes alone."""

    out: Path | None = None
    """Run folder: everything the run leaves is in here. Default: runs/detect. With --predict: a new
    folder for what is found. Default: RUN/predictions."""

    train_split: str | None = None
    """Split to train on. Default: the one whose name begins with train."""

    val_split: str | None = None
    """Split to judge on. Default: the one whose name begins with val, else with test."""

    boxes_only: bool = False
    """Leave the masks of the data alone, and train Faster R-CNN."""

    image_size: int = 1024
    """Side of the square, in pixels, that images are fitted into."""

    window: int | None = 16
    """Side of the windows, in patches, in which most blocks attend; none: all blocks see the whole
    image, and prefix tokens stay."""

    global_blocks: int = 4
    """Blocks that see the whole image all the same, evenly spread, the last one among them."""

    relative_positions: bool = True
    """Let blocks learn relative positions; needs windows."""

    pyramid: Literal["fpn", "simple"] = "fpn"
    """fpn: from four blocks, evenly spread, and a feature pyramid network (Li et al. 2021).
    simple: from the last block (ViTDet)."""

    norm: Literal["batch", "layer"] = "batch"
    """Norm in the pyramid and the heads. batch is over all processes on GPUs, and wants large
    batches."""

    channels: int = 256
    """Width of the pyramid's maps and of the heads' convolutions."""

    hidden: int = 1024
    """Width of the box head's linear layer."""

    proposals: int = 2000
    """Most boxes that the region proposal network hands on from an image in training; half of them
    in use."""

    samples: int = 512
    """Of those, boxes an image that the heads learn from in a step."""

    epochs: int = 100
    """Passes over the training images."""

    batch_size: int = 64
    """Images in an optimiser step, over all processes."""

    accumulate: int = 1
    """Parts in which each process takes its images of a step, for less memory; batch norm sees a
    part at a time."""

    recompute: bool = False
    """Compute the blocks' activations again in the backward pass: a third more time, far less
    memory."""

    lr: float = 8e-5
    """Peak learning rate, of the last layers where layer_decay is below 1."""

    layer_decay: float = 1.0
    """Learning rate of a block over that of the block above it."""

    schedule: Literal["cosine", "steps"] = "cosine"
    """How the learning rate falls: half a cosine to 0, or to a tenth at each of `drops`."""

    drops: tuple[float, ...] = (0.89, 0.96)
    """steps: shares of the run after which the learning rate falls to a tenth."""

    warmup_epochs: float = 0.25
    """Epochs in which the learning rate rises from 0."""

    warmup_steps: int | None = None
    """Steps in which it rises, in place of warmup_epochs."""

    weight_decay: float = 0.1
    """AdamW's weight decay, on everything but biases, norms, tokens and positions."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging rates."""

    clip_grad: float | None = None
    """Largest norm of the gradient; none: not clipped."""

    drop_path: float = 0.1
    """Probability with which the last block's branches are skipped; less in those before."""

    scale_jitter: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest size of a training image, 1 being what fits into the square (large-scale
    jitter; of larger ones a random part is seen)."""

    flip: Literal["none", "horizontal"] = "horizontal"
    """Mirror a training image with probability one half, or none."""

    seed: int = 0
    """Of the heads' weights, the order, the jitter and the samples."""

    eval_every: int = 5
    """Epochs between two evaluations on the validation images (and one at the end)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA where there is one."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto: bf16 on CUDA, fp32 on a CPU. Boxes and losses are always
    fp32."""

    workers: int | None = None
    """Processes that read images, for each training process. Default: by the machine."""

    log_every: int = 10
    """Steps between two lines of metrics."""

    save_every_minutes: float = 10.0
    """Minutes between two checkpoints (and one at the end)."""

    log: tuple[Literal["tensorboard"], ...] = ()
    """Where else metrics go, and pictures of predictions."""

    resume: bool = False
    """Continue the run in `out` at its exact step."""

    overwrite: bool = False
    """Replace the run in `out`."""

    predict: str | None = None
    """Folder or list of images, or one image: find things in them with the finished run ENCODER, in
    place of training."""

    score: float = 0.5
    """predict: smallest score of what is kept, from 0 to 1."""

    draw: bool = True
    """predict: also a picture of each image with what was found."""

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_rates()
        self._check_shape()
        require(self.encoder != "", "ENCODER is empty: name a run folder, a file, timm:NAME, ...")
        require(
            self.predict is None or not self.data,
            f"--predict takes a detector's run folder and no DATA: leave out {self.data}",
        )
        require(
            self.predict is None or not self.resume,
            "--predict cannot be resumed: leave out --resume",
        )
        require(self.predict != "", "--predict is empty: name a folder of images")
        require(0 <= self.score < 1, f"score must lie in [0, 1), not {self.score}")
        require(self.save_every_minutes >= 0, "save_every_minutes must be a number from 0 on")
        require_workers(self.workers)
        require(0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1")
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")

    def _check_counts(self) -> None:
        for name in (
            *("image_size", "global_blocks", "channels", "hidden", "samples", "epochs"),
            *("batch_size", "accumulate", "eval_every", "log_every"),
        ):
            value = getattr(self, name)
            least = 0 if name == "global_blocks" else 1
            require(value >= least, f"{name} must be at least {least}, not {value}")
        require(self.proposals >= 2, f"proposals must be at least 2, not {self.proposals}")
        for name in ("window", "warmup_steps"):
            value = getattr(self, name)
            least = 1 if name == "window" else 0
            require(
                value is None or value >= least, f"{name} must be at least {least}, not {value}"
            )

    def _check_shape(self) -> None:
        require(
            self.window is not None or not self.relative_positions,
            "relative positions need windows: add --no-relative-positions, or set --window",
        )
        low, high = self.scale_jitter
        require(
            0 < low <= high < inf,
            f"scale_jitter {low:g} {high:g} must be two rising numbers above 0",
        )
        require(0 <= self.drop_path < 1, f"drop_path must lie in [0, 1), not {self.drop_path}")

    def _check_rates(self) -> None:
        require(0 < self.lr < inf, f"lr must be finite and above 0, not {self.lr}")
        require(
            0 < self.layer_decay <= 1, f"layer_decay must lie in (0, 1], not {self.layer_decay}"
        )
        require(
            0 <= self.warmup_epochs < self.epochs,
            f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}: set "
            "--warmup-epochs 0, or more epochs",
        )
        require(
            all(0 < drop < 1 for drop in self.drops), f"drops {self.drops} must be shares of (0, 1)"
        )
        require(0 <= self.weight_decay < inf, "weight_decay must be finite and not negative")
        require(all(0 <= beta < 1 for beta in self.betas), "betas must lie in [0, 1)")
        require(self.clip_grad is None or self.clip_grad > 0, "clip_grad must be above 0")
