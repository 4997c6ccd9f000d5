"""What the commands that judge share: an encoder and its baselines on the same labelled images."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mvmae import encoders, terminal
from mvmae.config.evaluation import EvaluateConfig
from mvmae.config.model import Pool
from mvmae.data.reading.loader import Skipped
from mvmae.data.sources.base import Source, Subset, fingerprint, stamp
from mvmae.data.sources.labelled import Labelled, open_labelled
from mvmae.encoders import ENCODER_FILE, FeatureExtractor, Features, OpenedEncoder
from mvmae.errors import UserError, printable, shown
from mvmae.metrics.accuracy import confusion_matrix, most_confused, per_class_accuracy
from mvmae.storage import results
from mvmae.storage.lock import shared
from mvmae.terminal import Bar
from mvmae.training import distributed, precision

FEW_CLASSES = 5  # up to which top-5 says nothing
MISTAKES = 3  # of the most frequent ones, named on the screen


class Setting(NamedTuple):
    """What is judged, on what, and where the result goes."""

    opened: OpenedEncoder
    data: Labelled
    pool: Pool
    """The token whose figure counts."""

    home: Path
    device: torch.device
    began: float
    stamps: dict[str, str]
    """What tells whether images were replaced, by part."""

    caches: list[Path]
    """Folders of features that are kept until the result is written."""


class Candidate(NamedTuple):
    """Features of one encoder, or of none, before they are scored."""

    name: str
    train: Features
    test: Features
    pool: Pool | None = None
    """The token whose figure counts; none for raw pixels."""


class Row(NamedTuple):
    """One line of a result: accuracies in percent."""

    name: str
    token: str
    top1: float
    top5: float
    notes: dict[str, Any]


@contextlib.contextmanager
def evaluation_setting(config: EvaluateConfig) -> Iterator[Setting]:
    """The setting of a command, with the processes that share it; only the main one judges.

    Of several processes each reads and encodes its share, into files that the main one joins.

    Raises:
        UserError: As `setting_of`, or another command of several processes is at the same.
    """
    with distributed.process_group(torch.device("cpu")):  # no tensors are exchanged
        setting = open_setting(config)
        with shared(setting.home / "cache"):
            yield setting


def open_setting(config: EvaluateConfig) -> Setting:
    """Open the encoder and the labelled images, as many as asked for.

    Raises:
        UserError: Either cannot be opened, or the token asked for is not there.
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
    kept = Labelled(train, test, data.split)
    main = distributed.is_main()  # the others need not ask the disk about every image too
    stamps = distributed.from_main({"train": stamp(train), "test": stamp(test)} if main else {})
    return Setting(opened, kept, pool, home, device, time.perf_counter(), stamps, [])


def require_results_outside(home: Path, data: str) -> None:
    """A figure among the images would be one of them the next time, and its folder a class.

    Raises:
        UserError: Results would go there.
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
    """Features of the encoder, of others and, unless left out, of what it must beat.

    In another process than the main one there are none: it computes its share of them.
    """
    parts = setting.data.train, setting.data.test
    named = [(config.encoder, setting.opened), *against]
    if config.baselines:
        like = encoders.untrained_copy(setting.opened.encoder, config.seed)
        named.append(("the same, untrained", setting.opened._replace(encoder=like)))
    with Bar((len(named) + config.baselines) * sum(map(len, parts))) as bar:
        for name, opened in named:
            bar.name(name)
            if found := encoder_candidate(config, setting, name, opened, bar):
                yield found
        if config.baselines:
            bar.name("raw pixels")
            if found := pixel_candidate(setting, side=pixel_side, workers=config.workers, bar=bar):
                yield found


def pixel_candidate(
    setting: Setting, *, side: int, workers: int | None, bar: Bar
) -> Candidate | None:
    """Shrunk images as vectors, less the mean training image; none but in the main process.

    The cosine of vectors that are all positive says little: without the mean taken away, kNN on
    pixels is ten points worse (CIFAR-10 36 for 46 %, Imagenette 27 for 37 %), and no rival.
    """
    read, found = encoders.pixel_extractor(side=side, workers=workers), []
    for name in ("train", "test"):
        facts = side, setting.opened.encoder.in_channels, setting.stamps[name]
        keep = setting.home / "cache" / f"pixels-{cache_key(facts)}"
        part = getattr(setting.data, name)
        found.append(
            encoders.extract_distributed(read, part, keep, bar.advance, is_resumable=False)
        )
    train, test = found
    if train is None or test is None:
        return None
    mean = train.mean.mean(dim=0)
    train, test = (part._replace(mean=part.mean - mean) for part in (train, test))
    return Candidate("raw pixels", train, test)


def principal_components(judged: Candidate, count: int) -> Candidate:
    """The same vectors in their first principal components."""
    from sklearn.decomposition import PCA  # half a second, for a table of ablations alone

    train, test = judged.train, judged.test
    count = min(count, *train.mean.shape)
    solver: Any = "covariance_eigh"  # exact, and its cost is that of the width
    basis = PCA(count, svd_solver=solver).fit(train.mean.numpy())
    train, test = (
        part._replace(mean=torch.from_numpy(basis.transform(part.mean.numpy())).float())
        for part in (train, test)
    )
    return Candidate(f"{judged.name}, {count} principal components", train, test)


def encoder_candidate(
    config: EvaluateConfig, setting: Setting, name: str, opened: OpenedEncoder, bar: Bar
) -> Candidate | None:
    """Features of both parts by one encoder; none but in the main process."""
    read, found = reading_of(config, setting, opened), []
    for name_of_part in ("train", "test"):
        part = getattr(setting.data, name_of_part)
        keep = cache_folder(config, setting, opened, name_of_part)
        setting.caches.append(keep)
        found.append(encoders.extract_distributed(read, part, keep, bar.advance))
    train, test = found
    if train is None or test is None:
        return None
    if config.pool is None and opened is not setting.opened:
        return Candidate(name, train, test, opened.pool)
    return Candidate(
        name, train, test, setting.pool if opened.encoder.variant.cls_token else "mean"
    )


def reading_of(config: EvaluateConfig, setting: Setting, opened: OpenedEncoder) -> FeatureExtractor:
    """How features by an encoder come about."""
    return encoders.encoder_extractor(
        opened.encoder,
        opened.preprocessing,
        device=setting.device,
        precision_name=config.precision,
        batch_size=config.batch_size,
        workers=config.workers,
    )


def cache_folder(
    config: EvaluateConfig, setting: Setting, opened: OpenedEncoder, part: str
) -> Path:
    """Where features of these images by this encoder are kept until the result is written."""
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
    """A short name for what some facts say."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def random_subset(source: Source, count: int | None, seed: int) -> Source:
    """A random draw of so many images, in their order."""
    if count is None or count >= len(source):
        return source
    drawn = np.random.default_rng(seed).permutation(len(source))[:count]
    return Subset(source, sorted(drawn.tolist()))


def vectors_by_token(judged: Candidate) -> dict[str, tuple[Tensor, Tensor]]:
    """Training and test vectors by token; pixels have none and are called so."""
    if judged.pool is None:
        return {"pixels": (judged.train.mean, judged.test.mean)}
    vectors = {"mean": (judged.train.mean, judged.test.mean)}
    if judged.train.cls is not None and judged.test.cls is not None:
        vectors["cls"] = (judged.train.cls, judged.test.cls)
    return vectors


def report(
    config: EvaluateConfig,
    setting: Setting,
    rows: Sequence[Row],
    headline: Row,
    predictions: Int[Tensor, " Q"],
    read: tuple[Features, Features],
    *,
    command: str,
    title: str,
    name: str = "",
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print the table and what was mistaken for what, and write the JSON.

    Args:
        config: What was asked.
        setting: From `setting_of`.
        rows: Of all encoders and tokens.
        headline: The row that counts.
        predictions: Its predictions for the test images that could be read.
        read: Training and test features, for what was read and what was not.
        command: Of the command line.
        title: Above the table.
        name: Of the file; default: the command and the data.
        more: What else goes into the file.
    """
    classes, (train, test) = setting.data.test.classes, read
    console = terminal.people()
    console.print(f"\n{title}", style="bold")
    Console().print(build_table(rows, len(classes)))
    count = len(test.labels)
    # of no image wrong, or none right, one in n + 2 stands for what n images could not show
    share = min(max(headline.top1 / 100, 1 / (count + 2)), 1 - 1 / (count + 2))
    error = 100 * sqrt(share * (1 - share) / count)
    console.print(
        f"in %; {len(train.labels)} images learn, {count} test ({setting.data.split}); "
        f"{len(classes)} classes, chance {100 / len(classes):.1f}; "
        f"sampling error of one figure ±{error:.1f}"
    )
    confusion = confusion_matrix(predictions, test.labels, len(classes))
    if said := describe_mistakes(confusion, classes):
        console.print(said)
    lacking = [
        name for name, value in class_accuracies(confusion, classes).items() if value is None
    ]
    if lacking:
        few = ", ".join(shown(name, 40) for name in lacking[:5])
        console.print(f"no test image that can be read: {few}, not judged")
    skipped = [*train.skipped, *test.skipped]
    print_skipped(console, skipped)
    content = {
        "headline": {"token": headline.token, "top1": headline.top1, "top5": headline.top5}
        | headline.notes,
        "rows": [row._asdict() for row in rows],
        "per_class": class_accuracies(confusion, classes),
        "confusion": confusion.tolist(),
        "data": data_facts(setting.data) | {"num_train": len(train.labels), "num_test": count},
        "skipped": [skip._asdict() for skip in skipped],
        "seconds": round(time.perf_counter() - setting.began, 1),
        **(more or {}),
    }
    file = results.write(setting.home, command, config, content, device=setting.device, name=name)
    clear_caches(setting)
    console.print(f"written: {file}")


def print_skipped(console: Console, skipped: Sequence[Skipped]) -> None:
    """Mention images that could not be read, if there are any."""
    if skipped:
        path, reason = (" ".join(text.split()) for text in skipped[0])
        console.print(f"{len(skipped)} images could not be read, {path} for one ({reason})")


def clear_caches(setting: Setting) -> None:
    """Remove what was kept for going on after an interruption."""
    for folder in setting.caches:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not there, or of use to another command
        (setting.home / "cache").rmdir()


def data_facts(data: Labelled) -> dict[str, Any]:
    """What a result says of its images."""
    return {
        "name": data.test.name,
        "split": data.split,
        "fingerprint": f"{fingerprint(data.train)}-{fingerprint(data.test)}",
        "classes": list(data.test.classes),
    }


def class_accuracies(confusion: Tensor, classes: Sequence[str]) -> dict[str, float | None]:
    """Accuracy of each class in percent; none for a class without a test image."""
    values = per_class_accuracy(confusion).tolist()
    return {
        name: None if value != value else round(value, 4)
        for name, value in zip(classes, values, strict=True)
    }


def describe_mistakes(confusion: Tensor, classes: Sequence[str]) -> str:
    """The worst class and the most frequent mistakes, as a sentence."""
    known = {name: v for name, v in class_accuracies(confusion, classes).items() if v is not None}
    common = most_confused(confusion, MISTAKES)
    if not common or len(classes) < 3:
        return ""
    worst = min(known, key=lambda name: known[name])
    names = [shown(name, 40) for name in classes]
    listed = ", ".join(f"{names[a]} taken for {names[b]} {n} times" for a, b, n in common)
    return f"worst class: {shown(worst, 40)} ({known[worst]:.1f} %); {listed}"


def short_name(name: str, others: Sequence[str] = ()) -> str:
    """An encoder as a table shows it: of a path the last part, where no other ends alike."""
    if "/" not in name or ":" in name:
        return name
    ends = [_last(other) for other in {name, *others}]
    return _last(name) if ends.count(_last(name)) == 1 else name


def _last(name: str) -> str:
    parts = [
        part for part in Path(name).parts if part not in ("checkpoints", "last.pt", ENCODER_FILE)
    ]
    return parts[-1] if parts else name


def build_table(rows: Sequence[Row], num_classes: int) -> Table:
    """The rows for the terminal; top-1 by `k`, where rows differ in it, stands side by side."""
    table = Table()
    table.add_column("encoder")
    table.add_column("token")
    several = list(dict.fromkeys(row.notes["k"] for row in rows if "k" in row.notes))
    for k in several:
        table.add_column(f"k = {k}", justify="right")
    if not several:
        table.add_column("top-1", justify="right")
    if has_top5 := num_classes > FEW_CLASSES:
        table.add_column("top-5", justify="right")
    for name, token in dict.fromkeys((row.name, row.token) for row in rows):
        own = [row for row in rows if (row.name, row.token) == (name, token)]
        figures = [f"{row.top1:.1f}" for row in own]
        last = [f"{own[len(own) // 2].top5:.1f}"] if has_top5 else []
        shown = escape(printable(short_name(name, [row.name for row in rows])))
        table.add_row(shown, "" if token == "pixels" else token, *figures, *last)
    return table
