"""The low-label curve: what an encoder does with few labels, beside one that was never trained."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvmae import encoders, terminal
from mvmae.config.evaluation import LabelsConfig
from mvmae.data.reading.loader import Skipped
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.evaluation import shared
from mvmae.evaluation.shared import Candidate, Setting
from mvmae.figures import label_curve
from mvmae.metrics.label_curve import class_counts, labels_needed, stratified_draw
from mvmae.metrics.linear import logistic_regression
from mvmae.metrics.paired import NORMAL_QUANTILE, significance_threshold
from mvmae.storage import results, run_folder
from mvmae.training.checkpoint import write_whole

PIXEL_SIDE = 16  # as for probe
BASELINES = ("the same, untrained", "raw pixels")


class Cell(NamedTuple):
    """Accuracy of one encoder with one draw of labels."""

    name: str
    amount: int | float
    draw: int
    count: int
    """Labelled images."""

    top1: float


def run(config: LabelsConfig) -> None:
    """Print, draw and keep accuracy against the number of labels.

    Raises:
        UserError: An encoder or the labelled images cannot be read.
    """
    with shared.evaluation_setting(config) as setting:
        judge(config, setting)


def judge(config: LabelsConfig, setting: Setting) -> None:
    """Score the encoder and those beside it with every draw; print, draw and keep the curves.

    Raises:
        UserError: An encoder of --against cannot be read.
    """
    if twice := [name for name in config.against if name == config.encoder]:
        raise UserError(f"--against names {twice[0]}, which is ENCODER itself")
    against = others_of(config, setting)
    key = cells_key(config, setting, against)
    known = Known(setting.home / "cache" / f"labels-{key}.jsonl")
    cells: list[Cell] = []
    skipped: list[Skipped] = []
    num_test, learned = 0, np.empty(0, dtype=int)
    for judged in shared.candidates(config, setting, pixel_side=PIXEL_SIDE, against=against):
        cells += cells_of(judged, config, setting, known)
        skipped = skipped or [*judged.train.skipped, *judged.test.skipped]
        num_test, learned = len(judged.test.labels), judged.train.labels.numpy()
    if not cells:  # in another process than the main one
        return
    picture = picture_of(cells, config, setting)
    console = terminal.people()
    console.print(f"\naccuracy with few labels on {config.data}", style="bold")
    Console().print(table_of(cells))
    verdict = verdict_of(cells, config.encoder, num_test)
    for line in (*remarks(learned, config), verdict):
        console.print(line)
    shared.print_skipped(console, skipped)
    file = results.write(
        setting.home,
        "labels",
        config,
        {
            "verdict": verdict,
            "cells": [cell._asdict() for cell in cells],
            "skipped": [skip._asdict() for skip in skipped],
            "data": shared.data_facts(setting.data),
            "seconds": round(time.perf_counter() - setting.began, 1),
        },
        device=setting.device,
    )
    known.file.unlink(missing_ok=True)
    shared.clear_caches(setting)
    console.print(f"written: {file} and {picture}")


def others_of(config: LabelsConfig, setting: Setting) -> list[tuple[str, OpenedEncoder]]:
    """The encoders of --against, fitted to the same images."""
    channels = setting.opened.encoder.in_channels
    return [
        (name, encoders.open_encoder(name, config.image_size, channels)) for name in config.against
    ]


def cells_key(
    config: LabelsConfig, setting: Setting, against: Sequence[tuple[str, OpenedEncoder]]
) -> str:
    """Changes with whatever a cell depends on."""
    caches = [
        shared.cache_folder(config, setting, opened, part).name
        for _, opened in [("", setting.opened), *against]
        for part in ("train", "test")
    ]
    said = config.against, config.seed, config.costs, config.max_iterations, config.pool
    return shared.cache_key((caches, said))


class Known:
    """Cells that an interrupted command has already computed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text("utf-8", "replace").splitlines() if file.exists() else []
        self.cells: dict[tuple[str, str, int], Cell] = {}
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):  # cut short by what interrupted it
                cell = Cell(**json.loads(line))
                self.cells[cell.name, str(cell.amount), cell.draw] = cell

    def keep(self, cell: Cell) -> None:
        """Add a cell to the file."""
        run_folder.make(self.file.parent)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write("\n" + json.dumps(cell._asdict()))  # whatever the last line lacks


def amounts_of(labels: Int[np.ndarray, " M"], config: LabelsConfig) -> dict[int | float, int]:
    """The amounts to draw and how often; one that draws as many as an earlier one is left out.

    All labels can be drawn in one way only.
    """
    amounts: dict[tuple[int, ...], int | float] = {}
    for amount in config.per_class or config.shares:
        amounts.setdefault(tuple(class_counts(labels, amount)), amount)
    return {
        amount: 1 if sum(counts) == len(labels) else config.draws
        for counts, amount in amounts.items()
    }


def remarks(labels: Int[np.ndarray, " M"], config: LabelsConfig) -> list[str]:
    """What was not drawn as it was asked for, a line each."""
    said, asked = [], config.per_class or config.shares
    if config.per_class and config.shares != LabelsConfig(encoder="").shares:
        said.append("--shares is not used: --per-class takes its place")
    amounts = amounts_of(labels, config)
    if same := [f"{amount:g}" for amount in asked if amount not in amounts]:
        said.append(
            f"left out of {'--per-class' if config.per_class else '--shares'}, because another "
            f"draws as many images of every class: {', '.join(same)}"
        )
    sizes = np.unique(labels, return_counts=True)[1]
    if config.per_class and (most := max(config.per_class)) > sizes.min():
        said.append(
            f"{(sizes < most).sum()} of {len(sizes)} classes have fewer than {most} images "
            "and gave all they have"
        )
    return said


def cells_of(
    judged: Candidate, config: LabelsConfig, setting: Setting, known: Known
) -> Iterator[Cell]:
    """Every amount and draw for one encoder."""
    vectors = shared.vectors_by_token(judged)
    train, test = vectors[judged.pool or "pixels"]
    labels, truth = judged.train.labels.numpy(), judged.test.labels.numpy()
    for amount, draws in amounts_of(labels, config).items():
        for number in range(draws):
            cell = known.cells.get((judged.name, str(amount), number))  # 1 image is not 1.0, all
            if cell is None:
                rng = np.random.default_rng((config.seed, number, round(amount * 1e6)))
                places = stratified_draw(labels, amount, rng)
                result = logistic_regression(
                    train.numpy()[places],
                    labels[places],
                    test.numpy(),
                    num_classes=len(setting.data.test.classes),
                    costs=config.costs,
                    max_iterations=config.max_iterations,
                )
                top1 = round(100 * float((result.predictions == truth).mean()), 4)
                cell = Cell(judged.name, amount, number, len(places), top1)
                known.keep(cell)
            yield cell


class Point(NamedTuple):
    """All draws of so many labels for one encoder."""

    count: int
    mean: float
    spread: float
    """Standard deviation over draws; 0 for one."""


def points_of(cells: Sequence[Cell], name: str) -> list[Point]:
    """A curve, from the fewest labels to the most."""
    own = [cell for cell in cells if cell.name == name]
    points = []
    for count in sorted({cell.count for cell in own}):
        values = [cell.top1 for cell in own if cell.count == count]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        points.append(Point(count, statistics.mean(values), spread))
    return points


def names_of(cells: Sequence[Cell]) -> list[str]:
    """The encoders, in their order."""
    return list(dict.fromkeys(cell.name for cell in cells))


def table_of(cells: Sequence[Cell]) -> Table:
    """A row for each encoder, a column for each number of labels."""
    table = Table()
    table.add_column("encoder")
    names = names_of(cells)
    for point in points_of(cells, names[0]):
        table.add_column(f"{point.count} labels", justify="right")
    for name in names:
        figures = [
            f"{point.mean:.1f}" + (f" ±{point.spread:.1f}" if point.spread else "")
            for point in points_of(cells, name)
        ]
        table.add_row(escape(shared.short_name(name, names)), *figures)
    return table


def verdict_of(cells: Sequence[Cell], encoder: str, num_test: int) -> str:
    """Whether pre-training was worth it, in a sentence or two.

    A gain over the untrained encoder is clear where it is beyond what chance makes over so many
    draws, at 5 %.
    """
    if encoder.startswith("random:"):
        return f"{encoder} was not pre-trained, so there is nothing to judge"
    untrained = BASELINES[0]
    if untrained not in names_of(cells):
        return f"{encoder} has no baseline beside it: leave out --no-baselines to compare"
    gains = paired_gains(cells, encoder, untrained, num_test)
    clear = [one.count for one in gains if one.is_clear]
    listed = ", ".join(f"{one.mean:+.1f} points with {one.count}" for one in gains)
    said = f"over the same encoder untrained {listed} labels"
    limits = [*_pixels_in_words(cells, encoder), _test_in_words(cells, encoder, num_test)]
    if not clear:
        some = "not clearly" if any(one.mean > 0 for one in gains) else "not"
        return " ".join([f"pre-training was {some} worth it here: {said}.", *limits])
    where = "" if len(clear) == len(gains) else f" with {_joined(clear)} labels"
    own = {point.count: point.mean for point in points_of(cells, encoder)}
    other = points_of(cells, untrained)
    counts, means = [p.count for p in other], [p.mean for p in other]
    needed = labels_needed(counts, means, own[clear[0]])
    worth = (
        f"all {counts[-1]} labels do not bring the untrained one there"
        if needed is None
        else f"the untrained one needs about {needed:.0f}"
    )
    first = (
        f"pre-training was worth it{where}: {said}. For what it does with {clear[0]} labels, "
        f"{worth}."
    )
    return " ".join([first, *limits])


def _pixels_in_words(cells: Sequence[Cell], encoder: str) -> Iterator[str]:
    """Where raw pixels need no encoder to do as well."""
    own = {point.count: point.mean for point in points_of(cells, encoder)}
    pixels = {point.count: point.mean for point in points_of(cells, BASELINES[1])}
    better = [count for count in own if pixels.get(count, -1.0) >= own[count]]
    if not better:
        return
    with_these = "every number of" if len(better) == len(own) else _joined(better)
    yield f"Raw pixels do as well or better with {with_these} labels."


def _test_in_words(cells: Sequence[Cell], encoder: str, num_test: int) -> str:
    """How far the test images, which all draws share, leave the accuracies open."""
    share = max(points_of(cells, encoder)).mean / 100
    error = 100 * sqrt(share * (1 - share) / num_test)
    return (
        f"All draws are tested on the same {num_test} images; as many others would move an "
        f"accuracy by about {error:.1f} points."
    )


def _joined(counts: Sequence[int]) -> str:
    *first, last = (str(count) for count in counts)
    return f"{', '.join(first)} and {last}" if first else last


class Gain(NamedTuple):
    """How much better an encoder is than another with so many labels."""

    count: int
    mean: float
    error: float
    """Standard error of the mean."""

    draws: int

    @property
    def is_clear(self) -> bool:
        """Whether chance would hardly make it."""
        return self.mean > (significance_threshold(self.draws) or NORMAL_QUANTILE) * self.error


def paired_gains(cells: Sequence[Cell], name: str, other: str, num_test: int) -> list[Gain]:
    """For each number of labels the mean gain over the same draws, and its standard error.

    Of one draw the error is that of two proportions of the test images.
    """
    theirs = {(cell.amount, cell.draw): cell.top1 for cell in cells if cell.name == other}
    pairs: dict[int, list[tuple[float, float]]] = {}
    for cell in cells:
        if cell.name == name:
            both = cell.top1, theirs[cell.amount, cell.draw]
            pairs.setdefault(cell.count, []).append(both)
    gains = []
    for count, values in sorted(pairs.items()):
        differences = [ours - its for ours, its in values]
        if len(values) > 1:
            error = statistics.stdev(differences) / sqrt(len(values))
        else:
            error = sqrt(sum(value * (100 - value) for value in values[0]) / num_test)
        gains.append(Gain(count, statistics.mean(differences), error, len(values)))
    return gains


def picture_of(cells: Sequence[Cell], config: LabelsConfig, setting: Setting) -> Path:
    """Draw the curves into figures/labels-DATA.png."""
    drawn, names = [], names_of(cells)
    for name in names:
        points: list[Any] = points_of(cells, name)
        counts, means, spreads = zip(*points, strict=True)
        drawn.append(
            label_curve.Curve(
                shared.short_name(name, names), counts, means, spreads, name in BASELINES
            )
        )
    classes = len(setting.data.test.classes)
    draws = max(cell.draw for cell in cells) + 1
    drawing = (
        "one draw of the labels"
        if draws == 1
        else f"band: standard deviation over {draws} draws of the labels"
    )
    png = label_curve.draw(
        drawn,
        title=f"Linear classifier on frozen features: {config.data}",
        note=f"{classes} classes, {len(setting.data.test)} test images; {drawing}",
        chance=100 / classes,
    )
    file = setting.home / "figures" / f"labels-{results.slug(config.data)}.png"
    run_folder.make(file.parent)
    write_whole(file, lambda stream: stream.write(png))
    return file
