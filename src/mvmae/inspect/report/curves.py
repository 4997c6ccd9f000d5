"""Which curves a page shows, and how each is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite, isnan
from statistics import mean, stdev
from typing import NamedTuple

from mvmae.inspect.report.blocks import Chart, Charts, chart
from mvmae.inspect.report.gather import Result, RunFacts
from mvmae.inspect.report.scores import PIXELS, UNTRAINED
from mvmae.inspect.report.svg import Level, Line
from mvmae.inspect.report.verdict import known_level, percent, short
from mvmae.storage import metrics_file
from mvmae.storage.metrics_file import Against

AXES: tuple[Against, ...] = ("steps", "images", "hours")


class Plan(NamedTuple):
    """A chart of some figures of metrics.jsonl."""

    title: str
    caption: str
    columns: dict[str, str]
    """Figures, and what each is called."""

    levels: dict[str, str] = {}  # noqa: RUF012 a NamedTuple's default, never changed
    """Figures that have a `metrics_file.level`, and what that is called; empty: as it calls it."""


PLANS = (
    Plan(
        "Rebuilding what is hidden",
        "Squared error on the hidden patches; lower is better. A line under the dashed height has "
        "learnt more of them than that.",
        {"reconstruction": "error"},
        {"reconstruction": ""},
    ),
    Plan(
        "Telling images apart",
        "Contrastive loss between two crops of each image; lower is better. The dashed height is "
        "guessing: a line that stays there has learnt nothing.",
        {"contrastive": "loss"},
        {"contrastive": "guessing"},
    ),
    Plan(
        "Alike or different",
        "How alike two vectors are, from -1 to 1. Crops of one image should come close to 1, crops "
        "of different images close to 0. If both are near 1, all images look the same: a collapse.",
        {
            "positive_similarity": "crops of one image",
            "negative_similarity": "of different images",
        },
    ),
    Plan(
        "Finding the other crop",
        "How often, in percent, the other crop of an image is the nearest of all in the batch; "
        "higher is better.",
        {"contrastive_top1": "found"},
        {"contrastive_top1": "guessing"},
    ),
    Plan(
        "Directions in use",
        "Effective rank: how many directions the vectors spread over. Near 1 is a collapse.",
        {"effective_rank": "directions"},
    ),
    Plan(
        "Nearest neighbours while training",
        "Share of labelled test images, in percent, that their nearest neighbours give the right "
        "class; higher is better.",
        {"knn_top1": "kNN top-1"},
    ),
    Plan(
        "Accuracy on test images",
        "Share of test images, in percent, whose class is the first guess (top-1) or among the "
        "first five (top-5); higher is better.",
        {"top1": "top-1", "top5": "top-5"},
    ),
    Plan(
        "Precision of what is found",
        "Average precision (AP) of boxes and masks on test images, in percent, as COCO measures "
        "it; higher is better.",
        {"box_ap": "boxes", "mask_ap": "masks"},
    ),
    Plan(
        "Overlap of the classes",
        "Mean intersection over union (mIoU) of the classes on test images, in percent; higher is "
        "better.",
        {"miou": "mIoU"},
    ),
    Plan("Loss", "Training loss; lower is better.", {"loss": "training"}),
    Plan("Loss on test images", "Lower is better.", {"test_loss": "test"}),
    Plan(
        "Learning rate",
        "How far each step moves the weights: it rises in the warm-up, then falls.",
        {"lr": "learning rate"},
    ),
    Plan(
        "Speed",
        "Images a second. A drop means that the machine was busy, or the disk slow.",
        {"images_per_second": "images a second"},
    ),
)
KNOWN = {name for plan in PLANS for name in plan.columns}
KNOWN |= {name for levels in metrics_file.LEVELS_OF.values() for name in levels}
TERMS = {"reconstruction", "contrastive"}


def curves(runs: Sequence[RunFacts]) -> Charts | None:
    """The curves of one run, or of several over each other; none where there are no metrics."""
    axes = [axis for axis in AXES if any(_columns(facts, axis) for facts in runs)]
    plans = PLANS if len(runs) == 1 else [part for plan in PLANS for part in _parts(plan)]
    charts = [made for plan in plans if (made := _chart(plan, runs, axes))]
    return Charts(charts, axes) if charts else None


def _parts(plan: Plan) -> list[Plan]:
    """A chart for each figure, so that a run has one colour in all of them."""
    if len(plan.columns) == 1:
        return [plan]
    return [
        plan._replace(title=f"{plan.title}: {said}", columns={name: said})
        for name, said in plan.columns.items()
    ]


def others(facts: RunFacts, most: int = 12) -> Charts | None:
    """Figures that no plan names, each under its own name."""
    names = sorted(_columns(facts, "steps").keys() - KNOWN)[:most]
    plans = [Plan(name.replace("_", " "), "", {name: name.replace("_", " ")}) for name in names]
    charts = [made for plan in plans if (made := _chart(plan, [facts], ["steps"]))]
    return Charts(charts) if charts else None


def _columns(facts: RunFacts, axis: Against) -> dict[str, metrics_file.Column]:
    return metrics_file.columns(facts.records, axis)


def _chart(plan: Plan, runs: Sequence[RunFacts], axes: Sequence[Against]) -> Chart | None:
    """One plan's chart; none where no run has a finite value for it."""
    by_axis: dict[str, Sequence[Line]] = {axis: list(_lines(plan, runs, axis)) for axis in axes}
    if not any(isfinite(y) for lines in by_axis.values() for line in lines for y in line.ys):
        return None
    lost = sum(isnan(y) for line in by_axis[axes[0]] for y in line.ys)
    caption = plan.caption
    if lost:
        caption += f" Gaps: {lost} value{'s were' if lost > 1 else ' was'} not a finite number."
    levels, several = list(_levels(plan, runs)), len(runs) > 1
    return chart(plan.title, caption, by_axis, levels=levels, always_named=several)


def _lines(plan: Plan, runs: Sequence[RunFacts], axis: Against) -> Iterator[Line]:
    for place, facts in enumerate(runs):
        columns = _columns(facts, axis)
        if TERMS & columns.keys():
            columns.pop("loss", None)  # a sum of terms that have charts of their own
        for number, (name, said) in enumerate(plan.columns.items()):
            if name in columns:
                x, y = columns[name]
                called, style = (said, number) if len(runs) == 1 else (facts.name, place)
                yield Line(called, x.tolist(), y.tolist(), style)


def _levels(plan: Plan, runs: Sequence[RunFacts]) -> Iterator[Level]:
    """Heights to compare with; runs whose heights differ have one each."""
    for name, said in plan.levels.items():
        found = [
            (value, said or metrics_file.level_name(_columns(facts, "steps"), name))
            for facts in runs
            if (value := known_level(facts, name)) is not None
        ]
        apart = {f"{value:.3g} {called}": (value, called) for value, called in found}
        yield from (Level(called, value) for value, called in sorted(apart.values()))


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
    levels = (
        [Level("guessing", 100 / len(classes))] if isinstance(classes, list) and classes else []
    )
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


def in_words(figures: dict[str, float]) -> str:
    """Some figures in a line."""
    return ", ".join(f"{name} {percent(value)}" for name, value in figures.items())
