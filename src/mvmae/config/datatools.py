"""Options of `mvmae data check`, `data pack`, `data stats` and `data show`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config import checks
from mvmae.config.checks import CountOrNone, Rule, require
from mvmae.config.figures import Channels, Rows
from mvmae.config.model import MAX_CHANNELS, ModelConfig
from mvmae.config.options import Images, Reading
from mvmae.config.views import ViewsConfig

Kind = Literal["auto", "images", "coco", "masks"]
Severity = Literal["fatal", "skipped", "look"]
PackFormat = Literal["keep", "jpeg", "webp", "png"]
Timeout = Annotated[float, checks.must_be("a number of seconds", lambda value: 0 < value < 1e6)]
Memory = Annotated[
    float, checks.must_be("between 0.25 and 4096 GiB", lambda value: 0.25 <= value <= 4096)
]
GuardedWorkers = Annotated[
    checks.Workers, Rule("{name} must be at least 1: only they open files", bool)
]


@dataclass(frozen=True, kw_only=True)
class GuardedReading(Reading):
    """Options of processes that open files nobody has looked at yet."""

    timeout: Timeout = 60.0
    """Seconds that one file may take before the process that reads it is ended."""

    memory: Memory = 4.0
    """Memory that a process that reads files may take, in GiB."""

    workers: GuardedWorkers = None
    """Processes that read files. Default: the number of cores."""


@dataclass(frozen=True, kw_only=True)
class DataCheckConfig(GuardedReading):
    """Open every file as training would, and name what is wrong with it.

    Exit status 0: nothing; 1: something (see --fail-on); 2: the command itself cannot work.
    """

    data: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="DATA"),
        checks.one_or_more(
            "no DATA: name a folder of images, a list file, or a folder in COCO's or ADE20K's "
            "layout"
        ),
    ]
    """Folders of images (including subfolders), a list file (.txt, .csv), tar files, a .npy file, a
    folder in COCO's layout as for `mvmae detect`, or one of images and masks as for `mvmae
    segment`."""

    kind: Kind = "auto"
    """Kind of DATA. auto: coco if there is annotations/instances_SPLIT.json, masks if there is
    images/ with annotations/, masks/ or labels/ beside it, else images."""

    against: Annotated[
        tuple[str, ...],
        arg(metavar="VAL [VAL ...]"),
        checks.not_empty("--against is empty: name a folder of images or a list file"),
    ] = ()
    """Images that must not occur in DATA: folders or a list file. Exact and near duplicates between
    the two are named. Folders train and val in DATA are always compared."""

    min_size: Annotated[int, checks.NOT_NEGATIVE] = 16
    """Name images with a shorter side than this many pixels; 16 is a usual patch size."""

    near: bool = True
    """Look for near duplicates: re-encoded, resized, slightly brighter."""

    similarity: Annotated[float, checks.between(0.5, 1)] = 0.99
    """Correlation of two thumbnails' pixels from which two images are near duplicates."""

    out: Annotated[Path | None, checks.has_suffix(".csv", ".json")] = None
    """File for all findings: .csv has a row per file, .json also the tables."""

    quarantine: Annotated[Path | None, checks.has_suffix(".txt", ".csv")] = None
    """List file (.txt, or .csv with labels) of the clean images, for `mvmae pretrain LIST`: those
    that can be read, and one of each set of exact duplicates."""

    fail_on: Severity = "look"
    """Lowest severity that makes the exit status 1. fatal: training would stop. skipped: or would
    skip files. look: or there are other findings, such as duplicates."""

    ignore_index: int | Literal["auto", "none"] = "auto"
    """Masks: the value that is ignored, as for `mvmae segment`."""

    num_classes: Annotated[int | None, checks.AT_LEAST_2] = None
    """Masks: the number of classes, as for `mvmae segment`."""

    classes: Path | None = None
    """Masks: file of class names, as for `mvmae segment`."""


@dataclass(frozen=True, kw_only=True)
class DataPackConfig(GuardedReading):
    """Write images into tar files (WebDataset's shards), for disks that are slow at small files.

    Training and judging on DST are as on SRC: the same images in the same order, with labels and
    groups. After a stop, the same command continues and writes the same bytes.
    """

    data: Annotated[
        Positional[str],
        arg(metavar="SRC"),
        checks.not_empty("SRC is empty: name a folder of images or a list file"),
    ]
    """Images: a folder, a list (.txt, .csv, .tsv, .parquet), tar files, or any other DATA."""

    out: Annotated[Positional[Path], arg(metavar="DST")]
    """Folder for the tar files; it must be new or empty."""

    shard_size: Annotated[float, checks.between(0.001, 1_000_000)] = 256.0
    """Maximum size of a tar file, in MB (million bytes); a single image may be larger."""

    short_side: Annotated[int | None, checks.between(1, 65535)] = None
    """Shrink images whose shorter side is longer than this many pixels; none is enlarged.
    Default: as they are."""

    format: PackFormat = "keep"
    """keep: the files' bytes as they are; a shrunken JPEG stays JPEG, anything else becomes PNG.
    jpeg, webp, png: encode all images again. Images with more than 8 bits, or with channels other
    than gray and colour, always stay as they are."""

    quality: Annotated[int, checks.between(1, 100)] = 90
    """Quality of JPEG and WebP, 1 to 100."""

    root: str | None = None
    """For a list: folder that all images must be inside of, wherever links lead."""

    timeout: Timeout = 60.0
    """Seconds that one image may take before the process that reads it is ended."""

    memory: Memory = 4.0
    """Memory that a process that reads images may take, in GiB."""

    workers: GuardedWorkers = None
    """Processes that read images; the bytes do not depend on it. Default: the number of cores."""

    overwrite: bool = False
    """Replace tar files that this command wrote to DST, or what another command left unfinished."""

    def check(self) -> None:
        """Require a separate folder."""
        require(
            str(self.out) not in ("", "."),
            "DST is the current folder: name another one for the tar files",
        )


@dataclass(frozen=True, kw_only=True)
class DataStatsConfig(Reading, Images):
    """Measure the pixels of all images: mean, deviation, range and quantiles of each channel.

    Prints the --views.mean and --views.std that `mvmae pretrain` takes.
    """

    channels: Annotated[int | None, checks.between(1, MAX_CHANNELS)] = None
    """Channels to read the images with. Default: what most of them have."""

    depth: Literal["auto", "8", "16", "float"] = "auto"
    """Type of the pixels, see --views.depth of pretrain. auto: as deep as the files."""

    max_images: CountOrNone = None
    """Maximum number of images, drawn at random. Default: all."""

    seed: checks.Seed = 0
    """Seed of that draw."""

    timeout: Annotated[float, checks.between(1, 1_000_000)] = 600.0
    """Seconds that reading an image may take; then it is skipped."""

    workers: checks.Workers = None
    """Processes that read images; the result does not depend on them. Default: depends on the
    machine."""

    out: Annotated[Path | None, checks.has_suffix(".json")] = None
    """File for all measurements, .json."""


@dataclass(frozen=True, kw_only=True)
class DataShowConfig(Images):
    """Draw what the network will see: each image, its views, and what the masks leave of them.

    --recipe NAME (of `mvmae pretrain`) or --recipe RUN/config.json sets model and views; default:
    the recipe that `mvmae pretrain` would choose on this machine.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)

    count: Rows = 8
    """Images drawn."""

    channels: Channels = ()
    """Channels drawn, counted from 1: three as red, green and blue, or one as gray. Default: the
    first three, or the first if there are fewer."""

    seed: checks.Seed = 0
    """Seed of the choice of images, the crops and the masks."""

    out: Path = Path("data.png")
    """The picture, .png."""
