"""Which curves a page shows, and how each is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite, isnan
from statistics import mean, stdev

from mvmae.inspect.report.blocks import Chart, Charts, chart
from mvmae.inspect.report.gather import Result, RunFacts
from mvmae.inspect.report.scores import PIXELS, UNTRAINED
from mvmae.inspect.report.svg import Level, Line
from mvmae.inspect.report.verdict import known_level, short
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
    drawn = [
        made for rows in _charts(runs) if rows[0].caption and (made := _chart(rows, runs, axes))
    ]
    return Charts(drawn, axes) if drawn else None


def more_curves(runs: Sequence[RunFacts]) -> Charts | None:
    """Draw the metrics that need no explanation or that the table of metrics does not know."""
    rest = [rows for rows in _charts(runs) if not rows[0].caption][:MAX_MORE]
    drawn = [made for rows in rest if (made := _chart(rows, runs, ["steps"]))]
    return Charts(drawn) if drawn else None


def _charts(runs: Sequence[RunFacts]) -> list[list[Metric]]:
    """Return the metrics of each chart; of several runs one each, so that a colour is a run."""
    names = dict.fromkeys(name for facts in runs for name in _columns(facts, "steps"))
    found = metric_specs.charts(names)
    return found if len(runs) == 1 else [[row] for rows in found for row in rows]


def _columns(facts: RunFacts, axis: Against) -> dict[str, metrics_file.Column]:
    return metrics_file.columns(facts.records, axis)


def _chart(
    rows: Sequence[Metric], runs: Sequence[RunFacts], axes: Sequence[Against]
) -> Chart | None:
    """Draw one chart; None where no run has a finite value for it."""
    by_axis: dict[str, Sequence[Line]] = {axis: list(_lines(rows, runs, axis)) for axis in axes}
    if not any(isfinite(y) for lines in by_axis.values() for line in lines for y in line.ys):
        return None
    first, several = rows[0], len(runs) > 1
    is_shared = sum(row.chart == first.chart for row in METRICS.values()) > 1
    title = f"{first.chart}: {first.label}" if several and is_shared else first.chart
    lost = sum(isnan(y) for line in by_axis[axes[0]] for y in line.ys)
    caption = first.caption
    if lost:
        caption += f" Gaps: {lost} value{'s were' if lost > 1 else ' was'} not a finite number."
    return chart(title, caption, by_axis, levels=_levels(first, runs), always_named=several)


def _lines(rows: Sequence[Metric], runs: Sequence[RunFacts], axis: Against) -> Iterator[Line]:
    for place, facts in enumerate(runs):
        columns = _columns(facts, axis)
        for number, row in enumerate(rows):
            if row.name in columns:
                x, y = columns[row.name]
                name, style = (row.label, number) if len(runs) == 1 else (facts.name, place)
                yield Line(name, x.tolist(), y.tolist(), style)


def _levels(row: Metric, runs: Sequence[RunFacts]) -> list[Level]:
    """Return the heights to compare with; runs whose heights differ have one each."""
    label = metrics_file.level_name(row.name)
    values = [known_level(facts, row.name) for facts in runs]
    apart = {f"{value:.3g}": value for value in values if value is not None}
    return [Level(label, value) for value in sorted(apart.values())]


def label_curve(result: Result) -> Chart | None:
    """Accuracy against the number of labels, of a result of `labels`."""
    by_name: dict[str, dict[int, list[float]]] = {}
    cells = result.content.get("cells")
    for cell in cells if isinstance(cells, list) else []:
        try:
            name, count, top1 = str(cell["name"]), int(cell["count"]), float(cell["top1"])
        except (KeyError, TypeError, ValueError):
            continue
        if count > 0 and isfinite(top1):
            by_name.setdefault(name, {}).setdefault(count, []).append(top1)
    if not by_name:
        return None
    lines = [
        label_line(told(result, name), points, style)
        for style, (name, points) in enumerate(by_name.items())
    ]
    data = result.content.get("data")
    classes = data.get("classes") if isinstance(data, dict) else None
    levels = [Level("chance", 100 / len(classes))] if isinstance(classes, list) and classes else []
    said = result.content.get("verdict")
    found = f"{said[:1].upper()}{said[1:]} " if isinstance(said, str) else ""
    return chart(
        f"With few labels, on {short(result.data)}",
        f"{found}The share of test images, in percent, that a linear classifier on the frozen "
        "features names right, against how many labelled images it learnt from (each step of the "
        "axis is a multiple). Bands are the spread over random draws.",
        {"steps": lines},
        levels=levels,
        log_x=True,
        x_name="labelled images",
    )


def label_line(name: str, points: dict[int, list[float]], style: int) -> Line:
    """Means over draws, with their standard deviation as the band."""
    counts = sorted(points)
    spread = [stdev(points[count]) if len(points[count]) > 1 else 0.0 for count in counts]
    return Line(name, counts, [mean(points[count]) for count in counts], style, spread)


def told(result: Result, name: str) -> str:
    """A row's name: the encoder that was judged, a baseline, or another encoder's short name."""
    config = result.content.get("config")
    own = config.get("encoder") if isinstance(config, dict) else None
    if name == own:
        return "this encoder"
    if name == UNTRAINED:
        return "the same encoder, untrained"
    return name if name == PIXELS else short(name)
