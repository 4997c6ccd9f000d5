"""Groups of options that several commands share.

A command's config inherits the groups it needs, so that an option has one default, one help text
and one set of rules. The command line and the JSON stay flat. If an option means something else in
a command, its config declares the option again, with its own help text and rules. (No slots: a
class cannot inherit from two slotted classes.)
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config import checks
from mvmae.config.checks import Count, not_empty, one_or_more, require

NO_ENCODER = "ENCODER is empty: name a run folder, a checkpoint file, timm:NAME or hf:NAME"
NO_IMAGES = "DATA is empty: name a folder, a list file, photos or digits"
EncoderArgument = Annotated[Positional[str], arg(metavar="ENCODER"), not_empty(NO_ENCODER)]
DataArgument = Annotated[Positional[tuple[str, ...]], arg(metavar="DATA"), one_or_more(NO_IMAGES)]


class Options:
    """Base of every group and every config that inherits groups."""

    def __post_init__(self) -> None:
        """Check each value by its rules, then run every `check`, those of base classes first."""
        checks.require_rules(self)
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


@dataclass(frozen=True, kw_only=True)
class InputSize(Options):
    """Size of the images that the encoder gets."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels, or height and width. Default: the encoder's own."""

    in_channels: Annotated[int | None, checks.AT_LEAST_1] = None
    """Channels of the images, 3 for colour or 1 for gray. Default: the encoder's own."""


@dataclass(frozen=True, kw_only=True)
class Images(Options):
    """Images, with or without labels."""

    data: DataArgument = ("photos",)
    """Images, labelled or not: folders (including subfolders), lists (.txt, .csv, .parquet), tar
    files, .npy arrays, torchvision:NAME, hf:NAME, or the built-in photos or digits."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages(Options):
    """Images with labels."""

    data: Annotated[
        Positional[str], arg(metavar="DATA"), not_empty("DATA is empty: name labelled images")
    ] = "photos"
    """Labelled images: SPLIT/CLASS/image, CLASS/image, a .csv list of path,label, or the built-in
    photos or digits."""


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

    workers: checks.Workers = None
    """Processes that read images. Default: depends on the machine."""


@dataclass(frozen=True, kw_only=True)
class AdamW(Options):
    """The optimiser of all training except the linear probe."""

    weight_decay: Annotated[float, checks.NOT_NEGATIVE] = 0.05
    """AdamW's weight decay, on everything except biases, norms, tokens and positions."""

    betas: Annotated[tuple[float, float], checks.BELOW_1] = (0.9, 0.999)
    """AdamW's averaging rates."""

    clip_grad: Annotated[float | None, checks.ABOVE_0] = None
    """Largest norm of the gradient; none: not clipped."""


@dataclass(frozen=True, kw_only=True)
class RunOutput(Options):
    """What a training run writes, and how it resumes."""

    log_every: Count = 10
    """Steps between two lines of metrics."""

    save_every_minutes: checks.Minutes = 10.0
    """Minutes between two checkpoints (and one at the end)."""

    log: tuple[Literal["tensorboard"], ...] = ()
    """Where else to write metrics."""

    resume: bool = False
    """Continue the run in `out` at its exact step."""

    overwrite: bool = False
    """Replace the run in `out`."""

    def check(self) -> None:
        """Require that an existing run is not both resumed and replaced."""
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")


def require_warmup(warmup: float, epochs: int) -> None:
    """Require a warm-up that ends before the training does."""
    require(
        0 <= warmup < epochs,
        f"warmup_epochs {warmup:g} must be less than epochs {epochs}: set --warmup-epochs 0, or "
        "more epochs",
    )
