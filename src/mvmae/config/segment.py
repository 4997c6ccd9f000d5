"""Segmentation: an encoder and UperNet trained on masks, or a frozen encoder's quick checks."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.checks import require, require_workers
from mvmae.config.evaluation import EncoderArgument

Protocol = Literal["upernet", "linear", "knn", "test"]
SegmentedArgument = Annotated[Positional[str], arg(metavar="DATA")]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentConfig:
    """Train an encoder to name each pixel, with UperNet as BEiT does; or check it frozen.

    --recipe NAME (`mvmae recipes` lists them) or --recipe RUN/config.json sets what is not given;
    without it: `small`, or `paper-ade20k` on a machine with CUDA. The defaults shown are
    those of `paper-ade20k`. `mvmae segment RUN --predict IMAGES --out FOLDER` draws what a finished
    run makes of other images.
    """

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME. For --predict and --protocol test: a finished run of this
    command."""

    data: SegmentedArgument = ""
    """Folder of images with masks: images/SPLIT and annotations/SPLIT (ADE20K: training,
    validation; train, val and test are known too), or images and masks, of which every fifth image
    tests."""

    images: Path | None = None
    """Folder of images, where they are not in DATA; needs --masks."""

    masks: Path | None = None
    """Folder of their masks: PNG files of the images' names whose pixels are class numbers."""

    out: Path | None = None
    """Training: the run folder, runs/segment by default. Linear, knn, test: the folder that gets
    results/, by default the run folder that ENCODER is or lies in. --predict: a new folder."""

    predict: str | None = None
    """Folder or list of images, or one image, that the run ENCODER segments, in place of
    training."""

    protocol: Protocol = "upernet"
    """upernet: train everything. linear: the encoder frozen, batch norm and a linear layer on its
    last map. knn: nothing trained, patches named by their nearest neighbours. test: only test the
    finished run ENCODER."""

    test_split: str | None = None
    """Split to test on, a folder of DATA/images. Default: validation where there is one, else
    test."""

    ignore_index: int | Literal["auto", "none"] = "auto"
    """Value in the masks that counts for nothing; values above it move down by one. 0 is ADE20K's
    rule: 1 becomes class 0. none: all values are classes. 255 never counts. auto: 0 for the layout
    images/SPLIT, none for a plain pair of folders or where one class would be left; masks of 0 and
    255 alone have two classes; --protocol test: as in training."""

    classes: Path | None = None
    """File of class names: a .csv of value,name; ADE20K's objectInfo150.txt; or a name a line.
    Default: classes.csv or objectInfo150.txt in DATA, else numbers."""

    num_classes: int | None = None
    """Classes. Default: as many as have names, else as the masks hold."""

    crop: int = 512
    """Side of a training crop and of a test window, in pixels; the patch size divides it."""

    short_side: int | None = 512
    """Side to which the shorter one of an image is resized (the longer at most to four times it),
    before the jitter in training and for tests; none: as it is."""

    jitter: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor by which training images are resized besides."""

    most_of_crop: float = 0.75
    """Largest share of one class in a crop; of ten crops the first such is taken, or the last."""

    flip: Literal["none", "horizontal"] = "horizontal"
    """Mirror an image with probability one half, or none."""

    distort: bool = True
    """Whether brightness, contrast, saturation and hue are changed at random."""

    channels: int = 768
    """Width of UperNet's head."""

    auxiliary_channels: int = 256
    """Width of the auxiliary head on the third map, which helps training."""

    auxiliary_weight: float = 0.4
    """Weight of its loss; 0: no such head."""

    dropout: float = 0.1
    """Probability with which a channel is dropped before the scores."""

    drop_path: float = 0.1
    """Probability with which the last block's branches are skipped; less in those before."""

    iterations: int = 160_000
    """Optimiser steps. Protocol linear: passes over the data are `epochs`."""

    batch_size: int = 16
    """Crops in an optimiser step, over all processes."""

    accumulate: int = 1
    """Parts in which each process takes its crops of a step, for less memory. Batch norm then sees
    a part at a time."""

    recompute: bool = False
    """Keep no activations of the encoder for the backward pass: less memory, a third more time."""

    lr: float = 1e-4
    """Peak learning rate of the heads."""

    layer_decay: float = 0.65
    """Learning rate of a block over that of the block above it."""

    weight_decay: float = 0.05
    """AdamW's weight decay, on everything but biases, norms and tokens."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging rates."""

    warmup_iterations: int = 1500
    """Steps in which the learning rate rises to its schedule."""

    power: float = 1.0
    """Of the polynomial by which the learning rate falls to 0."""

    clip_grad: float | None = None
    """Largest norm of the gradient; none: not clipped."""

    stride: int | None = None
    """Pixels between two windows of a test image; their scores are averaged. Default: two thirds of
    the crop, 341 of 512."""

    multi_scale: bool = False
    """Average six scales (0.5 to 1.75) and their mirror images: a point or so, twenty times the
    work. For --protocol test, --predict, and the last test of a training."""

    epochs: int = 10
    """linear: passes over the training images."""

    linear_lr: float = 1e-2
    """linear: peak learning rate."""

    bank_size: int = 65_536
    """knn: most patches of training images to search, drawn at random."""

    k: int = 20
    """knn: neighbours that vote."""

    temperature: float = 0.07
    """knn: sharpness of the votes: each weighs exp(similarity / temperature)."""

    baselines: bool = True
    """linear, knn: also judge the same encoder untrained."""

    seed: int = 0
    """Of the heads' weights, the order, the crops and all augmentation."""

    eval_every: int = 16_000
    """Steps between two tests (and one at the end)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA where there is one."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto: bf16 on CUDA, fp32 on a CPU. The loss is always fp32."""

    workers: int | None = None
    """Processes that read images, for each training process. Default: by the machine."""

    log_every: int = 50
    """Steps between two lines of metrics."""

    save_every_minutes: float = 10.0
    """Minutes between two checkpoints (and one at the end)."""

    log: tuple[Literal["tensorboard"], ...] = ()
    """Where else metrics go, and pictures of predictions."""

    resume: bool = False
    """Continue the run in `out` at its exact step."""

    overwrite: bool = False
    """Replace the run in `out`."""

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_shares()
        self._check_rates()
        self._check_what_is_asked()

    def _check_counts(self) -> None:
        for name in (
            *("crop", "channels", "auxiliary_channels", "iterations", "batch_size", "accumulate"),
            *("epochs", "bank_size", "k", "eval_every", "log_every"),
        ):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1, not {value}")
        for name in ("num_classes", "short_side", "stride"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        require(
            isinstance(self.ignore_index, str) or 0 <= self.ignore_index < 2**16,
            f"ignore_index must lie between 0 and {2**16 - 1}, or be none, not {self.ignore_index}",
        )
        require(
            self.window_stride <= self.crop,
            f"stride {self.stride} is more than crop {self.crop}: pixels between the windows would "
            "be left out",
        )
        require(
            self.num_classes is None or 2 <= self.num_classes < 2**15,
            f"num_classes must lie between 2 and {2**15 - 1}, not {self.num_classes}",
        )
        require_workers(self.workers)
        require(0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1")

    def _check_shares(self) -> None:
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must lie in [0, 1), not {value}")
        low, high = self.jitter
        require(0 < low <= high < inf, f"jitter {low} {high} must be two rising factors above 0")
        require(
            0 < self.most_of_crop <= 1, f"most_of_crop must lie in (0, 1], not {self.most_of_crop}"
        )
        require(
            0 <= self.auxiliary_weight < inf,
            f"auxiliary_weight must be a number from 0 on, not {self.auxiliary_weight}",
        )
        require(self.temperature > 0, f"temperature must be above 0, not {self.temperature}")

    def _check_rates(self) -> None:
        for name in ("lr", "linear_lr"):
            value = getattr(self, name)
            require(0 < value < inf, f"{name} must be finite and above 0, not {value}")
        require(
            0 < self.layer_decay <= 1, f"layer_decay must lie in (0, 1], not {self.layer_decay}"
        )
        require(0 <= self.weight_decay < inf, "weight_decay must be finite and not negative")
        require(all(0 <= beta < 1 for beta in self.betas), "betas must lie in [0, 1)")
        require(0 < self.power < inf, f"power must be finite and above 0, not {self.power}")
        require(self.clip_grad is None or self.clip_grad > 0, "clip_grad must be above 0")
        require(
            0 <= self.warmup_iterations < self.iterations,
            f"warmup_iterations {self.warmup_iterations} must be less than iterations "
            f"{self.iterations}: set --warmup-iterations 0, or more iterations",
        )
        require(self.save_every_minutes >= 0, "save_every_minutes must be a number from 0 on")

    def _check_what_is_asked(self) -> None:
        require(self.encoder != "", "ENCODER is empty: name a run folder, a file, timm:NAME, ...")
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")
        require((self.images is None) == (self.masks is None), "--images and --masks go together")
        if self.predict is not None:
            require(self.predict != "", "--predict is empty: name a folder of images")
            require(
                self.protocol == "upernet" and self.data == "" and self.images is None,
                "--predict takes a finished run and images alone: leave out DATA and --protocol",
            )
            require(self.out is not None, "--predict needs --out FOLDER, where the masks go")
            require(not self.resume, "--predict cannot be resumed: leave out --resume")
            return
        require(
            self.images is None or self.data == "",
            "name DATA, or --images and --masks, but not both",
        )
        require(
            self.protocol == "upernet" or not (self.resume or self.overwrite),
            f"--protocol {self.protocol} makes no run: leave out --resume and --overwrite",
        )

    @property
    def window_stride(self) -> int:
        """Pixels between two windows of a test image."""
        return self.stride or max(1, 2 * self.crop // 3)
