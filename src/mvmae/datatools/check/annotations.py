"""Boxes and masks: all splits looked through by what `detect` and `segment` use before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mvmae.config.datatools import DataCheckConfig, Severity
from mvmae.data.annotations import coco_check, mask_check
from mvmae.data.annotations.coco import SplitFiles, find_split, split_names
from mvmae.data.annotations.mask_values import Rule
from mvmae.data.annotations.masks import (
    FoundPairs,
    MaskSplit,
    class_names,
    find_pairs,
    match_by_name,
)
from mvmae.data.reading.decode import EXTENSIONS
from mvmae.data.sources.labelled import TEST, TRAIN
from mvmae.datatools.check.columns import Columns
from mvmae.datatools.check.findings import Finding
from mvmae.datatools.check.subjects import Subject
from mvmae.dense.detect.data import require_same_categories
from mvmae.dense.segment.data import describe_values
from mvmae.errors import UserError

COCO_SEVERITY: dict[str, Severity] = {"stop": "fatal", "left out": "skipped"}
COCO_ADVICE = {
    "stop": "correct the file: `mvmae detect` stops at this",
    "left out": "`mvmae detect` leaves them out",
    "clipped": "`mvmae detect` clips them to the image",
    "renumbered": "`mvmae detect` numbers them anew",
    "kept": "`mvmae detect` takes them as they are",
}


class Labels(NamedTuple):
    """What boxes or masks came to."""

    unit: str
    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    """Boxes or pixels of each class, by split."""

    facts: dict[str, str]
    findings: list[Finding]


class CocoSplits(NamedTuple):
    """The annotation files that can be read, and what stops the others."""

    places: list[SplitFiles]
    contents: list[dict[str, Any]]
    findings: list[Finding]


def _stops(what: str, error: UserError) -> Finding:
    advice = "correct it: training stops at this"
    return Finding(severity="fatal", what=what, advice=advice, examples=(str(error),), total=1)


def open_coco(config: DataCheckConfig) -> tuple[Subject, CocoSplits]:
    """The images that all annotation files of a folder name.

    Raises:
        UserError: It is not in COCO's layout.
    """
    folder = Path(config.data[0])
    read = CocoSplits([], [], [])
    for name in split_names(folder):
        try:
            place = find_split(folder, name)
            content = coco_check.load_coco(place.file)
        except UserError as error:
            read.findings.append(_stops("splits that cannot be used", error))
            continue
        read.places.append(place)
        read.contents.append(content)
    paths, part = [], []
    for at, (place, content) in enumerate(zip(read.places, read.contents, strict=True)):
        there = [path for path in dict.fromkeys(_named(place, content)) if path.is_file()]
        paths += map(str, there)
        part += [at] * len(there)
    subject = Subject(
        kind="coco",
        name=str(folder),
        paths=paths,
        parts=tuple(place.name for place in read.places) or ("",),
        part=np.array(part, dtype=np.int16),
        root=str(folder),
    )
    return subject, read


def _named(place: SplitFiles, content: dict[str, Any]) -> Iterator[Path]:
    for one in content["images"]:
        if isinstance(name := one.get("file_name"), str) and "\0" not in name:
            yield place.images / name


def of_coco(subject: Subject, read: CocoSplits, columns: Columns) -> Labels:
    """What is wrong with boxes and masks, in the words of `detect`, and how many there are.

    The images' sizes come from the look at the files, so that no image is opened here.
    """
    shapes = {
        path: (int(shape[0]), int(shape[1])) if shape[0] else None
        for path, shape in zip(subject.paths, columns.shape, strict=False)
    }
    findings, counts, facts, kept = list(read.findings), {}, {}, []
    for place, content in zip(read.places, read.contents, strict=True):
        names = {one["file_name"] for one in content["images"] if _is_name(one)}
        sizes = {
            name: shapes[path] for name in names if (path := str(place.images / name)) in shapes
        }
        checked = coco_check.check_coco(content, sizes)
        kept.append(checked)
        findings += [_of_remedy(place.name, one) for one in checked.findings]
        findings += _unnamed(place, names)
        counts[place.name] = Counter(one["category_id"] for one in checked.content["annotations"])
        facts[place.name] = _in_words(checked)
    names_of = {
        c["id"]: str(c["name"]) for one in kept for c in one.content["categories"] if _is_class(c)
    }
    for place, one in list(zip(read.places, kept, strict=True))[1:]:
        try:
            require_same_categories([read.places[0], place], [kept[0], one])
        except UserError as error:
            findings.append(_stops("splits of other categories", error))
        except (KeyError, TypeError):  # categories without id or name, which stop already
            continue
    ids = sorted(names_of)
    if ids and (gaps := ids[-1] - ids[0] + 1 - len(ids)):
        facts["category ids"] = f"{ids[0]} to {ids[-1]} with {gaps} gaps, which do no harm"
    classes = tuple(names_of[number] for number in ids)
    table = {name: tuple(own[number] for number in ids) for name, own in counts.items()}
    return Labels("boxes", classes, table, facts, [*findings, *_unseen(classes, table, "boxes")])


def _is_name(image: dict) -> bool:
    return isinstance(image.get("file_name"), str)


def _is_class(category: dict) -> bool:
    return type(category.get("id")) is int and "name" in category


def _of_remedy(split: str, one: coco_check.Finding) -> Finding:
    return Finding(
        severity=COCO_SEVERITY.get(one.remedy, "look"),
        what=f"{split}: {one.what}",
        advice=COCO_ADVICE[one.remedy],
        examples=tuple(filter(None, one.examples)),
        total=one.count,
    )


def _unnamed(place: SplitFiles, names: set[str]) -> Iterator[Finding]:
    """Images in a split's own folder that its file does not name."""
    if place.images.name != place.name:  # a folder that several splits share
        return
    known = {str(place.images / name) for name in names}
    files = (f for f in place.images.rglob("*") if f.suffix.lower() in EXTENSIONS)
    lone = tuple(sorted(str(file) for file in files if str(file) not in known))
    yield Finding(
        severity="look",
        what=f"{place.name}: images that the annotation file does not name",
        advice="`mvmae detect` does not see them",
        examples=lone,
        total=len(lone),
    )


def _in_words(checked: coco_check.CheckedCoco) -> str:
    boxes = checked.content["annotations"]
    crowds = sum(one["iscrowd"] for one in boxes)
    masks = "with masks" if checked.has_masks else "without masks"
    return (
        f"{len(checked.content['images'])} images and {len(boxes) - crowds} boxes {masks} can be "
        f"used{f', {crowds} crowds' if crowds else ''}"
    )


def _unseen(
    classes: tuple[str, ...], counts: dict[str, tuple[int, ...]], unit: str
) -> Iterator[Finding]:
    """Classes that are tested and never learnt."""
    learns = next((name for name in counts if name.startswith("train")), None)
    if learns is None or len(counts) < 2:
        return
    others = np.sum([own for name, own in counts.items() if name != learns], axis=0)
    only = [c for c, a, b in zip(classes, counts[learns], others, strict=True) if b and not a]
    yield Finding(
        severity="look",
        what=f"classes without {unit} in {learns}, and with some elsewhere",
        advice="they are tested and cannot be learnt",
        examples=tuple(only),
        total=len(only),
    )


class MaskSplits(NamedTuple):
    """Images with masks; the second and later ones have nothing to learn from."""

    found: list[FoundPairs]
    learns: bool
    names: list[tuple[str, str]]
    """Of the parts of each."""


def open_masks(config: DataCheckConfig) -> tuple[Subject, MaskSplits]:
    """The images with masks of all splits of a folder.

    Raises:
        UserError: There are none.
    """
    folder = Path(config.data[0])
    images = folder / "images"
    own = [n for n in (*TRAIN, *TEST) if (images / n).is_dir()] if images.is_dir() else []
    learns = not own or any(name in TRAIN for name in own)
    found = find_pairs(
        str(folder), folders=None, channels=3, ignore_index=config.ignore_index,
        test_split=None, names=config.classes, with_training=learns,
    )  # fmt: skip
    split = read_masks_splits(found, own, learns=learns)
    root = Path(found.test.pairs.masks[0])
    masks = next(p for p in root.parents if p.parent == folder)
    for name in own:
        known = {part for pair in split.names for part in pair}
        if name not in known and (masks / name).is_dir():
            extra = match_by_name(str(folder), images / name, masks / name, 3, found.rule)
            split.found.append(found._replace(train=_nothing(found.test), test=extra))
            split.names.append(("", name))
    return _subject_of(split, str(folder)), split


def read_masks_splits(found: FoundPairs, own: list[str], *, learns: bool) -> MaskSplits:
    """The two parts that `segment` would take."""
    if not own:
        return MaskSplits([found], True, [("learn", "test")])
    words = found.split.replace("/", "").split(" and ")
    if learns:
        return MaskSplits([found], True, [(words[0], words[1])])
    return MaskSplits([found._replace(train=_nothing(found.test))], False, [("", words[1])])


def _nothing(like: MaskSplit) -> MaskSplit:
    return MaskSplit(like.pairs.select([]), [], [])


def _splits(masks: MaskSplits) -> Iterator[tuple[str, MaskSplit]]:
    for found, names in zip(masks.found, masks.names, strict=True):
        yield from zip(names, (found.train, found.test), strict=True)


def _subject_of(splits: MaskSplits, folder: str) -> Subject:
    paths, masks, part, names = [], [], [], []
    for name, split in _splits(splits):
        if not name:
            continue
        own = [*split.pairs.paths, *split.without_mask]
        paths += own
        masks += [*split.pairs.masks, *split.without_image]
        part += [len(names)] * len(own)
        names.append(name)
    return Subject(
        kind="masks",
        name=folder,
        paths=paths,
        parts=tuple(names),
        part=np.array(part, dtype=np.int16),
        masks=masks,
        root=folder,
    )


def of_masks(splits: MaskSplits, lost: set[str], config: DataCheckConfig) -> Labels:
    """What is wrong with the masks, in the words of `segment`, and the pixels of each class.

    Args:
        splits: From `open_masks`.
        lost: Images and masks that took a process along: they are not opened here.
        config: What was asked.
    """
    findings, counts, names, said = [], {}, (), {}
    rule: Rule | None = None
    for found, own in zip(splits.found, splits.names, strict=True):
        found = found._replace(
            train=_without(found.train, lost),
            test=_without(found.test, lost),
        )
        if rule is not None:  # what the first parts told of the values holds for all
            found = found._replace(rule=rule, alternatives=())
        checked = mask_check.check_pairs(found, config.num_classes)
        rule = checked.rule
        told = class_names(checked.names, checked.num_classes, rule)
        names = told if len(told) > len(names) else names
        if checked.values:
            where = " and ".join(filter(None, own))
            said[f"values in {where}"] = describe_values(checked, told)
        findings += [_of_consequence(one, own) for one in checked.findings]
        counts |= {name: p for name, p in zip(own, checked.pixels, strict=True) if name}
        if own[0]:
            try:
                mask_check.require_usable(found, checked)
            except UserError as error:
                if not any(one.severity == "fatal" for one in findings):
                    findings.append(_stops("`mvmae segment` would stop", error))
    padded = {
        name: (*pixels, *([0] * (len(names) - len(pixels)))) for name, pixels in counts.items()
    }
    findings += _unseen(names, padded, "pixels")
    return Labels("pixels", names, padded, said, [one for one in findings if one.count])


def _without(split: MaskSplit, lost: set[str]) -> MaskSplit:
    pairs = split.pairs
    keep = [
        at
        for at, (image, mask) in enumerate(zip(pairs.paths, pairs.masks, strict=True))
        if image not in lost and mask not in lost
    ]
    return split._replace(pairs=pairs.select(keep))


def _of_consequence(one: mask_check.Finding, names: tuple[str, str]) -> Finding:
    fatal = one.consequence == mask_check.FATAL
    where = " and ".join(filter(None, names))
    return Finding(
        severity="fatal" if fatal else "skipped",
        what=f"{where}: {one.what}",
        advice="set --num-classes, or --ignore-index for a value that counts for nothing"
        if fatal
        else "`mvmae segment` leaves them out",
        examples=one.examples,
        total=one.count,
    )
