"""Options of `mvmae knn`, `probe` and `labels`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mvmae.config import checks
from mvmae.config.checks import Count, CountOrNone, require
from mvmae.config.model import Pool
from mvmae.config.options import (
    Compute,
    EncoderOption,
    InputSize,
    LabelledImages,
    Reading,
    require_warmup,
)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Reading, Compute, InputSize, LabelledImages, EncoderOption):
    """Options of every evaluation of an encoder on labelled images."""

    in_channels: Annotated[int | None, checks.GRAY_OR_COLOUR] = None
    """Channels of the images, 3 for colour or 1 for gray. Default: the encoder's own."""

    pool: Pool | None = None
    """Token whose score counts: the mean of the patch tokens, or the class token; both are scored.
    Default: the one that training shaped."""

    max_train: CountOrNone = None
    """Maximum number of training images, drawn at random."""

    max_test: CountOrNone = None
    """Maximum number of test images, drawn at random."""

    baselines: bool = True
    """Also judge raw pixels and a random encoder of the same shape."""

    batch_size: Count = 256
    """Images encoded at a time."""

    seed: checks.Seed = 0
    """Seed of the random encoder, and of the images that max_train and max_test draw."""

    out: Path | None = None
    """Folder that gets results/. Default: the run folder that ENCODER is or is in, else
    runs/ENCODER."""


@dataclass(frozen=True, kw_only=True)
class KnnConfig(EvaluateConfig):
    """Classify by the nearest neighbours among labelled images."""

    k: Annotated[
        tuple[int, ...],
        checks.one_or_more("k is empty: name a number of neighbours"),
        checks.AT_LEAST_1,
        checks.DISTINCT,
    ] = (10, 20, 100)
    """Numbers of neighbours that vote, each scored; the score that counts is that of 20, or of the
    first."""

    temperature: Annotated[float, checks.POSITIVE] = 0.07
    """Sharpness of the votes: each weighs exp(similarity / temperature)."""


Costs = Annotated[
    tuple[float, ...], checks.one_or_more("costs is empty: name numbers above 0"), checks.POSITIVE
]


@dataclass(frozen=True, kw_only=True)
class LinearConfig(EvaluateConfig):
    """Options of a logistic regression on features."""

    costs: Costs = (0.01, 0.1, 1.0, 10.0)
    """Inverse strengths of L2 to choose from, on a fifth of the labelled training images."""

    max_iterations: Count = 200
    """Maximum number of L-BFGS iterations for one fit."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(LinearConfig):
    """Train a linear classifier on frozen features."""

    protocol: Literal["cached", "mae"] = "cached"
    """cached: compute features once, then logistic regression; seconds.
    mae: as in MAE and the paper (section 4.1.3): random crops and flips in every epoch, batch norm
    without weights, a linear layer trained by LARS; the score to compare with papers."""

    costs: Costs = (0.01, 0.1, 1.0, 10.0)
    """cached: inverse strengths of L2 to choose from, on a fifth of the training images."""

    max_iterations: Count = 200
    """cached: maximum number of L-BFGS iterations for one fit."""

    epochs: Count = 100
    """mae: passes over the training images."""

    step_size: Count = 1024
    """mae: images in an optimiser step."""

    base_lr: Annotated[float, checks.POSITIVE] = 0.1
    """mae: learning rate for 256 images in a step; the rate used is base_lr * step_size / 256."""

    warmup_epochs: float = 10.0
    """mae: epochs in which the learning rate rises from 0."""

    crop_scale: checks.CropScale = (0.08, 1.0)
    """mae: smallest and largest share of the image's area in a crop."""

    save_every_minutes: checks.Minutes = 10.0
    """mae: minutes between two checkpoints."""

    def check(self) -> None:
        """Check MAE's protocol."""
        require_warmup(self.warmup_epochs, self.epochs)


@dataclass(frozen=True, kw_only=True)
class LabelsConfig(LinearConfig):
    """Measure how few labels suffice: was pre-training worth it?"""

    against: Annotated[tuple[str, ...], checks.DISTINCT] = ()
    """Other encoders to draw beside it: run folders, files, timm:NAME, random:NAME, ..."""

    shares: Annotated[tuple[float, ...], checks.SHARE, checks.DISTINCT] = (0.01, 0.05, 0.1, 1.0)
    """Shares of the training images that get their label, equal for every class and at least one
    image."""

    per_class: Annotated[tuple[int, ...], checks.AT_LEAST_1, checks.DISTINCT] = ()
    """Numbers of labelled images per class, instead of shares."""

    draws: Count = 5
    """Random draws of each amount; all encoders get the same ones."""

    def check(self) -> None:
        """Require an amount of labels."""
        require(
            len(self.shares) + len(self.per_class) > 0, "name shares, or numbers with --per-class"
        )
