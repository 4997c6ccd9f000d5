"""Look through images before they are trained on: what training would skip, and what would hurt it.

Every file is opened in a process that may die or hang (`data/guarded.py`), by the same rules as in
training (`data/decode.py`).
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvmae import terminal
from mvmae.config.datatools import DataCheckConfig
from mvmae.data.reading.inspect_file import Item
from mvmae.data.sources.base import Source
from mvmae.datatools.check import (
    annotations as layouts,
)
from mvmae.datatools.check import (
    facts,
    files,
    findings,
    output,
    subjects,
)
from mvmae.datatools.check.annotations import CocoSplits, Labels, MaskSplits
from mvmae.datatools.check.columns import Columns, columns_for, look_at
from mvmae.datatools.check.findings import SEVERITIES, Finding
from mvmae.datatools.check.subjects import Subject
from mvmae.errors import shown


def run(config: DataCheckConfig) -> int:
    """Check DATA.

    Returns:
        1 where something is wrong, else 0.

    Raises:
        UserError: There is nothing to check, or what was asked for cannot be written.
    """
    files.require_writable(config)
    subject, splits = open_data(config)
    images = len(subject.paths)
    paths = [*subject.paths, *subject.masks, *subject.passed_over]
    with columns_for(len(paths), with_thumbs=config.near) as columns:
        items = [*subject.items, *subject.masks, *subject.passed_over]
        look(items, columns, config, subject.sources, sniff_from=images + len(subject.masks))
        passed = findings.of_passed_over(paths, columns, images + len(subject.masks))
        lost = [*columns.is_problem("died", "hung", "memory").nonzero()[0].tolist()]
        deadly = lost_masks(paths, columns, [at for at in lost if at >= images])
        own = columns.head(images)
        channels = own.settle(deep=subject.kind == "images")
        labels = labels_of(subject, splits, own, {paths[at] for at in lost}, config)
        found = [
            *deadly,
            *findings.of_images(subject, own, config),
            *passed,
            *([one for one in labels.findings if one.count] if labels else ()),
        ]
        found.sort(key=lambda one: SEVERITIES.index(one.severity))
        told = facts.of_images(subject, own) | {"passed over": suffixes(subject.passed_over)}
        told |= {"channels": channels} if channels != 3 else {}
        rest = [columns.format_of(at) for at in range(images + len(subject.masks), len(paths))]
        return conclude(config, subject, own, told, found, labels, rest)


def open_data(config: DataCheckConfig) -> tuple[Subject, CocoSplits | MaskSplits | None]:
    """The files of DATA and, of the layouts that have them, its annotations.

    Raises:
        UserError: There are none.
    """
    kind = subjects.kind_of(config)
    splits: CocoSplits | MaskSplits | None = None
    if kind == "coco":
        subject, splits = layouts.open_coco(config)
    elif kind == "masks":
        subject, splits = layouts.open_masks(config)
    else:
        subject = subjects.open_images(config)
    subjects.hold_against(subject, config)
    return subject, splits


def look(
    items: Sequence[Item],
    columns: Columns,
    config: DataCheckConfig,
    sources: Sequence[Source],
    *,
    sniff_from: int,
) -> None:
    """Look at every file, with a bar."""
    workers = config.workers or _cores()
    done = look_at(items, columns, config, sniff_from=sniff_from, sources=sources, workers=workers)
    next(done, None)  # before the clock runs: the processes that read begin with this
    with terminal.Bar(len(items), "files") as bar:
        bar.name("checking")
        bar.advance(min(1, len(items)))
        for _ in done:
            bar.advance(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def lost_masks(paths: list[str], columns: Columns, places: Sequence[int]) -> list[Finding]:
    """Masks and files of other suffixes that took a process along."""
    said = tuple(f"{paths[at]} ({columns.reasons.get(at, '')})" for at in places)
    finding = Finding(
        severity="fatal",
        what="masks or other files that are not read in time, or end the process that reads them",
        advice="remove them",
        examples=said,
        total=len(said),
    )
    return [finding] if said else []


def labels_of(
    subject: Subject,
    splits: CocoSplits | MaskSplits | None,
    columns: Columns,
    lost: set[str],
    config: DataCheckConfig,
) -> Labels | None:
    """What boxes or masks came to, where there are some."""
    if isinstance(splits, CocoSplits):
        return layouts.of_coco(subject, splits, columns)
    if isinstance(splits, MaskSplits):
        return layouts.of_masks(splits, lost, config)
    return None


def suffixes(paths: list[str]) -> dict[str, int]:
    """How many files of each suffix there are, the most frequent first."""
    counts = Counter(Path(path).suffix.lower() or "without suffix" for path in paths)
    return dict(sorted(counts.items(), key=lambda row: (-row[1], row[0])))


def conclude(
    config: DataCheckConfig,
    subject: Subject,
    columns: Columns,
    told: dict[str, Any],
    found: list[Finding],
    labels: Labels | None,
    passed_formats: list[str],
) -> int:
    """Say and write everything; the exit status."""
    classes = findings.class_counts(subject, columns) if subject.label is not None else None
    console = terminal.people()
    output.say(console, subject, told, found, labels, classes)
    if config.out is not None:
        rows = files.rows_of(subject, columns, found, passed_formats)
        files.write_all(config.out, config, subject, told, found, labels, rows)
        console.print(f"written: {config.out}")
    if config.quarantine is not None:
        kept, unnamed = files.write_clean(config.quarantine, subject, columns, found)
        if unnamed:
            name = shown(unnamed[0])
            console.print(
                f"{len(unnamed)} readable files cannot stand in a list for their names: {name}"
            )
        left = told["files"] - kept
        console.print(f"written: {config.quarantine}, {kept} clean images; {left} left out")
    counts: dict[str, int] = {
        s: sum(one.count for one in found if one.severity == s) for s in SEVERITIES
    }
    short = {"facts": told, "counts": counts, "findings": _in_short(found)}
    terminal.emit("result", {"command": "data check", "file": _written(config)} | short)
    console.print(verdict(counts))
    bad = SEVERITIES[: SEVERITIES.index(config.fail_on) + 1]
    return int(any(counts[severity] for severity in bad))


def _written(config: DataCheckConfig) -> str | None:
    return None if config.out is None else str(config.out)


def _in_short(found: list[Finding]) -> list[dict[str, Any]]:
    return [{"severity": f.severity, "finding": f.what, "count": f.count} for f in found]


def verdict(counts: dict[str, int]) -> str:
    """One line."""
    if not any(counts.values()):
        return "nothing is wrong"
    words = {"fatal": "fatal", "skipped": "skipped in training", "look": "worth a look"}
    return ", ".join(f"{count:,} {words[name]}" for name, count in counts.items())
