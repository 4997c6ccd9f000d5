"""Options of the commands that draw: reconstruct, attention, features, curves, report, explore."""

from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config import checks
from mvmae.config.checks import Count, CountOrNone, Rule, require
from mvmae.config.model import Pool
from mvmae.config.options import (
    Compute,
    Device,
    EncoderArgument,
    EncoderOption,
    Images,
    InputSize,
    Options,
    Reading,
)

FeaturePicture = Literal["pca", "map", "typical", "duplicates"]
FEATURE_PICTURES: tuple[FeaturePicture, ...] = ("pca", "map", "typical", "duplicates")
MAX_ROWS = 200  # of a figure: viewers do not open larger ones
MAX_AGAINST = 11  # encoders besides the first
MAX_CURVES = 8  # colours that can be told apart
MAX_WINDOW = 10_001
MAX_RUNS = 12  # of a report: lines in a chart that an eye can follow
MAX_PICTURES = 64  # of a report, 40 kB each: a browser opens the page as one file
MAX_PORT = 65535
MIN_IMAGES = 5  # fewer have no neighbourhoods

Against = Annotated[tuple[str, ...], checks.not_empty("--against is empty: name an encoder")]
Rows = Annotated[Count, checks.maximum(MAX_ROWS)]
Channels = Annotated[
    tuple[int, ...],
    Rule(
        "--channels must name 1 channel, drawn gray, or 3 for red, green and blue, not {value}",
        lambda channels: len(channels) in (0, 1, 3),
        is_whole=True,
    ),
    Rule("--channels are counted from 1", lambda channel: channel >= 1),
]


@dataclass(frozen=True, kw_only=True)
class Panels(Device, Images, EncoderOption):
    """Options of a figure with a row per image and a column per encoder."""

    count: Rows = 6
    """Images drawn."""

    channels: Channels = ()
    """Channels drawn, counted from 1: three as red, green and blue, or one as gray. Default: the
    first three, or the first if there are fewer."""

    against: Against = ()
    """Other encoders to draw beside it: run folders, files, timm:NAME, random:RUN, ..."""

    seed: checks.Seed = 0
    """Seed of the choice of images."""

    def check(self) -> None:
        """Check what fits on a sheet."""
        drawn = (self.encoder, *self.against)
        require(len(set(drawn)) == len(drawn), "--against names an encoder twice")
        require(
            len(self.against) <= MAX_AGAINST,
            f"--against names {len(self.against)}: a figure has room for {MAX_AGAINST}",
        )


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(Panels):
    """Draw what the decoder predicts for masked images (the paper's Figure 5)."""

    encoder: EncoderArgument
    """Run folder, or a checkpoint file with a decoder (RUN/checkpoints/previous.pt)."""

    against: Against = ()
    """Other runs or checkpoints to draw beside it, for the same images; under the same masks if
    their grids of patches are equal."""

    seed: checks.Seed = 0
    """Seed of the choice of images and of the masks."""

    mask_ratio: Annotated[float | None, checks.BETWEEN_0_AND_1] = None
    """Share of patches hidden. Default: that of ENCODER, for all runs."""

    statistics: Literal["visible", "target"] = "visible"
    """Under normalised targets a patch's brightness and contrast are not predicted. They are
    estimated from the visible patches around it, or taken from the hidden patch itself, which is a
    leak and gives the prettier pictures of the literature."""

    out: Path | None = None
    """The picture. Default: figures/reconstructions.png in the run folder."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Panels):
    """Draw where an encoder attends (the paper's Figure 2)."""

    kind: Literal["rollout", "last", "heads"] = "rollout"
    """rollout: attention followed through all blocks, mean over heads.
    last: what the class token of the last block attends to, mean over heads.
    heads: the same, each head in its own column.
    Without a class token: what the patches attend to on average."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels, or height and width: larger gives finer maps. Default: the
    encoder's own."""

    scale: Literal["row", "own"] = "row"
    """row: one colour scale for all maps of an image, so that they can be compared; it covers at
    least half to twice uniform attention, so that a map without preference has one colour.
    own: each map from its own minimum to its own maximum, which shows a pattern even in a random
    encoder's nearly uniform attention."""

    out: Path | None = None
    """The picture. Default: figures/attention.png in the run folder."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Reading, Compute, InputSize, Images, EncoderOption):
    """Draw an encoder's features: colours of patches, a map of the images, outliers, duplicates."""

    draw: Annotated[
        tuple[FeaturePicture, ...],
        checks.one_or_more(f"--draw is empty: name {', '.join(FEATURE_PICTURES)}"),
        checks.DISTINCT,
    ] = FEATURE_PICTURES
    """pca: images beside their patches, coloured by the three main directions in which patches
    differ.
    map: all images in a plane, similar ones close together.
    typical: images with many similar ones, and images with none.
    duplicates: pairs of the same picture, or nearly."""

    against: Annotated[Against, checks.DISTINCT] = ()
    """pca: other encoders to draw beside it: run folders, files, timm:NAME, random:RUN, ..."""

    count: Rows = 8
    """pca: images drawn. typical: the most typical images drawn, and twice as many of the least
    typical. duplicates: a third of the pairs drawn."""

    most: Annotated[int, checks.must_be(f"at least {MIN_IMAGES}", MIN_IMAGES.__le__)] = 2000
    """map: maximum number of images in it, drawn at random."""

    map: Literal["tsne", "umap"] = "tsne"
    """map: t-SNE of scikit-learn, or UMAP, which needs: pip install 'mvmae[umap]'."""

    threshold: Annotated[
        float, checks.must_be("a cosine above -1 and up to 1", lambda value: -1 < value <= 1)
    ] = 0.98
    """duplicates: smallest cosine of two images' features, minus the mean over all, that counts."""

    max_images: CountOrNone = None
    """Maximum number of images to use, drawn at random. Default: all."""

    pool: Pool | None = None
    """Token that represents an image: the mean of the patch tokens, or the class token. Default:
    the one that training shaped."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels, or height and width; larger gives finer colours. Default: the
    encoder's own."""

    batch_size: Count = 64
    """Images encoded at a time."""

    in_channels: Annotated[int | None, checks.GRAY_OR_COLOUR] = None
    """Channels of the images, 3 for colour or 1 for gray. Default: the encoder's own."""

    # scikit-learn's seeds have 32 bits
    seed: Annotated[int, checks.must_be("between 0 and 2**32 - 1", lambda s: 0 <= s < 2**32)] = 0
    """Seed of the choice of images, and of the map."""

    out: Path | None = None
    """Folder that gets the pictures. Default: figures/ in the run folder that ENCODER is or is in;
    else in runs/ENCODER."""

    def check(self) -> None:
        """Require a picture that draws the encoders of --against."""
        require(
            not self.against or "pca" in self.draw,
            "--against is drawn by pca: add pca to --draw, or leave out --against",
        )


@dataclass(frozen=True, kw_only=True)
class CurvesConfig(Options):
    """Draw losses, health, scores and speed of runs over their length, side by side."""

    runs: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="RUN [RUN ...]"),
        checks.one_or_more("no RUN: name a run folder, or several"),
    ]
    """Run folders of pretrain, finetune, detect or segment; the runs may still be going on."""

    against: Literal["steps", "images", "hours"] = "steps"
    """Horizontal axis. Hours are hours of training, including those before a resume."""

    smooth: Annotated[int, checks.between(1, MAX_WINDOW)] = 1
    """Lines of metrics.jsonl in a centred mean; the measured values stay visible behind it.
    1: no smoothing."""

    out: Annotated[Path | None, checks.has_suffix(".png", ".svg", ".pdf")] = None
    """The figure: .png, .svg or .pdf. Default: figures/curves.png in the run folder; for several
    runs, curves.png beside the first of them."""

    def check(self) -> None:
        """Require runs that can be told apart."""
        require(
            len(self.runs) <= MAX_CURVES,
            f"{len(self.runs)} runs are more than the {MAX_CURVES} colours that can be told apart: "
            "name fewer",
        )
        paths = [normpath(path) for path in self.runs]
        twice = [path for path in dict.fromkeys(paths) if paths.count(path) > 1]
        require(not twice, f"RUN {' '.join(twice)} is named twice")


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Device):
    """Write what a run did, and whether it worked, as one HTML file; of several runs, a comparison.

    The file needs neither network nor other files: send it, print it, open it from disk.
    """

    runs: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="RUN [RUN ...]"),
        checks.one_or_more("RUN is empty: name one or more run folders"),
    ]
    """Run folders of pretrain, finetune, detect or segment, finished or not; or a folder with the
    results/ of an encoder that was only judged."""

    out: Annotated[Path | None, checks.has_suffix(".html", ".htm")] = None
    """The page. Default: report.html in the run folder; for several runs, beside the first."""

    data: Annotated[
        tuple[str, ...],
        checks.not_empty("--data is empty: name a folder, a list file, photos or digits"),
    ] = ()
    """Images for the pictures: folders, a list file, photos or digits. Default: the training images
    of the (first) run, or the built-in photographs if those are gone."""

    count: Annotated[int, checks.between(1, MAX_PICTURES)] = 6
    """Images shown."""

    pictures: bool = True
    """Show reconstructions, attention and features; without them the page takes a second."""

    seed: checks.Seed = 0
    """Seed of the choice of images and of the masks."""

    def check(self) -> None:
        """Require a number of runs that can be compared, and a use for --data."""
        require(
            len(self.runs) <= MAX_RUNS,
            f"{len(self.runs)} runs are more than a page compares well: name at most {MAX_RUNS}",
        )
        require(
            self.pictures or not self.data, "--data has no effect with --no-pictures: leave out one"
        )


@dataclass(frozen=True, kw_only=True)
class ExploreConfig(Compute, Images, EncoderOption):
    """Explore an encoder in the browser: masks, attention, similar patches, nearest images.

    Nothing leaves the machine: the page is served to it alone, and loads nothing from elsewhere.
    """

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME. Reconstructions need a run, which has a decoder."""

    most: Count = 1000
    """Images of DATA to embed for the search, drawn at random; the page works meanwhile. They are
    kept in the run's cache/ for the next time."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels, or height and width; larger gives finer maps of attention and
    features. Default: the encoder's own."""

    host: str = "127.0.0.1"
    """Address to serve on. Any other than this machine's own lets others in, without a password."""

    port: Annotated[int, checks.between(0, MAX_PORT)] = 8017
    """Port to serve on; 0, or one that is taken: the next free one."""

    open: bool = False
    """Open the page in the browser."""

    def check(self) -> None:
        """Check the address."""
        require(
            self.host.strip() == self.host != "" and "/" not in self.host,
            f"--host '{self.host}' is not an address: name one such as 127.0.0.1, without http:// "
            "or a port",
        )
