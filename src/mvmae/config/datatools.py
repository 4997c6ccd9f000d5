"""Options of `mvmae data check`, `data pack`, `data stats` and `data show`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.checks import require
from mvmae.config.figures import MAX_ROWS, require_drawn_channels
from mvmae.config.model import MAX_CHANNELS, ModelConfig
from mvmae.config.options import Images, Reading, require_positive, require_seed
from mvmae.config.views import ViewsConfig

Kind = Literal["auto", "images", "coco", "masks"]
Severity = Literal["fatal", "skipped", "look"]
PackFormat = Literal["keep", "jpeg", "webp", "png"]
CheckedArgument = Annotated[Positional[tuple[str, ...]], arg(metavar="DATA")]


@dataclass(frozen=True, kw_only=True)
class GuardedReading(Reading):
    """Options of processes that open files nobody has looked at yet."""

    timeout: float = 60.0
    """Seconds that one file may take before the process that reads it is ended."""

    memory: float = 4.0
    """Memory that a process that reads files may take, in GiB."""

    workers: int | None = None
    """Processes that read files. Default: the number of cores."""

    def check(self) -> None:
        """Require limits within which a file can be read."""
        require(0 < self.timeout < 1e6, f"timeout must be a number of seconds, not {self.timeout}")
        require(
            0.25 <= self.memory <= 4096,
            f"memory is in GiB and must be at least 0.25, not {self.memory}",
        )
        require(self.workers != 0, "workers must be at least 1: only they open files")


@dataclass(frozen=True, kw_only=True)
class DataCheckConfig(GuardedReading):
    """Open every file as training would, and name what is wrong with it.

    Exit status 0: nothing; 1: something (see --fail-on); 2: the command itself cannot work.
    """

    data: CheckedArgument
    """Folders of images (including subfolders), a list file (.txt, .csv), tar files, a .npy file, a
    folder in COCO's layout as for `mvmae detect`, or one of images and masks as for `mvmae
    segment`."""

    kind: Kind = "auto"
    """Kind of DATA. auto: coco if there is annotations/instances_SPLIT.json, masks if there is
    images/ with annotations/, masks/ or labels/ beside it, else images."""

    against: Annotated[tuple[str, ...], arg(metavar="VAL [VAL ...]")] = ()
    """Images that must not occur in DATA: folders or a list file. Exact and near duplicates between
    the two are named. Folders train and val in DATA are always compared."""

    min_size: int = 16
    """Name images with a shorter side than this many pixels; 16 is a usual patch size."""

    near: bool = True
    """Look for near duplicates: re-encoded, resized, slightly brighter."""

    similarity: float = 0.99
    """Correlation of two thumbnails' pixels from which two images are near duplicates."""

    out: Path | None = None
    """File for all findings: .csv has a row per file, .json also the tables."""

    quarantine: Path | None = None
    """List file (.txt, or .csv with labels) of the clean images, for `mvmae pretrain LIST`: those
    that can be read, and one of each set of exact duplicates."""

    fail_on: Severity = "look"
    """Lowest severity that makes the exit status 1. fatal: training would stop. skipped: or would
    skip files. look: or there are other findings, such as duplicates."""

    ignore_index: int | Literal["auto", "none"] = "auto"
    """Masks: the value that is ignored, as for `mvmae segment`."""

    num_classes: int | None = None
    """Masks: the number of classes, as for `mvmae segment`."""

    classes: Path | None = None
    """Masks: file of class names, as for `mvmae segment`."""

    def check(self) -> None:
        """Check names and limits."""
        require(
            len(self.data) > 0 and all(self.data),
            "no DATA: name a folder of images, a list file, or a folder in COCO's or ADE20K's "
            "layout",
        )
        require(all(self.against), "--against is empty: name a folder of images or a list file")
        require(self.min_size >= 0, f"min_size must not be negative, not {self.min_size}")
        require(
            0.5 <= self.similarity <= 1,
            f"similarity must be between 0.5 and 1, not {self.similarity}",
        )
        require(
            self.num_classes is None or self.num_classes >= 2,
            f"num_classes must be at least 2, not {self.num_classes}",
        )
        require(
            self.out is None or self.out.suffix.lower() in (".csv", ".json"),
            f"--out {self.out} must end in .csv or .json",
        )
        require(
            self.quarantine is None or self.quarantine.suffix.lower() in (".txt", ".csv"),
            f"--quarantine {self.quarantine} must end in .txt or .csv, the lists that mvmae reads",
        )


@dataclass(frozen=True, kw_only=True)
class DataPackConfig(GuardedReading):
    """Write images into tar files (WebDataset's shards), for disks that are slow at small files.

    Training and judging on DST are as on SRC: the same images in the same order, with labels and
    groups. After a stop, the same command continues and writes the same bytes.
    """

    data: Annotated[Positional[str], arg(metavar="SRC")]
    """Images: a folder, a list (.txt, .csv, .tsv, .parquet), tar files, or any other DATA."""

    out: Annotated[Positional[Path], arg(metavar="DST")]
    """Folder for the tar files; it must be new or empty."""

    shard_size: float = 256.0
    """Maximum size of a tar file, in MB (million bytes); a single image may be larger."""

    short_side: int | None = None
    """Shrink images whose shorter side is longer than this many pixels; none is enlarged.
    Default: as they are."""

    format: PackFormat = "keep"
    """keep: the files' bytes as they are; a shrunken JPEG stays JPEG, anything else becomes PNG.
    jpeg, webp, png: encode all images again. Images with more than 8 bits, or with channels other
    than gray and colour, always stay as they are."""

    quality: int = 90
    """Quality of JPEG and WebP, 1 to 100."""

    root: str | None = None
    """For a list: folder that all images must be inside of, wherever links lead."""

    timeout: float = 60.0
    """Seconds that one image may take before the process that reads it is ended."""

    memory: float = 4.0
    """Memory that a process that reads images may take, in GiB."""

    workers: int | None = None
    """Processes that read images; the bytes do not depend on it. Default: the number of cores."""

    overwrite: bool = False
    """Replace tar files that this command wrote to DST, or what another command left unfinished."""

    def check(self) -> None:
        """Check names and sizes."""
        require(self.data != "", "SRC is empty: name a folder of images or a list file")
        require(
            str(self.out) not in ("", "."),
            "DST is the current folder: name another one for the tar files",
        )
        require(
            0.001 <= self.shard_size <= 1e6,
            f"shard_size is in MB and must be between 0.001 and a million, not {self.shard_size}",
        )
        require(
            self.short_side is None or 1 <= self.short_side <= 65535,
            f"short_side must be between 1 and 65535 pixels, not {self.short_side}",
        )
        require(1 <= self.quality <= 100, f"quality must be between 1 and 100, not {self.quality}")


@dataclass(frozen=True, kw_only=True)
class DataStatsConfig(Reading, Images):
    """Measure the pixels of all images: mean, deviation, range and quantiles of each channel.

    Prints the --views.mean and --views.std that `mvmae pretrain` takes.
    """

    channels: int | None = None
    """Channels to read the images with. Default: what most of them have."""

    depth: Literal["auto", "8", "16", "float"] = "auto"
    """Type of the pixels, see --views.depth of pretrain. auto: as deep as the files."""

    max_images: int | None = None
    """Maximum number of images, drawn at random. Default: all."""

    seed: int = 0
    """Seed of that draw."""

    timeout: float = 600.0
    """Seconds that reading an image may take; then it is skipped."""

    workers: int | None = None
    """Processes that read images; the result does not depend on them. Default: depends on the
    machine."""

    out: Path | None = None
    """File for all measurements, .json."""

    def check(self) -> None:
        """Check counts and the file's name."""
        require(
            self.channels is None or 1 <= self.channels <= MAX_CHANNELS,
            f"channels must be between 1 and {MAX_CHANNELS}, not {self.channels}",
        )
        require_positive(self, "max_images")
        require_seed(self.seed)
        require(1 <= self.timeout < 1e6, f"timeout must be at least 1 second, not {self.timeout:g}")
        require(
            self.out is None or self.out.suffix.lower() == ".json",
            f"--out {self.out} must end in .json",
        )


@dataclass(frozen=True, kw_only=True)
class DataShowConfig(Images):
    """Draw what the network will see: each image, its views, and what the masks leave of them.

    --recipe NAME (of `mvmae pretrain`) or --recipe RUN/config.json sets model and views; default:
    the recipe that `mvmae pretrain` would choose on this machine.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)

    count: int = 8
    """Images drawn."""

    channels: tuple[int, ...] = ()
    """Channels drawn, counted from 1: three as red, green and blue, or one as gray. Default: the
    first three, or the first if there are fewer."""

    seed: int = 0
    """Seed of the choice of images, the crops and the masks."""

    out: Path = Path("data.png")
    """The picture, .png."""

    def check(self) -> None:
        """Check what fits on a sheet."""
        require(
            1 <= self.count <= MAX_ROWS,
            f"count must be between 1 and {MAX_ROWS}, not {self.count}",
        )
        require_drawn_channels(self.channels)
        require_seed(self.seed)
