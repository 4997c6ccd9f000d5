"""Run `mvmae ablate`: pre-train and evaluate the rows of a table over several seeds. Read `run`."""

import shlex
import signal

from mvmae import terminal
from mvmae.ablate import cells, results, summary, work
from mvmae.ablate.plan import LOCKS, Plan, command_line, make_plan
from mvmae.ablate.tables import ABLATIONS, PAPER
from mvmae.ablate.work import Inputs, Outcome
from mvmae.config.ablate import GRID, AblateConfig
from mvmae.config.figures import MAX_RUNS
from mvmae.errors import UserError, pluralize
from mvmae.storage import run_folder
from mvmae.storage.lock import holder, try_lock
from mvmae.training import distributed, precision
from mvmae.training.interrupt import Interrupt, exit_status


def run(config: AblateConfig) -> int:
    """Train and evaluate the find_unfinished cells of a table, and write the table.

    Returns:
        0; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The table, images, folder or settings are invalid, or a row could not be trained.
    """
    if config.list:
        terminal.console().print(list_tables())
        tables = {
            name: {
                "varies": ablation.varies,
                "rows": {arm.name: arm.paper for arm in ablation.arms},
                "says": ablation.says,
                "source": ablation.source,
            }
            for name, ablation in ABLATIONS.items()
        }
        terminal.emit("result", {"command": "ablate", "tables": tables})
        return 0
    if distributed.announced_world_size() > 1:
        raise UserError(
            "each run of a table uses one process: leave out torchrun, and share the runs with "
            "--jobs, or by starting the same command several times"
        )
    precision.choose_device(config.device)
    plan = make_plan(config)
    if config.only_table:
        finished = results.gather(plan)
        if finished.is_empty:
            raise UserError(
                f"nothing of {config.table} is finished in {config.folder}: leave out --only-table "
                "to run it"
            )
        summary.write(plan, finished)
        return 0
    inputs = work.check_inputs(plan)
    run_folder.make(config.folder)
    introduce(plan, inputs)
    with Interrupt(at_once=True) as interrupt:  # training has its own while it runs
        try:
            do = work.run_jobs if config.jobs > 1 else work.run_cells
            outcome = do(plan, inputs)
        except KeyboardInterrupt:
            outcome = Outcome(exit_status(interrupt.signal or signal.SIGINT), {}, [])
    if outcome.status:
        console = terminal.console()
        console.print(f"stopped; finished work is kept. To resume: {command_line(config)}")
        console.print(f"The table so far: {command_line(config, only_table=True, jobs=1)}")
        return outcome.status
    # Of several commands on one table, the last to end writes all of it.
    with try_lock(config.folder / LOCKS / "table", wait=True):
        summary.write(plan, results.gather(plan, inputs.labelled_fingerprint))
    conclude(plan, outcome)
    return 0


def introduce(plan: Plan, inputs: Inputs) -> None:
    """Print what is about to run."""
    config = plan.config
    count, left = len(plan.cells()), len(cells.find_unfinished(plan, inputs.labelled_fingerprint))
    console = terminal.console()
    console.print(f"{config.table}: {plan.ablation.varies}")
    console.print(
        f"{pluralize(len(plan.rows), 'row')} x {pluralize(len(config.seeds), 'seed')} of recipe "
        f"{plan.recipe}, compared with '{results.baseline_name(plan)}'; {count - left} of {count} "
        f"are done, including raw pixels and untrained encoders -> {config.folder}"
    )


def conclude(plan: Plan, outcome: Outcome) -> None:
    """Print what is missing, and why.

    Raises:
        UserError: A row could not be trained.
    """
    config = plan.config
    if outcome.failed:
        (name, reason), *more = outcome.failed.items()
        others = f" (and {len(more)} more)" if more else ""
        raise UserError(f"{name} failed: {reason}{others}")
    if outcome.elsewhere:
        name = outcome.elsewhere[0]
        terminal.console().print(
            f"{', '.join(outcome.elsewhere)} is run by {holder(config.folder / LOCKS / name)}, "
            "which writes the whole table when it ends"
        )
    folders = [str(cell.folder) for cell in plan.training_cells() if cell.seed == config.seeds[0]]
    command = shlex.join(["mvmae", "report", *folders[:MAX_RUNS]])
    terminal.console().print(f"Side by side: {command}")


def list_tables() -> str:
    """Describe all tables for people: what each varies, and what the paper reports."""
    lines = []
    for name, ablation in ABLATIONS.items():
        rows = "; ".join(
            arm.name + (f" ({arm.paper:.2f})" if arm.paper is not None else "")
            for arm in ablation.arms
        )
        source = f" [{ablation.source}]" if ablation.source else ""
        lines += [
            f"{name}: {ablation.varies}",
            f"  rows: {rows}",
            f"  paper: {ablation.says}{source}",
        ]
    lines += [
        f"{GRID}: all combinations of the values given by --set",
        "",
        f"In parentheses: {PAPER}.",
    ]
    return "\n".join(lines)
