"""`mvmae data check`: find what training would skip, and what would harm it.

Every file is opened in a process that may crash or hang, and judged by the same rules as in
training.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

from mvmae import terminal
from mvmae.config.datatools import DataCheckConfig
from mvmae.datatools.check import columns, findings, output, subjects
from mvmae.datatools.check.annotations import CocoSplits, MaskSplits, open_coco, open_masks
from mvmae.datatools.check.columns import Columns
from mvmae.datatools.check.findings import SEVERITIES
from mvmae.datatools.check.output import Report
from mvmae.datatools.check.subjects import Subject
from mvmae.errors import shown


def run(config: DataCheckConfig) -> int:
    """Check DATA.

    Returns:
        1 if anything of at least the severity --fail-on was found, else 0.

    Raises:
        UserError: There is nothing to check, or the output cannot be written.
    """
    output.require_writable(config)
    subject, splits = open_data(config)
    count = len(subject.paths) + len(subject.masks) + len(subject.passed_over)
    with columns.open_columns(count, with_thumbs=config.near) as every:
        inspect(subject, every, config, count)
        lost_masks = findings.find_lost_masks(subject, every)
        formats = [every.format_of(at) for at in range(count - len(subject.passed_over), count)]
        own = every.head(len(subject.paths))
        channels = own.settle_deep_files(can_be_read=subject.kind == "images")
        labels = splits.check(subject, every, config) if splits is not None else None
        found = [
            lost_masks,
            *findings.find_all(subject, own, config),
            findings.find_images_of_other_suffix(subject.passed_over, formats),
            *(labels.findings if labels else ()),
        ]
        facts = columns.summarise(subject, own) | {"passed over": count_suffixes(subject)}
        report = Report(
            subject=subject,
            columns=own,
            facts=facts | ({"channels": channels} if channels != 3 else {}),
            findings=sorted(
                (finding for finding in found if finding.count),
                key=lambda finding: SEVERITIES.index(finding.severity),
            ),
            labels=labels,
            passed_formats=formats,
        )
        return conclude(config, report)


def open_data(config: DataCheckConfig) -> tuple[Subject, CocoSplits | MaskSplits | None]:
    """Open the files of DATA and, if its layout has them, its annotations.

    Raises:
        UserError: There are none.
    """
    layout = subjects.detect_layout(config)
    splits: CocoSplits | MaskSplits | None = None
    if layout == "coco":
        subject, splits = open_coco(config)
    elif layout == "masks":
        subject, splits = open_masks(config)
    else:
        subject = subjects.open_images(config)
    subjects.add_comparison(subject, config)
    return subject, splits


def inspect(subject: Subject, every: Columns, config: DataCheckConfig, count: int) -> None:
    """Inspect every file, with a progress bar."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    done = columns.inspect_files(subject, every, config, config.workers or cores)
    next(done, None)  # starts the processes, before the bar's clock runs
    with terminal.Bar(count, "files") as bar:
        bar.name("checking")
        bar.advance(min(1, count))
        for _ in done:
            bar.advance(1)


def count_suffixes(subject: Subject) -> dict[str, int]:
    """Count the files passed over by suffix, the most frequent first."""
    suffixes = (Path(path).suffix.lower() or "without suffix" for path in subject.passed_over)
    return dict(sorted(Counter(suffixes).items(), key=lambda row: (-row[1], row[0])))


def conclude(config: DataCheckConfig, report: Report) -> int:
    """Print and write everything, and return the exit status."""
    console = terminal.people()
    output.print_report(console, report)
    if config.out is not None:
        output.write_report(config.out, config, report)
        console.print(f"written: {config.out}")
    if config.quarantine is not None:
        kept, unlistable = output.write_clean_list(config.quarantine, report)
        if unlistable:
            console.print(
                f"{len(unlistable)} readable files are not in the list, because their names do not "
                f"fit on a line: {shown(unlistable[0])}"
            )
        left = report.facts["files"] - kept
        console.print(f"written: {config.quarantine}, {kept} clean images; {left} left out")
    counts: dict[str, int] = {
        severity: sum(one.count for one in report.findings if one.severity == severity)
        for severity in SEVERITIES
    }
    result = {
        "command": "data check",
        "file": None if config.out is None else str(config.out),
        "facts": report.facts,
        "counts": counts,
        "findings": [
            {"severity": one.severity, "finding": one.what, "count": one.count}
            for one in report.findings
        ],
    }
    terminal.emit("result", result)
    console.print(verdict(counts))
    failing = SEVERITIES[: SEVERITIES.index(config.fail_on) + 1]
    return int(any(counts[severity] for severity in failing))


def verdict(counts: dict[str, int]) -> str:
    """Sum up the findings in one line."""
    if not any(counts.values()):
        return "nothing is wrong"
    words = {"fatal": "fatal", "skipped": "skipped in training", "look": "worth a look"}
    return ", ".join(f"{count:,} {words[name]}" for name, count in counts.items())
