"""Read metrics.jsonl of any run: finished, running, killed or diverged."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from mvmae.errors import UserError
from mvmae.storage.metric_specs import POSITION, find_metric

FILE = "metrics.jsonl"
Against = Literal["steps", "images", "hours"]
MAX_FINITE = 1e300  # larger values count as infinite


class Column(NamedTuple):
    """One metric of a run over time; T values, oldest first."""

    x: Float[np.ndarray, " T"]
    """Steps, images or hours, increasing."""

    y: Float[np.ndarray, " T"]
    """The metric; NaN if it was not finite."""


def read(run: Path) -> list[dict[str, Any]]:
    """Read the records of a run folder, one for each step, in the order of steps.

    Incomplete lines are skipped: a kill cuts the last one short, and a running command may be
    writing it. Where a run was resumed at an earlier step, the later records replace the earlier
    ones. Lines of the same step (the losses, then kNN) are merged into one record with the
    `seconds` of the last line.

    Args:
        run: The run folder.

    Returns:
        The records; empty if the run has not written any yet.

    Raises:
        UserError: The file cannot be read.
    """
    file = run / FILE
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    kept: list[dict[str, Any]] = []
    for line in text.splitlines():
        record = None
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
        if not (isinstance(record, dict) and _is_number(record.get("step"))):
            continue
        while kept and kept[-1]["step"] > record["step"]:
            kept.pop()
        if kept and kept[-1]["step"] == record["step"]:
            kept[-1] |= record
        else:
            kept.append(record)
    return kept


def _is_number(value: Any) -> bool:
    # An integer of JSON may be larger than any float, on which `isfinite` would raise.
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_FINITE
    )


def columns(records: Sequence[Mapping[str, Any]], against: Against = "steps") -> dict[str, Column]:
    """Return every metric of the records, each at the steps where it was measured.

    Args:
        records: From `read`.
        against: The unit of x. Hours are hours of training, including those before a resume.

    Returns:
        Name to x and y. Values that are not finite become NaN; values that are not numbers are left
        out, and so are records without the number of images or seconds that x needs.
    """
    found: dict[str, tuple[list[float], list[float]]] = {}
    for record in records:
        x = position(record, against)
        if x is None:
            continue
        for name, value in record.items():
            if name in POSITION or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            xs, ys = found.setdefault(name, ([], []))
            xs.append(x)
            ys.append(value if _is_number(value) else math.nan)
    return {
        name: Column(np.array(xs, float), np.array(ys, float)) for name, (xs, ys) in found.items()
    }


def position(record: Mapping[str, Any], against: Against) -> float | None:
    """Return the x of a record; None if the record lacks it."""
    value = record.get({"steps": "step", "images": "images", "hours": "seconds"}[against])
    if value is None or not _is_number(value):
        return None
    return value / 3600 if against == "hours" else float(value)


def last(records: Sequence[Mapping[str, Any]]) -> dict[str, int | float]:
    """Return the last finite value of every metric; steps stay integers."""
    known: dict[str, int | float] = {}
    for record in records:
        known |= {
            name: value if name in POSITION else float(value)
            for name, value in record.items()
            if _is_number(value)
        }
    return known


def level(found: Mapping[str, Column], name: str) -> Column | None:
    """Return what a model that has learnt nothing reaches, for a metric that has such a level.

    `contrastive`: log(2N - 1) for N images in a batch (NT-Xent's 2N - 1 equal candidates), as the
    run wrote it. `contrastive_top1`: one of these candidates, in percent. `reconstruction`: the
    squared error of filling each hidden patch with its average colour.

    Args:
        found: From `columns`.
        name: The metric.
    """
    column = found.get(find_metric(name).level or "")
    if column is None or not np.isfinite(column.y).any():
        return None
    return Column(column.x, 100 * np.exp(-column.y)) if name == "contrastive_top1" else column


def level_name(name: str) -> str:
    """Return what the level of a metric is called; empty if it has none."""
    compared = find_metric(name).level
    return find_metric(compared).label if compared else ""
