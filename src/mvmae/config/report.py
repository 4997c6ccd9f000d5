"""A page about runs: what `report` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.checks import require

MOST_PICTURES = 64  # of 40 kB each: the page is one file that a browser opens at once
MOST_RUNS = 12  # lines in a chart that an eye can still follow
PAGES = (".html", ".htm")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Write what a run did, and whether it worked, as one HTML file; of several runs, a comparison.

    The file needs no network and no other file: send it, print it, open it from the disk.
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")]
    """Run folders of pretrain, finetune, detect or segment, finished or not; or a folder with
    results/ of an encoder that was only judged."""

    out: Path | None = None
    """The page. Default: report.html in the run folder; of several runs, beside the first."""

    data: tuple[str, ...] = ()
    """Images for the pictures: folders, a list file, photos or digits. Default: what the (first)
    run was trained on, or the built-in photographs where that is gone."""

    count: int = 6
    """Images shown."""

    pictures: bool = True
    """Show reconstructions, attention and features; without them the page takes a second."""

    seed: int = 0
    """Of the choice of images and of the masks."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute the pictures; auto: CUDA where there is one."""

    def __post_init__(self) -> None:
        require(len(self.runs) > 0, "no RUN: name one or more run folders")
        require(all(self.runs), "RUN is empty: name a run folder")
        require(
            len(self.runs) <= MOST_RUNS,
            f"{len(self.runs)} runs are more than a page compares well: name at most {MOST_RUNS}",
        )
        require(
            self.out is None or self.out.suffix.lower() in PAGES,
            f"--out {self.out} must end in .html",
        )
        require(all(self.data), "--data is empty: name a folder, a list file, photos or digits")
        require(
            1 <= self.count <= MOST_PICTURES,
            f"count must lie between 1 and {MOST_PICTURES}, not {self.count}",
        )
        require(0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1")
        require(
            self.pictures or not self.data, "--data has no effect with --no-pictures: leave out one"
        )
