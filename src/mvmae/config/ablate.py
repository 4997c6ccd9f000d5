"""Options of `mvmae ablate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from mvmae.config import checks
from mvmae.config.checks import require
from mvmae.config.options import DataArgument, Device, Reading

MAX_SEEDS = 100
MAX_JOBS = 256
SETS_WITH_TEST_SPLIT = ("photos", "digits", "builtin:", "torchvision:", "hf:")
GRID = "grid"


@dataclass(frozen=True, kw_only=True)
class AblateConfig(Reading, Device):
    """Pre-train and judge the rows of a table over several seeds, and write the table.

    The same command continues where it stopped, and shares the work with others like it.
    """

    table: Annotated[Positional[str], arg(metavar="TABLE")] = ""
    """table5-mask, table5-lambda, table5-decoder and table6 of the paper; views, latent, head,
    temperature, norm-pix; or grid, of the values of --set. --list says what each varies."""

    data: DataArgument = ("photos",)
    """Images to pre-train on, as for pretrain: folders, a list file, or the built-in photos or
    digits, or torchvision:NAME or hf:NAME."""

    eval_data: Annotated[
        str | None, checks.not_empty("--eval-data is empty: name labelled images")
    ] = None
    """Labelled images to judge on, never trained on. Default: the test split of a data set that is
    given by its name."""

    recipe: str | None = None
    """Recipe of all cells, or a run's config.json. Default: as for pretrain."""

    seeds: Annotated[
        tuple[int, ...],
        checks.one_or_more("seeds is empty: name one or more"),
        checks.DISTINCT,
        checks.SEED,
    ] = (0, 1, 2)
    """Seeds; every cell is trained once with each."""

    set: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="FIELD VALUE [VALUE ...]")
    ] = ()
    """A field of pretrain, and its value for all cells (--set epochs 4); for grid, the values that
    it takes (--set model.mask-ratio 0.6 0.75 0.8). May be given repeatedly."""

    out: Path | None = None
    """Folder of the runs and the table. Default: runs/ablate-TABLE."""

    probe: Literal["cached", "mae", "none"] = "cached"
    """Linear probe besides kNN: on cached features, by MAE's protocol, or none."""

    baseline: str | None = None
    """Cell with which the others are compared. Default: the table's."""

    only_table: bool = False
    """Train nothing: write the table of what is finished."""

    jobs: Annotated[int, checks.between(1, MAX_JOBS)] = 1
    """Processes that share the work on this machine, each with its own GPU in turn."""

    list: bool = False
    """Say what each table varies, and what the paper found."""

    workers: checks.Workers = None
    """Processes that read images, for each cell. Default: depends on the machine."""

    def check(self) -> None:
        """Check names and counts; --list needs nothing."""
        if self.list:
            return
        require(
            self.table != "", "no TABLE: name one such as table6 (`mvmae ablate --list` lists them)"
        )
        require(
            self.eval_data is not None
            or (len(self.data) == 1 and self.data[0].startswith(SETS_WITH_TEST_SPLIT)),
            f"no labelled images to judge on: name them with --eval-data, apart from "
            f"{' '.join(self.data)}",
        )
        require(len(self.seeds) <= MAX_SEEDS, f"more than {MAX_SEEDS} seeds")
        require(not (self.only_table and self.jobs > 1), "--only-table needs no --jobs")
        self._check_settings()

    def _check_settings(self) -> None:
        for words in self.set:
            name = words[0] if words else "FIELD"
            require(len(words) > 1, f"--set {name} needs a value: --set epochs 4")
            require(len(set(words[1:])) == len(words) - 1, f"--set {name} names a value twice")
            require(
                len(words) == 2 or self.table == GRID,
                f"--set {name} has {len(words) - 1} values, which only grid takes: give one, or "
                f"mvmae ablate {GRID}",
            )
        names = [words[0].replace("-", "_") for words in self.set]
        require(len(set(names)) == len(names), "--set names a field twice")
        require(
            self.table != GRID or any(len(words) > 2 for words in self.set),
            "a grid needs a field with two or more values: --set model.mask-ratio 0.6 0.75 0.8",
        )

    @property
    def eval_source(self) -> str:
        """The labelled images."""
        return self.eval_data if self.eval_data is not None else self.data[0]

    @property
    def folder(self) -> Path:
        """Folder of the runs and the table."""
        return self.out if self.out is not None else Path("runs") / f"ablate-{self.table}"
