"""Evaluate an encoder and its baselines on the same labelled images: shared by all evaluations.

Candidates are the encoder, others to compare it with, the same encoder untrained, and raw pixels.
Each has features of the training and test images. A `Method` scores them; the result is a table
and a JSON file.

Shapes: M training images, Q test images, K classes, D width.
"""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvmae import encoders, terminal
from mvmae.config.evaluation import EvaluateConfig
from mvmae.config.model import Pool
from mvmae.data.reading.loader import Skipped
from mvmae.data.sources.base import Source, Subset, stamp
from mvmae.data.sources.labelled import Labelled, open_labelled
from mvmae.encoders import Features, OpenedEncoder
from mvmae.errors import UserError, abridge
from mvmae.evaluation.result_text import (
    Row,
    build_table,
    class_accuracies,
    data_facts,
    describe_mistakes,
    print_skipped,
)
from mvmae.metrics.accuracy import confusion_matrix, sampling_error, topk_accuracy
from mvmae.storage import results
from mvmae.terminal import Bar
from mvmae.training import distributed, precision
from mvmae.training.run_start import claim_shared_folder


class Setting(NamedTuple):
    """Encoder, data and folder of an evaluation."""

    opened: OpenedEncoder
    data: Labelled
    pool: Pool
    """The token whose accuracy is the headline."""

    home: Path
    """Folder of the results and of cached features."""

    device: torch.device
    began: float
    """Value of `time.perf_counter` at the start."""

    stamps: dict[str, str]
    """Hash of the images in the parts "train" and "test"; changes when images are replaced."""

    caches: list[Path]
    """Folders of partial results, removed once the result is written."""


class Candidate(NamedTuple):
    """Features to score: those of an encoder, or raw pixels."""

    name: str
    train: Features
    test: Features
    pool: Pool | None = None
    """The token whose accuracy is the headline; None for raw pixels."""


class Method(NamedTuple):
    """How a command scores candidates."""

    command: str
    title: str
    pixel_side: int
    """Side in pixels to which images are shrunk for the baseline of raw pixels."""

    score: Callable[[Candidate, Setting], Iterator[tuple[Row, Float[Tensor, "Q K"]]]]
    """Score every token; yields each row of the table with the class scores behind it."""

    headline_notes: Mapping[str, Any] = {}
    """Notes that pick the headline's row, if a token has several rows."""


class Headline(NamedTuple):
    """The main row of the table, with its predictions for the readable test images."""

    row: Row
    predictions: Int[Tensor, " Q"]
    labels: Int[Tensor, " Q"]
    num_train: int
    skipped: Sequence[Skipped]


def evaluate(config: EvaluateConfig, method: Method) -> None:
    """Score an encoder and its baselines; print and write the result.

    Raises:
        UserError: The encoder or the labelled images cannot be read.
    """
    with evaluation_setting(config) as setting:
        found = candidates(config, setting, pixel_side=method.pixel_side)
        rows, headline = score_candidates(found, method, setting)
        if headline is not None:  # the other processes only compute features
            report(*(config, setting, rows, headline), command=method.command, title=method.title)


@contextlib.contextmanager
def evaluation_setting(config: EvaluateConfig) -> Iterator[Setting]:
    """Join the processes of an evaluation and open its setting in each of them.

    Each process writes the features of its share of the images to files. The main process joins and
    scores them.

    Raises:
        UserError: As `open_setting`, or another command with several processes uses the folder.
    """
    with distributed.process_group(torch.device("cpu")):  # no tensors are exchanged
        setting = open_setting(config)
        with claim_shared_folder(setting.home / "cache"):
            yield setting


def open_setting(config: EvaluateConfig) -> Setting:
    """Open the encoder and the labelled images, at most as many as the config allows.

    Raises:
        UserError: Either cannot be opened, or the encoder lacks the requested token.
    """
    device = precision.choose_device(config.device)
    home = results.home(config.encoder, config.out)
    opened = encoders.open_encoder(config.encoder, config.image_size, config.in_channels)
    pool = config.pool or opened.pool
    if pool == "cls" and not opened.encoder.variant.cls_token:
        raise UserError(f"{config.encoder} has no class token: use --pool mean")
    require_results_outside(home, config.data)
    data = open_labelled(config.data, opened.encoder.in_channels, opened.depth)
    train = random_subset(data.train, config.max_train, config.seed)
    test = random_subset(data.test, config.max_test, config.seed + 1)
    # Stamps ask the disk about every image, so only the main process computes them.
    is_main = distributed.is_main()
    stamps = distributed.from_main({"train": stamp(train), "test": stamp(test)} if is_main else {})
    used = Labelled(train, test, data.split)
    return Setting(opened, used, pool, home, device, time.perf_counter(), stamps, [])


def require_results_outside(home: Path, data: str) -> None:
    """Reject a results folder among the images: its figures would be read as images of a class.

    Raises:
        UserError: Results would be written there.
    """
    if Path(data).is_dir() and home.resolve().is_relative_to(Path(data).resolve()):
        raise UserError(
            f"results would go to {home}, among the images of {data}: "
            "name another folder with --out"
        )


def candidates(
    config: EvaluateConfig,
    setting: Setting,
    *,
    pixel_side: int,
    against: Sequence[tuple[str, OpenedEncoder]] = (),
) -> Iterator[Candidate]:
    """Yield features of the encoder, of those in `against`, and of the baselines.

    Processes other than the main one compute their share of the features and yield nothing.

    Args:
        config: Options of the command; they may leave out the baselines.
        setting: From `evaluation_setting`.
        pixel_side: Side in pixels to which images are shrunk for raw pixels.
        against: Names and encoders to compare with.
    """
    parts = setting.data.train, setting.data.test
    named = [(config.encoder, setting.opened), *against]
    if config.baselines:
        untrained = encoders.untrained_copy(setting.opened.encoder, config.seed)
        named.append(("the same, untrained", setting.opened._replace(encoder=untrained)))
    with Bar((len(named) + config.baselines) * sum(map(len, parts))) as bar:
        for name, opened in named:
            bar.name(name)
            if candidate := encoder_candidate(config, setting, name, opened, bar):
                yield candidate
        if config.baselines:
            bar.name("raw pixels")
            if candidate := pixel_candidate(setting, pixel_side, config.workers, bar):
                yield candidate


def pixel_candidate(setting: Setting, side: int, workers: int | None, bar: Bar) -> Candidate | None:
    """Use shrunk images minus the mean training image as vectors; None outside the main process.

    Vectors that are all positive have nearly equal cosines. Without subtracting the mean, kNN on
    pixels is ten points worse (CIFAR-10 36 % instead of 46 %, Imagenette 27 % instead of 37 %) and
    too weak a baseline.
    """
    extractor, found = encoders.pixel_extractor(side=side, workers=workers), []
    for name in ("train", "test"):
        facts = side, setting.opened.encoder.in_channels, setting.stamps[name]
        keep = setting.home / "cache" / f"pixels-{cache_key(facts)}"
        part = getattr(setting.data, name)
        found.append(
            encoders.extract_distributed(extractor, part, keep, bar.advance, is_resumable=False)
        )
    train, test = found
    if train is None or test is None:
        return None
    mean = train.mean.mean(dim=0)
    train, test = (part._replace(mean=part.mean - mean) for part in (train, test))
    return Candidate("raw pixels", train, test)


def encoder_candidate(
    config: EvaluateConfig,
    setting: Setting,
    name: str,
    opened: OpenedEncoder,
    bar: Bar,
) -> Candidate | None:
    """Compute features of both parts with an encoder; None outside the main process."""
    extractor = encoders.encoder_extractor(
        opened.encoder,
        opened.preprocessing,
        device=setting.device,
        precision_name=config.precision,
        batch_size=config.batch_size,
        workers=config.workers,
    )
    found = []
    for part in ("train", "test"):
        keep = cache_folder(config, setting, opened, part)
        setting.caches.append(keep)
        source = getattr(setting.data, part)
        found.append(encoders.extract_distributed(extractor, source, keep, bar.advance))
    train, test = found
    if train is None or test is None:
        return None
    if config.pool is None and opened is not setting.opened:
        return Candidate(name, train, test, opened.pool)
    pool = setting.pool if opened.encoder.variant.cls_token else "mean"
    return Candidate(name, train, test, pool)


def cache_folder(
    config: EvaluateConfig, setting: Setting, opened: OpenedEncoder, part: str
) -> Path:
    """Folder of unfinished features of one part; its name changes with all that they depend on."""
    facts = (
        encoders.weights_digest(opened.encoder),
        opened.encoder.image_size,
        opened.preprocessing,
        setting.device.type,
        config.precision,
        config.batch_size,
        setting.stamps[part],
    )
    return setting.home / "cache" / f"features-{cache_key(facts)}"


def cache_key(facts: object) -> str:
    """Return a short hash of some facts, for the name of a file or folder."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def random_subset(source: Source, count: int | None, seed: int) -> Source:
    """Draw at most `count` images at random, in their original order."""
    if count is None or count >= len(source):
        return source
    drawn = np.random.default_rng(seed).permutation(len(source))[:count]
    return Subset(source, sorted(drawn.tolist()))


def vectors_by_token(
    candidate: Candidate,
) -> dict[str, tuple[Float[Tensor, "M D"], Float[Tensor, "Q D"]]]:
    """Training and test vectors by token; raw pixels have the one token `pixels`."""
    if candidate.pool is None:
        return {"pixels": (candidate.train.mean, candidate.test.mean)}
    vectors = {"mean": (candidate.train.mean, candidate.test.mean)}
    if candidate.train.cls is not None and candidate.test.cls is not None:
        vectors["cls"] = (candidate.train.cls, candidate.test.cls)
    return vectors


def score_row(
    name: str, token: str, scores: Float[Tensor, "Q K"], labels: Int[Tensor, " Q"], **notes: Any
) -> Row:
    """Build a row of the table from class scores: top-1 and top-5 accuracy in percent."""
    top1, top5 = (round(topk_accuracy(scores, labels, k), 4) for k in (1, 5))
    return Row(name, token, top1, top5, notes)


def score_candidates(
    found: Iterable[Candidate], method: Method, setting: Setting
) -> tuple[list[Row], Headline | None]:
    """Score candidates; return all rows, and the first candidate's headline (None without one)."""
    rows, headline = [], None
    for candidate in found:
        train, test = candidate.train, candidate.test
        for row, scores in method.score(candidate, setting):
            rows.append(row)
            is_its_token = row.token == (candidate.pool or "pixels")
            has_notes = method.headline_notes.items() <= row.notes.items()
            if headline is None and is_its_token and has_notes:
                predictions, skipped = scores.argmax(dim=1), [*train.skipped, *test.skipped]
                headline = Headline(row, predictions, test.labels, len(train.labels), skipped)
    return rows, headline


def report(
    config: EvaluateConfig,
    setting: Setting,
    rows: Sequence[Row],
    headline: Headline,
    *,
    command: str,
    title: str,
    name: str = "",
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print the table and the most frequent mistakes, and write the JSON.

    Args:
        config: Options of the command.
        setting: From `open_setting`.
        rows: Rows of all candidates and tokens.
        headline: The main row.
        command: Name of the command.
        title: Line above the table.
        name: Name of the JSON file. Default: the command and the data.
        more: Further content of the JSON file.
    """
    classes, row, count = setting.data.test.classes, headline.row, len(headline.labels)
    console = terminal.console()
    console.print(f"\n{title}", style="bold")
    terminal.print_table(build_table(rows, len(classes)))
    # If all predictions are right, or all are wrong, the formula would give an error of 0. Then
    # assume one exception among count + 2 images (Laplace's rule of succession).
    share = min(max(row.top1 / 100, 1 / (count + 2)), 1 - 1 / (count + 2))
    console.print(
        f"in %; {headline.num_train} training and {count} test images ({setting.data.split}); "
        f"{len(classes)} classes, chance level {100 / len(classes):.1f}; "
        f"sampling error of one figure ±{sampling_error(share, count):.1f}"
    )
    confusion = confusion_matrix(headline.predictions, headline.labels, len(classes))
    accuracies = class_accuracies(confusion, classes)
    if mistakes := describe_mistakes(confusion, classes):
        console.print(mistakes)
    if missing := [name for name, value in accuracies.items() if value is None]:
        listed = ", ".join(abridge(name, 40) for name in missing[:5])
        console.print(f"not evaluated, because no test image could be read: {listed}")
    print_skipped(console, headline.skipped)
    content = {
        "headline": {"token": row.token, "top1": row.top1, "top5": row.top5} | row.notes,
        "rows": [row._asdict() for row in rows],
        "per_class": accuracies,
        "confusion": confusion.tolist(),
        "data": data_facts(setting.data) | {"num_train": headline.num_train, "num_test": count},
        "skipped": [skip._asdict() for skip in headline.skipped],
        "seconds": round(time.perf_counter() - setting.began, 1),
        **(more or {}),
    }
    file = results.write(
        *(setting.home, command, config, content),
        device=setting.device,
        world_size=distributed.world_size(),
        name=name,
    )
    clear_caches(setting)
    console.print(f"written: {file}")


def clear_caches(setting: Setting) -> None:
    """Remove the partial results that an interrupted command would resume from."""
    for folder in setting.caches:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # missing, or used by another command
        (setting.home / "cache").rmdir()
