"""Problems of inspected images: how often each kind occurs, and what to do about it."""

import os
from collections.abc import Iterator

import numpy as np

from mvmae.config.datatools import DataCheckConfig, Severity
from mvmae.data.annotations.findings import Finding, Remedy
from mvmae.data.reading.deep_formats import SUFFIXES
from mvmae.datatools.check.columns import LOST, Columns
from mvmae.datatools.check.subjects import Subject
from mvmae.metrics import near_duplicates

SEVERITIES: tuple[Severity, ...] = ("fatal", "skipped", "look")
MIN_CLASS_IMAGES = 2  # a smaller class cannot be split into training and test images
MAX_CLASS_RATIO = 50  # of images in the largest class to images in the smallest

# In the order of the report: first what can stop a run, then what training skips.
READING: dict[str, tuple[str, str]] = {  # what and advice, by problem
    "died": (
        "files that end the process that reads them",
        "remove them: each costs training a process, and a run that loses many stops",
    ),
    "hung": (
        "files that are not read in --timeout seconds",
        "remove them, or check again with a longer --timeout: training would stand still",
    ),
    "memory": (
        "files that need more than --memory",
        "remove or shrink them: each process that reads may need as much",
    ),
    "special": ("pipes, devices or folders with an image's name", "remove them"),
    "unopened": ("files that cannot be opened", "check their permissions and the disk"),
    "empty": ("empty files", "copy or download them again"),
    "no image": ("files that are not images, despite their suffix", "remove them"),
    "truncated": ("images that are cut short", "copy or download them again"),
    "damaged": ("damaged images", "copy them again, or save them again"),
    "bomb": (
        "images of more pixels than are read (179 million)",
        "remove them, or cut them into tiles",
    ),
    "unread": ("images in an unsupported format", "save them with 8 or 16 bits per channel"),
    "other": (
        "images with other channels or deeper values than most",
        "remove them: training skips them, or stops until --views.depth and --model.in-channels "
        "say what is meant",
    ),
}


def find_all(
    subject: Subject, columns: Columns, config: DataCheckConfig, every: Columns
) -> Iterator[Finding]:
    """List what is wrong with the files, also kinds of problems that do not occur.

    Args:
        subject: What is checked.
        columns: The images.
        config: Limits.
        every: The images, masks and files of other suffixes.
    """
    paths = [*subject.paths, *subject.masks, *subject.passed_over]
    lost = [at for at in every.lost() if at >= len(subject.paths)]
    yield Finding(
        what="masks or other files that are not read in time, or end the process that reads them",
        remedy="stop",
        advice="remove them",
        examples=tuple(f"{paths[at]} ({every.reasons.get(at, '')})" for at in lost),
    )
    yield from _unreadable(subject, columns)
    yield from _odd_content(subject, columns, config)
    yield from _exact_duplicates(subject, columns)
    if config.near:
        yield from _near_duplicates(subject, columns, config)
    for what, advice, places in (
        ("folders that cannot be listed", "check their permissions", subject.unlisted),
        ("damaged tar files", "copy or pack them again", subject.damaged),
    ):
        yield Finding(
            what=what,
            remedy="left out",
            advice=f"{advice}: what cannot be read is not trained on",
            examples=tuple(f"{path} ({why})" for path, why in places),
        )
    if subject.label is not None:
        yield from _odd_classes(subject, columns)
    formats = passed_over_formats(subject, every)
    yield Finding(
        what="images passed over for their suffix",
        advice="rename them, if they should be trained on",
        examples=tuple(f"{path} ({name})" for path, name in formats.items() if name),
    )


def passed_over_formats(subject: Subject, every: Columns) -> dict[str, str]:
    """Format of each file passed over for its suffix; empty where it is not an image."""
    first = len(every.table) - len(subject.passed_over)
    return {
        path: every.stored_name("format", at) for at, path in enumerate(subject.passed_over, first)
    }


def _unreadable(subject: Subject, columns: Columns) -> Iterator[Finding]:
    for problem, (what, advice) in READING.items():
        indices = np.flatnonzero(columns.is_problem(problem)).tolist()
        files = {at: columns.reasons.get(at, "") for at in indices}
        remedy: Remedy = "stop" if problem in LOST else "left out"
        yield Finding(what=what, remedy=remedy, advice=advice, files=files)
    own = subject.own()
    lost = int((own & ~columns.readable).sum())
    # Training stops at the same share, because a wrong folder is then more likely than damage.
    if 2 * lost > own.sum():
        yield Finding(
            what="more than half of the images cannot be read",
            remedy="stop",
            advice="name the right folder, or create the images again: training stops at this",
            examples=(f"{lost} of {int(own.sum())}",),
        )


def _odd_content(subject: Subject, columns: Columns, config: DataCheckConfig) -> Iterator[Finding]:
    read, sides = columns.readable, columns["shape"].min(axis=1)
    small = np.flatnonzero(read & (sides > 0) & (sides < config.min_size)).tolist()
    yield Finding(
        what=f"images with a side under {config.min_size} pixels",
        advice="leave them out: they show little when enlarged (--min-size)",
        files={at: "{1} x {0}".format(*columns["shape"][at]) for at in small},
    )
    inside = {at: columns.stored_name("format", at) for at in np.flatnonzero(read).tolist()}
    yield Finding(
        what="files whose suffix says another format",
        advice="they are read by their content; rename them for other programs",
        files={
            at: f"{name} inside"
            for at, name in inside.items()
            # An image in an array has no suffix.
            if name
            and (suffix := os.path.splitext(subject.paths[at])[1].lower())  # noqa: PTH122
            and suffix not in SUFFIXES.get(name, ())
        },
    )
    if len(columns.thumbs):
        is_flat = near_duplicates.contrast(columns.thumbs) < near_duplicates.FLAT
        yield Finding(
            what="images of nearly one colour",
            advice="look at them: nothing can be learnt from an empty picture",
            files=dict.fromkeys(np.flatnonzero(read & is_flat).tolist(), ""),
        )


def _exact_duplicates(subject: Subject, columns: Columns) -> Iterator[Finding]:
    """Find files with the same bytes: in one part, in one part but two classes, in two parts."""
    read = np.flatnonzero(columns.readable)
    # Over all parts, to find leakage; within a part, the first file of that part is the original.
    first = first_duplicates(columns)
    copies, in_two_classes, leaked = {}, {}, {}
    for part in range(len(subject.parts)):
        own = read[subject.part[read] == part]
        if part == subject.against or not len(own):
            continue
        originals = own[near_duplicates.first_with_same_digest(columns["digest"][own])]
        for at, original in zip(own.tolist(), originals.tolist(), strict=True):
            if at == original:
                continue
            copies[at] = f"is {subject.paths[original]}"
            own_class, other_class = subject.class_name(at), subject.class_name(original)
            if own_class != other_class:
                path = subject.paths[original]
                in_two_classes[at] = f"{own_class}, and {other_class} as {path}"
    for at in read.tolist():
        original = int(first[at])
        if subject.part[at] != subject.part[original]:
            leaked[at] = f"is {subject.paths[original]}"
    yield _leak(leaked, "the same")
    yield Finding(
        what="exact duplicates in two classes",
        advice="one of the labels is wrong: decide which",
        files=in_two_classes,
    )
    yield Finding(
        what="exact duplicates",
        advice="leave them out (--quarantine keeps the first): they count twice",
        files=copies,
    )


def first_duplicates(columns: Columns) -> np.ndarray:
    """For each file, the index of the first readable file with the same bytes, or its own."""
    first = np.arange(len(columns.table))
    if len(read := np.flatnonzero(columns.readable)):
        first[read] = read[near_duplicates.first_with_same_digest(columns["digest"][read])]
    return first


def _near_duplicates(
    subject: Subject, columns: Columns, config: DataCheckConfig
) -> Iterator[Finding]:
    """Find images that look the same but differ in bytes, in one part and in two parts.

    Of each pair the later image is reported, with the most similar of the earlier ones.
    """
    # Exact copies are reported already, and pictures of one colour all look alike.
    usable = columns.readable & (first_duplicates(columns) == np.arange(len(columns.table)))
    usable &= near_duplicates.contrast(columns.thumbs) >= near_duplicates.FLAT
    pairs, similarities = near_duplicates.find_near_duplicates(
        columns.thumbs, config.similarity, usable
    )
    near: dict[int, tuple[float, int]] = {}
    leaked: dict[int, tuple[float, int]] = {}
    for (before, after), value in zip(pairs.tolist(), similarities.tolist(), strict=True):
        if subject.part[before] == subject.part[after] == subject.against:
            continue
        known = near if subject.part[before] == subject.part[after] else leaked
        best, original = known.get(after, (0.0, before))
        if (value, -before) > (best, -original):  # of equals the first
            known[after] = value, before
    yield _leak(_describe_similar(subject, leaked), "nearly the same")
    yield Finding(
        what="near duplicates",
        advice="look at some: re-encoded or resized copies, frames of one film",
        files=_describe_similar(subject, near),
    )


def _describe_similar(subject: Subject, similar: dict[int, tuple[float, int]]) -> dict[int, str]:
    rows = sorted(similar.items())
    return {at: f"like {subject.paths[original]} ({value:.3f})" for at, (value, original) in rows}


def _leak(files: dict[int, str], how: str) -> Finding:
    return Finding(
        what=f"images that are {how} in two parts",
        advice="remove them from one: a test on training images proves nothing",
        files=files,
    )


def _odd_classes(subject: Subject, columns: Columns) -> Iterator[Finding]:
    counts = class_counts(subject, columns)
    small = np.argwhere(counts < MIN_CLASS_IMAGES).tolist()
    yield Finding(
        what=f"classes of fewer than {MIN_CLASS_IMAGES} readable images",
        advice="add images, or leave the class out",
        examples=tuple(
            "/".join(filter(None, (subject.parts[part], subject.classes[label])))
            + f": {counts[part, label]}"
            for part, label in small
        ),
    )
    # Classes without any image are reported above; a ratio to 0 says nothing more.
    sums = counts.sum(axis=0)
    if sums.min() > 0 and sums.max() >= MAX_CLASS_RATIO * sums.min():
        most, least = int(sums.argmax()), int(sums.argmin())
        example = f"{subject.classes[most]} {sums[most]}, {subject.classes[least]} {sums[least]}"
        yield Finding(
            what=f"classes differ in size {MAX_CLASS_RATIO} times or more",
            advice="look at the accuracy of each class, not only at the mean",
            examples=(example,),
        )


def class_counts(subject: Subject, columns: Columns) -> np.ndarray:
    """Count the readable images of each part of DATA and each class: parts x classes."""
    parts = [at for at in range(len(subject.parts)) if at != subject.against]
    counts = np.zeros((len(parts), len(subject.classes)), np.int64)
    if subject.label is not None:
        keep = columns.readable & subject.own() & (subject.label >= 0)
        np.add.at(counts, (subject.part[keep], subject.label[keep]), 1)
    return counts
