"""Training curves: losses, health metrics, scores and speed of one or several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mvmae import terminal
from mvmae.config.figures import CurvesConfig
from mvmae.errors import UserError
from mvmae.figures import charts
from mvmae.figures.charts import PANEL, Level, Line, Panel
from mvmae.figures.text import shortened
from mvmae.storage import metric_specs, metrics_file, run_folder
from mvmae.storage.atomic import read_object
from mvmae.storage.metric_specs import Metric
from mvmae.storage.metrics_file import FILE, Column
from mvmae.storage.outputs import headings, require_output, require_place, write
from mvmae.training.log import in_words

X_LABELS = {"steps": "steps", "images": "images", "hours": "hours of training"}


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
    file = output_file(config)
    paths = [folder_of(path) for path in config.runs]
    opened = [
        opened_run(*both, config)
        for both in zip(paths, headings(list(map(str, paths))), strict=True)
    ]
    drawn = [run for run in opened if run.columns]
    if not drawn:
        raise UserError(
            f"{opened[0].path} has written no metrics yet: its {FILE} is "
            "empty until the first --log-every steps are done"
        )
    picture = charts.draw(
        panels_of(drawn),
        [run.name for run in drawn],
        title=drawn[0].name if len(drawn) == 1 else f"{len(drawn)} runs",
        note=note_of(drawn, config),
        x_label=X_LABELS[config.against],
        window=config.smooth,
        kind=file.suffix.lower().removeprefix("."),
    )
    write(file, picture)
    tell(opened, file)


def output_file(config: CurvesConfig) -> Path:
    """Return the path of the figure.

    Raises:
        UserError: It is a folder, or a file that mvmae did not write.
    """
    first = folder_of(config.runs[0])
    here = first / "figures" if len(config.runs) == 1 else first.parent
    file = config.out or here / "curves.png"
    if file.is_dir():
        raise UserError(f"{file} is a folder: --out must name a .png, .svg or .pdf file")
    # Among the run's own figures, whatever is there may be replaced.
    is_own = config.out is None and len(config.runs) == 1
    (require_place if is_own else require_output)(file)
    return file


def folder_of(path: Path) -> Path:
    """Return the run folder, also where its metrics.jsonl was named."""
    return path.parent if path.name == FILE else path


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


def panels_of(drawn: Sequence[Run]) -> list[Panel]:
    """Return a panel for each chart that any of the runs has metrics for."""
    names = dict.fromkeys(name for run in drawn for name in run.columns)
    return [_panel(rows, drawn) for rows in metric_specs.charts(names)]


def _panel(rows: Sequence[Metric], drawn: Sequence[Run]) -> Panel:
    """Draw the first metric solid and the second dashed."""
    first, *others = rows
    key = f"solid: {first.label}, dashed: {others[0].label}" if others else ""
    lines = [
        Line(*run.columns[row.name], number, dashed=row != first)
        for number, run in enumerate(drawn)
        for row in rows
        if row.name in run.columns
    ]
    return Panel(_title(first), key, lines, _levels(first.name, drawn), first.best)


def _title(row: Metric) -> str:
    """Return a panel's title; the name of an unknown metric is not a formula and may be long."""
    if row.name in metric_specs.METRICS:
        return row.figure_title
    return shortened(row.chart.replace("$", "?"), PANEL[0] - 0.6, 9.5)


def _levels(name: str, drawn: Sequence[Run]) -> list[Level]:
    """Return what a panel's first line is compared with: once where it is the same for all runs."""
    found = {
        number: level
        for number, run in enumerate(drawn)
        if name in run.columns and (level := metrics_file.level(run.columns, name))
    }
    if not found:
        return []
    label = metrics_file.level_name(name)
    values = np.concatenate([level.y for level in found.values()])
    if np.ptp(values[np.isfinite(values)]) < 1e-3 * np.nanmax(np.abs(values)):
        ends = np.array([f(level.x) for f in (np.min, np.max) for level in found.values()])
        value = np.nanmean(values)
        x = np.array([ends.min(), ends.max()])
        return [Level(x, np.full(2, value), f"{label} {value:.3g}")]
    return [Level(*level, label, number) for number, level in found.items()]


def note_of(drawn: Sequence[Run], config: CurvesConfig) -> str:
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
        planned = epochs_of(run.path)
        parts.append(f"epoch {last['epoch']:.4g}" + (f" of {planned:g}" if planned else ""))
    if "seconds" in last:
        parts.append(terminal.clock(last["seconds"]))
    loss = metrics_file.columns(run.records).get("loss")
    lost = [] if loss is None else loss.x[np.isnan(loss.y)]
    return ", ".join(parts) + (f", loss not finite from step {lost[0]:.0f}" if len(lost) else "")


def epochs_of(path: Path) -> float | None:
    """Return the planned epochs of a run, where its config says."""
    planned = read_object(path / run_folder.CONFIG).get("epochs")
    return float(planned) if isinstance(planned, int | float) else None


def tell(opened: Sequence[Run], file: Path) -> None:
    """Print a line for each run, and the file."""
    console = terminal.people()
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
