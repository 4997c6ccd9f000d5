"""Pictures of what an encoder makes of images: what `features` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mvmae.config.checks import require, require_workers
from mvmae.config.evaluation import EncoderArgument
from mvmae.config.model import Pool
from mvmae.config.pretrain import DataArgument

FeaturePicture = Literal["pca", "map", "typical", "duplicates"]
FEATURE_PICTURES: tuple[FeaturePicture, ...] = ("pca", "map", "typical", "duplicates")
FEWEST = 5  # images that have neighbourhoods
MOST = 200  # pictures on a page


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesConfig:
    """Draw what an encoder sees: colours of patches, a map of the images, outliers, duplicates."""

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME."""

    data: DataArgument = ("photos",)
    """Images, labelled or not: folders (searched to the bottom), a list file (.txt, .csv), or the
    built-in photos or digits."""

    draw: tuple[FeaturePicture, ...] = FEATURE_PICTURES
    """pca: images beside their patches, coloured by the three main ways in which patches differ.
    map: all images in the plane, like near like.
    typical: those that have many like them, and those that have none.
    duplicates: pairs that are the same picture, or nearly."""

    against: tuple[str, ...] = ()
    """pca: other encoders to draw beside it: run folders, files, timm:NAME, random:RUN, ..."""

    count: int = 8
    """pca: images drawn. typical: the most typical drawn, and twice as many of the least.
    duplicates: pairs drawn, times three."""

    most: int = 2000
    """map: most images in it, drawn at random."""

    map: Literal["tsne", "umap"] = "tsne"
    """map: t-SNE of scikit-learn, or UMAP, which needs: pip install 'mvmae[umap]'."""

    threshold: float = 0.98
    """duplicates: least cosine of two images' features, less the mean of all, that counts."""

    max_images: int | None = None
    """Most images to look at, drawn at random. Default: all."""

    pool: Pool | None = None
    """Token that stands for an image: the mean of the patch tokens, or the class token. Default:
    the one that training shaped."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels, or height and width; a larger one gives finer colours. Default:
    the encoder's own."""

    in_channels: int | None = None
    """Channels of the images, 3 for colour or 1 for gray. Default: the encoder's own."""

    batch_size: int = 64
    """Images encoded at a time."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA where there is one."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoder; auto: bf16 on CUDA, fp32 on a CPU."""

    workers: int | None = None
    """Processes that read images. Default: by the machine."""

    seed: int = 0
    """Of the choice of images, and of the map."""

    out: Path | None = None
    """Folder that gets the pictures. Default: figures/ in the run folder, where ENCODER is one or
    lies in one; else in runs/ENCODER."""

    def __post_init__(self) -> None:
        for name in ("count", "max_images", "in_channels", "batch_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        require(self.count <= MOST, f"count must be at most {MOST}, not {self.count}")
        require(self.most >= FEWEST, f"most must be at least {FEWEST}, not {self.most}")
        require(
            self.in_channels in (None, 1, 3),
            f"in_channels must be 3 for colour or 1 for gray, not {self.in_channels}",
        )
        require_workers(self.workers)
        require(0 <= self.seed < 2**32, "seed must lie between 0 and 2**32 - 1")
        require(
            len(self.data) > 0 and all(self.data),
            "DATA is empty: name a folder, a list file, photos or digits",
        )
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
