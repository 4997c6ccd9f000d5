"""Ablations: the rows of a table, pre-trained and judged over several seeds; read `run`."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Iterator
from typing import Any

from mvmae import terminal
from mvmae.ablate import cells, jobs, locks, summary, work
from mvmae.ablate.plan import Plan, command_line, plan_of
from mvmae.ablate.tables import ABLATIONS, PAPER
from mvmae.ablate.work import Outcome, Ready
from mvmae.config.ablate import GRID, AblateConfig
from mvmae.config.figures import MAX_RUNS
from mvmae.errors import UserError, counted
from mvmae.storage import run_folder
from mvmae.training import distributed, precision
from mvmae.training.interrupt import exit_status


def run(config: AblateConfig) -> int:
    """Train and judge what is not yet done of a table, and write it.

    Returns:
        0; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The table, the images, the folder or the settings cannot work, or a row could
            not be trained.
    """
    if config.list:
        terminal.people().print(listing())
        terminal.emit("result", {"command": "ablate", "tables": tables()})
        return 0
    if distributed.announced_world_size() > 1:
        raise UserError(
            "each run of a table has one process: leave out torchrun, and share the runs with "
            "--jobs, or by starting the same command several times"
        )
    precision.choose_device(config.device)
    plan = plan_of(config)
    if config.only_table:
        known = summary.gathered(plan)
        if not any(line.scores for line in known.lines):
            raise UserError(f"nothing of {config.table} is finished in {config.folder}")
        summary.write(plan, known)
        return 0
    known = work.ready(plan)
    run_folder.make(config.folder)
    introduce(plan, known)
    with signals() as caught:
        try:
            outcome = jobs.share(plan, known) if config.jobs > 1 else work.do(plan, known)
        except KeyboardInterrupt:
            outcome = Outcome(exit_status(caught[0] if caught else signal.SIGINT), {}, [])
    if outcome.status:
        told = terminal.people()
        told.print(f"stopped; what is done is kept. Go on with: {command_line(config)}")
        told.print(f"The table so far: {command_line(config, only_table=True, jobs=1)}")
        return outcome.status
    with locks.taken(config.folder, "table", wait=True):  # the last to end writes the whole
        summary.write(plan, summary.gathered(plan, known.images))
    conclude(plan, outcome)
    return 0


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """SIGTERM ends what is under way as Ctrl-C does, and is noted; training has its own way."""
    caught: list[int] = []

    def stop(number: int, _frame: object) -> None:
        caught.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def introduce(plan: Plan, known: Ready) -> None:
    """Say what is about to happen."""
    asked = plan.asked
    every = [*plan.trained(), *plan.controls()]
    done = sum(cells.is_done(cell, asked, known.images) for cell in every)
    told = terminal.people()
    told.print(f"{asked.table}: {plan.ablation.varies}")
    told.print(
        f"{counted(len(plan.rows), 'row')} x {counted(len(asked.seeds), 'seed')} of recipe "
        f"{plan.recipe}, compared with "
        f"'{summary.base_name(plan)}'; {done} of {len(every)} are done, raw pixels and untrained "
        f"encoders among them -> {asked.folder}"
    )


def conclude(plan: Plan, outcome: Outcome) -> None:
    """Say what is not there, and why.

    Raises:
        UserError: A row could not be trained.
    """
    asked = plan.asked
    if outcome.failed:
        (name, why), *more = outcome.failed.items()
        others = f" (and {len(more)} more)" if more else ""
        raise UserError(f"{name} failed: {why}{others}")
    if outcome.elsewhere:
        name = outcome.elsewhere[0]
        terminal.people().print(
            f"{', '.join(outcome.elsewhere)} is run by {locks.holder(asked.folder, name)}, which "
            "writes the whole table when it ends"
        )
    folders = [str(cell.folder) for cell in plan.trained() if cell.seed == asked.seeds[0]]
    words = shlex.join(["mvmae", "report", *folders[:MAX_RUNS]])
    terminal.people().print(f"Side by side: {words}")


def tables() -> dict[str, Any]:
    """What each table varies, and what the paper says, for a program."""
    return {
        name: {
            "varies": ablation.varies,
            "rows": {arm.name: arm.paper for arm in ablation.arms},
            "says": ablation.says,
            "source": ablation.source,
        }
        for name, ablation in ABLATIONS.items()
    }


def listing() -> str:
    """What each table varies, and what the paper says."""
    lines = []
    for name, ablation in ABLATIONS.items():
        rows = "; ".join(
            arm.name + (f" ({arm.paper:.2f})" if arm.paper is not None else "")
            for arm in ablation.arms
        )
        of = f" [{ablation.source}]" if ablation.source else ""
        lines += [f"{name}: {ablation.varies}", f"  rows: {rows}", f"  paper: {ablation.says}{of}"]
    lines += [
        f"{GRID}: all combinations of the values that --set gives",
        "",
        f"In parentheses: {PAPER}.",
    ]
    return "\n".join(lines)
