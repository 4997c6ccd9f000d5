"""Train and evaluate the cells of a table: one by one, or in several processes on one machine.

Only locks divide the cells among processes, so commands that are started separately with the same
folder share the work too.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from mvmae import terminal
from mvmae.ablate import cells
from mvmae.ablate.plan import LOCKS, SEEDLESS, Cell, Plan
from mvmae.config.files import arguments
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

POLL_SECONDS = 1.0
STOP_SECONDS = 60.0  # time for a stopped process to save its state


class Inputs(NamedTuple):
    """The labelled images of a table, and their fingerprint."""

    labelled: Labelled
    labelled_fingerprint: str


class Outcome(NamedTuple):
    """How the work on a table ended."""

    status: int
    """0, or 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved."""

    failed: dict[str, str]
    """Error messages of failed cells by folder name, or of failed processes by log name."""

    elsewhere: list[str]
    """Folder names of cells that other processes are running."""


def check_inputs(plan: Plan) -> Inputs:
    """Check all inputs before any cell is trained, and open the labelled images.

    Raises:
        UserError: Images cannot be opened, are too few for a row or are in both training and test
            set, or the folder holds other files.
    """
    config = plan.config
    results.home("random:none", config.folder)  # raises if the folder is not writable
    if run_folder.is_run(config.folder):
        raise UserError(f"{config.folder} is itself a run: choose an --out that is new or empty")
    for data in (*config.data, config.eval_source):
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
    labelled = open_eval_data(replace(recipe, views=views, eval_data=config.eval_source), source)
    fingerprint = make_plan(plan.baseline_config, source).fingerprint
    for cell in plan.training_cells():
        cells.training_progress(cell, fingerprint)  # raises if the folder has another run
    return Inputs(labelled, result_text.data_facts(labelled)["fingerprint"])


def _require_images(config: PretrainConfig, source: Source, kind: ImageKind) -> None:
    require_channels(kind, config.model.in_channels, config.data, "model.in-channels")
    group_numbers(source, config.group_regex)
    if len(source) < config.batch_size:
        raise UserError(
            f"{len(source)} images are fewer than its batch of {config.batch_size}: give a "
            "smaller --set batch-size, or more images"
        )


def run_cells(plan: Plan, inputs: Inputs) -> Outcome:
    """Train and evaluate each cell that is neither finished nor locked by another process."""
    config = plan.config
    every, todo = plan.cells(), cells.find_unfinished(plan, inputs.labelled_fingerprint)
    failed: dict[str, str] = {}
    elsewhere: list[str] = []
    clock = TimeLeft(todo)
    for cell in todo:
        name = cell.folder.name
        with try_lock(config.folder / LOCKS / name) as is_held:
            if not is_held:
                elsewhere.append(name)
                continue
            # Another process may have finished it after `todo` was made.
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
    """Train and evaluate one cell; return 0, or 130 or 143 when stopped by a signal."""
    if cells.training_progress(cell) != "trained":
        terminal.console().print(f"\n{position} {cell.name}, seed {cell.seed}", style="bold")
        if status := cells.train(cell):
            return status
    return cells.evaluate(cell, plan, inputs.labelled, inputs.labelled_fingerprint)


def _report_cell(cell: Cell, plan: Plan, inputs: Inputs, position: str, clock: TimeLeft) -> None:
    """Print the accuracies of a cell and the estimated time left."""
    figures = {
        cells.command_name(config): result["headline"]["top1"]
        for config in cells.evaluation_configs(cell, plan.config)
        if (result := cells.find_result(cell, config, inputs.labelled_fingerprint))
    }
    listed = ", ".join(f"{cells.TITLES[name]} {value:.1f}" for name, value in figures.items())
    which = cell.name if cell.key in SEEDLESS else f"{cell.name}, seed {cell.seed}"
    terminal.console().print(f"{position} {which}: {listed}{clock.left_after(cell)}")
    content = {"cell": cell.key, "seed": cell.seed, "folder": str(cell.folder)}
    terminal.emit("cell", content | {f"{name}_top1": value for name, value in figures.items()})


class TimeLeft:
    """Estimate the time left from the numbers of views in finished and in remaining cells."""

    def __init__(self, todo: Sequence[Cell]) -> None:
        # Controls are not trained and take little time: they count as 0.
        self.left = {
            cell.folder: cell.config.epochs * cell.config.views.num_views if cell.config else 0
            for cell in todo
        }
        self.done, self.seconds, self.began = 0, 0.0, time.perf_counter()

    def left_after(self, cell: Cell) -> str:
        """Format the time left after a cell for a message; empty if it is unknown or zero."""
        now = time.perf_counter()
        self.seconds, self.began = self.seconds + now - self.began, now
        self.done += self.left.pop(cell.folder)
        left = sum(self.left.values())
        if not self.done or not left:
            return ""
        return f"; about {terminal.clock(self.seconds / self.done * left)} left"


def run_jobs(plan: Plan, inputs: Inputs) -> Outcome:
    """Start the processes, print the cells that they finish, and wait for all of them.

    Raises:
        KeyboardInterrupt: The user stopped the command. The processes were stopped too, with their
            states saved.
        RuntimeError: A process ended with an unexpected status.
    """
    folder = plan.config.folder / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"job-{number}.log" for number in range(plan.config.jobs)]
    terminal.console().print(f"{len(logs)} processes; their output: {folder}/job-*.log")
    started = [_start(plan, number, log) for number, log in enumerate(logs)]
    try:
        _wait(plan, inputs, started)
    except KeyboardInterrupt:
        for process in started:
            process.terminate()
        until = time.monotonic() + STOP_SECONDS
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            process.kill()  # in case it hangs; its last checkpoint is complete
        raise
    failed = {}
    for log, process in zip(logs, started, strict=True):
        if process.returncode == 2:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            failed[log.stem] = lines[-1].removeprefix("mvmae: ") if lines else f"see {log}"
        elif process.returncode:
            raise RuntimeError(f"a process ended with status {process.returncode}: see {log}")
    return Outcome(0, failed, [])


def _start(plan: Plan, number: int, log: Path) -> subprocess.Popen[bytes]:
    """Start one process with its share of the cores and, if there are GPUs, one of them."""
    config = plan.config
    environment = os.environ | {"MVMAE_OUTPUT": "plain"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.jobs)))
    if count := torch.cuda.device_count() if config.device != "cpu" else 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number % count]
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "mvmae", "ablate", *arguments(replace(config, jobs=1))],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )


def _wait(plan: Plan, inputs: Inputs, started: list[subprocess.Popen[bytes]]) -> None:
    """Print each cell that is done, until all processes have ended."""
    every, left = plan.cells(), cells.find_unfinished(plan, inputs.labelled_fingerprint)
    while True:
        ended = all(process.poll() is not None for process in started)
        for cell in left.copy():
            if not cells.is_done(cell, plan.config, inputs.labelled_fingerprint):
                continue
            left.remove(cell)
            position = f"[{len(every) - len(left)}/{len(every)}]"
            terminal.console().print(f"{position} {cell.folder.name} is done")
        if ended:
            return
        time.sleep(POLL_SECONDS)
