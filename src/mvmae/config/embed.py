"""Options of `mvmae embed`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mvmae.config import checks
from mvmae.config.checks import Count, CountOrNone, require
from mvmae.config.options import Compute, EncoderOption, Images, InputSize, Reading

MAX_IN_SAFETENSORS = 100_000  # images per part: paths are in a header of at most 100 MB


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(Reading, Compute, InputSize, Images, EncoderOption):
    """Write the embedding of every image to files, and find similar images."""

    tokens: Literal["mean", "cls", "patch"] | None = None
    """mean: the mean of the patch tokens. cls: the class token. patch: every patch token, which
    takes that much more space. Default: mean or cls, whichever training shaped."""

    query: Annotated[tuple[str, ...], checks.not_empty("--query is empty: name image files")] = ()
    """Image files whose nearest neighbours among the images to find; missing embeddings are
    computed first."""

    k: Count = 8
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

    part_size: CountOrNone = None
    """Images per file. Default: about 64 MB of them, and at most 4096, since --resume repeats what
    was not yet in a file."""

    batch_size: Count = 64
    """Images encoded at a time."""

    def check(self) -> None:
        """Check what goes together."""
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")
        require(
            self.format != "safetensors" or (self.part_size or 0) <= MAX_IN_SAFETENSORS,
            f"a safetensors file holds the paths of {MAX_IN_SAFETENSORS} images at most: "
            "lower --part-size",
        )
