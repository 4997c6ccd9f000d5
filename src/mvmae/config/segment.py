"""Options of `mvmae segment`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config import checks
from mvmae.config.checks import Count, CountOrNone, require
from mvmae.config.dense import DenseTraining
from mvmae.config.options import EncoderArgument


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(DenseTraining):
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

    data: Annotated[Positional[str], arg(metavar="DATA")] = ""
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

    protocol: Literal["upernet", "linear", "knn", "test"] = "upernet"
    """upernet: train everything. linear: freeze the encoder; train batch norm and a linear layer on
    its last map. knn: train nothing; nearest neighbours classify the patches. test: only test the
    finished run ENCODER."""

    test_split: str | None = None
    """Split to test on, a folder of DATA/images. Default: validation if there is one, else test."""

    ignore_index: Annotated[
        int | Literal["auto", "none"],
        checks.must_be(
            f"between 0 and {2**16 - 1}, or none",
            lambda value: isinstance(value, str) or 0 <= value < 2**16,
        ),
    ] = "auto"
    """Value in the masks that is ignored; values above it move down by one. 0 is ADE20K's rule: 1
    becomes class 0. none: all values are classes. 255 is always ignored. auto: 0 for the layout
    images/SPLIT, none for a plain pair of folders or where one class would be left; masks of 0 and
    255 alone have two classes; --protocol test: as in training."""

    classes: Path | None = None
    """File of class names: a .csv of value,name; ADE20K's objectInfo150.txt; or one name per line.
    Default: classes.csv or objectInfo150.txt in DATA, else numbers."""

    num_classes: Annotated[int | None, checks.between(2, 2**15 - 1)] = None
    """Number of classes. Default: the number of names, else of values in the masks."""

    crop: Count = 512
    """Side of a training crop and of a test window, in pixels; a multiple of the patch size."""

    short_side: CountOrNone = 512
    """Length to which the shorter side of an image is resized (the longer to four times that at
    most), before the jitter in training and for tests; none: not resized."""

    jitter: checks.Factors = (0.5, 2.0)
    """Smallest and largest factor by which training images are resized in addition."""

    most_of_crop: Annotated[float, checks.SHARE] = 0.75
    """Largest share of one class in a crop; the first of ten random crops that satisfies it is
    used, else the last."""

    distort: bool = True
    """Change brightness, contrast, saturation and hue at random."""

    channels: Count = 768
    """Width of UperNet's head."""

    auxiliary_channels: Count = 256
    """Width of the auxiliary head on the third map, which helps training."""

    auxiliary_weight: Annotated[float, checks.NOT_NEGATIVE] = 0.4
    """Weight of its loss; 0: no auxiliary head."""

    dropout: Annotated[float, checks.BELOW_1] = 0.1
    """Probability of dropping a channel before the scores."""

    iterations: Count = 160_000
    """Optimiser steps. For protocol linear, `epochs` are the passes over the data."""

    batch_size: Count = 16
    """Crops per optimiser step, over all processes."""

    lr: Annotated[float, checks.POSITIVE] = 1e-4
    """Peak learning rate of the heads."""

    warmup_iterations: int = 1500
    """Steps in which the learning rate rises to its schedule."""

    power: Annotated[float, checks.POSITIVE] = 1.0
    """Exponent of the polynomial by which the learning rate falls to 0."""

    stride: CountOrNone = None
    """Pixels between two windows of a test image; their scores are averaged. Default: two thirds of
    the crop, 341 of 512."""

    multi_scale: bool = False
    """Average six scales (0.5 to 1.75) and their mirror images: about one point, twenty times the
    work. For --protocol test, --predict, and the last test of a training."""

    epochs: Count = 10
    """linear: passes over the training images."""

    linear_lr: Annotated[float, checks.POSITIVE] = 1e-2
    """linear: peak learning rate."""

    bank_size: Count = 65_536
    """knn: maximum number of patches of training images to search, drawn at random."""

    k: Count = 20
    """knn: neighbours that vote."""

    temperature: Annotated[float, checks.ABOVE_0] = 0.07
    """knn: sharpness of the votes: each weighs exp(similarity / temperature)."""

    baselines: bool = True
    """linear, knn: also judge the same encoder untrained."""

    eval_every: Count = 16_000
    """Steps between two tests (and one at the end)."""

    log_every: Count = 50
    """Steps between two lines of metrics."""

    def check(self) -> None:
        """Check what depends on several options: lengths, and what each kind of use takes."""
        require(
            self.window_stride <= self.crop,
            f"stride {self.stride} is more than crop {self.crop}: pixels between the windows would "
            "be left out",
        )
        require(
            0 <= self.warmup_iterations < self.iterations,
            f"warmup_iterations {self.warmup_iterations} must be less than iterations "
            f"{self.iterations}: set --warmup-iterations 0, or more iterations",
        )
        require((self.images is None) == (self.masks is None), "--images and --masks go together")
        if self.predict is not None:
            require(
                self.protocol == "upernet" and self.data == "" and self.images is None,
                "--predict takes a finished run and images alone: leave out DATA and --protocol",
            )
            require(self.out is not None, "--predict needs --out FOLDER, where the masks go")
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
