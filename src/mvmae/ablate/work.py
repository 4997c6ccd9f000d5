"""Doing the cells of a table one after another, beside others who do the same."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from mvmae import terminal
from mvmae.ablate import cells, locks
from mvmae.ablate.plan import SEEDLESS, Cell, Plan
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.detect_kind import Kind, kind_of, require_channels
from mvmae.data.sources.base import Source, plain_channels
from mvmae.data.sources.groups import group_numbers
from mvmae.data.sources.labelled import Labelled
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError
from mvmae.evaluation import shared
from mvmae.method import pretrain
from mvmae.storage import results, run_folder


class Ready(NamedTuple):
    """What was looked at before any work."""

    data: Labelled
    images: str
    """Fingerprint of the labelled images."""

    trained_on: str
    """Fingerprint of the images of pre-training."""


class Outcome(NamedTuple):
    """How the work ended."""

    status: int
    """0, or 130 or 143 when stopped with the state saved."""

    failed: dict[str, str]
    """Why a cell cannot be trained, by its folder's name."""

    elsewhere: list[str]
    """Cells that others are at, by their folders' names."""


def ready(plan: Plan) -> Ready:
    """Check all that can be checked before the first step of any cell.

    Raises:
        UserError: Images cannot be opened, too few are there for a row, tests are trained on, or
            the folder holds something else.
    """
    asked = plan.asked
    results.home("random:none", asked.folder)  # a folder, or none, and one that may be written to
    if run_folder.is_run(asked.folder):
        raise UserError(f"{asked.folder} is a run itself: choose an --out that is new or empty")
    for place in (*asked.data, asked.judged_on):
        shared.require_results_outside(asked.folder, place)
    source = open_source(asked.data, plain_channels(plan.start.model.in_channels))
    kind = kind_of(source, 0)
    for row in plan.rows:
        try:
            _require_images(row.config, source, kind)
        except UserError as error:
            raise UserError(f"row '{row.arm.name}' of {asked.table}: {error}") from error
    views = plan.start.views
    views = replace(views, depth=kind.depth if views.depth == "auto" else views.depth)
    data = pretrain.open_judge(replace(plan.start, views=views, eval_data=asked.judged_on), source)
    assert data is not None
    fingerprint = pretrain.plan_of(plan.base, source).fingerprint
    for cell in plan.trained():
        cells.progress(cell, fingerprint)
    return Ready(data, shared.data_facts(data)["fingerprint"], fingerprint)


def _require_images(config: PretrainConfig, source: Source, kind: Kind) -> None:
    require_channels(kind, config.model.in_channels, config.data, "model.in-channels")
    group_numbers(source, config.group_regex)
    if len(source) < config.batch_size:
        raise UserError(
            f"{len(source)} images are fewer than its batch of {config.batch_size}: "
            f"--set batch-size with less, or give more images"
        )


def do(plan: Plan, known: Ready) -> Outcome:
    """Train and judge every cell that is neither done nor another process's at the moment."""
    asked = plan.asked
    every = [*plan.controls(), *plan.trained()]
    todo = [cell for cell in every if not cells.is_done(cell, asked, known.images)]
    failed: dict[str, str] = {}
    elsewhere: list[str] = []
    clock = _Clock(todo)
    for cell in todo:
        name = cell.folder.name
        with locks.taken(asked.folder, name) as mine:
            if not mine:
                elsewhere.append(name)
                continue
            if cells.is_done(cell, asked, known.images):  # by another, a moment ago
                continue
            place = f"[{every.index(cell) + 1}/{len(every)}]"
            try:
                status = _one(cell, plan, known, place)
            except UserError as error:
                failed[name] = str(error)
                terminal.warn(f"{place} {name} failed: {error}")
                continue
        if status:
            return Outcome(status, failed, elsewhere)
        _tell(cell, plan, known, place, clock)
    return Outcome(0, failed, elsewhere)


def _one(cell: Cell, plan: Plan, known: Ready, place: str) -> int:
    """Train and judge one cell."""
    if cell.config is not None and cells.progress(cell) != "trained":
        terminal.people().print(f"\n{place} {cell.name}, seed {cell.seed}", style="bold")
        if status := cells.train(cell):
            return status
    return cells.judge(cell, plan, known.data, known.images)


def _tell(cell: Cell, plan: Plan, known: Ready, place: str, clock: _Clock) -> None:
    """Say what a cell reached, and how long the rest may take."""
    figures = {
        cells.command_of(config): result["headline"]["top1"]
        for config in cells.judgements(cell, plan.asked)
        if (result := cells.found(cell, config, known.images))
    }
    said = ", ".join(f"{cells.TITLES[command]} {value:.1f}" for command, value in figures.items())
    which = cell.name if cell.key in SEEDLESS else f"{cell.name}, seed {cell.seed}"
    terminal.people().print(f"{place} {which}: {said}{clock.left_after(cell)}")
    content = {"cell": cell.key, "seed": cell.seed, "folder": str(cell.folder)}
    terminal.emit(
        "cell", content | {f"{command}_top1": value for command, value in figures.items()}
    )


class _Clock:
    """How long the cells that are left may take, by the views that they have to see."""

    def __init__(self, todo: Sequence[Cell]) -> None:
        self.left = {cell.folder: _work(cell) for cell in todo}
        self.done, self.seconds, self.began = 0, 0.0, time.perf_counter()

    def left_after(self, cell: Cell) -> str:
        """In words; empty where nothing is known or left."""
        now = time.perf_counter()
        self.seconds, self.began = self.seconds + now - self.began, now
        self.done += self.left.pop(cell.folder)
        left = sum(self.left.values())
        if not self.done or not left:
            return ""
        return f"; about {terminal.clock(self.seconds / self.done * left)} left"


def _work(cell: Cell) -> int:
    return cell.config.epochs * cell.config.views.num_views if cell.config else 0
