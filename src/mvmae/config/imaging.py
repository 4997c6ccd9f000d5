"""Looking at images before anything is trained: what `data stats` and `data show` are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mvmae.config.checks import require, require_workers
from mvmae.config.figures import MOST_ROWS
from mvmae.config.model import MOST_CHANNELS, ModelConfig
from mvmae.config.pretrain import DataArgument
from mvmae.config.views import ViewsConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataStatsConfig:
    """Measure the pixels of all images: mean, deviation, range and quantiles of each channel.

    Prints the --views.mean and --views.std that `mvmae pretrain` takes.
    """

    data: DataArgument = ("photos",)
    """Images, as for `mvmae pretrain`."""

    channels: int | None = None
    """Channels to read the images with. Default: what most of them have."""

    depth: Literal["auto", "8", "16", "float"] = "auto"
    """What pixels are kept as, see --views.depth of pretrain. auto: as deep as the files are."""

    max_images: int | None = None
    """Images looked at, drawn at random where there are more. Default: all."""

    seed: int = 0
    """Of that choice."""

    timeout: float = 600.0
    """Seconds that reading an image may take; then it is passed over."""

    workers: int | None = None
    """Processes that read images; the result does not depend on them. Default: by the machine."""

    out: Path | None = None
    """File for all that was measured, .json."""

    def __post_init__(self) -> None:
        require(all(self.data), "DATA is empty: name a folder, a list file, photos or digits")
        require(
            self.channels is None or 1 <= self.channels <= MOST_CHANNELS,
            f"channels must lie between 1 and {MOST_CHANNELS}, not {self.channels}",
        )
        require(
            self.max_images is None or self.max_images >= 1,
            f"max_images must be at least 1, not {self.max_images}",
        )
        require(0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1")
        require(1 <= self.timeout < 1e6, f"timeout must be at least 1 second, not {self.timeout:g}")
        require_workers(self.workers)
        require(
            self.out is None or self.out.suffix.lower() == ".json",
            f"--out {self.out} must end in .json",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataShowConfig:
    """Draw what the network will see: each image, its views, and what the masks leave of them.

    --recipe NAME (of `mvmae pretrain`) or --recipe RUN/config.json sets model and views; default:
    the recipe that `mvmae pretrain` would choose on this machine.
    """

    data: DataArgument = ("photos",)
    """Images, as for `mvmae pretrain`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)

    count: int = 8
    """Images drawn."""

    channels: tuple[int, ...] = ()
    """Channels drawn, counted from 1: three as red, green and blue, or one as gray. Default: the
    first three, or the first where there are fewer."""

    seed: int = 0
    """Of the choice of images, the crops and the masks."""

    out: Path = Path("data.png")
    """The picture, .png."""

    def __post_init__(self) -> None:
        require(all(self.data), "DATA is empty: name a folder, a list file, photos or digits")
        require(
            1 <= self.count <= MOST_ROWS,
            f"count must lie between 1 and {MOST_ROWS}, not {self.count}",
        )
        require(
            len(self.channels) in (0, 1, 3),
            f"--channels must name 1 channel, shown gray, or 3 for red, green and blue, "
            f"not {len(self.channels)}",
        )
        require(all(channel >= 1 for channel in self.channels), "--channels are counted from 1")
        require(0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1")
