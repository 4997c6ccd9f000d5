"""Problems of images, boxes and masks: counted by kind, and printed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rich.markup import escape
from rich.table import Table

from mvmae import terminal
from mvmae.config.datatools import Severity
from mvmae.errors import printable

Remedy = Literal["stop", "left out", "clipped", "renumbered", "kept"]
SEVERITY: dict[Remedy, Severity] = {"stop": "fatal", "left out": "skipped"}  # of others: look
MAX_EXAMPLES = 3  # of each kind


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of problem, and how often it occurs."""

    what: str
    remedy: Remedy = "kept"
    """What training does about it; "stop": training refuses to start."""

    advice: str = ""
    """What the user can do about it."""

    files: dict[int, str] = field(default_factory=dict)
    """Index and details of each file that has the problem, where it is a problem of files."""

    examples: tuple[str, ...] = ()
    total: int = 0
    """Number of occurrences, where there are more than `files` or `examples`."""

    @property
    def count(self) -> int:
        """Number of occurrences."""
        return self.total or len(self.files) or len(self.examples)

    @property
    def severity(self) -> Severity:
        """How bad it is for training, as `data check` ranks it."""
        return SEVERITY.get(self.remedy, "look")


class FindingCounter(dict[str, Finding]):
    """Findings by what is wrong, in the order of the first occurrences."""

    def add(self, what: str, example: str, remedy: Remedy, count: int = 1) -> None:
        """Count a problem and keep its first few examples; an empty example is only counted."""
        one = self.get(what, Finding(what=what, remedy=remedy))
        if example and len(one.examples) < MAX_EXAMPLES:
            # Names from a file must neither break the table nor control the terminal.
            shown = printable(example.replace("\n", "\\n").replace("\t", "\\t"))
            one = replace(one, examples=(*one.examples, shown))
        self[what] = replace(one, remedy=remedy, total=one.total + count)


def print_findings(title: str, findings: Mapping[str, Sequence[Finding]]) -> None:
    """Print the findings of each split as one table, or nothing if there are none.

    Args:
        title: Title of the table.
        findings: By split; a single split may have an empty name.
    """
    if not any(findings.values()):
        return
    table = Table(title=title, title_justify="left")
    for column in ("split", "finding", "count", "for example", "action"):
        justify = "right" if column == "count" else "left"
        if column != "split" or any(findings):
            table.add_column(column, justify=justify, overflow="fold")
    for split, ones in findings.items():
        for one in ones:
            cells = (one.what, str(one.count), "\n".join(map(escape, one.examples)), one.remedy)
            table.add_row(*([escape(split)] if any(findings) else []), *cells)
    terminal.print_table(table)
