"""What `data check` leaves: a table or JSON of everything, and a list of what is clean."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mvmae.config.datatools import DataCheckConfig
from mvmae.config.files import to_json
from mvmae.datatools.check.annotations import Labels
from mvmae.datatools.check.columns import Columns
from mvmae.datatools.check.findings import Finding, first_of_same
from mvmae.datatools.check.subjects import Subject
from mvmae.errors import UserError
from mvmae.storage import marks
from mvmae.storage.atomic import write_bytes, write_whole

HEADER = (
    *("path", "part", "label", "severity", "finding", "detail"),
    *("format", "mode", "bits", "width", "height", "bytes", "blake2b"),
)


def require_writable(config: DataCheckConfig) -> None:
    """Make sure before any work that what is asked for can be written.

    Raises:
        UserError: A folder is missing or may not be written to, or images would be overwritten.
    """
    read = [*config.data, *config.against, *([str(config.classes)] if config.classes else [])]
    for flag, file in (("--out", config.out), ("--quarantine", config.quarantine)):
        if file is None:
            continue
        if not file.parent.is_dir():
            raise UserError(f"{flag} {file}: there is no folder {file.parent}")
        marks.require_place(file, flag)
        if file.exists() and any(Path(one).exists() and file.samefile(one) for one in read):
            raise UserError(f"{flag} {file} would overwrite what is checked: name another file")
        marks.require_replaceable(file, flag)
    if config.out is not None and config.out == config.quarantine:
        raise UserError(f"--out and --quarantine are both {config.out}: name two files")


def write_all(
    file: Path,
    config: DataCheckConfig,
    subject: Subject,
    facts: dict[str, Any],
    findings: Sequence[Finding],
    labels: Labels | None,
    rows: Iterator[dict[str, Any]],
) -> None:
    """A row for each file as CSV, or that and all tables as JSON; written row by row."""
    if file.suffix.lower() == ".csv":
        write_whole(file, lambda stream: _write_csv(stream, rows))
        return
    head = {
        "command": "data check",
        "config": json.loads(to_json(config)),
        "kind": subject.kind,
        "facts": facts,
        "labels": None if labels is None else _plain(labels),
        "findings": [_finding(subject, one) for one in findings],
    }
    write_whole(file, lambda stream: _write_json(stream, head, rows))


def _plain(labels: Labels) -> dict[str, Any]:
    return {"unit": labels.unit, "classes": labels.classes, "counts": labels.counts} | {
        "facts": labels.facts
    }


def _finding(subject: Subject, one: Finding) -> dict[str, Any]:
    return {
        "severity": one.severity,
        "finding": one.what,
        "count": one.count,
        "advice": one.advice,
        "files": [{"path": subject.paths[at], "detail": text} for at, text in one.files.items()],
        "examples": list(one.examples),
    }


def rows_of(
    subject: Subject, columns: Columns, findings: Sequence[Finding], passed: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """What is known of each file, in order; the findings of one are joined, the gravest first.

    Args:
        subject: The files.
        columns: What they are.
        findings: What is wrong with them.
        passed: Formats of the files passed over for their suffix; empty for what is no image.
    """
    said: dict[int, list[tuple[str, str, str]]] = {}
    for one in findings:
        for at, detail in one.files.items():
            said.setdefault(at, []).append((one.severity, one.what, detail))
    for at, path in enumerate(subject.paths):
        own = said.get(at, [])
        height, width = columns.shape[at].tolist()
        yield {
            "path": path,
            "part": subject.parts[subject.part[at]],
            "label": subject.class_of(at),
            "severity": own[0][0] if own else "",
            "finding": "; ".join(what for _, what, _ in own),
            "detail": "; ".join(detail for _, _, detail in own if detail),
            "format": columns.format_of(at),
            "mode": columns.mode_of(at),
            "bits": int(columns.bits[at]) or "",
            "width": width or "",
            "height": height or "",
            "bytes": int(columns.size[at]),
            "blake2b": columns.digest[at].tobytes().hex() if columns.digest[at].any() else "",
        }
    for path, content in zip(subject.passed_over, passed, strict=True):
        row = dict.fromkeys(HEADER, "") | {"path": path, "format": content}
        severity = "look" if content else ""
        yield row | {"severity": severity, "finding": "passed over for its suffix"}


def _write_csv(stream: BinaryIO, rows: Iterator[dict[str, Any]]) -> None:
    """In UTF-8; bytes of a name that are none go back as they were on the disk."""
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    writer = csv.DictWriter(text, HEADER, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text.flush()
    text.detach()


def _write_json(stream: BinaryIO, head: dict[str, Any], rows: Iterator[dict[str, Any]]) -> None:
    begin = json.dumps(head, indent=1)
    stream.write(begin.removesuffix("\n}").encode() + b',\n "files": [')
    for number, row in enumerate(rows):
        stream.write(b",\n  " if number else b"\n  ")
        stream.write(json.dumps(row).encode())
    stream.write(b"\n ]\n}\n")


def write_clean(
    file: Path, subject: Subject, columns: Columns, findings: Sequence[Finding]
) -> tuple[int, list[str]]:
    """A list of what can be read, one of each set of exact duplicates, for `mvmae pretrain`.

    Returns:
        How many are in it, and readable files whose names no list can hold.

    Raises:
        UserError: Nothing would be in it.
    """
    fatal = {at for one in findings if one.severity == "fatal" for at in one.files}
    first, own = first_of_same(columns), subject.own()
    is_csv = file.suffix.lower() == ".csv"
    rows, unnamed = [], []
    for at, path in enumerate(subject.paths):
        if not own[at] or not columns.readable[at] or first[at] != at or at in fatal:
            continue
        name = _from(file, path)
        if not _can_be_listed(name, is_csv):
            unnamed.append(path)
            continue
        rows.append((name, subject.class_of(at)) if subject.label is not None else (name,))
    if not rows:
        raise UserError(f"nothing is clean: {file} is not written")
    write_bytes(file, _list_of(rows, is_csv).encode())
    return len(rows), unnamed


def _from(file: Path, path: str) -> str:
    """A path from the folder of the list."""
    return path if os.path.isabs(path) else os.path.relpath(path, file.parent)  # noqa: PTH117


def _can_be_listed(name: str, is_csv: bool) -> bool:
    """A list is UTF-8 with an entry a line, and in .txt spaces at its ends are not kept."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name.splitlines() == [name] and (is_csv or name == name.strip()) and "\0" not in name


def _list_of(rows: list[tuple[str, ...]], is_csv: bool) -> str:
    if not is_csv:
        return "".join(f"{row[0]}\n" for row in rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label")[: len(rows[0])])
    writer.writerows(rows)
    return text.getvalue()
