"""Options of the commands that draw: reconstruct, attention, features, curves, report, explore."""

from __future__ import annotations

from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.checks import require
from mvmae.config.evaluation import require_gray_or_colour
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
    require_positive,
    require_seed,
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


@dataclass(frozen=True, kw_only=True)
class Panels(Device, Images, EncoderOption):
    """Options of a figure with a row per image and a column per encoder."""

    count: int = 6
    """Images drawn."""

    channels: tuple[int, ...] = ()
    """Channels drawn, counted from 1: three as red, green and blue, or one as gray. Default: the
    first three, or the first if there are fewer."""

    against: tuple[str, ...] = ()
    """Other encoders to draw beside it: run folders, files, timm:NAME, random:RUN, ..."""

    seed: int = 0
    """Seed of the choice of images."""

    def check(self) -> None:
        """Check what fits on a sheet."""
        require(all(self.against), "--against is empty: name an encoder")
        drawn = (self.encoder, *self.against)
        require(len(set(drawn)) == len(drawn), "--against names an encoder twice")
        require(
            len(self.against) <= MAX_AGAINST,
            f"--against names {len(self.against)}: a figure has room for {MAX_AGAINST}",
        )
        require_drawn_channels(self.channels)
        require_positive(self, "count")
        require(self.count <= MAX_ROWS, f"count must be at most {MAX_ROWS}, not {self.count}")
        require_seed(self.seed)


def require_drawn_channels(channels: tuple[int, ...]) -> None:
    """Require one channel, or three, counted from 1; none stands for the default."""
    require(
        len(channels) in (0, 1, 3),
        f"--channels must name 1 channel, drawn gray, or 3 for red, green and blue, "
        f"not {len(channels)}",
    )
    require(all(channel >= 1 for channel in channels), "--channels are counted from 1")


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(Panels):
    """Draw what the decoder predicts for masked images (the paper's Figure 5)."""

    encoder: EncoderArgument
    """Run folder, or a checkpoint file with a decoder (RUN/checkpoints/previous.pt)."""

    against: tuple[str, ...] = ()
    """Other runs or checkpoints to draw beside it, for the same images; under the same masks if
    their grids of patches are equal."""

    seed: int = 0
    """Seed of the choice of images and of the masks."""

    mask_ratio: float | None = None
    """Share of patches hidden. Default: that of ENCODER, for all runs."""

    statistics: Literal["visible", "target"] = "visible"
    """Under normalised targets a patch's brightness and contrast are not predicted. They are
    estimated from the visible patches around it, or taken from the hidden patch itself, which is a
    leak and gives the prettier pictures of the literature."""

    out: Path | None = None
    """The picture. Default: figures/reconstructions.png in the run folder."""

    def check(self) -> None:
        """Check the mask."""
        require(
            self.mask_ratio is None or 0 < self.mask_ratio < 1,
            f"mask_ratio must be between 0 and 1, not {self.mask_ratio}",
        )


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

    draw: tuple[FeaturePicture, ...] = FEATURE_PICTURES
    """pca: images beside their patches, coloured by the three main directions in which patches
    differ.
    map: all images in a plane, similar ones close together.
    typical: images with many similar ones, and images with none.
    duplicates: pairs of the same picture, or nearly."""

    against: tuple[str, ...] = ()
    """pca: other encoders to draw beside it: run folders, files, timm:NAME, random:RUN, ..."""

    count: int = 8
    """pca: images drawn. typical: the most typical images drawn, and twice as many of the least
    typical. duplicates: a third of the pairs drawn."""

    most: int = 2000
    """map: maximum number of images in it, drawn at random."""

    map: Literal["tsne", "umap"] = "tsne"
    """map: t-SNE of scikit-learn, or UMAP, which needs: pip install 'mvmae[umap]'."""

    threshold: float = 0.98
    """duplicates: smallest cosine of two images' features, minus the mean over all, that counts."""

    max_images: int | None = None
    """Maximum number of images to use, drawn at random. Default: all."""

    pool: Pool | None = None
    """Token that represents an image: the mean of the patch tokens, or the class token. Default:
    the one that training shaped."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels, or height and width; larger gives finer colours. Default: the
    encoder's own."""

    batch_size: int = 64
    """Images encoded at a time."""

    seed: int = 0
    """Seed of the choice of images, and of the map."""

    out: Path | None = None
    """Folder that gets the pictures. Default: figures/ in the run folder that ENCODER is or is in;
    else in runs/ENCODER."""

    def check(self) -> None:
        """Check counts, the threshold, and what is drawn."""
        require_positive(self, "count", "max_images", "batch_size")
        require(self.count <= MAX_ROWS, f"count must be at most {MAX_ROWS}, not {self.count}")
        require(self.most >= MIN_IMAGES, f"most must be at least {MIN_IMAGES}, not {self.most}")
        require_gray_or_colour(self.in_channels)
        # scikit-learn's seeds are of 32 bits
        require(0 <= self.seed < 2**32, "seed must be between 0 and 2**32 - 1")
        require(len(self.draw) > 0, f"--draw is empty: name {', '.join(FEATURE_PICTURES)}")
        for name in ("draw", "against"):
            value = getattr(self, name)
            twice = sorted({one for one in value if value.count(one) > 1})
            require(not twice, f"--{name} names {' '.join(twice)} twice")
        require(all(self.against), "--against is empty: name encoders")
        require(
            not self.against or "pca" in self.draw,
            "--against is drawn by pca: add pca to --draw, or leave out --against",
        )
        require(
            -1 < self.threshold <= 1,
            f"threshold must be a cosine above -1 and up to 1, not {self.threshold}",
        )


@dataclass(frozen=True, kw_only=True)
class CurvesConfig(Options):
    """Draw losses, health, scores and speed of runs over their length, side by side."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]")]
    """Run folders of pretrain, finetune, detect or segment; the runs may still be going on."""

    against: Literal["steps", "images", "hours"] = "steps"
    """Horizontal axis. Hours are hours of training, including those before a resume."""

    smooth: int = 1
    """Lines of metrics.jsonl in a centred mean; the measured values stay visible behind it.
    1: no smoothing."""

    out: Path | None = None
    """The figure: .png, .svg or .pdf. Default: figures/curves.png in the run folder; for several
    runs, curves.png beside the first of them."""

    def check(self) -> None:
        """Check runs, window and the figure's name."""
        require(len(self.runs) > 0, "no RUN: name a run folder, or several")
        require(
            len(self.runs) <= MAX_CURVES,
            f"{len(self.runs)} runs are more than the {MAX_CURVES} colours that can be told apart: "
            "name fewer",
        )
        paths = [normpath(path) for path in self.runs]
        twice = [path for path in dict.fromkeys(paths) if paths.count(path) > 1]
        require(not twice, f"RUN {' '.join(twice)} is named twice")
        require(
            1 <= self.smooth <= MAX_WINDOW,
            f"smooth must be between 1 and {MAX_WINDOW}, not {self.smooth}",
        )
        require(
            self.out is None or self.out.suffix.lower() in (".png", ".svg", ".pdf"),
            f"--out {self.out} must end in .png, .svg or .pdf",
        )


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Device):
    """Write what a run did, and whether it worked, as one HTML file; of several runs, a comparison.

    The file needs neither network nor other files: send it, print it, open it from disk.
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")]
    """Run folders of pretrain, finetune, detect or segment, finished or not; or a folder with the
    results/ of an encoder that was only judged."""

    out: Path | None = None
    """The page. Default: report.html in the run folder; for several runs, beside the first."""

    data: tuple[str, ...] = ()
    """Images for the pictures: folders, a list file, photos or digits. Default: the training images
    of the (first) run, or the built-in photographs if those are gone."""

    count: int = 6
    """Images shown."""

    pictures: bool = True
    """Show reconstructions, attention and features; without them the page takes a second."""

    seed: int = 0
    """Seed of the choice of images and of the masks."""

    def check(self) -> None:
        """Check runs, pictures and the page's name."""
        require(len(self.runs) > 0, "no RUN: name one or more run folders")
        require(all(self.runs), "RUN is empty: name a run folder")
        require(
            len(self.runs) <= MAX_RUNS,
            f"{len(self.runs)} runs are more than a page compares well: name at most {MAX_RUNS}",
        )
        require(
            self.out is None or self.out.suffix.lower() in (".html", ".htm"),
            f"--out {self.out} must end in .html",
        )
        require(all(self.data), "--data is empty: name a folder, a list file, photos or digits")
        require(
            1 <= self.count <= MAX_PICTURES,
            f"count must be between 1 and {MAX_PICTURES}, not {self.count}",
        )
        require_seed(self.seed)
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

    most: int = 1000
    """Images of DATA to embed for the search, drawn at random; the page works meanwhile. They are
    kept in the run's cache/ for the next time."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels, or height and width; larger gives finer maps of attention and
    features. Default: the encoder's own."""

    host: str = "127.0.0.1"
    """Address to serve on. Any other than this machine's own lets others in, without a password."""

    port: int = 8017
    """Port to serve on; 0, or one that is taken: the next free one."""

    open: bool = False
    """Open the page in the browser."""

    def check(self) -> None:
        """Check counts and the address."""
        require_positive(self, "most")
        require(
            0 <= self.port <= MAX_PORT, f"port must be between 0 and {MAX_PORT}, not {self.port}"
        )
        require(
            self.host.strip() == self.host != "" and "/" not in self.host,
            f"--host '{self.host}' is not an address: name one such as 127.0.0.1, without http:// "
            "or a port",
        )
