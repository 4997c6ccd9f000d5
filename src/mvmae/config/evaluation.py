"""Options of `mvmae knn`, `probe` and `labels`."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.checks import require, require_workers
from mvmae.config.model import Pool

EncoderArgument = Annotated[Positional[str], arg(metavar="ENCODER")]
LabelledArgument = Annotated[Positional[str], arg(metavar="DATA")]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """What every evaluation of an encoder on labelled images needs."""

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME."""

    data: LabelledArgument = "photos"
    """Labelled images: SPLIT/CLASS/image, CLASS/image, a .csv list of path,label, or the built-in
    photos or digits."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels. Default: the encoder's own."""

    in_channels: int | None = None
    """Channels of the images, 3 for colour or 1 for gray. Default: the encoder's own."""

    pool: Pool | None = None
    """Token whose figure counts: the mean of the patch tokens, or the class token; both are
    scored. Default: the one that training shaped."""

    max_train: int | None = None
    """Most training images to use, drawn at random."""

    max_test: int | None = None
    """Most test images to use, drawn at random."""

    baselines: bool = True
    """Also judge raw pixels and a random encoder of the same shape."""

    batch_size: int = 256
    """Images encoded at a time."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA where there is one."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoder; auto: bf16 on CUDA, fp32 on a CPU."""

    workers: int | None = None
    """Processes that read images. Default: by the machine."""

    seed: int = 0
    """Of the random encoder, and of what max_train and max_test draw."""

    out: Path | None = None
    """Folder that gets results/. Default: the run folder, where ENCODER is one or lies in one;
    else runs/ENCODER."""

    def __post_init__(self) -> None:
        for name in ("in_channels", "max_train", "max_test", "batch_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        require(
            self.in_channels in (None, 1, 3),
            f"in_channels must be 3 for colour or 1 for gray, not {self.in_channels}",
        )
        require_workers(self.workers)
        require(0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1")
        require(self.data != "", "DATA is empty: name labelled images")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnConfig(EvaluateConfig):
    """Classify by the nearest neighbours among labelled images."""

    k: tuple[int, ...] = (10, 20, 100)
    """Neighbours that vote, each number scored; the figure that counts is that of 20, or of the
    first."""

    temperature: float = 0.07
    """Sharpness of the votes: each weighs exp(similarity / temperature)."""

    def __post_init__(self) -> None:
        EvaluateConfig.__post_init__(self)
        require(len(self.k) > 0, "k is empty: name a number of neighbours")
        require(min(self.k) >= 1, f"k must be at least 1, not {min(self.k)}")
        require(len(set(self.k)) == len(self.k), "k names a number twice")
        finite = f"temperature must be finite and above 0, not {self.temperature}"
        require(0 < self.temperature < inf, finite)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig(EvaluateConfig):
    """Train a linear classifier on frozen features."""

    protocol: Literal["cached", "mae"] = "cached"
    """cached: features once, then logistic regression; seconds.
    mae: as MAE and the paper (section 4.1.3): random crops and flips in every epoch, batch norm
    without weights, a linear layer trained by LARS; the figure to compare with papers."""

    costs: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """cached: inverse strengths of L2 to choose from, on a fifth of the training images."""

    max_iterations: int = 200
    """cached: most iterations of L-BFGS for one fit."""

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

    def __post_init__(self) -> None:
        EvaluateConfig.__post_init__(self)
        good = len(self.costs) > 0 and all(0 < cost < inf for cost in self.costs)
        require(good, "costs must be numbers above 0")
        for name in ("max_iterations", "epochs", "step_size"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1, not {value}")
        require(0 < self.base_lr < inf, f"base_lr must be finite and above 0, not {self.base_lr}")
        require(
            0 <= self.warmup_epochs < self.epochs,
            f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}: set "
            "--warmup-epochs 0, or more epochs",
        )
        low, high = self.crop_scale
        require(
            0 < low <= high <= 1, f"crop_scale {low} {high} must be two rising shares of (0, 1]"
        )
        require(self.save_every_minutes >= 0, "save_every_minutes must not be negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelsConfig(EvaluateConfig):
    """Measure what few labels suffice for: was pre-training worth it?"""

    against: tuple[str, ...] = ()
    """Other encoders to draw beside it: run folders, files, timm:NAME, random:NAME, ..."""

    shares: tuple[float, ...] = (0.01, 0.05, 0.1, 1.0)
    """Shares of the training images that get their label, of every class alike and at least one."""

    per_class: tuple[int, ...] = ()
    """Numbers of labelled images a class, in place of shares."""

    draws: int = 5
    """Random draws of each amount; all encoders get the same ones."""

    costs: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Inverse strengths of L2 to choose from, on a fifth of the labelled images."""

    max_iterations: int = 200
    """Most iterations of L-BFGS for one fit."""

    def __post_init__(self) -> None:
        EvaluateConfig.__post_init__(self)
        good = len(self.costs) > 0 and all(0 < cost < inf for cost in self.costs)
        require(good, "costs must be numbers above 0")
        for name in ("draws", "max_iterations"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1, not {value}")
        require(
            len(self.shares) + len(self.per_class) > 0, "name shares, or numbers with --per-class"
        )
        require(all(0 < share <= 1 for share in self.shares), "shares must lie in (0, 1]")
        require(all(count >= 1 for count in self.per_class), "per_class must be at least 1")
        for name in ("against", "shares", "per_class"):
            value = getattr(self, name)
            require(len(set(value)) == len(value), f"{name} names one twice")
