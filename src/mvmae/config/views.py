"""How images become views: depth, statistics, crops, flips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mvmae.config.checks import require

Depth = Literal["8", "16", "float"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What float32 holds is up to 3e38, and a bicubic resize needs a factor 2.5 of that on its way.
LEAST_STD, MOST = 1e-30, 1e38
MOST_VIEWS = 8
OR_AS_THEY_ARE = ", or with views.depth float the values of the files"


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewsConfig:
    """How an image becomes views."""

    num_views: int = 2
    """Masked views of an image in a step: 2 (the paper), 1 (MAE), or up to 8 of an image that is
    read once, each contrasted with each."""

    targets: Literal["two", "one"] = "two"
    """A crop of the image for each view, or one crop masked once for each."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area in a crop."""

    flip: Literal["none", "horizontal", "both"] = "horizontal"
    """Mirror a view with probability one half, or none. both: left to right and, besides, top to
    bottom, for what has no upright, as seen from above or through a microscope. none: for what
    means another thing mirrored, as letters and left hands do."""

    color_jitter: float = 0.0
    """Strength, from 0 to 1, at which four views in five get another brightness, contrast,
    saturation and hue: SimCLR's 0.8, 0.8, 0.8 and 0.2 times this. 0: the paper, and MAE."""

    grayscale: float = 0.0
    """Probability with which a view loses its colours; SimCLR's is 0.2."""

    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How a crop is resized; always antialiased."""

    depth: Literal["auto", "8", "16", "float"] = "auto"
    """What pixels are kept as. 8: whole numbers up to 255. 16: shares of the full range, of 8 or 16
    bit. float: the values of the file as they are. auto: as deep as the files are, found at the
    start from some of them and written into config.json."""

    statistics: Literal["auto", "imagenet", "measured"] = "auto"
    """Where mean and std come from when they are not given. measured: from a sample of the images,
    at the start. auto: ImageNet's for gray and colour of 8 bit, measured for everything else."""

    mean: tuple[float, ...] | None = None
    """Mean of each channel: of shares of the full range, in [0, 1], or with depth float of the
    values of the files. Default: see statistics; written into config.json."""

    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""

    def __post_init__(self) -> None:
        require(
            1 <= self.num_views <= MOST_VIEWS,
            f"num_views must lie between 1 and {MOST_VIEWS}, not {self.num_views} (the paper: 2)",
        )
        low, high = self.crop_scale
        require(
            0 < low <= high <= 1, f"crop_scale {low} {high} must be two rising shares of (0, 1]"
        )
        require(
            0 <= self.color_jitter <= 1,
            f"color_jitter must lie between 0 and 1, not {self.color_jitter:g}: 0.5 is usual",
        )
        require(
            0 <= self.grayscale <= 1,
            f"grayscale is a probability from 0 to 1, not {self.grayscale:g}: 0.2 is usual",
        )
        require(
            all(LEAST_STD < value < MOST for value in self.std or ()),
            f"std must lie between {LEAST_STD:g} and {MOST:g} for every channel; pixels are in "
            f"[0, 1]{OR_AS_THEY_ARE}: scale those beyond",
        )
        require(
            all(abs(value) < MOST for value in self.mean or ()),
            f"mean must lie between -{MOST:g} and {MOST:g} for every channel; pixels are in [0, 1]"
            f"{OR_AS_THEY_ARE}: scale those beyond",
        )

    def require_colours(self, channels: int) -> None:
        """Check that the images have colours to lose, if they are to lose them.

        Raises:
            UserError: They have not.
        """
        require(
            self.grayscale == 0 or channels == 3,
            f"views.grayscale takes the colours away, and images of {channels} channel"
            f"{'s'[: channels != 1]} have none: leave it at 0 (views.color_jitter, brightness and "
            "contrast, is for images of any channels)",
        )

    @property
    def pixel_depth(self) -> Depth:
        """What pixels are kept as; a run from before there was a choice has 8 bit."""
        return "8" if self.depth == "auto" else self.depth

    def pixel_statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel.

        Raises:
            UserError: `mean` or `std` has another number of values than the images channels.
        """
        return (
            _per_channel("mean", self.mean, IMAGENET_MEAN, channels),
            _per_channel("std", self.std, IMAGENET_STD, channels),
        )


def _per_channel(
    name: str, given: tuple[float, ...] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    if given is None:
        # Gray, and whatever is neither gray nor colour, gets the colours' average.
        return default if channels == 3 else (sum(default) / 3,) * channels
    require(len(given) == channels, f"views.{name} has {len(given)} values for {channels} channels")
    return given
