"""From what each file is to what is wrong, counted, with what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mvmae.config.datatools import DataCheckConfig, Severity
from mvmae.data.reading.inspect_file import suffix_fits
from mvmae.datatools.check.columns import Columns
from mvmae.datatools.check.subjects import Subject
from mvmae.metrics import near_duplicates

SEVERITIES: tuple[Severity, ...] = ("fatal", "skipped", "look")
FEW = 2  # images of a class that cannot be divided into some to learn from and some to test on
LOPSIDED = 50  # times as many images in the largest class as in the smallest


@dataclass(kw_only=True)
class Finding:
    """One kind of thing that is wrong."""

    severity: Severity
    what: str
    advice: str
    files: dict[int, str] = field(default_factory=dict)
    """What is said of each file, by its place; empty where it is not about files of DATA."""

    examples: tuple[str, ...] = ()
    """Where it is not about files of DATA."""

    total: int = 0

    @property
    def count(self) -> int:
        """How often it was found."""
        return self.total or len(self.files)


READING: dict[str, tuple[Severity, str, str]] = {  # by problem
    "died": (
        "fatal",
        "files that end the process that reads them",
        "remove them: each costs training a process, and a run that loses many stops",
    ),
    "hung": (
        "fatal",
        "files that are not read in --timeout seconds",
        "remove them, or ask again with a longer --timeout: training would stand still",
    ),
    "memory": (
        "fatal",
        "files that need more than --memory",
        "remove or shrink them: each process that reads may need as much",
    ),
    "special": (
        "skipped",
        "pipes, devices or folders under an image's name",
        "remove them",
    ),
    "unopened": ("skipped", "files that cannot be opened", "see to their permissions and the disk"),
    "empty": ("skipped", "empty files", "copy or download them again"),
    "no image": ("skipped", "files that are no image, though named so", "remove them"),
    "truncated": ("skipped", "images that are cut short", "copy or download them again"),
    "damaged": ("skipped", "damaged images", "copy them again, or save them anew"),
    "bomb": (
        "skipped",
        "images of more pixels than are read (179 million)",
        "remove them, or cut them into tiles",
    ),
    "unread": ("skipped", "images of a kind that is not read", "save them with 8 or 16 bit"),
    "other": (
        "skipped",
        "images of other channels or deeper numbers than most",
        "take them out: training passes them over, or stops until --views.depth and "
        "--model.in-channels say what is meant",
    ),
}


def of_images(subject: Subject, columns: Columns, config: DataCheckConfig) -> list[Finding]:
    """What is wrong with the images, the gravest first; what came to no file is left out."""
    found = [
        *_of_reading(subject, columns),
        *_of_content(subject, columns, config),
        *of_same(subject, columns),
        *(of_near(subject, columns, config) if config.near else ()),
        *_of_names(subject),
        *_of_classes(subject, columns),
    ]
    found = [finding for finding in found if finding.count]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _of_reading(subject: Subject, columns: Columns) -> Iterator[Finding]:
    for problem, (severity, what, advice) in READING.items():
        places = np.flatnonzero(columns.is_problem(problem))
        files = {int(at): columns.reasons.get(int(at), "") for at in places}
        yield Finding(severity=severity, what=what, advice=advice, files=files)
    own = subject.own()
    lost = int((own & ~columns.readable).sum())
    if 2 * lost > own.sum():
        yield Finding(
            severity="fatal",
            what="more than half of the images cannot be read",
            advice="name the right folder, or make the images anew: training stops at this",
            examples=(f"{lost} of {int(own.sum())}",),
            total=1,
        )


def _of_content(subject: Subject, columns: Columns, config: DataCheckConfig) -> Iterator[Finding]:
    read, sides = columns.readable, columns.shape.min(axis=1)
    small = np.flatnonzero(read & (sides > 0) & (sides < config.min_size))
    yield Finding(
        severity="look",
        what=f"images with a side under {config.min_size} pixels",
        advice="leave them out: enlarged, they show little (--min-size)",
        files={int(at): "{1} x {0}".format(*columns.shape[at]) for at in small},
    )
    yield Finding(
        severity="look",
        what="files whose suffix says another format",
        advice="they are read by their content; rename them for other programs",
        files={
            at: f"{columns.format_of(at)} inside"
            for at in np.flatnonzero(columns.format).tolist()
            if read[at] and not _is_called_so(subject, columns, at)
        },
    )
    if len(columns.thumbs):
        flat = np.flatnonzero(
            read & (near_duplicates.contrast(columns.thumbs) < near_duplicates.FLAT)
        )
        yield Finding(
            severity="look",
            what="images of nearly one colour",
            advice="look at them: there is nothing to learn from an empty picture",
            files={int(at): "" for at in flat},
        )


def _is_called_so(subject: Subject, columns: Columns, at: int) -> bool:
    """Whether the suffix is that of the format; an image in an array has no suffix."""
    path = subject.paths[at]
    has_suffix = bool(os.path.splitext(path)[1])  # noqa: PTH122
    return not has_suffix or suffix_fits(path, columns.format_of(at))


def of_same(subject: Subject, columns: Columns) -> Iterator[Finding]:
    """Files with the same bytes: in a part, in a part under another class, in two parts."""
    read = np.flatnonzero(columns.readable)
    first = first_of_same(columns)
    twice, torn, leaked = {}, {}, {}
    for part in range(len(subject.parts)):
        own = read[subject.part[read] == part]
        if part == subject.against or not len(own):
            continue
        heads = own[near_duplicates.first_with_same_digest(columns.digest[own])]
        for at, head in zip(own.tolist(), heads.tolist(), strict=True):
            if at == head:
                continue
            twice[at] = f"is {subject.paths[head]}"
            if (own_class := subject.class_of(at)) != (other := subject.class_of(head)):
                torn[at] = f"{own_class}, and {other} as {subject.paths[head]}"
    for at in read.tolist():
        head = int(first[at])
        if subject.part[at] != subject.part[head]:
            leaked[at] = f"is {subject.paths[head]}"
    yield _leak(leaked, "the same")
    yield Finding(
        severity="look",
        what="exact duplicates in two classes",
        advice="one label is wrong: decide which",
        files=torn,
    )
    yield Finding(
        severity="look",
        what="exact duplicates",
        advice="leave them out (--quarantine keeps the first): they count twice",
        files=twice,
    )


def first_of_same(columns: Columns) -> np.ndarray:
    """For each file the place of the first readable one with the same bytes, or its own."""
    first = np.arange(len(columns))
    read = np.flatnonzero(columns.readable)
    first[read] = (
        read[near_duplicates.first_with_same_digest(columns.digest[read])] if len(read) else read
    )
    return first


def of_near(subject: Subject, columns: Columns, config: DataCheckConfig) -> Iterator[Finding]:
    """Images that look the same and are no exact duplicates: in a part, and in two parts.

    The later of two is named, with the one before it that it is most like.
    """
    usable = columns.readable & (first_of_same(columns) == np.arange(len(columns)))
    usable &= near_duplicates.contrast(columns.thumbs) >= near_duplicates.FLAT
    pairs, alike = near_duplicates.find_near_duplicates(columns.thumbs, config.similarity, usable)
    near: dict[int, tuple[float, int]] = {}
    leaked: dict[int, tuple[float, int]] = {}
    for (before, after), value in zip(pairs.tolist(), alike.tolist(), strict=True):
        if subject.part[before] == subject.part[after] == subject.against:
            continue
        known = near if subject.part[before] == subject.part[after] else leaked
        known[after] = max(known.get(after, (0.0, before)), (value, before), key=_closest)
    said: Callable[[dict], dict[int, str]] = lambda known: {  # noqa: E731
        at: f"like {subject.paths[before]} ({value:.3f})"
        for at, (value, before) in sorted(known.items())
    }
    yield _leak(said(leaked), "nearly the same")
    yield Finding(
        severity="look",
        what="near duplicates",
        advice="look at some: copies re-encoded or resized, frames of one film",
        files=said(near),
    )


def _closest(pair: tuple[float, int]) -> tuple[float, int]:
    return pair[0], -pair[1]


def _leak(files: dict[int, str], how: str) -> Finding:
    return Finding(
        severity="look",
        what=f"images that are {how} in two parts",
        advice="take them out of one: what was trained on cannot test",
        files=files,
    )


def _of_names(subject: Subject) -> Iterator[Finding]:
    yield Finding(
        severity="skipped",
        what="folders that cannot be listed",
        advice="see to their permissions: what is in them is not trained on",
        examples=tuple(f"{path} ({why})" for path, why in subject.unlisted),
        total=len(subject.unlisted),
    )
    yield Finding(
        severity="skipped",
        what="damaged tar files",
        advice="copy or pack them again: what lies behind the damage is not trained on",
        examples=tuple(f"{path} ({why})" for path, why in subject.damaged),
        total=len(subject.damaged),
    )


def _of_classes(subject: Subject, columns: Columns) -> Iterator[Finding]:
    if subject.label is None:
        return
    counts = class_counts(subject, columns)
    named = [(p, c) for p in range(len(counts)) for c in range(len(subject.classes))]
    few = [
        f"{_place(subject, p, c)}: {counts[p, c]}" for p, c in named if counts[p, c] < FEW
    ]  # fmt: skip
    yield Finding(
        severity="look",
        what=f"classes of fewer than {FEW} readable images",
        advice="add images, or leave the class out",
        examples=tuple(few),
        total=len(few),
    )
    sums = counts.sum(axis=0)
    if sums.min() > 0 and sums.max() >= LOPSIDED * sums.min():
        most, least = int(sums.argmax()), int(sums.argmin())
        yield Finding(
            severity="look",
            what=f"classes differ in size {LOPSIDED} times or more",
            advice="read the accuracy of each class, not the mean alone",
            examples=(
                f"{subject.classes[most]} {sums[most]}, {subject.classes[least]} {sums[least]}",
            ),
            total=1,
        )


def _place(subject: Subject, part: int, label: int) -> str:
    return "/".join(filter(None, (subject.parts[part], subject.classes[label])))


def class_counts(subject: Subject, columns: Columns) -> np.ndarray:
    """Readable images of each part of DATA and each class: parts x classes."""
    parts = [at for at in range(len(subject.parts)) if at != subject.against]
    counts = np.zeros((len(parts), len(subject.classes)), np.int64)
    if subject.label is not None:
        keep = columns.readable & subject.own() & (subject.label >= 0)
        np.add.at(counts, (subject.part[keep], subject.label[keep]), 1)
    return counts


def of_passed_over(paths: list[str], columns: Columns, start: int) -> list[Finding]:
    """Images that training passes over for their suffix alone.

    Args:
        paths: Of all files, those passed over last.
        columns: What they are.
        start: Place of the first that is passed over.
    """
    found = np.flatnonzero(columns.format[start:]) + start
    if not len(found):
        return []
    examples = tuple(f"{paths[at]} ({columns.format_of(at)})" for at in found.tolist())
    return [
        Finding(
            severity="look",
            what="images passed over for their suffix",
            advice="rename them, if they are to be trained on",
            examples=examples,
            total=len(examples),
        )
    ]
