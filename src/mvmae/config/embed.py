"""Options of `mvmae embed`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mvmae.config.checks import require
from mvmae.config.options import (
    Compute,
    EncoderOption,
    Images,
    InputSize,
    Reading,
    require_positive,
)

MAX_IN_SAFETENSORS = 100_000  # images per part: paths are in a header of at most 100 MB


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(Reading, Compute, InputSize, Images, EncoderOption):
    """Write the embedding of every image to files, and find similar images."""

    tokens: Literal["mean", "cls", "patch"] | None = None
    """mean: the mean of the patch tokens. cls: the class token. patch: every patch token, which
    takes that much more space. Default: mean or cls, whichever training shaped."""

    query: tuple[str, ...] = ()
    """Image files whose nearest neighbours among the images to find; missing embeddings are
    computed first."""

    k: int = 8
    """Neighbours of each query."""

    format: Literal["parquet", "npz", "safetensors"] = "parquet"
    """Format of the files."""

    out: Path | None = None
    """Folder that gets parts/ and index.json. Default: embeddings-DATA in the run folder that
    ENCODER is or is in; else in runs/ENCODER."""

    resume: bool = False
    """Continue where it stopped, and compute again what is missing or damaged."""

    overwrite: bool = False
    """Replace existing embeddings."""

    dtype: Literal["float32", "float16"] = "float32"
    """Type of the numbers in the files; float16 takes half the space."""

    part_size: int | None = None
    """Images per file. Default: about 64 MB of them, and at most 4096, since --resume repeats what
    was not yet in a file."""

    batch_size: int = 64
    """Images encoded at a time."""

    def check(self) -> None:
        """Check counts and what goes together."""
        require_positive(self, "k", "part_size", "batch_size")
        require(all(self.query), "--query is empty: name image files")
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")
        require(
            self.format != "safetensors" or (self.part_size or 0) <= MAX_IN_SAFETENSORS,
            f"a safetensors file holds the paths of {MAX_IN_SAFETENSORS} images at most: "
            "lower --part-size",
        )
