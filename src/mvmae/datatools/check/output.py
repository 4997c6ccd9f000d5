"""Output of `data check`: tables of what was found, and a list of clean images.

Names come from users' disks: nothing in them is markup, and unprintable characters are escaped.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from mvmae.config.datatools import DataCheckConfig
from mvmae.config.files import to_plain
from mvmae.data.annotations.findings import MAX_EXAMPLES, Finding
from mvmae.datatools.check.annotations import Labels
from mvmae.datatools.check.columns import Columns
from mvmae.datatools.check.findings import SEVERITIES, class_counts, first_duplicates
from mvmae.datatools.check.subjects import KINDS, Subject
from mvmae.errors import UserError, abridge
from mvmae.storage import outputs
from mvmae.storage.atomic import write_bytes, write_whole

MAX_CLASS_ROWS = 30
MAX_LISTED = 8  # formats, modes and so on in a line
TITLES = {
    "fatal": "fatal: training stops, stands still or loses processes",
    "skipped": "skipped: training passes over these",
    "look": "worth a look",
}
SPECIAL = {  # kinds of images that are changed when read, and how
    "rotated by EXIF": "are turned upright",
    "animated": "give their first frame",
    "with transparency": "are composited onto white",
    "CMYK": "become colour",
}
HEADER = (
    *("path", "part", "label", "severity", "finding", "detail"),
    *("format", "mode", "bits", "width", "height", "bytes", "blake2b"),
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that was found."""

    subject: Subject
    columns: Columns
    facts: dict[str, Any]
    findings: list[Finding]
    labels: Labels | None
    """Boxes or masks."""

    passed_formats: dict[str, str]
    """Format of each file passed over for its suffix; empty where it is not an image."""


def require_writable(config: DataCheckConfig) -> None:
    """Make sure before any work that --out and --quarantine can be written.

    Raises:
        UserError: A folder is missing or not writable, or images would be overwritten.
    """
    read = [*config.data, *config.against, *([str(config.classes)] if config.classes else [])]
    for flag, file in (("--out", config.out), ("--quarantine", config.quarantine)):
        if file is None:
            continue
        if not file.parent.is_dir():
            raise UserError(f"{flag} {file}: there is no folder {file.parent}")
        if file.exists() and any(Path(one).exists() and file.samefile(one) for one in read):
            raise UserError(f"{flag} {file} would overwrite what is checked: name another file")
        outputs.require_output(file, flag)
    if config.out is not None and config.out == config.quarantine:
        raise UserError(f"--out and --quarantine are both {config.out}: name two files")


def print_report(console: Console, report: Report) -> None:
    """Print facts, classes and findings."""
    subject, labels = report.subject, report.labels
    for name, text in fact_rows(report):
        console.print(f"{abridge(name):15} {text}")
    if subject.label is not None and (counts := class_counts(subject, report.columns)).size:
        parts = [name for at, name in enumerate(subject.parts) if at != subject.against]
        rows = {part: counts[at].tolist() for at, part in enumerate(parts)}
        console.print(class_table("images", subject.classes, rows))
    if labels is not None and labels.counts:
        console.print(class_table(labels.unit, labels.classes, labels.counts))
    for severity in SEVERITIES:
        own = [finding for finding in report.findings if finding.severity == severity]
        if own:
            console.print(_finding_table(subject, TITLES[severity], own))


def fact_rows(report: Report) -> list[tuple[str, str]]:
    """Names and values of the facts."""
    subject, facts = report.subject, report.facts
    what = "images" if subject.members else "files"
    rows = [
        ("DATA", f"{abridge(subject.name)}: {KINDS[subject.kind]}"),
        (what, f"{facts['files']}, {decimal(facts['bytes'])}; {facts['readable']} can be read"),
    ]
    counts = ("parts", "formats", "modes", "bits")
    rows += [(name, _join_counts(facts[name])) for name in counts if name in facts]
    if "channels" in facts:
        rows.append(("to be read with", f"--model.in-channels {facts['channels']}"))
    special = [f"{facts[name]} {name} {how}" for name, how in SPECIAL.items() if facts[name]]
    if special:
        rows.append(("and", "; ".join(special)))
    if "smallest" in facts:
        for name in ("shorter side", "longer side"):
            lowest, low, middle, high, highest = facts[name]
            spread = (
                f"{lowest} to {highest} pixels, half up to {middle}, nine tenths {low} to {high}"
            )
            rows.append((name, spread if lowest < highest else f"{lowest} pixels"))
        for name in ("smallest", "largest"):
            path = abridge(facts[name]["path"].removeprefix(subject.root))
            rows.append((name, f"{facts[name]['width']} x {facts[name]['height']}  {path}"))
    if facts.get("passed over"):
        rows.append(("passed over", f"by their suffix: {_join_counts(facts['passed over'])}"))
    if report.labels is not None:
        rows += list(report.labels.facts.items())
    return rows


def _join_counts(counts: dict[str, int]) -> str:
    entries = [f"{count} {abridge(name, 40)}" for name, count in list(counts.items())[:MAX_LISTED]]
    more = len(counts) - len(entries)
    return ", ".join(entries) + (f", {more} more" if more else "") or "none"


def class_table(unit: str, classes: Sequence[str], counts: dict[str, Any]) -> Table:
    """Build a table of the count of each class in each part, the most frequent class first."""
    table = Table(title=f"{unit} of each class", title_justify="left")
    table.add_column("class", overflow="fold")
    for part in counts:
        table.add_column(Text(abridge(part, 20) or unit), justify="right")
    sums = np.sum([list(own) for own in counts.values()], axis=0)
    order = np.argsort(-sums, kind="stable").tolist()  # of equal counts in the order of classes
    for at in order[:MAX_CLASS_ROWS]:
        cells = [f"{own[at]:,}" for own in counts.values()]
        table.add_row(Text(abridge(classes[at], 40)), *cells)
    if rest := order[MAX_CLASS_ROWS:]:
        cells = [f"{sum(own[at] for at in rest):,}" for own in counts.values()]
        table.add_row(f"and {len(rest)} rarer classes", *cells)
    return table


def _finding_table(subject: Subject, title: str, findings: Sequence[Finding]) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True, expand=True)
    table.add_column("finding, and what to do", overflow="fold", ratio=2)
    table.add_column("count", justify="right", min_width=5)
    table.add_column("for example", overflow="fold", ratio=3)
    for finding in findings:
        what = Text.assemble((abridge(finding.what), "bold"), f"\n{finding.advice}")
        examples = Text("\n".join(example_lines(subject, finding)))
        table.add_row(what, f"{finding.count:,}", examples)
    return table


def example_lines(subject: Subject, finding: Finding) -> list[str]:
    """Describe the first few files or examples of a finding."""
    lines = []
    for at, detail in list(finding.files.items())[:MAX_EXAMPLES]:
        line = abridge(subject.paths[at].removeprefix(subject.root), 60)
        lines.append(f"{line}: {abridge(detail.replace(subject.root, ''))}" if detail else line)
    lines += [abridge(text.removeprefix(subject.root)) for text in finding.examples[:MAX_EXAMPLES]]
    more = finding.count - len(lines)
    return [*lines, f"and {more:,} more"] if more > 0 and len(lines) >= MAX_EXAMPLES else lines


def write_report(file: Path, config: DataCheckConfig, report: Report) -> None:
    """Write a row for each file as CSV, or the rows and all tables as JSON, row by row."""
    rows = _rows(report)
    if file.suffix.lower() == ".csv":
        write_whole(file, lambda stream: _write_csv(stream, rows))
        return
    labels = None if report.labels is None else report.labels._asdict()
    if labels is not None:
        del labels["findings"]  # they are among all findings
    head = {
        "command": "data check",
        "config": to_plain(config),
        "kind": report.subject.kind,
        "facts": report.facts,
        "labels": labels,
        "findings": [
            {
                "severity": one.severity,
                "finding": one.what,
                "count": one.count,
                "advice": one.advice,
                "files": [
                    {"path": report.subject.paths[at], "detail": text}
                    for at, text in one.files.items()
                ],
                "examples": list(one.examples),
            }
            for one in report.findings
        ],
    }
    write_whole(file, lambda stream: _write_json(stream, head, rows))


def _rows(report: Report) -> Iterator[dict[str, Any]]:
    """What is known of each file, in order; its findings are joined, the most severe first."""
    subject, columns = report.subject, report.columns
    # Collected once, because searching every finding for every file would take quadratic time.
    details: dict[int, list[tuple[str, str, str]]] = {}
    for one in report.findings:
        for at, detail in one.files.items():
            details.setdefault(at, []).append((one.severity, one.what, detail))
    for at, path in enumerate(subject.paths):
        own = details.get(at, [])
        height, width = columns["shape"][at].tolist()
        yield {
            "path": path,
            "part": subject.parts[subject.part[at]],
            "label": subject.class_name(at),
            "severity": own[0][0] if own else "",
            "finding": "; ".join(what for _, what, _ in own),
            "detail": "; ".join(detail for _, _, detail in own if detail),
            "format": columns.stored_name("format", at),
            "mode": columns.stored_name("mode", at),
            "bits": int(columns["bits"][at]) or "",
            "width": width or "",
            "height": height or "",
            "bytes": int(columns["size"][at]),
            "blake2b": columns["digest"][at].tobytes().hex() if columns["digest"][at].any() else "",
        }
    for path, content in report.passed_formats.items():
        yield dict.fromkeys(HEADER, "") | {
            "path": path,
            "format": content,
            "severity": "look" if content else "",
            "finding": "passed over for its suffix",
        }


def _write_csv(stream: BinaryIO, rows: Iterator[dict[str, Any]]) -> None:
    """Write UTF-8; bytes of a file name that are not UTF-8 are written unchanged."""
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    writer = csv.DictWriter(text, HEADER, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text.flush()
    text.detach()


def _write_json(stream: BinaryIO, head: dict[str, Any], rows: Iterator[dict[str, Any]]) -> None:
    """Write a file row by row, because a list of a million rows would take gigabytes."""
    begin = json.dumps(head, indent=1)
    stream.write(begin.removesuffix("\n}").encode() + b',\n "files": [')
    for number, row in enumerate(rows):
        stream.write(b",\n  " if number else b"\n  ")
        stream.write(json.dumps(row).encode())
    stream.write(b"\n ]\n}\n")


def write_clean_list(file: Path, report: Report) -> tuple[int, list[str]]:
    """List what can be read, one of each set of exact duplicates, for `mvmae pretrain`.

    Returns:
        The number of images in the list, and readable files whose names a list cannot hold.

    Raises:
        UserError: Nothing would be in it.
    """
    subject, columns = report.subject, report.columns
    fatal = {at for one in report.findings if one.severity == "fatal" for at in one.files}
    # Without the files of --against, which only serve for comparison.
    is_clean = subject.own() & columns.readable
    is_clean &= first_duplicates(columns) == np.arange(len(columns.table))
    is_csv = file.suffix.lower() == ".csv"
    rows, unlistable = [], []
    for at in np.flatnonzero(is_clean).tolist():
        path = subject.paths[at]
        # Relative to the list, as `pretrain` reads it.
        name = path if os.path.isabs(path) else os.path.relpath(path, file.parent)  # noqa: PTH117
        if at in fatal:
            continue
        if not _can_be_listed(name, is_csv):
            unlistable.append(path)
            continue
        rows.append((name, subject.class_name(at)) if subject.label is not None else (name,))
    if not rows:
        raise UserError(f"no image is clean: {file} is not written")
    text = io.StringIO()
    if is_csv:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("path", "label")[: len(rows[0])])
        writer.writerows(rows)
    else:
        text.writelines(f"{name}\n" for name, *_ in rows)
    write_bytes(file, text.getvalue().encode())
    return len(rows), unlistable


def _can_be_listed(name: str, is_csv: bool) -> bool:
    """Whether a name is one line of UTF-8; a .txt also loses spaces at either end."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name.splitlines() == [name] and (is_csv or name == name.strip()) and "\0" not in name
