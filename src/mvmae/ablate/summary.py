"""Collect the finished cells of a table and write it: on the screen, as JSON, Markdown and picture.

All of them show the same `Line`s, one per row, with means over seeds and differences to the
baseline.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.table
from rich.box import SIMPLE_HEAD
from rich.markup import escape

from mvmae import terminal
from mvmae.ablate import cells, figure
from mvmae.ablate.plan import SEEDLESS, Plan, command_line
from mvmae.ablate.results import Results, baseline_name, commands
from mvmae.ablate.tables import PAPER
from mvmae.config.files import to_plain
from mvmae.metrics.accuracy import sampling_error, significance_threshold
from mvmae.storage import atomic, run_folder
from mvmae.storage.atomic import write_bytes, write_text
from mvmae.training import precision

FILE_ONLY = {"views", "steps", "time", "seeds"}  # columns that do not fit a terminal

NO_SPREAD = {"mean": None, "sd": None, "count": 0}


def write(plan: Plan, results: Results) -> Path:
    """Print the table, and write it as JSON, Markdown and picture.

    Returns:
        The JSON file.
    """
    folder, name = plan.config.folder, plan.name
    run_folder.make(folder)
    content = to_json(plan, results)
    file = folder / f"{name}.json"
    atomic.write_json(file, content)
    head, rows = text_columns(plan, results)
    sentences = notes(plan, results)
    write_text(folder / f"{name}.md", to_markdown(plan, head, rows, sentences))
    console = terminal.console()
    console.print(f"\n{name}: {plan.ablation.varies}", style="bold")
    terminal.print_table(to_terminal(plan, head, rows))
    for sentence in sentences:
        console.print(sentence)
    written = f"{file}, {name}.md"
    if not results.is_empty:
        for kind in ("png", "svg"):
            write_bytes(folder / f"{name}.{kind}", draw(plan, results, kind))
        written += f", {name}.png, {name}.svg"
    console.print(f"written: {written}")
    terminal.emit("result", {"command": "ablate", "file": str(file)} | content)
    return file


def to_json(plan: Plan, results: Results) -> dict[str, Any]:
    """All figures, per seed and over seeds, and what is needed to repeat them."""
    config, rows = plan.config, []
    for line in results.lines:
        row: dict[str, Any] = line._asdict()
        del row["scores"]
        row["seconds"] = {str(seed): value for seed, value in sorted(line.seconds.items())}
        for command, score in line.scores.items():
            difference = score.difference
            row[command] = {
                "per_seed": {str(seed): v for seed, v in sorted(score.per_seed.items())},
                **(score.spread._asdict() if score.spread else NO_SPREAD),
                "difference": difference._asdict() if difference else None,
            }
        rows.append(row)
    return {
        "table": config.table,
        "varies": plan.ablation.varies,
        "command_line": command_line(config, only_table=False, jobs=1),
        "recipe": plan.recipe,
        "baseline": plan.baseline,
        "seeds": list(config.seeds),
        "probe": config.probe,
        "rows": rows,
        "missing": results.missing,
        "paper": {"source": plan.ablation.source, "what": PAPER, "says": plan.ablation.says},
        "config": to_plain(config),
        "base": to_plain(plan.baseline_config),
        "data": results.data,
        "environment": run_folder.environment(precision.choose_device(config.device), 1),
    }


def text_columns(plan: Plan, results: Results) -> tuple[list[str], list[list[str]]]:
    """The table's head and rows as text, for Markdown and the terminal."""
    has_paper = any(line.paper is not None for line in results.lines)
    head = [plan.ablation.axis or "row"]
    for command in commands(plan):
        head += [cells.TITLES[command], "difference"]
    head += ["views", "steps", "time", "seeds"] + ["paper*"] * has_paper
    rows = []
    for line in results.lines:
        row = [line.name]
        for score in line.scores.values():
            is_baseline = line is results.baseline
            row += [str(score), "baseline" if is_baseline else score.difference_text]
        row += [f"{count:,}" if count else "" for count in (line.views, line.steps)]
        times = line.seconds.values()
        row += [terminal.clock(sum(times) / len(times)) if times else ""]
        row += ["" if line.key in SEEDLESS else str(line.num_seeds)]
        if has_paper:
            row += [f"{line.paper:.2f}" if line.paper is not None else ""]
        rows.append(row)
    return head, rows


def to_markdown(
    plan: Plan, head: Sequence[str], rows: Sequence[Sequence[str]], sentences: Sequence[str]
) -> str:
    """The table as Markdown."""
    lines = [
        f"# {plan.name}",
        "",
        plan.ablation.varies,
        "",
        "```",
        command_line(plan.config, only_table=False, jobs=1),
        "```",
        "",
        f"| {' | '.join(head)} |",
        f"|{'|'.join(['---', *['--:'] * (len(head) - 1)])}|",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows),
        "",
        *(f"- {sentence}" for sentence in sentences),
    ]
    return "\n".join(lines) + "\n"


def to_terminal(plan: Plan, head: Sequence[str], rows: Sequence[Sequence[str]]) -> rich.table.Table:
    """The table for a terminal of 80 columns."""
    shown = [at for at, name in enumerate(head) if name not in FILE_ONLY]
    table = rich.table.Table(box=SIMPLE_HEAD)
    for at in shown:
        table.add_column(head[at], justify="right" if at else "left", no_wrap=at > 0)
    for number, row in enumerate(rows):
        is_last_trained = number == len(plan.rows) - 1
        table.add_row(*(escape(row[at]) for at in shown), end_section=is_last_trained)
    return table


def notes(plan: Plan, results: Results) -> list[str]:
    """Sentences below the table that explain how to read it."""
    config, baseline = plan.config, results.baseline
    seeds = ", ".join(map(str, config.seeds))
    sentences = []
    if results.data:
        count = results.data["num_test"]
        spread = baseline.scores["knn"].spread
        share = min(max(spread.mean / 100, 0.01), 0.99) if spread else 0.5
        sentences.append(
            f"In %, top-1 on {count} test images of {config.eval_source} (sampling error of one "
            f"figure ±{sampling_error(share, count):.1f}): mean and standard deviation over seeds "
            f"{seeds}; recipe {plan.recipe}."
        )
    threshold = significance_threshold(baseline.num_seeds)
    sentences.append(
        f"Differences are to '{baseline_name(plan)}' with the same seed: mean and standard error"
        + (
            f"; over {baseline.num_seeds} seeds, one beyond {threshold:.1f} standard errors is "
            "significant (5 %, one comparison)."
            if threshold
            else "; one seed gives no standard error, so a difference may be due to chance."
        )
    )
    if took := sum(sum(line.seconds.values()) for line in results.lines):
        sentences.append(f"Training took {terminal.clock(took)} in total, summed over runs.")
    if any(line.paper is not None for line in results.lines):
        sentences.append(f"* {plan.ablation.source}: {PAPER}; single figures without seeds.")
    if plan.ablation.says:
        sentences.append(f"The paper says: {plan.ablation.says}")
    if results.missing:
        sentences.append(f"Not finished: {', '.join(results.missing)}.")
    return sentences


def draw(plan: Plan, results: Results, kind: str) -> bytes:
    """Draw the table as a picture."""
    rows = [
        figure.Row(
            name=line.name,
            scores={name: np.array(list(s.per_seed.values())) for name, s in line.scores.items()},
            differences={name: score.difference_text for name, score in line.scores.items()},
            paper=line.paper,
            is_baseline=line is results.baseline,
            is_trained=number < len(plan.rows),
        )
        for number, line in enumerate(results.lines)
    ]
    seeds = ", ".join(map(str, plan.config.seeds))
    note = f"Small dots: seeds {seeds}; bars: standard deviation. "
    if not plan.ablation.axis:
        note += f"At the right: mean, and difference to '{baseline_name(plan)}' by seed ± its "
        note += "standard error. An arrow: beyond the scale. "
    trained_on = " ".join(plan.config.data)
    note += f"Recipe {plan.recipe} on {trained_on}, evaluated on {plan.config.eval_source}."
    if results.missing:
        note += f" Not finished: {len(results.missing)} runs."
    if plan.ablation.source:
        note += f" The paper: {plan.ablation.source}; {PAPER.partition(': ')[2]}."
    return figure.draw(
        rows,
        {name: f"{cells.TITLES[name]}, top-1 in %" for name in commands(plan)},
        title=plan.name,
        subtitle=plan.ablation.varies,
        note=note,
        axis=plan.ablation.axis,
        kind=kind,
    )
