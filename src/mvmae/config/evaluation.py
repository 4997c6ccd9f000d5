"""Options of `mvmae knn`, `probe` and `labels`."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

from mvmae.config.checks import require
from mvmae.config.model import Pool
from mvmae.config.options import (
    Compute,
    EncoderOption,
    InputSize,
    LabelledImages,
    Reading,
    require_crop_scale,
    require_positive,
    require_seed,
    require_warmup,
)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Reading, Compute, InputSize, LabelledImages, EncoderOption):
    """Options of every evaluation of an encoder on labelled images."""

    pool: Pool | None = None
    """Token whose score counts: the mean of the patch tokens, or the class token; both are scored.
    Default: the one that training shaped."""

    max_train: int | None = None
    """Maximum number of training images, drawn at random."""

    max_test: int | None = None
    """Maximum number of test images, drawn at random."""

    baselines: bool = True
    """Also judge raw pixels and a random encoder of the same shape."""

    batch_size: int = 256
    """Images encoded at a time."""

    seed: int = 0
    """Seed of the random encoder, and of the images that max_train and max_test draw."""

    out: Path | None = None
    """Folder that gets results/. Default: the run folder that ENCODER is or is in, else
    runs/ENCODER."""

    def check(self) -> None:
        """Check what every evaluation has."""
        require_positive(self, "max_train", "max_test", "batch_size")
        require_gray_or_colour(self.in_channels)
        require_seed(self.seed)


def require_gray_or_colour(channels: int | None) -> None:
    """Require one channel or three, the only numbers that can be converted into each other."""
    require(
        channels in (None, 1, 3), f"in_channels must be 3 for colour or 1 for gray, not {channels}"
    )


@dataclass(frozen=True, kw_only=True)
class KnnConfig(EvaluateConfig):
    """Classify by the nearest neighbours among labelled images."""

    k: tuple[int, ...] = (10, 20, 100)
    """Numbers of neighbours that vote, each scored; the score that counts is that of 20, or of the
    first."""

    temperature: float = 0.07
    """Sharpness of the votes: each weighs exp(similarity / temperature)."""

    def check(self) -> None:
        """Check the votes."""
        require(len(self.k) > 0, "k is empty: name a number of neighbours")
        require(min(self.k) >= 1, f"k must be at least 1, not {min(self.k)}")
        require(len(set(self.k)) == len(self.k), "k names a number twice")
        require(
            0 < self.temperature < inf,
            f"temperature must be finite and above 0, not {self.temperature}",
        )


@dataclass(frozen=True, kw_only=True)
class LinearConfig(EvaluateConfig):
    """Options of a logistic regression on features."""

    costs: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Inverse strengths of L2 to choose from, on a fifth of the labelled training images."""

    max_iterations: int = 200
    """Maximum number of L-BFGS iterations for one fit."""

    def check(self) -> None:
        """Check the regression."""
        require(
            len(self.costs) > 0 and all(0 < cost < inf for cost in self.costs),
            "costs must be numbers above 0",
        )
        require_positive(self, "max_iterations")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(LinearConfig):
    """Train a linear classifier on frozen features."""

    protocol: Literal["cached", "mae"] = "cached"
    """cached: compute features once, then logistic regression; seconds.
    mae: as in MAE and the paper (section 4.1.3): random crops and flips in every epoch, batch norm
    without weights, a linear layer trained by LARS; the score to compare with papers."""

    costs: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """cached: inverse strengths of L2 to choose from, on a fifth of the training images."""

    max_iterations: int = 200
    """cached: maximum number of L-BFGS iterations for one fit."""

    epochs: int = 100
    """mae: passes over the training images."""

    step_size: int = 1024
    """mae: images in an optimiser step."""

    base_lr: float = 0.1
    """mae: learning rate for 256 images in a step; the rate used is base_lr * step_size / 256."""

    warmup_epochs: float = 10.0
    """mae: epochs in which the learning rate rises from 0."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """mae: smallest and largest share of the image's area in a crop."""

    save_every_minutes: float = 10.0
    """mae: minutes between two checkpoints."""

    def check(self) -> None:
        """Check MAE's protocol."""
        require_positive(self, "epochs", "step_size")
        require(0 < self.base_lr < inf, f"base_lr must be finite and above 0, not {self.base_lr}")
        require_warmup(self.warmup_epochs, self.epochs)
        require_crop_scale(self.crop_scale)
        require(self.save_every_minutes >= 0, "save_every_minutes must not be negative")


@dataclass(frozen=True, kw_only=True)
class LabelsConfig(LinearConfig):
    """Measure how few labels suffice: was pre-training worth it?"""

    against: tuple[str, ...] = ()
    """Other encoders to draw beside it: run folders, files, timm:NAME, random:NAME, ..."""

    shares: tuple[float, ...] = (0.01, 0.05, 0.1, 1.0)
    """Shares of the training images that get their label, equal for every class and at least one
    image."""

    per_class: tuple[int, ...] = ()
    """Numbers of labelled images per class, instead of shares."""

    draws: int = 5
    """Random draws of each amount; all encoders get the same ones."""

    def check(self) -> None:
        """Check the amounts of labels."""
        require_positive(self, "draws")
        require(
            len(self.shares) + len(self.per_class) > 0, "name shares, or numbers with --per-class"
        )
        require(all(0 < share <= 1 for share in self.shares), "shares must be in (0, 1]")
        require(all(count >= 1 for count in self.per_class), "per_class must be at least 1")
        for name in ("against", "shares", "per_class"):
            value = getattr(self, name)
            require(len(set(value)) == len(value), f"{name} names one twice")
