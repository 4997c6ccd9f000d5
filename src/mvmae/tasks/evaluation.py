"""What `knn` and `probe` share: an encoder and its baselines on the same labelled images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Generator

from mvmae import encoders
from mvmae.config import EvaluateConfig
from mvmae.data.sources.opening import Labelled, open_labelled
from mvmae.data.sources.source import Source, Subset
from mvmae.encoders import Features
from mvmae.engine import precision, runs
from mvmae.models.vit import Encoder, initialize


class Judged(NamedTuple):
    """One row of an evaluation before it is scored."""

    name: str
    train: Features
    test: Features
    tokens: tuple[str, ...]
    """Features to score; `pixels` for raw pixels, which have no tokens."""


class Score(NamedTuple):
    """Accuracy of one row, in percent."""

    name: str
    top1: dict[str, float]
    """By token."""

    notes: dict[str, Any]


def rows(
    config: EvaluateConfig, opened: encoders.OpenedEncoder, data: Labelled, *, pixel_side: int
) -> Iterator[Judged]:
    """Features of the encoder and, unless left out, of what it must beat."""
    device = precision.choose_device(config.device)

    def judged(name: str, encoder: Encoder) -> Judged:
        train, test = (
            encoders.features(
                encoder,
                part,
                opened.preprocessing,
                device=device,
                precision_name=config.precision,
                batch_size=config.batch_size,
                workers=config.workers,
            )
            for part in (data.train, data.test)
        )
        tokens = ("mean",) if train.cls is None else ("mean", "cls")
        return Judged(name, train, test, tokens)

    yield judged(config.encoder, opened.encoder)
    if config.baselines:
        yield judged("the same, untrained", untrained(opened.encoder, config.seed))
        train, test = (
            encoders.raw_pixels(part, side=pixel_side, workers=config.workers)
            for part in (data.train, data.test)
        )
        yield Judged("raw pixels", train, test, ("pixels",))


def untrained(encoder: Encoder, seed: int) -> Encoder:
    """An encoder of the same shape with random weights."""
    other = encoder.rebuilt()
    initialize(other, Generator().manual_seed(seed))
    return other.eval()


def open_both(config: EvaluateConfig) -> tuple[encoders.OpenedEncoder, Labelled]:
    """The encoder and the labelled images, as many as asked for."""
    opened = encoders.open_encoder(config.encoder, config.image_size)
    data = open_labelled(config.data, opened.encoder.in_channels)
    train = at_most(data.train, config.max_train, config.seed)
    test = at_most(data.test, config.max_test, config.seed + 1)
    return opened, Labelled(train, test, data.split)


def at_most(source: Source, count: int | None, seed: int) -> Source:
    """A random draw of so many images, in their order."""
    if count is None or count >= len(source):
        return source
    drawn = np.random.default_rng(seed).permutation(len(source))[:count]
    return Subset(source, sorted(drawn.tolist()))


def features_of(judged: Judged, token: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and test vectors of a token."""
    token = "mean" if token == "pixels" else token
    return getattr(judged.train, token), getattr(judged.test, token)


def report(
    config: EvaluateConfig,
    data: Labelled,
    judged: list[Judged],
    scores: list[Score],
    *,
    verb: str,
    title: str,
    headline: str,
) -> None:
    """Print the table, and write the JSON beside the run or where asked.

    Args:
        config: What was asked.
        data: The labelled images.
        judged: The rows' features, for what was read and what was not.
        scores: The rows' accuracies.
        verb: Names the figure and the file.
        title: Above the table.
        headline: The token whose figure of the encoder counts.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"\n{title}", style="bold")
    Console().print(table_of(scores))
    read = judged[0]
    num_train, num_test = len(read.train.labels), len(read.test.labels)
    share, classes = scores[0].top1[headline] / 100, len(data.test.classes)
    error = 100 * sqrt(share * (1 - share) / num_test)
    console.print(
        f"top-1 in %; {num_train} images learn, {num_test} test ({data.split}); {classes} classes, "
        f"chance {100 / classes:.1f}; sampling error of one figure ±{error:.1f}"
    )
    skipped = [*read.train.skipped, *read.test.skipped]
    if skipped:
        path, reason = skipped[0]
        console.print(f"{len(skipped)} images could not be read, {path} for one ({reason})")
    file = config.out or _default_file(config.encoder, verb)
    if file:
        result = {
            "verb": verb,
            "config": {name: _plain(value) for name, value in asdict(config).items()},
            "headline": {"token": headline, f"{verb}_top1": scores[0].top1[headline]},
            "rows": [score._asdict() for score in scores],
            "num_train": num_train,
            "num_test": num_test,
            "skipped": [skip._asdict() for skip in skipped],
            "classes": list(data.test.classes),
            "environment": runs.environment(precision.choose_device(config.device), 1),
        }
        runs.make(file.parent)
        runs.write_json(file, result)
        console.print(f"written: {file}")


def table_of(scores: list[Score]) -> Table:
    """The rows as a table for the terminal."""
    table = Table()
    table.add_column("encoder")
    for column in ("mean token", "class token"):
        table.add_column(column, justify="right")
    for score in scores:
        figures = [f"{value:.1f}" for value in score.top1.values()]
        table.add_row(escape(score.name), *figures)
    return table


def _default_file(encoder: str, verb: str) -> Path | None:
    return Path(encoder) / f"{verb}.json" if runs.is_run(Path(encoder)) else None


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
