"""Training curves: losses, health metrics, scores and speed of one or several runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mvmae import terminal
from mvmae.config.figures import CurvesConfig
from mvmae.errors import UserError
from mvmae.figures import charts
from mvmae.figures.charts import PANEL, X_LABELS, Line, Panel
from mvmae.figures.text import shorten
from mvmae.storage import metric_specs, metrics_file, run_folder
from mvmae.storage.atomic import read_object
from mvmae.storage.metrics_file import FILE, Column
from mvmae.storage.outputs import require_output, require_writable, short_names, write
from mvmae.training.log import in_words


class Run(NamedTuple):
    """A run and its metrics."""

    path: Path
    name: str
    records: list[dict[str, Any]]
    columns: dict[str, Column]


def run(config: CurvesConfig) -> None:
    """Draw the curves of the runs.

    Raises:
        UserError: A run cannot be read, none has written metrics yet, or the figure cannot be
            written.
    """
    # The metrics file may be named instead of its run.
    paths = [path.parent if path.name == FILE else path for path in config.runs]
    file = output_file(config, paths[0])
    names = short_names(list(map(str, paths)))
    opened = [opened_run(path, name, config) for path, name in zip(paths, names, strict=True)]
    drawn = [run for run in opened if run.columns]
    if not drawn:
        raise UserError(
            f"{opened[0].path} has written no metrics yet: its {FILE} is "
            "empty until the first --log-every steps are done"
        )
    picture = charts.draw(
        build_panels(drawn),
        [run.name for run in drawn],
        title=drawn[0].name if len(drawn) == 1 else f"{len(drawn)} runs",
        note=progress_note(drawn, config),
        x_label=X_LABELS[config.against],
        window=config.smooth,
        kind=file.suffix.lower().removeprefix("."),
    )
    write(file, picture)
    tell(opened, file)


def output_file(config: CurvesConfig, first: Path) -> Path:
    """Return the path of the figure.

    Raises:
        UserError: It is a folder, or a file that mvmae did not write.
    """
    is_alone = len(config.runs) == 1
    file = config.out or (first / "figures" if is_alone else first.parent) / "curves.png"
    # Among the run's own figures, whatever is there may be replaced.
    (require_writable if config.out is None and is_alone else require_output)(file)
    return file


def opened_run(path: Path, name: str, config: CurvesConfig) -> Run:
    """Read the metrics of a run.

    Raises:
        UserError: There is no run, or its metrics lack the unit of --against.
    """
    if not path.is_dir():
        raise UserError(f"no folder {path}: name a run folder")
    if not (path / FILE).exists() and not run_folder.is_run(path):
        raise UserError(f"{path} is not a run folder: it has no {FILE}")
    run_folder.require_format(path)
    records = metrics_file.read(path)
    columns = metrics_file.columns(records, config.against)
    if records and not columns:
        raise UserError(f"{path} does not say its {config.against}: try --against steps")
    return Run(path, name, records, columns)


def build_panels(drawn: Sequence[Run]) -> list[Panel]:
    """Return a panel for each chart that any of the runs has metrics for."""
    names = dict.fromkeys(name for run in drawn for name in run.columns)
    columns = [run.columns for run in drawn]
    panels = []
    for first, *others in metric_specs.group_by_chart(names):
        key = f"solid: {first.label}, dashed: {others[0].label}" if others else ""
        lines = [
            Line(*run.columns[row.name], number, dashed=row != first)
            for number, run in enumerate(drawn)
            for row in (first, *others)
            if row.name in run.columns
        ]
        title = first.figure_title
        if first.name not in metric_specs.METRICS:  # its name is not a formula, and may be long
            title = shorten(first.chart.replace("$", "?"), PANEL[0] - 0.6, 9.5)
        panels.append(
            Panel(title, key, lines, charts.metric_levels(first.name, columns), first.best)
        )
    return panels


def progress_note(drawn: Sequence[Run], config: CurvesConfig) -> str:
    """Say how far each run is, and how the lines are smoothed."""
    parts = [f"{run.name}: {how_far(run)}" if len(drawn) > 1 else how_far(run) for run in drawn]
    if config.smooth > 1:
        window = config.smooth // 2 * 2 + 1
        parts.append(f"lines: mean of {window} records, faint: each record")
    return "; ".join(parts)


def how_far(run: Run) -> str:
    """Write the steps, epochs and time of a run, and where its loss stopped being finite."""
    last = metrics_file.last(run.records)
    parts = [f"{last['step']:.0f} steps"]
    if "epoch" in last:
        planned = read_object(run.path / run_folder.CONFIG).get("epochs")
        of = f" of {planned:g}" if isinstance(planned, int | float) else ""
        parts.append(f"epoch {last['epoch']:.4g}{of}")
    if "seconds" in last:
        parts.append(terminal.clock(last["seconds"]))
    loss = metrics_file.columns(run.records).get("loss")
    lost = [] if loss is None else loss.x[np.isnan(loss.y)]
    return ", ".join(parts) + (f", loss not finite from step {lost[0]:.0f}" if len(lost) else "")


def tell(opened: Sequence[Run], file: Path) -> None:
    """Print a line for each run, and the file."""
    console = terminal.console()
    results: list[Mapping[str, Any]] = []
    for run in opened:
        last = metrics_file.last(run.records)
        results.append({"run": str(run.path), **last})
        figures = "  ".join(filter(None, in_words(last).values())) or "no metrics yet"
        console.print(
            f"{run.name}: {how_far(run)}  {figures}" if last else f"{run.name}: {figures}"
        )
    console.print(f"written: {file}")
    terminal.emit("result", {"command": "curves", "file": str(file), "runs": results})
