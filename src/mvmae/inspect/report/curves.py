"""The charts of a report: training metrics, and accuracy against the number of labels."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

import numpy as np
from markupsafe import Markup

from mvmae.figures import chart_svg, charts
from mvmae.figures.charts import X_LABELS, Level, Line, Panel
from mvmae.inspect.report.gather import Result, RunFacts, part
from mvmae.inspect.report.html import Block, Chart, Charts, Fold, make_safe, short
from mvmae.inspect.report.scores import encoder_name, label_points
from mvmae.storage import metric_specs, metrics_file
from mvmae.storage.metric_specs import METRICS, Metric
from mvmae.storage.metrics_file import Against, Column

AXES: tuple[Against, ...] = ("steps", "images", "hours")
MAX_MORE = 12  # charts that are folded away


def curves(runs: Sequence[RunFacts]) -> list[Block]:
    """Draw the metrics of one run, or of several over each other; empty without metrics.

    Charts without an explanation, such as those of unknown metrics, are folded away.
    """
    found: dict[Against, list[dict[str, Column]]] = {
        axis: [metrics_file.columns(one.records, axis) for one in runs] for axis in AXES
    }
    found = {axis: columns for axis, columns in found.items() if any(columns)}
    known = dict.fromkeys(name for columns in found.get("steps", []) for name in columns)
    groups = metric_specs.group_by_chart(known)
    if len(runs) > 1:  # a chart for each metric, so that a colour is a run
        groups = [[row] for rows in groups for row in rows]
    names = [facts.name for facts in runs]
    explained = [_metric_chart(rows, names, found) for rows in groups if rows[0].caption]
    rest = [rows for rows in groups if not rows[0].caption][:MAX_MORE]
    more = [_metric_chart(rows, names, {"steps": found["steps"]}) for rows in rest]
    blocks: list[Block] = []
    if drawn := [chart for chart in explained if chart]:
        blocks.append(Charts(drawn, list(found)))
    if drawn := [chart for chart in more if chart]:
        blocks.append(Fold("More curves", [Charts(drawn)]))
    return blocks


def _metric_chart(
    rows: Sequence[Metric],
    names: Sequence[str],
    found: Mapping[Against, Sequence[Mapping[str, Column]]],
) -> Chart | None:
    """Draw one chart; None where no run has a finite value for it."""
    first, several = rows[0], len(names) > 1
    panels = {}
    for axis, runs in found.items():
        lines = [  # the style is the number of the metric, or that of the run: the other one is 0
            Line(*columns[row.name], run + number, name=names[run] if several else row.label)
            for run, columns in enumerate(runs)
            for number, row in enumerate(rows)
            if row.name in columns
        ]
        panels[axis] = Panel("", "", lines, charts.metric_levels(first.name, runs), first.best)
    values = np.concatenate([line.y for line in panels["steps"].lines])
    if not np.isfinite(values).any():
        return None
    is_shared = sum(row.chart == first.chart for row in METRICS.values()) > 1
    title = f"{first.chart}: {first.label}" if several and is_shared else first.chart
    lost = int(np.isnan(values).sum())
    gaps = f" Gaps: {lost} value{'s were' if lost > 1 else ' was'} not a finite number."
    return chart(title, first.caption + gaps * (lost > 0), panels, always_named=several)


def label_curve(result: Result) -> Chart | None:
    """Draw accuracy against the number of labels, of a result of `labels`."""
    found = label_points(result)
    if not found:
        return None
    lines = [
        label_line(encoder_name(result, name), points, style)
        for style, (name, points) in enumerate(found.items())
    ]
    classes = part(result.content, "data").get("classes")
    levels = []
    if isinstance(classes, list) and classes:
        chance = 100 / len(classes)
        ends = np.array([f(line.x) for f in (np.min, np.max) for line in lines])
        levels = [Level(np.sort(ends)[[0, -1]], np.full(2, chance), f"chance {chance:.3g}")]
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
    panels: Mapping[Against, Panel],
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
        words = x_label or X_LABELS[axis]
        label = f"{title}, against {words}. {summary(panel)}"
        drawing = chart_svg.draw(panel, label=label, x_label=words, axis=axis)
        drawings.append(Markup(make_safe(drawing)))
    first = next(iter(panels.values())).lines
    legend = [(line.run, line.name) for line in first] if always_named or len(first) > 1 else []
    return Chart(title, caption, drawings, legend)


def summary(panel: Panel) -> str:
    """Describe a chart in words: where each line begins and ends."""
    parts = []
    for line in (*panel.lines, *panel.levels):
        values = line.y[np.isfinite(line.y)]
        if isinstance(line, Level) and not np.ptp(values):
            parts.append(line.name)
        elif len(values):
            parts.append(f"{line.name}: from {values[0]:.3g} to {values[-1]:.3g}")
    return f"{'; '.join(parts)}."
