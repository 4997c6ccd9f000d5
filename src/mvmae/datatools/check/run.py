"""`mvmae data check`: find what training would skip, and what would harm it.

Every file is opened in a process that may crash or hang, and judged by the same rules as in
training.
"""

from pathlib import Path

from mvmae import terminal
from mvmae.config.datatools import DataCheckConfig
from mvmae.datatools.check import columns, findings, output, subjects
from mvmae.datatools.check.annotations import CocoSplits, MaskSplits, open_coco, open_masks
from mvmae.datatools.check.findings import SEVERITIES
from mvmae.datatools.check.output import Report
from mvmae.errors import abridge


def run(config: DataCheckConfig) -> int:
    """Check DATA.

    Returns:
        1 if anything of at least the severity --fail-on was found, else 0.

    Raises:
        UserError: There is nothing to check, or the output cannot be written.
    """
    output.require_writable(config)  # before files are inspected, which may take hours
    layout = subjects.detect_layout(config)
    splits: CocoSplits | MaskSplits | None = None
    if layout == "images":
        subject = subjects.open_images(config)
    else:
        subject, splits = (open_coco if layout == "coco" else open_masks)(config)
    subjects.add_comparison(subject, config)
    count = len(subject.paths) + len(subject.masks) + len(subject.passed_over)
    with columns.open_columns(count, with_thumbs=config.near) as every:
        columns.inspect_files(subject, every, config)
        # Masks and files with other suffixes come after the images and are not judged as images.
        own = every.head(len(subject.paths))
        channels = own.settle_deep_files(can_be_read=subject.kind == "images")
        labels = splits.check(subject, every, config) if splits is not None else None
        found = [
            *findings.find_all(subject, own, config, every),
            *(labels.findings if labels else ()),
        ]
        facts = columns.summarise(subject, own)
        suffixes = [Path(path).suffix.lower() or "without suffix" for path in subject.passed_over]
        facts["passed over"] = columns.count_values(suffixes)
        if channels != 3:
            facts["channels"] = channels
        report = Report(
            subject=subject,
            columns=own,
            facts=facts,
            findings=sorted(
                (finding for finding in found if finding.count),
                key=lambda finding: SEVERITIES.index(finding.severity),
            ),
            labels=labels,
            passed_formats=findings.passed_over_formats(subject, every),
        )
        return conclude(config, report)


def conclude(config: DataCheckConfig, report: Report) -> int:
    """Print and write everything, and return the exit status."""
    console = terminal.console()
    output.print_report(console, report)
    if config.out is not None:
        output.write_report(config.out, config, report)
        console.print(f"written: {config.out}")
    if config.quarantine is not None:
        kept, unlistable = output.write_clean_list(config.quarantine, report)
        if unlistable:
            console.print(
                f"{len(unlistable)} readable files are not in the list, because their names do not "
                f"fit on a line: {abridge(unlistable[0])}"
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
    words = {"fatal": "fatal", "skipped": "skipped in training", "look": "worth a look"}
    verdict = ", ".join(f"{counts[name]:,} {text}" for name, text in words.items())
    console.print(verdict if any(counts.values()) else "nothing is wrong")
    failing = SEVERITIES[: SEVERITIES.index(config.fail_on) + 1]
    return int(any(counts[severity] for severity in failing))
