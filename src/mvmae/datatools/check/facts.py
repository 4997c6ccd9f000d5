"""What the images are, where nothing is wrong with it: formats, modes, sizes, how they are kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from mvmae.datatools.check.columns import Columns
from mvmae.datatools.check.subjects import Subject

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
CMYK = ("CMYK",)


def of_images(subject: Subject, columns: Columns) -> dict[str, Any]:
    """Counts over the readable images of DATA, as plain values."""
    own = subject.own()
    read = columns.readable & own
    known = np.flatnonzero(read & (columns.shape[:, 0] > 0))
    facts: dict[str, Any] = {
        "files": int(own.sum()),
        "readable": int(read.sum()),
        "bytes": int(columns.size[own].sum()),
        "formats": _counted(columns.names, columns.format[read]),
        "modes": _counted(columns.names, columns.mode[read]),
        "bits": {str(bits): count for bits, count in _counts(columns.bits[read]) if bits},
        "rotated by EXIF": int(columns.flags["rotated"][read].sum()),
        "animated": int(columns.flags["animated"][read].sum()),
        "with transparency": int(columns.flags["alpha"][read].sum()),
        "CMYK": sum(
            count for n, count in _counted(columns.names, columns.mode[read]).items() if n in CMYK
        ),
    }
    if len(subject.parts) > 1:
        facts["parts"] = {
            name: int((columns.readable & (subject.part == at)).sum())
            for at, name in enumerate(subject.parts)
        }
    if len(known):
        facts |= _sizes(subject, columns, known)
    return facts


def _counts(values: np.ndarray) -> list[tuple[int, int]]:
    numbers, counts = np.unique(values, return_counts=True)
    rows = zip(numbers.tolist(), counts.tolist(), strict=True)
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def _counted(names: list[str], codes: np.ndarray) -> dict[str, int]:
    rows = [(names[code] or "unknown", count) for code, count in _counts(codes)]
    return dict(sorted(rows, key=lambda row: (-row[1], row[0])))


def _sizes(subject: Subject, columns: Columns, known: np.ndarray) -> dict[str, Any]:
    sides = columns.shape[known].astype(np.int64)
    pixels = sides.prod(axis=1)
    smallest, largest = int(known[pixels.argmin()]), int(known[pixels.argmax()])
    ways = {"quantiles": list(QUANTILES)}
    for name, side in (("shorter side", sides.min(axis=1)), ("longer side", sides.max(axis=1))):
        ways[name] = np.quantile(side, QUANTILES, method="nearest").tolist()
    return ways | {
        "smallest": _named(subject, columns, smallest),
        "largest": _named(subject, columns, largest),
    }


def _named(subject: Subject, columns: Columns, at: int) -> dict[str, Any]:
    height, width = columns.shape[at].tolist()
    return {"path": subject.paths[at], "width": width, "height": height}
