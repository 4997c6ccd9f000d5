"""Boxes and masks of all splits, checked as `detect` and `segment` check them before training."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mvmae.config.datatools import DataCheckConfig
from mvmae.data.annotations.coco import SplitFiles, find_split, split_names
from mvmae.data.annotations.coco_check import check_coco, load_coco, require_same_categories
from mvmae.data.annotations.findings import Finding, Remedy
from mvmae.data.annotations.mask_check import check_pairs, describe_values, require_usable
from mvmae.data.annotations.mask_values import Rule
from mvmae.data.annotations.masks import (
    FoundPairs,
    MaskSplit,
    class_names,
    find_pairs,
    match_by_name,
    without_files,
)
from mvmae.data.reading.decode import EXTENSIONS
from mvmae.data.sources.labelled import TEST, TRAIN
from mvmae.datatools.check.columns import Columns
from mvmae.datatools.check.subjects import Subject
from mvmae.errors import UserError

ADVICE: dict[Remedy, str] = {
    "stop": "correct the file: `mvmae {command}` stops at this",
    "left out": "`mvmae {command}` leaves them out",
    "clipped": "`mvmae {command}` clips them to the image",
    "renumbered": "`mvmae {command}` renumbers them",
    "kept": "`mvmae {command}` uses them as they are",
}
VALUE_ADVICE = "set --num-classes, or set --ignore-index to a value that is not a class"


class Labels(NamedTuple):
    """How many boxes or pixels each class has, and what is wrong with them."""

    unit: str
    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    """Boxes or pixels of each class, by split."""

    facts: dict[str, str]
    findings: list[Finding]


class CocoSplits(NamedTuple):
    """Annotation files that can be read, and why the others cannot."""

    files: list[SplitFiles]
    contents: list[dict[str, Any]]
    findings: list[Finding]

    def check(self, subject: Subject, columns: Columns, config: DataCheckConfig) -> Labels:
        """Check boxes and masks as `detect` does, and count them.

        The images' sizes are known from the check of the files, so no image is opened here.
        """
        shapes = {
            path: (int(shape[0]), int(shape[1])) if shape[0] else None
            for path, shape in zip(subject.paths, columns["shape"], strict=False)
        }
        # All splits, although `detect` trains with two: a third may be for a later test.
        findings, counts, facts, checked = list(self.findings), {}, {}, []
        for files, content in zip(self.files, self.contents, strict=True):
            paths = {name: str(files.images / name) for name in _image_names(content)}
            sizes = {name: shapes[path] for name, path in paths.items() if path in shapes}
            one = check_coco(content, sizes)
            checked.append(one)
            findings += [_with_advice(f, files.name, "detect") for f in one.findings]
            findings += _unlisted_images(files, set(paths.values()))
            annotations = one.content["annotations"]
            counts[files.name] = Counter(a["category_id"] for a in annotations)
            crowds = sum(a["iscrowd"] for a in annotations)
            facts[files.name] = (
                f"{len(one.content['images'])} images and {len(annotations) - crowds} boxes "
                f"{'with' if one.has_masks else 'without'} masks can be used"
                f"{f', {crowds} crowds' if crowds else ''}"
            )
            try:
                require_same_categories([self.files[0], files], [checked[0], one])
            except UserError as error:
                findings.append(_fatal("splits with different categories", error))
            except (KeyError, TypeError):
                pass  # categories without id or name are fatal already
        # The union over splits; differing categories are a separate finding.
        names = {
            category["id"]: str(category["name"])
            for one in checked
            for category in one.content["categories"]
            if type(category.get("id")) is int and "name" in category
        }
        ids = sorted(names)
        if ids and (gaps := ids[-1] - ids[0] + 1 - len(ids)):
            facts["category ids"] = f"{ids[0]} to {ids[-1]} with {gaps} gaps, which do no harm"
        classes = tuple(names[number] for number in ids)
        table = {name: tuple(own[number] for number in ids) for name, own in counts.items()}
        findings += _classes_never_trained(classes, table, "boxes")
        return Labels("boxes", classes, table, facts, findings)


class MaskSplits(NamedTuple):
    """Images with masks; all but the first have no training images."""

    found: list[FoundPairs]
    names: list[tuple[str, str]]
    """Names of the training and the test split of each; an empty name has no images."""

    def check(self, subject: Subject, columns: Columns, config: DataCheckConfig) -> Labels:
        """Check masks as `segment` does, and count the pixels of each class.

        Images and masks that crashed or stopped the process that read them are not opened again.
        """
        paths = [*subject.paths, *subject.masks]
        lost = {paths[at] for at in columns.lost() if at < len(paths)}
        findings, counts, classes, facts = [], {}, (), {}
        rule: Rule | None = None
        for found, names in zip(self.found, self.names, strict=True):
            found = found._replace(
                train=_without_lost(found.train, lost), test=_without_lost(found.test, lost)
            )
            if rule is not None:  # the first splits decide what the values mean
                found = found._replace(rule=rule, alternatives=())
            checked = check_pairs(found, config.num_classes)
            rule = checked.rule
            known = class_names(checked.names, checked.num_classes, rule)
            classes = known if len(known) > len(classes) else classes
            where = " and ".join(filter(None, names))
            if checked.values:
                facts[f"values in {where}"] = describe_values(checked, known)
            findings += [_with_advice(f, where, "segment", VALUE_ADVICE) for f in checked.findings]
            counts |= {name: p for name, p in zip(names, checked.pixels, strict=True) if name}
            # The splits for training alone decide whether `segment` starts.
            if names[0] and not any(one.severity == "fatal" for one in findings):
                try:
                    require_usable(found, checked)
                except UserError as error:
                    findings.append(_fatal("`mvmae segment` would stop", error))
        padded = {
            name: (*pixels, *([0] * (len(classes) - len(pixels))))
            for name, pixels in counts.items()
        }
        findings += _classes_never_trained(classes, padded, "pixels")
        return Labels("pixels", classes, padded, facts, findings)


def open_coco(config: DataCheckConfig) -> tuple[Subject, CocoSplits]:
    """Open all annotation files of a folder, and list the images that they name.

    Raises:
        UserError: The folder is not in COCO's layout.
    """
    folder = Path(config.data[0])
    splits, paths, part = CocoSplits([], [], []), [], []
    for name in split_names(folder):
        try:
            files = find_split(folder, name)
            content = load_coco(files.file)
        except UserError as error:
            splits.findings.append(_fatal("splits that cannot be used", error))
            continue
        named = [files.images / name for name in _image_names(content) if "\0" not in name]
        existing = [str(path) for path in dict.fromkeys(named) if path.is_file()]
        paths += existing
        part += [len(splits.files)] * len(existing)
        splits.files.append(files)
        splits.contents.append(content)
    subject = Subject(
        kind="coco",
        name=str(folder),
        paths=paths,
        parts=tuple(files.name for files in splits.files) or ("",),
        part=np.array(part, dtype=np.int16),
        root=f"{folder}/",
    )
    return subject, splits


def _image_names(content: dict[str, Any]) -> Iterator[str]:
    for image in content["images"]:
        if isinstance(name := image.get("file_name"), str):
            yield name


def _fatal(what: str, error: UserError) -> Finding:
    advice = "correct it: training stops at this"
    return Finding(what=what, remedy="stop", advice=advice, examples=(str(error),))


def _with_advice(finding: Finding, split: str, command: str, on_stop: str = "") -> Finding:
    """Add the name of the split, and what the command will do or the user can do."""
    advice = ADVICE[finding.remedy].format(command=command)
    if finding.remedy == "stop" and on_stop:
        advice = on_stop
    return replace(finding, what=f"{split}: {finding.what}", advice=advice)


def _unlisted_images(files: SplitFiles, listed: set[str]) -> Iterator[Finding]:
    """Find images in a split's own folder that its file does not name."""
    if files.images.name != files.name:  # a folder that several splits share
        return
    images = (f for f in files.images.rglob("*") if f.suffix.lower() in EXTENSIONS)
    yield Finding(
        what=f"{files.name}: images that the annotation file does not name",
        advice="`mvmae detect` does not see them",
        examples=tuple(sorted(str(file) for file in images if str(file) not in listed)),
    )


def _classes_never_trained(
    classes: tuple[str, ...], counts: dict[str, tuple[int, ...]], unit: str
) -> Iterator[Finding]:
    """Find classes that occur in other splits, but not in the training split."""
    # Also in a plain pair of folders, of which `segment` tests on every fifth image: a class that
    # only those show would lower the mean IoU of any training.
    train = next((name for name in counts if name.startswith("train")), None)
    if train is None or len(counts) < 2:
        return
    others = np.sum([own for name, own in counts.items() if name != train], axis=0)
    rows = zip(classes, counts[train], others, strict=True)
    yield Finding(
        what=f"classes without {unit} in {train}, but with some in other splits",
        advice="they are tested but cannot be learnt",
        examples=tuple(name for name, trained, tested in rows if tested and not trained),
    )


def open_masks(config: DataCheckConfig) -> tuple[Subject, MaskSplits]:
    """Find the images with masks of all splits of a folder.

    Raises:
        UserError: There are none.
    """
    folder = Path(config.data[0])
    images = folder / "images"
    own = [n for n in (*TRAIN, *TEST) if (images / n).is_dir()] if images.is_dir() else []
    with_training = not own or any(name in TRAIN for name in own)
    found = find_pairs(
        str(folder),
        folders=None,
        channels=3,
        ignore_index=config.ignore_index,
        test_split=None,
        names=config.classes,
        with_training=with_training,
    )
    train, test = found.split.replace("/", "").split(" and ") if own else ("train", "test")
    splits = MaskSplits([found], [(train if with_training else "", test)])
    # The masks are in one of several folders with usual names; `find_pairs` has chosen it.
    first_mask = Path(found.test.pairs.masks[0])
    masks = next(parent for parent in first_mask.parents if parent.parent == folder)
    for name in own:
        if name not in (train, test) and (masks / name).is_dir():
            extra = match_by_name(str(folder), images / name, masks / name, 3, found.rule)
            splits.found.append(found._replace(train=without_files(found.test), test=extra))
            splits.names.append(("", name))
    return _subject_of_masks(splits, str(folder)), splits


def _subject_of_masks(splits: MaskSplits, folder: str) -> Subject:
    named = [
        (name, split)
        for found, names in zip(splits.found, splits.names, strict=True)
        for name, split in zip(names, (found.train, found.test), strict=True)
        if name
    ]
    images = [[*split.pairs.paths, *split.without_mask] for _, split in named]
    return Subject(
        kind="masks",
        name=folder,
        paths=[path for own in images for path in own],
        parts=tuple(name for name, _ in named),
        part=np.repeat(np.arange(len(named), dtype=np.int16), [len(own) for own in images]),
        masks=[mask for _, one in named for mask in (*one.pairs.masks, *one.without_image)],
        root=f"{folder}/",
    )


def _without_lost(split: MaskSplit, lost: set[str]) -> MaskSplit:
    """Drop pairs of which the image or the mask is lost."""
    pairs = list(zip(split.pairs.paths, split.pairs.masks, strict=True))
    keep = [at for at, pair in enumerate(pairs) if lost.isdisjoint(pair)]
    return split._replace(pairs=split.pairs.select(keep))
