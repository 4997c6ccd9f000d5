"""Run `mvmae labels`: accuracy with few labels, compared with the same encoder untrained.

A cell is the accuracy of one encoder with one random draw of labels. An encoder's cells with the
same number of labels form a point of its curve. Accuracies and gains are in percentage points.
Shapes: M training images.
"""

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
from rich.markup import escape
from rich.table import Table

from mvmae import encoders, terminal
from mvmae.config.evaluation import LabelsConfig
from mvmae.data.reading.loader import Skipped
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.evaluation import result_text, shared
from mvmae.evaluation.shared import Candidate, Setting
from mvmae.figures import label_curve
from mvmae.metrics.accuracy import NORMAL_QUANTILE, sampling_error, significance_threshold
from mvmae.metrics.label_curve import class_counts, labels_needed, stratified_draw
from mvmae.metrics.linear import logistic_regression
from mvmae.storage import results, run_folder
from mvmae.storage.atomic import write_bytes
from mvmae.training import distributed

PIXEL_SIDE = 16  # as for `probe`
UNTRAINED, PIXELS = BASELINES = ("the same, untrained", "raw pixels")


class Cell(NamedTuple):
    """Accuracy of one encoder with one draw of labels."""

    name: str
    amount: int | float
    """Images per class, or share of the training images."""

    draw: int
    count: int
    """Labelled images."""

    top1: float
    """In percent."""


def run(config: LabelsConfig) -> None:
    """Print, draw and write accuracy against the number of labels.

    Raises:
        UserError: An encoder or the labelled images cannot be read.
    """
    with shared.evaluation_setting(config) as setting:
        evaluate(config, setting)


def evaluate(config: LabelsConfig, setting: Setting) -> None:
    """Score the encoder and those beside it with every draw; print, draw and write the curves.

    Raises:
        UserError: An encoder of --against cannot be read.
    """
    if config.encoder in config.against:
        raise UserError(f"--against names {config.encoder}, which is ENCODER itself: leave it out")
    channels = setting.opened.encoder.in_channels
    against = [
        (name, encoders.open_encoder(name, config.image_size, channels)) for name in config.against
    ]
    key = cells_key(config, setting, against)
    cache = CellCache(setting.home / "cache" / f"labels-{key}.jsonl")
    cells: list[Cell] = []
    skipped: list[Skipped] = []
    num_test, train_labels = 0, np.empty(0, dtype=int)
    found = shared.candidates(config, setting, pixel_side=PIXEL_SIDE, against=against)
    for candidate in found:
        cells += compute_cells(candidate, config, setting, cache)
        skipped = skipped or [*candidate.train.skipped, *candidate.test.skipped]
        num_test, train_labels = len(candidate.test.labels), candidate.train.labels.numpy()
    if not cells:  # processes other than the main one only compute features
        return
    figure = write_figure(cells, config, setting)
    console = terminal.console()
    console.print(f"\naccuracy with few labels on {config.data}", style="bold")
    terminal.print_table(build_table(cells))
    verdict = describe_gain(cells, config.encoder, num_test)
    for line in (*remarks(train_labels, config), verdict):
        console.print(line)
    result_text.print_skipped(console, skipped)
    file = results.write(
        setting.home,
        "labels",
        config,
        {
            "verdict": verdict,
            "cells": [cell._asdict() for cell in cells],
            "skipped": [skip._asdict() for skip in skipped],
            "data": result_text.data_facts(setting.data),
            "seconds": round(time.perf_counter() - setting.began, 1),
        },
        world_size=distributed.world_size(),
        device=setting.device,
    )
    cache.file.unlink(missing_ok=True)
    shared.clear_caches(setting)
    console.print(f"written: {file} and {figure}")


def cells_key(
    config: LabelsConfig, setting: Setting, against: Sequence[tuple[str, OpenedEncoder]]
) -> str:
    """Hash everything that cells depend on, for the name of their cache."""
    caches = [
        shared.cache_folder(config, setting, opened, part).name
        for _, opened in [("", setting.opened), *against]
        for part in ("train", "test")
    ]
    options = config.against, config.seed, config.costs, config.max_iterations, config.pool
    return shared.cache_key((caches, options))


class CellCache:
    """Cells that an interrupted command has computed, one JSON object per line of a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text("utf-8", "replace").splitlines() if file.exists() else []
        self.cells: dict[tuple[str, str, int], Cell] = {}
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):  # cut short by the interruption
                cell = Cell(**json.loads(line))
                self.cells[cell.name, str(cell.amount), cell.draw] = cell

    def add(self, cell: Cell) -> None:
        """Append a cell to the file."""
        run_folder.make(self.file.parent)
        with self.file.open("a", encoding="utf-8") as stream:
            # The newline comes first because the last line may have been cut short.
            stream.write("\n" + json.dumps(cell._asdict()))


def draws_per_amount(labels: Int[np.ndarray, " M"], config: LabelsConfig) -> dict[int | float, int]:
    """Map each amount of labels to its number of draws.

    Amounts that draw the same number of images of every class as an earlier one are left out. All
    labels are drawn once, because there is only one way to draw them.
    """
    amounts: dict[tuple[int, ...], int | float] = {}
    for amount in config.per_class or config.shares:
        amounts.setdefault(tuple(class_counts(labels, amount)), amount)
    return {
        amount: 1 if sum(counts) == len(labels) else config.draws
        for counts, amount in amounts.items()
    }


def remarks(labels: Int[np.ndarray, " M"], config: LabelsConfig) -> list[str]:
    """Return a line for each option that had no effect, or only part of it."""
    lines, requested = [], config.per_class or config.shares
    if config.per_class and config.shares != LabelsConfig.shares:
        lines.append("--shares is not used, because --per-class replaces it")
    amounts = draws_per_amount(labels, config)
    if same := [f"{amount:g}" for amount in requested if amount not in amounts]:
        lines.append(
            f"left out of {'--per-class' if config.per_class else '--shares'}, because another "
            f"value draws as many images of every class: {', '.join(same)}"
        )
    sizes = np.unique(labels, return_counts=True)[1]
    if config.per_class and (most := max(config.per_class)) > sizes.min():
        lines.append(
            f"{(sizes < most).sum()} of {len(sizes)} classes have fewer than {most} images: all "
            "of theirs were used"
        )
    return lines


def compute_cells(
    candidate: Candidate, config: LabelsConfig, setting: Setting, cache: CellCache
) -> Iterator[Cell]:
    """Yield the cells of one encoder for every amount and draw; the cache keeps each new one."""
    vectors = shared.vectors_by_token(candidate)
    train, test = vectors[candidate.pool or "pixels"]
    labels, test_labels = candidate.train.labels.numpy(), candidate.test.labels.numpy()
    for amount, draws in draws_per_amount(labels, config).items():
        for number in range(draws):
            # As text, because 1 (image per class) and 1.0 (all images) are equal keys.
            cell = cache.cells.get((candidate.name, str(amount), number))
            if cell is None:
                # A seed consists of integers; amounts may be shares.
                rng = np.random.default_rng((config.seed, number, round(amount * 1e6)))
                drawn = stratified_draw(labels, amount, rng)
                fit = logistic_regression(
                    train.numpy()[drawn],
                    labels[drawn],
                    test.numpy(),
                    num_classes=len(setting.data.test.classes),
                    costs=config.costs,
                    max_iterations=config.max_iterations,
                )
                top1 = round(100 * float((fit.predictions == test_labels).mean()), 4)
                cell = Cell(candidate.name, amount, number, len(drawn), top1)
                cache.add(cell)
            yield cell


class Point(NamedTuple):
    """All draws of the same number of labels for one encoder."""

    count: int
    mean: float
    spread: float
    """Standard deviation over draws; 0 for one."""


def curve_points(cells: Sequence[Cell], name: str) -> list[Point]:
    """An encoder's curve, from the fewest labels to the most."""
    own = [cell for cell in cells if cell.name == name]
    points = []
    for count in sorted({cell.count for cell in own}):
        values = [cell.top1 for cell in own if cell.count == count]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        points.append(Point(count, statistics.mean(values), spread))
    return points


def encoder_names(cells: Sequence[Cell]) -> list[str]:
    """Names of the encoders, in order of first appearance."""
    return list(dict.fromkeys(cell.name for cell in cells))


def build_table(cells: Sequence[Cell]) -> Table:
    """Build a table with a row for each encoder and a column for each number of labels."""
    table = Table()
    table.add_column("encoder")
    names = encoder_names(cells)
    for point in curve_points(cells, names[0]):
        table.add_column(f"{point.count} labels", justify="right")
    for name in names:
        figures = [
            f"{point.mean:.1f}" + (f" ±{point.spread:.1f}" if point.spread else "")
            for point in curve_points(cells, name)
        ]
        table.add_row(escape(result_text.short_name(name, names)), *figures)
    return table


def describe_gain(cells: Sequence[Cell], encoder: str, num_test: int) -> str:
    """Say in a few sentences whether pre-training was worth it.

    A gain over the untrained encoder is clear if it is significant at 5 %; see `paired_gains`.
    """
    if encoder.startswith("random:"):
        return f"{encoder} was not pre-trained, so there is nothing to judge"
    if UNTRAINED not in encoder_names(cells):
        return f"{encoder} has no baseline beside it: leave out --no-baselines to compare"
    gains = paired_gains(cells, encoder, UNTRAINED, num_test)
    clear = [gain.count for gain in gains if gain.is_clear]
    listed = ", ".join(f"{gain.mean:+.1f} points with {gain.count}" for gain in gains)
    compared = f"against the same encoder untrained {listed} labels"
    limits = [*_describe_pixels(cells, encoder), _describe_test_error(cells, encoder, num_test)]
    if not clear:
        degree = "not clearly" if any(gain.mean > 0 for gain in gains) else "not"
        return " ".join([f"pre-training was {degree} worth it here: {compared}.", *limits])
    where = "" if len(clear) == len(gains) else f" with {_join_numbers(clear)} labels"
    own = {point.count: point.mean for point in curve_points(cells, encoder)}
    untrained = curve_points(cells, UNTRAINED)
    counts, means = [p.count for p in untrained], [p.mean for p in untrained]
    needed = labels_needed(counts, means, own[clear[0]])
    match = (
        f"Even with all {counts[-1]}, the untrained encoder does not match its accuracy with "
        f"{clear[0]} labels."
        if needed is None
        else f"To match its accuracy with {clear[0]} labels, the untrained encoder needs about "
        f"{needed:.0f}."
    )
    return " ".join([f"pre-training was worth it{where}: {compared}.", match, *limits])


def _describe_pixels(cells: Sequence[Cell], encoder: str) -> Iterator[str]:
    """Say with how many labels raw pixels are as good as the encoder."""
    own = {point.count: point.mean for point in curve_points(cells, encoder)}
    pixels = {point.count: point.mean for point in curve_points(cells, PIXELS)}
    better = [count for count in own if pixels.get(count, -1.0) >= own[count]]
    if not better:
        return
    with_these = "every number of" if len(better) == len(own) else _join_numbers(better)
    yield f"Raw pixels do as well or better with {with_these} labels."


def _describe_test_error(cells: Sequence[Cell], encoder: str, num_test: int) -> str:
    """Give the sampling error of the test images, which all draws share."""
    share = max(curve_points(cells, encoder)).mean / 100  # the point with the most labels
    return (
        f"All draws are tested on the same {num_test} images; {num_test} others would change an "
        f"accuracy by about {sampling_error(share, num_test):.1f} points."
    )


def _join_numbers(counts: Sequence[int]) -> str:
    *first, last = (str(count) for count in counts)
    return f"{', '.join(first)} and {last}" if first else last


class Gain(NamedTuple):
    """How much better an encoder is than another with the same number of labels."""

    count: int
    mean: float
    error: float
    """Standard error of the mean."""

    draws: int

    @property
    def is_clear(self) -> bool:
        """Whether the gain is significant at 5 %."""
        threshold = significance_threshold(self.draws) or NORMAL_QUANTILE
        return self.mean > threshold * self.error


def paired_gains(cells: Sequence[Cell], name: str, other: str, num_test: int) -> list[Gain]:
    """Compute the mean gain of `name` over `other` on the same draws, for each number of labels.

    Its standard error is that over the draws. With a single draw, it is that of the difference of
    two proportions of the `num_test` test images.
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


def write_figure(cells: Sequence[Cell], config: LabelsConfig, setting: Setting) -> Path:
    """Draw the curves into figures/labels-DATA.png."""
    drawn, names = [], encoder_names(cells)
    for name in names:
        points: list[Any] = curve_points(cells, name)
        counts, means, spreads = zip(*points, strict=True)
        is_baseline = name in BASELINES
        label = result_text.short_name(name, names)
        drawn.append(label_curve.Curve(label, counts, means, spreads, is_baseline))
    classes = len(setting.data.test.classes)
    draws = max(cell.draw for cell in cells) + 1
    band = (
        "one draw of the labels"
        if draws == 1
        else f"band: standard deviation over {draws} draws of the labels"
    )
    png = label_curve.draw(
        drawn,
        title=f"Linear classifier on frozen features: {config.data}",
        note=f"{classes} classes, {len(setting.data.test)} test images; {band}",
        chance=100 / classes,
    )
    file = setting.home / "figures" / f"labels-{results.slug(config.data)}.png"
    run_folder.make(file.parent)
    write_bytes(file, png)
    return file
