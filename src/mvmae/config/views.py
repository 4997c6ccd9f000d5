"""Options of views: crops, flips, colours, depth and statistics of pixels."""

from dataclasses import dataclass
from typing import Annotated, Literal

from mvmae.config import checks
from mvmae.config.checks import Rule, require

Depth = Literal["8", "16", "float"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# float32 reaches 3e38, and a bicubic resize needs a factor of 2.5 of that for its sums.
MIN_STD, MAX_VALUE = 1e-30, 1e38
MAX_VIEWS = 8
RAW = (
    "; pixels are in [0, 1], or with views.depth float the values of the files: scale those beyond"
)


MEAN = Rule(
    f"mean must be between -{MAX_VALUE:g} and {MAX_VALUE:g} for every channel{RAW}",
    lambda value: abs(value) < MAX_VALUE,
)
STD = Rule(
    f"std must be between {MIN_STD:g} and {MAX_VALUE:g} for every channel{RAW}",
    lambda value: MIN_STD < value < MAX_VALUE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewsConfig:
    """Options of the views of an image."""

    num_views: Annotated[int, checks.between(1, MAX_VIEWS)] = 2
    """Masked views of an image in a step: 2 (the paper), 1 (MAE), or up to 8, each contrasted with
    all others; the image is read once."""

    targets: Literal["two", "one"] = "two"
    """two: a separate crop for each view. one: one crop, masked separately for each view."""

    crop_scale: checks.CropScale = (0.2, 1.0)
    """Smallest and largest share of the image's area in a crop."""

    flip: Literal["none", "horizontal", "both"] = "horizontal"
    """Flip a view with probability one half. horizontal: left to right. both: also top to bottom,
    for images without an upright, taken from above or through a microscope. none: for things that
    mean something else when mirrored, such as letters and left hands."""

    color_jitter: Annotated[float, checks.between(0, 1)] = 0.0
    """Strength, from 0 to 1, of random brightness, contrast, saturation and hue in four views of
    five: SimCLR's 0.8, 0.8, 0.8 and 0.2 times this. 0: the paper, and MAE."""

    grayscale: Annotated[float, checks.between(0, 1)] = 0.0
    """Probability that a view becomes gray; SimCLR's is 0.2."""

    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How a crop is resized; always antialiased."""

    depth: Literal["auto", "8", "16", "float"] = "auto"
    """Type of the pixels. 8: whole numbers up to 255. 16: shares of the full range, of 8-bit or
    16-bit files. float: the values of the file as they are. auto: as deep as the files, determined
    from some of them at the start and written into config.json."""

    statistics: Literal["auto", "imagenet", "measured"] = "auto"
    """Where mean and std come from if they are not given. measured: from a sample of the images, at
    the start. auto: ImageNet's for 8-bit gray and colour, measured for everything else."""

    mean: Annotated[tuple[float, ...] | None, MEAN] = None
    """Mean of each channel, of shares of the full range in [0, 1] or, with depth float, of the
    values in the files. Default: see statistics; written into config.json."""

    std: Annotated[tuple[float, ...] | None, STD] = None
    """Standard deviation of each channel, of the same values."""

    def __post_init__(self) -> None:
        checks.require_rules(self)

    def require_colours(self, channels: int) -> None:
        """Check that images which are to become gray have colours.

        Raises:
            UserError: They have no colours.
        """
        require(
            self.grayscale == 0 or channels == 3,
            f"views.grayscale removes colours, and images of {channels} channel"
            f"{'s'[: channels != 1]} have none: leave it at 0 (views.color_jitter, brightness and "
            "contrast, is for images of any channels)",
        )

    @property
    def pixel_depth(self) -> Depth:
        """Type of the pixels; 8 bit until `auto` has been resolved."""
        return "8" if self.depth == "auto" else self.depth

    def pixel_statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel.

        Raises:
            UserError: `mean` or `std` does not have one value per channel.
        """
        return (
            _per_channel("mean", self.mean, IMAGENET_MEAN, channels),
            _per_channel("std", self.std, IMAGENET_STD, channels),
        )


def _per_channel(
    name: str, given: tuple[float, ...] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    if given is None:
        # Gray, and any other number of channels, gets the average over the colours.
        return default if channels == 3 else (sum(default) / 3,) * channels
    require(len(given) == channels, f"views.{name} has {len(given)} values for {channels} channels")
    return given
