"""Groups of options that several commands share.

A command's config inherits the groups it needs, so that an option has one default, one help text
and one check. The command line and the JSON stay flat. A command that means something else by an
option declares it again, which keeps the help text true. (No slots: two slotted classes cannot be
bases of one class.)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.checks import MAX_WORKERS, require

EncoderArgument = Annotated[Positional[str], arg(metavar="ENCODER")]
DataArgument = Annotated[Positional[tuple[str, ...]], arg(metavar="DATA")]
LabelledArgument = Annotated[Positional[str], arg(metavar="DATA")]
NO_IMAGES = "DATA is empty: name a folder, a list file, photos or digits"


class Options:
    """Base of every group and every config that inherits groups."""

    def __post_init__(self) -> None:
        """Run the `check` of each base class, then the command's own."""
        for kind in reversed(type(self).__mro__):
            if "check" in vars(kind):
                kind.check(self)

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""


@dataclass(frozen=True, kw_only=True)
class EncoderOption(Options):
    """The encoder that a command reads."""

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME."""

    def check(self) -> None:
        """Require an encoder."""
        require(
            self.encoder != "",
            "ENCODER is empty: name a run folder, a checkpoint file, timm:NAME or hf:NAME",
        )


@dataclass(frozen=True, kw_only=True)
class InputSize(Options):
    """Size of the images that the encoder gets."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels, or height and width. Default: the encoder's own."""

    in_channels: int | None = None
    """Channels of the images, 3 for colour or 1 for gray. Default: the encoder's own."""

    def check(self) -> None:
        """Require a positive number of channels."""
        require_positive(self, "in_channels")


@dataclass(frozen=True, kw_only=True)
class Images(Options):
    """Images, with or without labels."""

    data: DataArgument = ("photos",)
    """Images, labelled or not: folders (including subfolders), a list file (.txt, .csv), or the
    built-in photos or digits."""

    def check(self) -> None:
        """Require a name of images."""
        require(len(self.data) > 0 and all(self.data), NO_IMAGES)


@dataclass(frozen=True, kw_only=True)
class LabelledImages(Options):
    """Images with labels."""

    data: LabelledArgument = "photos"
    """Labelled images: SPLIT/CLASS/image, CLASS/image, a .csv list of path,label, or the built-in
    photos or digits."""

    def check(self) -> None:
        """Require a name of images."""
        require(self.data != "", "DATA is empty: name labelled images")


@dataclass(frozen=True, kw_only=True)
class Device(Options):
    """Where a command computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto: CUDA if available."""


@dataclass(frozen=True, kw_only=True)
class Compute(Device):
    """Where a command computes, and with what precision."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the encoder; auto: bf16 on CUDA, fp32 on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Reading(Options):
    """How images are read."""

    workers: int | None = None
    """Processes that read images. Default: depends on the machine."""

    def check(self) -> None:
        """Require a number of processes that can be meant."""
        require(self.workers is None or self.workers >= 0, "workers must not be negative")
        require(
            self.workers is None or self.workers <= MAX_WORKERS,
            f"workers {self.workers} is more than {MAX_WORKERS} processes",
        )


@dataclass(frozen=True, kw_only=True)
class AdamW(Options):
    """The optimiser of every training but the linear probe's."""

    weight_decay: float = 0.05
    """AdamW's weight decay, on everything except biases, norms, tokens and positions."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging rates."""

    clip_grad: float | None = None
    """Largest norm of the gradient; none: not clipped."""

    def check(self) -> None:
        """Require rates with which a step is defined."""
        require(0 <= self.weight_decay < inf, "weight_decay must be finite and not negative")
        require(all(0 <= beta < 1 for beta in self.betas), "betas must be in [0, 1)")
        require(self.clip_grad is None or self.clip_grad > 0, "clip_grad must be above 0")


@dataclass(frozen=True, kw_only=True)
class RunOutput(Options):
    """What a training writes, and how it resumes."""

    log_every: int = 10
    """Steps between two lines of metrics."""

    save_every_minutes: float = 10.0
    """Minutes between two checkpoints (and one at the end)."""

    log: tuple[Literal["tensorboard"], ...] = ()
    """Where else to write metrics."""

    resume: bool = False
    """Continue the run in `out` at its exact step."""

    overwrite: bool = False
    """Replace the run in `out`."""

    def check(self) -> None:
        """Require intervals that occur, and one way to treat an existing run."""
        require_positive(self, "log_every")
        require(self.save_every_minutes >= 0, "save_every_minutes must not be negative")
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")


def require_positive(config: object, *names: str) -> None:
    """Require each of these options to be at least 1, or None."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= 1, f"{name} must be at least 1, not {value}")


def require_seed(seed: int) -> None:
    """Require a seed that every generator takes."""
    require(0 <= seed < 2**63, "seed must be between 0 and 2**63 - 1")


def require_crop_scale(scale: tuple[float, float]) -> None:
    """Require a smallest and a largest share of an image."""
    low, high = scale
    require(
        0 < low <= high <= 1, f"crop_scale {low} {high} must be two increasing shares in (0, 1]"
    )


def require_warmup(warmup: float, epochs: int) -> None:
    """Require a warm-up that ends before the training does."""
    require(
        0 <= warmup < epochs,
        f"warmup_epochs {warmup:g} must be less than epochs {epochs}: set --warmup-epochs 0, or "
        "more epochs",
    )


def require_layer_decay(decay: float) -> None:
    """Require a share of the learning rate."""
    require(0 < decay <= 1, f"layer_decay must be in (0, 1], not {decay}")
