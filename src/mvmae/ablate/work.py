"""Train and evaluate the cells of a table in turn, while other processes may do the same."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from mvmae import terminal
from mvmae.ablate import cells
from mvmae.ablate.plan import LOCKS, SEEDLESS, Cell, Plan
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.detect_kind import ImageKind, detect_kind, require_channels
from mvmae.data.sources.base import Source, plain_channels
from mvmae.data.sources.groups import group_numbers
from mvmae.data.sources.labelled import Labelled
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError
from mvmae.evaluation import result_text, shared
from mvmae.method.knn_while_training import open_eval_data
from mvmae.method.pretrain import make_plan
from mvmae.storage import results, run_folder
from mvmae.storage.lock import try_lock


class Inputs(NamedTuple):
    """The labelled images of a table, which were checked before any training."""

    labelled: Labelled
    labelled_fingerprint: str


class Outcome(NamedTuple):
    """How a table's work ended."""

    status: int
    """0; 130 or 143 when stopped with the state saved."""

    failed: dict[str, str]
    """Why cells could not be trained, by folder name."""

    elsewhere: list[str]
    """Folder names of cells that other processes are running."""


def check_inputs(plan: Plan) -> Inputs:
    """Check everything that can be checked before the first step of any cell.

    Raises:
        UserError: Images cannot be opened, are too few for a row or are in both training and test
            set, or the folder holds other files.
    """
    config = plan.config
    results.home("random:none", config.folder)  # raises if it is a file or not writable
    if run_folder.is_run(config.folder):
        raise UserError(f"{config.folder} is itself a run: choose an --out that is new or empty")
    for data in (*config.data, config.judged_on):
        shared.require_results_outside(config.folder, data)
    recipe = plan.recipe_config
    source = open_source(config.data, plain_channels(recipe.model.in_channels))
    kind = detect_kind(source, 0)
    for row in plan.rows:
        try:
            _require_images(row.config, source, kind)
        except UserError as error:
            raise UserError(f"row '{row.arm.name}' of {config.table}: {error}") from error
    views = recipe.views
    views = replace(views, depth=kind.depth if views.depth == "auto" else views.depth)
    labelled = open_eval_data(replace(recipe, views=views, eval_data=config.judged_on), source)
    fingerprint = make_plan(plan.baseline_config, source).fingerprint
    for cell in plan.trained():
        cells.training_progress(cell, fingerprint)
    return Inputs(labelled, result_text.data_facts(labelled)["fingerprint"])


def _require_images(config: PretrainConfig, source: Source, kind: ImageKind) -> None:
    require_channels(kind, config.model.in_channels, config.data, "model.in-channels")
    group_numbers(source, config.group_regex)
    if len(source) < config.batch_size:
        raise UserError(
            f"{len(source)} images are fewer than its batch of {config.batch_size}: give a "
            "smaller --set batch-size, or more images"
        )


def do_cells(plan: Plan, inputs: Inputs) -> Outcome:
    """Train and evaluate every cell that is neither done nor being run by another process."""
    config = plan.config
    every = [*plan.controls(), *plan.trained()]
    todo = [cell for cell in every if not cells.is_done(cell, config, inputs.labelled_fingerprint)]
    failed: dict[str, str] = {}
    elsewhere: list[str] = []
    clock = Clock(todo)
    for cell in todo:
        name = cell.folder.name
        with try_lock(config.folder / LOCKS / name) as is_held:
            if not is_held:
                elsewhere.append(name)
                continue
            # Another process may have finished it since.
            if cells.is_done(cell, config, inputs.labelled_fingerprint):
                continue
            position = f"[{every.index(cell) + 1}/{len(every)}]"
            try:
                status = _run_cell(cell, plan, inputs, position)
            except UserError as error:
                failed[name] = str(error)
                terminal.warn(f"{position} {name} failed: {error}")
                continue
        if status:
            return Outcome(status, failed, elsewhere)
        _report_cell(cell, plan, inputs, position, clock)
    return Outcome(0, failed, elsewhere)


def _run_cell(cell: Cell, plan: Plan, inputs: Inputs, position: str) -> int:
    """Train and evaluate one cell."""
    if cell.config is not None and cells.training_progress(cell) != "trained":
        terminal.people().print(f"\n{position} {cell.name}, seed {cell.seed}", style="bold")
        if status := cells.train(cell):
            return status
    return cells.evaluate(cell, plan, inputs.labelled, inputs.labelled_fingerprint)


def _report_cell(cell: Cell, plan: Plan, inputs: Inputs, position: str, clock: Clock) -> None:
    """Print the figures of a cell, and the estimated time left."""
    figures = {
        cells.command_name(config): result["headline"]["top1"]
        for config in cells.evaluation_configs(cell, plan.config)
        if (result := cells.find_result(cell, config, inputs.labelled_fingerprint))
    }
    listed = ", ".join(f"{cells.TITLES[name]} {value:.1f}" for name, value in figures.items())
    which = cell.name if cell.key in SEEDLESS else f"{cell.name}, seed {cell.seed}"
    terminal.people().print(f"{position} {which}: {listed}{clock.left_after(cell)}")
    content = {"cell": cell.key, "seed": cell.seed, "folder": str(cell.folder)}
    terminal.emit("cell", content | {f"{name}_top1": value for name, value in figures.items()})


class Clock:
    """Estimate the time left from the views that cells have seen and still have to see."""

    def __init__(self, todo: Sequence[Cell]) -> None:
        self.left = {cell.folder: _epochs_of_views(cell) for cell in todo}
        self.done, self.seconds, self.began = 0, 0.0, time.perf_counter()

    def left_after(self, cell: Cell) -> str:
        """Time left after a cell, in words; empty if it is unknown or zero."""
        now = time.perf_counter()
        self.seconds, self.began = self.seconds + now - self.began, now
        self.done += self.left.pop(cell.folder)
        left = sum(self.left.values())
        if not self.done or not left:
            return ""
        return f"; about {terminal.clock(self.seconds / self.done * left)} left"


def _epochs_of_views(cell: Cell) -> int:
    """Views of each image over a cell's training; none for controls, which take little time."""
    return cell.config.epochs * cell.config.views.num_views if cell.config else 0
