"""The table of what is finished: on the screen, and as JSON, Markdown and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.table
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape

from mvmae import terminal
from mvmae.ablate import cells, figure
from mvmae.ablate.plan import SEEDLESS, Cell, Plan, command_line
from mvmae.ablate.tables import PAPER
from mvmae.config.files import to_plain
from mvmae.errors import UserError
from mvmae.metrics import paired
from mvmae.metrics.paired import Difference, Spread
from mvmae.storage import run_folder
from mvmae.training import precision
from mvmae.training.checkpoint import write_text, write_whole

FOR_FILES = {"views", "steps", "time", "seeds"}  # columns for which a terminal has no room


class Line(NamedTuple):
    """A row of the table, over seeds."""

    key: str
    name: str
    paper: float | None
    views: int | None
    """Seen in training; none for what was not trained, or not yet."""

    steps: int | None
    scores: dict[str, dict[int, float]]
    """Top-1 in percent, by command and seed."""

    settings: dict[str, Any]
    """What differs from the baseline."""

    seconds: dict[int, float]
    """Wall time of training, by seed."""


class Known(NamedTuple):
    """All that is finished."""

    lines: list[Line]
    missing: list[str]
    data: dict[str, Any]
    """Of the labelled images, as a result says it; empty where nothing is judged."""


def gathered(plan: Plan, images: str | None = None) -> Known:
    """Read what the cells have left.

    Args:
        plan: The table.
        images: Fingerprint of the labelled images; none: whichever they were, but all the same.

    Raises:
        UserError: Cells were judged on different images.
    """
    missing: list[str] = []
    facts: dict[str, dict[str, Any]] = {}
    scores: dict[str, dict[str, dict[int, float]]] = {}
    seen: dict[str, int] = {}
    took: dict[str, dict[int, float]] = {}
    for cell in [*plan.trained(), *plan.controls()]:
        own = scores.setdefault(cell.key, {})
        results = _results(cell, plan, images)
        if None in results.values():
            missing.append(cell.folder.name)
        for command, result in results.items():
            if result is not None:
                own.setdefault(command, {})[cell.seed] = result["headline"]["top1"]
                facts[result["data"]["fingerprint"]] = result["data"]
        if cell.config is not None and (count := cells.num_images(cell)):
            seen[cell.key] = count
        if cell.config is not None and (seconds := cells.seconds(cell)) is not None:
            took.setdefault(cell.key, {})[cell.seed] = seconds
    if len(facts) > 1:
        raise UserError(
            f"the runs in {plan.asked.folder} were judged on different images: the same command "
            "without --only-table judges anew what is on others"
        )
    lines = [*_rows(plan, scores, seen, took), *_controls(plan, scores)]
    return Known(lines, missing, next(iter(facts.values()), {}))


def _results(cell: Cell, plan: Plan, images: str | None) -> dict[str, dict[str, Any] | None]:
    asked = cells.judgements(cell, plan.asked)
    if cell.config is not None and cells.progress(cell) != "trained":
        return {cells.command_of(config): None for config in asked}
    return {cells.command_of(config): cells.found(cell, config, images) for config in asked}


def _rows(
    plan: Plan,
    scores: Mapping[str, dict[str, dict[int, float]]],
    seen: Mapping[str, int],
    took: Mapping[str, dict[int, float]],
) -> Iterator[Line]:
    base = _flat(to_plain(plan.base))
    for arm, config in plan.rows:
        per_epoch = seen[arm.key] // config.batch_size if arm.key in seen else None
        steps = per_epoch * config.epochs if per_epoch else None
        views = steps * config.batch_size * config.views.num_views if steps else None
        own = _flat(to_plain(config))
        settings = {name: value for name, value in own.items() if value != base[name]}
        seconds = took.get(arm.key, {})
        yield Line(arm.key, arm.name, arm.paper, views, steps, scores[arm.key], settings, seconds)


def _controls(plan: Plan, scores: Mapping[str, dict[str, dict[int, float]]]) -> Iterator[Line]:
    names = {cell.key: cell.name for cell in plan.controls()}
    for key, name in names.items():
        yield Line(key, name, None, None, None, scores[key], {}, {})


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def spread_of(line: Line, command: str) -> Spread | None:
    """Mean and deviation over the seeds that are finished."""
    values = line.scores.get(command, {})
    return paired.seed_spread(np.array(list(values.values()), dtype=float)) if values else None


def difference_of(line: Line, base: Line, command: str) -> Difference | None:
    """To the baseline, over the seeds that both have; pixels are the same for all seeds."""
    one, other = line.scores.get(command, {}), base.scores.get(command, {})
    if line.key in SEEDLESS and one:
        one = dict.fromkeys(other, next(iter(one.values())))
    both = [seed for seed in other if seed in one]
    if line.key == base.key or not both:
        return None
    pair = (np.array([values[seed] for seed in both], dtype=float) for values in (one, other))
    return paired.paired_difference(*pair)


def write(plan: Plan, known: Known) -> Path:
    """Print the table, and write it as JSON, Markdown and a picture.

    Returns:
        The JSON file.
    """
    folder, name = plan.asked.folder, plan.name
    run_folder.make(folder)
    content = json_of(plan, known)
    file = folder / f"{name}.json"
    run_folder.write_json(file, content)
    words = notes(plan, known)
    text = markdown(plan, known, words)
    write_text(folder / f"{name}.md", text)
    console = terminal.people()
    console.print(f"\n{name}: {plan.ablation.varies}", style="bold")
    Console().print(on_screen(plan, known))
    for sentence in words:
        console.print(sentence)
    written = f"{file}, {name}.md"
    if any(line.scores for line in known.lines):
        for kind in ("png", "svg"):
            picture = draw(plan, known, kind)
            write_whole(
                folder / f"{name}.{kind}", lambda stream, shown=picture: stream.write(shown)
            )
        written += f", {name}.png, {name}.svg"
    console.print(f"written: {written}")
    terminal.emit("result", {"command": "ablate", "file": str(file)} | content)
    return file


def commands_of(plan: Plan) -> list[str]:
    """The columns of figures."""
    return ["knn"] if plan.asked.probe == "none" else ["knn", "probe"]


def base_name(plan: Plan) -> str:
    """The baseline, as a sentence calls it."""
    name = next(row.arm.name for row in plan.rows if row.arm.key == plan.baseline)
    return f"{plan.ablation.axis} {name}".strip()


def base_of(plan: Plan, known: Known) -> Line:
    """The baseline's line."""
    return next(line for line in known.lines if line.key == plan.baseline)


def json_of(plan: Plan, known: Known) -> dict[str, Any]:
    """All figures, by seed and over seeds, with what repeats them."""
    asked, base = plan.asked, base_of(plan, known)
    rows = []
    for line in known.lines:
        row: dict[str, Any] = line._asdict()
        del row["scores"]
        row["seconds"] = {str(seed): value for seed, value in sorted(line.seconds.items())}
        for command in commands_of(plan):
            spread, apart = spread_of(line, command), difference_of(line, base, command)
            row[command] = {
                "per_seed": {
                    str(seed): v for seed, v in sorted(line.scores.get(command, {}).items())
                },
                **(spread._asdict() if spread else {"mean": None, "sd": None, "count": 0}),
                "difference": apart._asdict() if apart else None,
            }
        rows.append(row)
    return {
        "table": asked.table,
        "varies": plan.ablation.varies,
        "command_line": command_line(asked, only_table=False, jobs=1),
        "recipe": plan.recipe,
        "baseline": plan.baseline,
        "seeds": list(asked.seeds),
        "probe": asked.probe,
        "rows": rows,
        "missing": known.missing,
        "paper": {"source": plan.ablation.source, "what": PAPER, "says": plan.ablation.says},
        "config": to_plain(asked),
        "base": to_plain(plan.base),
        "data": known.data,
        "environment": run_folder.environment(precision.choose_device(asked.device), 1),
    }


def figures(spread: Spread | None) -> str:
    """A mean and its deviation as a table has them."""
    if spread is None:
        return ""
    return f"{spread.mean:.1f}" + (f" ±{spread.sd:.1f}" if spread.sd is not None else "")


def apart(difference: Difference | None) -> str:
    """A difference and its standard error as a table has them."""
    if difference is None:
        return ""
    error = f" ±{difference.error:.1f}" if difference.error is not None else ""
    return f"{difference.mean:+.1f}{error}"


def columns(plan: Plan, known: Known) -> tuple[list[str], list[list[str]]]:
    """The table's head, and its rows as text."""
    has_paper = any(line.paper is not None for line in known.lines)
    head = [plan.ablation.axis or "row"]
    for command in commands_of(plan):
        head += [cells.TITLES[command], "difference"]
    head += ["views", "steps", "time", "seeds"] + ["paper*"] * has_paper
    base, rows = base_of(plan, known), []
    for line in known.lines:
        row = [line.name]
        for command in commands_of(plan):
            row += [figures(spread_of(line, command))]
            row += [
                "baseline" if line.key == base.key else apart(difference_of(line, base, command))
            ]
        row += [f"{count:,}" if count else "" for count in (line.views, line.steps)]
        times = line.seconds.values()
        row += [terminal.clock(sum(times) / len(times)) if times else "", _seeds(line)]
        if has_paper:
            row += [f"{line.paper:.2f}" if line.paper is not None else ""]
        rows.append(row)
    return head, rows


def _seeds(line: Line) -> str:
    if line.key in SEEDLESS:
        return ""
    return str(max((len(values) for values in line.scores.values()), default=0))


def markdown(plan: Plan, known: Known, words: Sequence[str]) -> str:
    """The table as Markdown."""
    head, rows = columns(plan, known)
    lines = [
        f"# {plan.name}",
        "",
        plan.ablation.varies,
        "",
        "```",
        command_line(plan.asked, only_table=False, jobs=1),
        "```",
        "",
        f"| {' | '.join(head)} |",
        f"|{'|'.join(['---', *['--:'] * (len(head) - 1)])}|",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows),
        "",
        *(f"- {sentence}" for sentence in words),
    ]
    return "\n".join(lines) + "\n"


def on_screen(plan: Plan, known: Known) -> rich.table.Table:
    """The table for a terminal of 80 columns."""
    head, rows = columns(plan, known)
    shown = [at for at, name in enumerate(head) if name not in FOR_FILES]
    table = rich.table.Table(box=SIMPLE_HEAD)
    for at in shown:
        table.add_column(head[at], justify="right" if at else "left", no_wrap=at > 0)
    for number, row in enumerate(rows):
        shown_row = [escape(row[at]) for at in shown]
        table.add_row(*shown_row, end_section=number == len(plan.rows) - 1)
    return table


def notes(plan: Plan, known: Known) -> list[str]:
    """What has to be known to read the table."""
    asked, base = plan.asked, base_of(plan, known)
    seeds = ", ".join(map(str, asked.seeds))
    said = []
    if known.data:
        count = known.data["num_test"]
        mean = spread_of(base, "knn")
        share = min(max(mean.mean / 100, 0.01), 0.99) if mean else 0.5
        said.append(
            f"In %, top-1 on {count} test images of {asked.judged_on} (sampling error of one "
            f"figure ±{100 * sqrt(share * (1 - share) / count):.1f}): mean and standard deviation "
            f"over seeds {seeds}; recipe {plan.recipe}."
        )
    finished = max((len(v) for v in base.scores.values()), default=0)
    limit = paired.significance_threshold(finished)
    said.append(
        f"Differences are to '{base_name(plan)}', of the same seed: mean and standard error"
        + (
            f"; over {finished} seeds, one beyond {limit:.1f} of them is hardly chance (5 %, one "
            "comparison)."
            if limit
            else "; of one seed there is none, and nothing tells a difference from chance."
        )
    )
    if took := sum(sum(line.seconds.values()) for line in known.lines):
        said.append(f"Training took {terminal.clock(took)} in all: the runs' wall times, added up.")
    if any(line.paper is not None for line in known.lines):
        said.append(f"* {plan.ablation.source}: {PAPER}; one figure each, without seeds.")
    if plan.ablation.says:
        said.append(f"The paper says: {plan.ablation.says}")
    if known.missing:
        said.append(f"Not finished: {', '.join(known.missing)}.")
    return said


def draw(plan: Plan, known: Known, kind: str) -> bytes:
    """The picture of the table."""
    base = base_of(plan, known)
    rows = [
        figure.Row(
            name=line.name,
            scores={command: np.array(list(v.values())) for command, v in line.scores.items()},
            differences={
                command: apart(difference_of(line, base, command)) for command in commands_of(plan)
            },
            paper=line.paper,
            is_baseline=line.key == base.key,
            is_trained=number < len(plan.rows),
        )
        for number, line in enumerate(known.lines)
    ]
    panels = {command: f"{cells.TITLES[command]}, top-1 in %" for command in commands_of(plan)}
    seeds = ", ".join(map(str, plan.asked.seeds))
    note = f"Small dots: seeds {seeds}; bars: standard deviation. "
    if not plan.ablation.axis:
        note += f"In words: mean, and difference to '{base_name(plan)}' seed by seed ± its "
        note += "standard error. An arrow: beyond the scale. "
    trained_on = " ".join(plan.asked.data)
    note += f"Recipe {plan.recipe} on {trained_on}, judged on {plan.asked.judged_on}."
    if known.missing:
        note += f" Not finished: {len(known.missing)} runs."
    if plan.ablation.source:
        note += f" The paper: {plan.ablation.source}; {PAPER.partition(': ')[2]}."
    return figure.draw(
        rows,
        panels,
        title=plan.name,
        subtitle=plan.ablation.varies,
        note=note,
        axis=plan.ablation.axis,
        kind=kind,
    )
