"""How runs went: what `curves` is told."""

from __future__ import annotations

from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.checks import require

FORMATS = (".png", ".svg", ".pdf")
MOST_RUNS = 8  # whose colours can still be told apart
LARGEST_WINDOW = 10_001


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvesConfig:
    """Draw the losses, health, scores and speed of runs over their length, one beside another."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]")]
    """Run folders, of pretrain, finetune, detect or segment; they may still be going on."""

    against: Literal["steps", "images", "hours"] = "steps"
    """What lies below the curves. Hours are of training, what came before a resume included."""

    smooth: int = 1
    """Lines of metrics.jsonl in a centred mean; what was measured stays in sight behind it.
    1: as measured."""

    out: Path | None = None
    """The figure: .png, .svg or .pdf. Default: figures/curves.png in the run folder; of several
    runs curves.png beside the first of them."""

    def __post_init__(self) -> None:
        require(len(self.runs) > 0, "no RUN: name a run folder, or several")
        require(
            len(self.runs) <= MOST_RUNS,
            f"{len(self.runs)} runs are more than the {MOST_RUNS} colours that can be told apart: "
            "name fewer",
        )
        paths = [normpath(path) for path in self.runs]
        twice = [path for path in dict.fromkeys(paths) if paths.count(path) > 1]
        require(not twice, f"RUN {' '.join(twice)} is named twice")
        require(
            1 <= self.smooth <= LARGEST_WINDOW,
            f"smooth must lie between 1 and {LARGEST_WINDOW}, not {self.smooth}",
        )
        require(
            self.out is None or self.out.suffix.lower() in FORMATS,
            f"--out {self.out} must end in .png, .svg or .pdf",
        )
