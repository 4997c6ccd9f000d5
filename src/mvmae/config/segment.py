"""Options of `mvmae segment`."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.checks import require
from mvmae.config.options import (
    AdamW,
    Compute,
    EncoderArgument,
    EncoderOption,
    Reading,
    RunOutput,
    require_layer_decay,
    require_positive,
    require_seed,
)

Protocol = Literal["upernet", "linear", "knn", "test"]
SegmentedArgument = Annotated[Positional[str], arg(metavar="DATA")]


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(RunOutput, AdamW, Reading, Compute, EncoderOption):
    """Train an encoder to classify each pixel, with UperNet as in BEiT; or evaluate it frozen.

    --recipe NAME (`mvmae recipes` lists them) or --recipe RUN/config.json sets what is not given;
    without it: `small`, or `paper-ade20k` on a machine with CUDA. The defaults shown are
    those of `paper-ade20k`. `mvmae segment RUN --predict IMAGES --out FOLDER` draws the predictions
    of a finished run for other images.
    """

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME. For --predict and --protocol test: a finished run of this
    command."""

    data: SegmentedArgument = ""
    """Folder of images with masks: images/SPLIT and annotations/SPLIT (ADE20K: training,
    validation; train, val and test work too), or images and masks, where every fifth image is a
    test image."""

    images: Path | None = None
    """Folder of images, if they are not in DATA; needs --masks."""

    masks: Path | None = None
    """Folder of their masks: PNG files with the images' names whose pixels are class numbers."""

    out: Path | None = None
    """Training: the run folder, runs/segment by default. Linear, knn, test: the folder that gets
    results/, by default the run folder that ENCODER is or is in. --predict: a new folder."""

    predict: str | None = None
    """Folder or list of images, or one image: segment them with the finished run ENCODER instead of
    training."""

    protocol: Protocol = "upernet"
    """upernet: train everything. linear: freeze the encoder; train batch norm and a linear layer on
    its last map. knn: train nothing; nearest neighbours classify the patches. test: only test the
    finished run ENCODER."""

    test_split: str | None = None
    """Split to test on, a folder of DATA/images. Default: validation if there is one, else test."""

    ignore_index: int | Literal["auto", "none"] = "auto"
    """Value in the masks that is ignored; values above it move down by one. 0 is ADE20K's rule: 1
    becomes class 0. none: all values are classes. 255 is always ignored. auto: 0 for the layout
    images/SPLIT, none for a plain pair of folders or where one class would be left; masks of 0 and
    255 alone have two classes; --protocol test: as in training."""

    classes: Path | None = None
    """File of class names: a .csv of value,name; ADE20K's objectInfo150.txt; or one name per line.
    Default: classes.csv or objectInfo150.txt in DATA, else numbers."""

    num_classes: int | None = None
    """Number of classes. Default: the number of names, else of values in the masks."""

    crop: int = 512
    """Side of a training crop and of a test window, in pixels; a multiple of the patch size."""

    short_side: int | None = 512
    """Length to which the shorter side of an image is resized (the longer to four times that at
    most), before the jitter in training and for tests; none: not resized."""

    jitter: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor by which training images are resized in addition."""

    most_of_crop: float = 0.75
    """Largest share of one class in a crop; the first of ten random crops that satisfies it is
    used, else the last."""

    flip: Literal["none", "horizontal"] = "horizontal"
    """Flip an image left to right with probability one half, or not."""

    distort: bool = True
    """Change brightness, contrast, saturation and hue at random."""

    channels: int = 768
    """Width of UperNet's head."""

    auxiliary_channels: int = 256
    """Width of the auxiliary head on the third map, which helps training."""

    auxiliary_weight: float = 0.4
    """Weight of its loss; 0: no auxiliary head."""

    dropout: float = 0.1
    """Probability of dropping a channel before the scores."""

    drop_path: float = 0.1
    """Probability of skipping the last block's branches; smaller for the blocks before it."""

    iterations: int = 160_000
    """Optimiser steps. For protocol linear, `epochs` are the passes over the data."""

    batch_size: int = 16
    """Crops per optimiser step, over all processes."""

    accumulate: int = 1
    """Parts in which each process handles its crops of a step, for less memory. Batch norm then
    sees one part at a time."""

    recompute: bool = False
    """Keep no activations of the encoder for the backward pass: less memory, a third more time."""

    lr: float = 1e-4
    """Peak learning rate of the heads."""

    layer_decay: float = 0.65
    """Learning rate of a block relative to that of the block above it."""

    weight_decay: float = 0.05
    """AdamW's weight decay, on everything except biases, norms and tokens."""

    warmup_iterations: int = 1500
    """Steps in which the learning rate rises to its schedule."""

    power: float = 1.0
    """Exponent of the polynomial by which the learning rate falls to 0."""

    stride: int | None = None
    """Pixels between two windows of a test image; their scores are averaged. Default: two thirds of
    the crop, 341 of 512."""

    multi_scale: bool = False
    """Average six scales (0.5 to 1.75) and their mirror images: about one point, twenty times the
    work. For --protocol test, --predict, and the last test of a training."""

    epochs: int = 10
    """linear: passes over the training images."""

    linear_lr: float = 1e-2
    """linear: peak learning rate."""

    bank_size: int = 65_536
    """knn: maximum number of patches of training images to search, drawn at random."""

    k: int = 20
    """knn: neighbours that vote."""

    temperature: float = 0.07
    """knn: sharpness of the votes: each weighs exp(similarity / temperature)."""

    baselines: bool = True
    """linear, knn: also judge the same encoder untrained."""

    seed: int = 0
    """Seed of the heads' weights, the order, the crops and all augmentation."""

    eval_every: int = 16_000
    """Steps between two tests (and one at the end)."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network; auto: bf16 on CUDA, fp32 on a CPU. The loss is always fp32."""

    workers: int | None = None
    """Processes that read images, per training process. Default: depends on the machine."""

    log_every: int = 50
    """Steps between two lines of metrics."""

    log: tuple[Literal["tensorboard"], ...] = ()
    """Where else to write metrics, and pictures of predictions."""

    def check(self) -> None:
        """Check counts, shares, rates, and what each kind of use takes."""
        self._check_counts()
        self._check_shares()
        self._check_rates()
        self._check_use()

    def _check_counts(self) -> None:
        require_positive(self, "crop", "channels", "auxiliary_channels", "iterations", "batch_size")
        require_positive(self, "accumulate", "epochs", "bank_size", "k", "eval_every")
        require_positive(self, "num_classes", "short_side", "stride")
        require(
            isinstance(self.ignore_index, str) or 0 <= self.ignore_index < 2**16,
            f"ignore_index must be between 0 and {2**16 - 1}, or none, not {self.ignore_index}",
        )
        require(
            self.window_stride <= self.crop,
            f"stride {self.stride} is more than crop {self.crop}: pixels between the windows would "
            "be left out",
        )
        require(
            self.num_classes is None or 2 <= self.num_classes < 2**15,
            f"num_classes must be between 2 and {2**15 - 1}, not {self.num_classes}",
        )
        require_seed(self.seed)

    def _check_shares(self) -> None:
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must be in [0, 1), not {value}")
        low, high = self.jitter
        require(
            0 < low <= high < inf, f"jitter {low} {high} must be two increasing factors above 0"
        )
        require(
            0 < self.most_of_crop <= 1, f"most_of_crop must be in (0, 1], not {self.most_of_crop}"
        )
        require(
            0 <= self.auxiliary_weight < inf,
            f"auxiliary_weight must be finite and not negative, not {self.auxiliary_weight}",
        )
        require(self.temperature > 0, f"temperature must be above 0, not {self.temperature}")

    def _check_rates(self) -> None:
        for name in ("lr", "linear_lr"):
            value = getattr(self, name)
            require(0 < value < inf, f"{name} must be finite and above 0, not {value}")
        require_layer_decay(self.layer_decay)
        require(0 < self.power < inf, f"power must be finite and above 0, not {self.power}")
        require(
            0 <= self.warmup_iterations < self.iterations,
            f"warmup_iterations {self.warmup_iterations} must be less than iterations "
            f"{self.iterations}: set --warmup-iterations 0, or more iterations",
        )

    def _check_use(self) -> None:
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
