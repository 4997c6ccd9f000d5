"""The charts of a report: training metrics, and accuracy against the number of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev

import numpy as np
from markupsafe import Markup

from mvmae.figures import chart_svg
from mvmae.figures.charts import Level, Line, Panel
from mvmae.inspect.report.gather import Result, RunFacts
from mvmae.inspect.report.html import UNITS, Chart, Charts, printable
from mvmae.inspect.report.scores import encoder_name, label_points
from mvmae.inspect.report.verdict import known_level
from mvmae.inspect.report.wording import short
from mvmae.storage import metric_specs, metrics_file
from mvmae.storage.metric_specs import METRICS, Metric
from mvmae.storage.metrics_file import Against

AXES: tuple[Against, ...] = ("steps", "images", "hours")
MAX_MORE = 12  # charts that are folded away


def curves(runs: Sequence[RunFacts]) -> Charts | None:
    """Draw the metrics of one run, or of several over each other; None without metrics.

    Charts without a caption are left to `more_curves`.
    """
    axes = [axis for axis in AXES if any(_columns(facts, axis) for facts in runs)]
    explained = [rows for rows in _metrics_by_chart(runs) if rows[0].caption]
    drawn = [made for rows in explained if (made := _metric_chart(rows, runs, axes))]
    return Charts(drawn, axes) if drawn else None


def more_curves(runs: Sequence[RunFacts]) -> Charts | None:
    """Draw the metrics that need no explanation or that the table of metrics does not know."""
    rest = [rows for rows in _metrics_by_chart(runs) if not rows[0].caption][:MAX_MORE]
    drawn = [made for rows in rest if (made := _metric_chart(rows, runs, ["steps"]))]
    return Charts(drawn) if drawn else None


def _metrics_by_chart(runs: Sequence[RunFacts]) -> list[list[Metric]]:
    """Return the metrics of each chart; of several runs one each, so that a colour is a run."""
    names = dict.fromkeys(name for facts in runs for name in _columns(facts, "steps"))
    found = metric_specs.charts(names)
    return found if len(runs) == 1 else [[row] for rows in found for row in rows]


def _columns(facts: RunFacts, axis: Against) -> dict[str, metrics_file.Column]:
    return metrics_file.columns(facts.records, axis)


def _metric_chart(
    rows: Sequence[Metric], runs: Sequence[RunFacts], axes: Sequence[Against]
) -> Chart | None:
    """Draw one chart; None where no run has a finite value for it."""
    first, several = rows[0], len(runs) > 1
    levels = _levels(first, runs)
    panels: dict[str, Panel] = {
        axis: Panel("", "", list(_lines(rows, runs, axis)), levels, first.best) for axis in axes
    }
    lines = panels[axes[0]].lines
    if not any(np.isfinite(line.y).any() for line in lines):
        return None
    is_shared = sum(row.chart == first.chart for row in METRICS.values()) > 1
    title = f"{first.chart}: {first.label}" if several and is_shared else first.chart
    lost = sum(int(np.isnan(line.y).sum()) for line in lines)
    caption = first.caption
    if lost:
        caption += f" Gaps: {lost} value{'s were' if lost > 1 else ' was'} not a finite number."
    return chart(title, caption, panels, always_named=several)


def _lines(rows: Sequence[Metric], runs: Sequence[RunFacts], axis: Against) -> Iterator[Line]:
    for place, facts in enumerate(runs):
        columns = _columns(facts, axis)
        for number, row in enumerate(rows):
            if row.name in columns:
                name, style = (row.label, number) if len(runs) == 1 else (facts.name, place)
                yield Line(*columns[row.name], style, name=name)


def _levels(row: Metric, runs: Sequence[RunFacts]) -> list[Level]:
    """Return the heights to compare with; runs whose heights differ have one each."""
    values = [known_level(facts, row.name) for facts in runs]
    apart = {f"{value:.3g}": value for value in values if value is not None}
    return [_level(metrics_file.level_name(row.name), value) for value in sorted(apart.values())]


def _level(name: str, value: float) -> Level:
    return Level(None, np.array([value]), f"{name} {value:.3g}")


def label_curve(result: Result) -> Chart | None:
    """Draw accuracy against the number of labels, of a result of `labels`."""
    found = label_points(result)
    if not found:
        return None
    lines = [
        label_line(encoder_name(result, name), points, style)
        for style, (name, points) in enumerate(found.items())
    ]
    data = result.content.get("data")
    classes = data.get("classes") if isinstance(data, dict) else None
    levels = [_level("chance", 100 / len(classes))] if isinstance(classes, list) and classes else []
    verdict = result.content.get("verdict")
    sentence = f"{verdict[:1].upper()}{verdict[1:]} " if isinstance(verdict, str) else ""
    return chart(
        f"With few labels, on {short(result.data)}",
        f"{sentence}Share of test images, in percent, that a linear classifier on the frozen "
        "features classifies correctly, against the number of labelled training images (on a "
        "logarithmic scale). Bands show one standard deviation over random draws.",
        {"steps": Panel("", "", lines, levels, log_x=True)},
        x_label="labelled images",
    )


def label_line(name: str, points: dict[int, list[float]], style: int) -> Line:
    """Return means over draws, with their standard deviation as the band."""
    counts = sorted(points)
    spread = [stdev(points[count]) if len(points[count]) > 1 else 0.0 for count in counts]
    means = [mean(points[count]) for count in counts]
    return Line(np.array(counts, float), np.array(means), style, False, name, np.array(spread))


def chart(
    title: str,
    caption: str,
    panels: Mapping[str, Panel],
    *,
    x_label: str = "",
    always_named: bool = False,
) -> Chart:
    """Draw a chart once for each unit of x.

    Args:
        title: Above it.
        caption: How to read it.
        panels: What is drawn, by the unit of x.
        x_label: Default: the unit.
        always_named: Whether a single line gets a legend too.
    """
    drawings = []
    for axis, panel in panels.items():
        words = x_label or UNITS[axis]
        label = f"{title}, against {words}. {summary(panel)}"
        drawing = chart_svg.draw(panel, label=label, x_label=words, axis=axis)
        drawings.append(Markup(printable(drawing)))
    first = next(iter(panels.values())).lines
    legend = [(line.run, line.name) for line in first] if always_named or len(first) > 1 else []
    return Chart(title, caption, drawings, legend)


def summary(panel: Panel) -> str:
    """Describe a chart in words: where each line begins and ends."""
    parts = []
    for line in panel.lines:
        values = line.y[np.isfinite(line.y)]
        if len(values):
            parts.append(f"{line.name}: from {values[0]:.3g} to {values[-1]:.3g}")
    return "; ".join(parts + [level.name for level in panel.levels]) + "."
