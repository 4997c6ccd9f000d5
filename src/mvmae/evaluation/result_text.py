"""How results are described: names, mistakes, skipped images, facts of the data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Int
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mvmae.data.reading.loader import Skipped
from mvmae.data.sources.base import fingerprint
from mvmae.data.sources.labelled import Labelled
from mvmae.encoders import ENCODER_FILE
from mvmae.errors import abridge, printable
from mvmae.metrics.accuracy import most_confused, per_class_accuracy

NUM_MISTAKES = 3  # of the most frequent ones, printed


def print_skipped(console: Console, skipped: Sequence[Skipped]) -> None:
    """Mention images that could not be read, if there are any."""
    if skipped:
        path, reason = (" ".join(text.split()) for text in skipped[0])
        console.print(f"{len(skipped)} images could not be read, for example {path} ({reason})")


def data_facts(data: Labelled) -> dict[str, Any]:
    """Describe the labelled images for a result file."""
    return {
        "name": data.test.name,
        "split": data.split,
        "fingerprint": f"{fingerprint(data.train)}-{fingerprint(data.test)}",
        "classes": list(data.test.classes),
    }


def class_accuracies(
    confusion: Int[Tensor, "K K"], classes: Sequence[str]
) -> dict[str, float | None]:
    """Accuracy of each class in percent; None for a class without a test image."""
    values = per_class_accuracy(confusion).tolist()
    return {
        name: None if value != value else round(value, 4)
        for name, value in zip(classes, values, strict=True)
    }


def describe_mistakes(confusion: Int[Tensor, "K K"], classes: Sequence[str]) -> str:
    """Describe the worst class and the most frequent mistakes in one line."""
    known = {name: v for name, v in class_accuracies(confusion, classes).items() if v is not None}
    common = most_confused(confusion, NUM_MISTAKES)
    if not common or len(classes) < 3:
        return ""
    worst = min(known, key=lambda name: known[name])
    names = [abridge(name, 40) for name in classes]
    listed = ", ".join(f"{names[a]} taken for {names[b]} {n} times" for a, b, n in common)
    return f"worst class: {abridge(worst, 40)} ({known[worst]:.1f} %); {listed}"


def short_name(name: str, others: Sequence[str] = ()) -> str:
    """Shorten a path to its last part for tables, unless another name ends in the same part."""
    if "/" not in name or ":" in name:
        return name
    ends = [_last_part(other) for other in {name, *others}]
    return _last_part(name) if ends.count(_last_part(name)) == 1 else name


def _last_part(name: str) -> str:
    uninformative = ("checkpoints", "last.pt", ENCODER_FILE)
    parts = [part for part in Path(name).parts if part not in uninformative]
    return parts[-1] if parts else name


MAX_CLASSES_WITHOUT_TOP5 = 5  # top-5 of five classes is always 100 %


class Row(NamedTuple):
    """One line of a result: accuracies in percent."""

    name: str
    token: str
    top1: float
    top5: float
    notes: dict[str, Any]


def build_table(rows: Sequence[Row], num_classes: int) -> Table:
    """Build the table for the terminal; rows that differ only in `k` become columns."""
    table = Table()
    table.add_column("encoder")
    table.add_column("token")
    several = dict.fromkeys(f"k = {row.notes['k']}" for row in rows if "k" in row.notes)
    has_top5 = num_classes > MAX_CLASSES_WITHOUT_TOP5
    for name in [*(several or ["top-1"]), *["top-5"] * has_top5]:
        table.add_column(name, justify="right")
    for name, token in dict.fromkeys((row.name, row.token) for row in rows):
        own = [row for row in rows if (row.name, row.token) == (name, token)]
        figures = [f"{row.top1:.1f}" for row in own]
        top5 = [f"{own[len(own) // 2].top5:.1f}"] if has_top5 else []
        cell = escape(printable(short_name(name, [row.name for row in rows])))
        table.add_row(cell, "" if token == "pixels" else token, *figures, *top5)
    return table
