"""What `data check` says: the facts, the findings by severity, the classes, one last line.

Names come from people's disks: nothing in them is markup, and what cannot be printed is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mvmae.datatools.check.annotations import Labels
from mvmae.datatools.check.findings import SEVERITIES, Finding
from mvmae.datatools.check.subjects import KINDS, Subject
from mvmae.errors import shown

EXAMPLES = 3  # named of each kind
MOST_CLASSES = 30  # in a table
LONGEST = 90  # characters of a name that are shown
TITLES = {
    "fatal": "fatal: training stops, stands still or loses processes",
    "skipped": "skipped: training passes over these",
    "look": "worth a look",
}


def say(
    console: Console,
    subject: Subject,
    facts: dict[str, Any],
    findings: Sequence[Finding],
    labels: Labels | None,
    classes: np.ndarray | None,
) -> None:
    """Everything, on the screen."""
    for name, said in rows_of_facts(subject, facts, labels):
        console.print(f"{shown(name):15} {said}")
    if classes is not None and classes.size:
        parts = [name for at, name in enumerate(subject.parts) if at != subject.against]
        rows = {part: classes[at].tolist() for at, part in enumerate(parts)}
        console.print(table_of_classes("images", subject.classes, rows))
    if labels is not None and labels.counts:
        console.print(table_of_classes(labels.unit, labels.classes, labels.counts))
    for severity in SEVERITIES:
        own = [finding for finding in findings if finding.severity == severity]
        if own:
            console.print(_table_of_findings(subject, TITLES[severity], own))


def rows_of_facts(
    subject: Subject, facts: dict[str, Any], labels: Labels | None
) -> list[tuple[str, str]]:
    """Names and words."""
    what = "images" if subject.members else "files"
    rows = [
        ("DATA", f"{shown(subject.name)}: {KINDS[subject.kind]}"),
        (what, f"{facts['files']}, {_bytes(facts['bytes'])}; {facts['readable']} can be read"),
    ]
    if "parts" in facts:
        rows.append(("parts", _listed(facts["parts"])))
    rows += [
        ("formats", _listed(facts["formats"])),
        ("modes", _listed(facts["modes"])),
        ("bits", _listed(facts["bits"])),
    ]
    if "channels" in facts:
        rows.append(("to be read with", f"--model.in-channels {facts['channels']}"))
    kept = ("rotated by EXIF", "animated", "with transparency", "CMYK")
    if special := {name: facts[name] for name in kept if facts[name]}:
        words = {
            "rotated by EXIF": "are turned upright",
            "animated": "give their first frame",
            "with transparency": "are laid on white",
            "CMYK": "become colour",
        }
        rows.append(
            ("and", "; ".join(f"{count} {name} {words[name]}" for name, count in special.items()))
        )
    if "smallest" in facts:
        rows += [(name, _quantiles(facts[name])) for name in ("shorter side", "longer side")]
        rows += [(name, _image(subject, facts[name])) for name in ("smallest", "largest")]
    if facts.get("passed over"):
        rows.append(("passed over", f"by their suffix: {_listed(facts['passed over'])}"))
    if labels is not None:
        rows += list(labels.facts.items())
    return rows


def _quantiles(sides: list[int]) -> str:
    least, low, middle, high, most = sides
    if least == most:
        return f"{least} pixels"
    return f"{least} to {most} pixels, half up to {middle}, nine tenths {low} to {high}"


def _image(subject: Subject, facts: dict[str, Any]) -> str:
    return f"{facts['width']} x {facts['height']}  {shown(inside(subject, facts['path']))}"


def inside(subject: Subject, path: str) -> str:
    """A path from the folder that is checked."""
    root = str(PurePath(subject.root)) + "/" if subject.root else ""
    return path.removeprefix(root)


def _listed(counts: dict[str, int], most: int = 8) -> str:
    said = [f"{count} {shown(name, 40)}" for name, count in list(counts.items())[:most]]
    more = len(counts) - most
    return ", ".join(said) + (f", {more} more" if more > 0 else "") or "none"


def _bytes(size: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.3g} TB"


def table_of_classes(unit: str, classes: Sequence[str], counts: dict[str, Any]) -> Table:
    """A row a class with its count in each part, the most frequent first."""
    table = Table(title=f"{unit} of each class", title_justify="left")
    table.add_column("class", overflow="fold")
    for part in counts:
        table.add_column(Text(shown(part, 20) or unit), justify="right")
    sums = np.sum([list(own) for own in counts.values()], axis=0)
    order = np.argsort(-sums, kind="stable").tolist()
    for at in order[:MOST_CLASSES]:
        cells = [f"{own[at]:,}" for own in counts.values()]
        table.add_row(Text(shown(classes[at], 40)), *cells)
    if len(order) > MOST_CLASSES:
        rest = order[MOST_CLASSES:]
        cells = [f"{sum(own[at] for at in rest):,}" for own in counts.values()]
        table.add_row(f"and {len(rest)} rarer classes", *cells)
    return table


def _table_of_findings(subject: Subject, title: str, findings: Sequence[Finding]) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True, expand=True)
    table.add_column("what, and what to do", overflow="fold", ratio=2)
    table.add_column("count", justify="right", min_width=5)
    table.add_column("for example", overflow="fold", ratio=3)
    for finding in findings:
        what = Text.assemble((shown(finding.what), "bold"), f"\n{finding.advice}")
        examples = Text("\n".join(examples_of(subject, finding)))
        table.add_row(what, f"{finding.count:,}", examples)
    return table


def examples_of(subject: Subject, finding: Finding) -> list[str]:
    """Some of what was found, in words."""
    said = [
        f"{shown(inside(subject, subject.paths[at]), 60)}"
        + (f": {_said(subject, detail)}" if detail else "")
        for at, detail in list(finding.files.items())[:EXAMPLES]
    ]
    said += [shown(inside(subject, text)) for text in finding.examples[:EXAMPLES]]
    more = finding.count - len(said)
    return [*said, f"and {more:,} more"] if more > 0 and len(said) >= EXAMPLES else said


def _said(subject: Subject, detail: str) -> str:
    """What is said of a file; paths in it are shown from the folder too."""
    root = str(PurePath(subject.root)) + "/" if subject.root else ""
    text = shown(detail.replace(root, "") if root else detail, 1000)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
