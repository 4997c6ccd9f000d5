"""Images into tar files: what `data pack` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.checks import require, require_workers

PackFormat = Literal["keep", "jpeg", "webp", "png"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataPackConfig:
    """Write images into tar files (WebDataset's shards), for disks that are slow at small files.

    Training and judging on DST are as on SRC: the same images in the same order, with labels and
    groups. Stopped, the same command goes on where it was and writes the same bytes.
    """

    data: Annotated[Positional[str], arg(metavar="SRC")]
    """Images: a folder, a list (.txt, .csv, .tsv, .parquet), tar files, or any other DATA."""

    out: Annotated[Positional[Path], arg(metavar="DST")]
    """Folder for the tar files; it must be new or empty."""

    shard_size: float = 256.0
    """Size of a tar file, at most, in MB (of a million bytes); one image may be larger."""

    short_side: int | None = None
    """Shrink images whose shorter side is longer than this many pixels; none is enlarged.
    Default: as they are."""

    format: PackFormat = "keep"
    """keep: the files' bytes as they are; a shrunken JPEG is JPEG again, anything else PNG. jpeg,
    webp, png: all are written anew. Images with more than 8 bits or other channels than gray and
    colour stay as they are whatever is asked for."""

    quality: int = 90
    """Of JPEG and WebP, 1 to 100."""

    root: str | None = None
    """Of a list: a folder that no image may lie outside of, wherever links lead."""

    timeout: float = 60.0
    """Seconds that one image may take before the process that reads it is ended."""

    memory: float = 4.0
    """Memory that a process that reads images may take, in GiB."""

    workers: int | None = None
    """Processes that read images; the bytes do not depend on it. Default: as many as cores."""

    overwrite: bool = False
    """Replace tar files that this command wrote to DST, or what another command left unfinished."""

    def __post_init__(self) -> None:
        require(self.data != "", "SRC is empty: name a folder of images or a list file")
        require(
            str(self.out) not in ("", "."),
            "DST is the folder we are in: name one for the tar files",
        )
        require(
            0.001 <= self.shard_size <= 1e6,
            f"shard_size is in MB and must lie between 0.001 and a million, not {self.shard_size}",
        )
        require(
            self.short_side is None or 1 <= self.short_side <= 65535,
            f"short_side must lie between 1 and 65535 pixels, not {self.short_side}",
        )
        require(1 <= self.quality <= 100, f"quality must lie between 1 and 100, not {self.quality}")
        require(0 < self.timeout < 1e6, f"timeout must be a number of seconds, not {self.timeout}")
        require(
            0.25 <= self.memory <= 4096,
            f"memory is in GiB and must be at least 0.25, not {self.memory}",
        )
        require_workers(self.workers)
        require(self.workers != 0, "workers must be at least 1: images are opened by them alone")
