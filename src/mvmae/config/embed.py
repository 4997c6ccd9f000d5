"""Embedding images and searching them: what `embed` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mvmae.config.checks import require, require_workers
from mvmae.config.evaluation import EncoderArgument
from mvmae.config.pretrain import DataArgument

MOST_IN_SAFETENSORS = 100_000  # images in a part: paths lie in a header that may take 100 MB


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """Write the embedding of every image to files, and find images that look alike."""

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME."""

    data: DataArgument = ("photos",)
    """Images, labelled or not: folders (searched to the bottom), a list file (.txt, .csv), or the
    built-in photos or digits."""

    tokens: Literal["mean", "cls", "patch"] | None = None
    """mean: the mean of the patch tokens. cls: the class token. patch: every patch token, as many
    times larger. Default: mean or cls, whichever training shaped."""

    query: tuple[str, ...] = ()
    """Image files whose nearest neighbours among the images are sought; the embeddings are made
    first where they are not there yet."""

    k: int = 8
    """Neighbours of each query."""

    format: Literal["parquet", "npz", "safetensors"] = "parquet"
    """Of the files."""

    out: Path | None = None
    """Folder that gets parts/ and index.json. Default: embeddings-DATA in the run folder, where
    ENCODER is one or lies in one; else in runs/ENCODER."""

    resume: bool = False
    """Go on where it was stopped, and make anew what is missing or damaged."""

    overwrite: bool = False
    """Replace embeddings that are there."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels, or height and width. Default: the encoder's own."""

    in_channels: int | None = None
    """Channels of the images, 3 for colour or 1 for gray. Default: the encoder's own."""

    dtype: Literal["float32", "float16"] = "float32"
    """Numbers in the files; float16 takes half the space."""

    part_size: int | None = None
    """Images in a file. Default: about 64 MB of them, and at most 4096, for what --resume has to
    do again is what was not yet in a file."""

    batch_size: int = 64
    """Images encoded at a time."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA where there is one."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoder; auto: bf16 on CUDA, fp32 on a CPU."""

    workers: int | None = None
    """Processes that read images. Default: by the machine."""

    def __post_init__(self) -> None:
        for name in ("k", "in_channels", "part_size", "batch_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        require_workers(self.workers)
        require(
            len(self.data) > 0 and all(self.data),
            "DATA is empty: name a folder, a list file, photos or digits",
        )
        require(all(self.query), "--query is empty: name image files")
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")
        require(
            self.format != "safetensors" or (self.part_size or 0) <= MOST_IN_SAFETENSORS,
            f"a safetensors file holds the paths of {MOST_IN_SAFETENSORS} images at most: "
            "lower --part-size",
        )
