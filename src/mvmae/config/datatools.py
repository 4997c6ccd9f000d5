"""Looking through images before they are trained on: what `data check` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.checks import require, require_workers

Kind = Literal["auto", "images", "coco", "masks"]
Severity = Literal["fatal", "skipped", "look"]
CheckedArgument = Annotated[Positional[tuple[str, ...]], arg(metavar="DATA")]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCheckConfig:
    """Open every file as training would, and say what is wrong with which.

    Exit status 0: nothing; 1: something (see --fail-on); 2: the command itself cannot work.
    """

    data: CheckedArgument
    """Folders of images (searched to the bottom), a list file (.txt, .csv), tar files, a .npy file,
    a folder in COCO's layout as for `mvmae detect`, or one of images and masks as for `mvmae
    segment`."""

    kind: Kind = "auto"
    """What DATA is. auto: coco where there is annotations/instances_SPLIT.json, masks where
    there is images/ with annotations/, masks/ or labels/ beside it, and images elsewhere."""

    against: Annotated[tuple[str, ...], arg(metavar="VAL [VAL ...]")] = ()
    """Images that none of DATA may be: folders or a list file. Exact and near duplicates
    between the two are named. Folders train and val in DATA are compared without being asked."""

    min_size: int = 16
    """Images with a shorter side than this many pixels are named; 16 is a usual patch."""

    near: bool = True
    """Whether near duplicates are looked for: re-encoded, resized, slightly brighter."""

    similarity: float = 0.99
    """Correlation of two thumbnails' pixels from which two images are near duplicates."""

    timeout: float = 60.0
    """Seconds that one file may take before the process that reads it is ended."""

    memory: float = 4.0
    """Memory that a process that reads files may take, in GiB."""

    workers: int | None = None
    """Processes that read files. Default: as many as there are cores."""

    out: Path | None = None
    """File for everything found: .csv has a row for each file, .json the tables besides."""

    quarantine: Path | None = None
    """List file (.txt, or .csv with labels) of what is clean, for `mvmae pretrain LIST`: what
    can be read, and one of each set of exact duplicates."""

    fail_on: Severity = "look"
    """Least severity that makes the exit status 1. fatal: training would stop. skipped: or
    would pass files over. look: or anything else was found, such as duplicates."""

    ignore_index: int | Literal["auto", "none"] = "auto"
    """Of masks: the value that counts for nothing, as for `mvmae segment`."""

    num_classes: int | None = None
    """Of masks: how many classes there are, as for `mvmae segment`."""

    classes: Path | None = None
    """Of masks: file of class names, as for `mvmae segment`."""

    def __post_init__(self) -> None:
        require(
            len(self.data) > 0 and all(self.data),
            "no DATA: name a folder of images, a list file, or a folder in COCO's or ADE20K's "
            "layout",
        )
        require(all(self.against), "--against is empty: name a folder of images or a list file")
        require(self.min_size >= 0, f"min_size must not be negative, not {self.min_size}")
        require(
            0.5 <= self.similarity <= 1,
            f"similarity must lie between 0.5 and 1, not {self.similarity}",
        )
        require(0 < self.timeout < 1e6, f"timeout must be a number of seconds, not {self.timeout}")
        require(
            0.25 <= self.memory <= 4096,
            f"memory is in GiB and must be at least 0.25, not {self.memory}",
        )
        require_workers(self.workers)
        require(self.workers != 0, "workers must be at least 1: files are opened by them alone")
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
            f"--quarantine {self.quarantine} must end in .txt or .csv, the lists that are read",
        )
