"""Whether images and masks fit together: every pair is looked at once, before any training."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mvmae.data.annotations.mask_values import (
    ALWAYS_IGNORED,
    IGNORED,
    MAX_CLASS,
    ColourMaskError,
    Rule,
    count_values,
    read_class_names,
    read_values,
)
from mvmae.data.annotations.masks import FoundPairs, MaskSplit, SegmentationData, class_names
from mvmae.data.reading.decode import FORMATS, UnreadableImageError
from mvmae.errors import UserError

MAX_EXAMPLES = 3  # named of each kind
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
ORIENTATION = 0x0112  # EXIF's tag
SPARSE, MANY = 4, 64  # classes for each that is known, and in all, from which something is odd

LEFT_OUT = "left out"
FATAL = "fatal"


class Finding(NamedTuple):
    """One kind of thing that is not as it should be."""

    what: str
    count: int
    examples: tuple[str, ...]
    consequence: str


class CheckedMasks(NamedTuple):
    """What a look at all pairs gave."""

    findings: tuple[Finding, ...]
    usable: tuple[tuple[int, ...], tuple[int, ...]]
    """Places of the pairs that can be used, to learn from and to test on."""

    pixels: tuple[tuple[int, ...], tuple[int, ...]]
    """Pixels of each class in them."""

    rule: Rule
    """What the values mean, as far as is known once all are read."""

    names: dict[int, str]
    """Of classes, by that rule."""

    values: dict[int, int]
    """Pixels of each value in both parts."""

    @property
    def num_classes(self) -> int:
        """Classes, those without a pixel included."""
        return len(self.pixels[0])


class _Seen(NamedTuple):
    """What one pair is."""

    problem: str
    """Kind, or nothing."""

    said: str
    values: dict[int, int]
    """Pixels of each value."""

    classes: dict[int, int]
    """Pixels of each class, once it is known what the values mean."""


def check_pairs(
    found: FoundPairs,
    num_classes: int | None = None,
    advance: Callable[[int], object] = lambda n: None,
) -> CheckedMasks:
    """Read every mask and every image's header, and say what is wrong.

    Args:
        found: Where images and masks lie.
        num_classes: Default: as many as have names, else as the masks hold.
        advance: Told of each pair that is done.

    Raises:
        UserError: The file of the classes' names is none by the rule that holds.
    """
    parts = (found.train, found.test)
    looked = [_look_at(part, advance) for part in parts]
    occurring = {value for part in looked for one in part for value in one.values}
    rule = _rule_for(found, occurring)
    names = read_class_names(found.names_file, rule) if found.names_file else found.names
    seen = [[_judged(one, rule) for one in part] for part in looked]
    used = [one for part in seen for one in part if not one.problem]
    known = {number for one in used for number in one.classes}
    count = num_classes or max(names, default=-1) + 1 or max(known, default=-1) + 1
    findings = [*_unpaired(parts), *_problems(parts, seen)]
    findings += _beyond(parts, seen, count, rule)
    if num_classes is None and count > max(MANY, SPARSE * max(len(known), len(names))):
        findings.append(_sparse(parts, seen, names, rule, count, found.names_file))
    usable = [tuple(at for at, one in enumerate(part) if not one.problem) for part in seen]
    pixels = []
    for part in seen:
        total: Counter[int] = Counter()
        for one in part:
            total.update(one.classes)
        pixels.append(tuple(total[number] for number in range(count)))
    values: Counter[int] = Counter()
    for one in used:
        values.update(one.values)
    both = (usable[0], usable[1]), (pixels[0], pixels[1])
    return CheckedMasks(tuple(findings), *both, rule, names, dict(values))


def _rule_for(found: FoundPairs, occurring: set[int]) -> Rule:
    """The first rule by which there are two classes, and none that is too large to be one.

    Black and white is guessed of exactly these two values. Nothing is guessed where rows of value
    and name tell of two classes, or of a part alone, in which classes may well be missing.
    """
    if _names_by_value(found) > 1 or (found.with_training and not len(found.train.pairs)):
        return found.rule
    values = np.array(sorted(occurring), dtype=np.int64)
    for rule in (found.rule, *found.alternatives):
        classes = set(rule.to_classes(values).tolist()) - {IGNORED}
        is_guess = rule.foreground is not None and rule != found.rule
        if is_guess and occurring != {0, rule.foreground}:
            continue
        if len(classes) > 1 and max(classes) < MAX_CLASS:
            return rule
    return found.rule


def _names_by_value(found: FoundPairs) -> int:
    """Classes that a file names by the masks' values, if `found.rule` holds."""
    file = found.names_file
    if file is None or not (file.suffix.lower() == ".csv" or file.name.startswith("objectInfo")):
        return 0
    with suppress(UserError):  # it names none by this rule
        return len(read_class_names(file, found.rule))
    return 0


def _judged(one: _Seen, rule: Rule) -> _Seen:
    """With the classes of its values."""
    if one.problem:
        return one
    numbers = rule.to_classes(np.array(list(one.values), dtype=np.int64)).tolist()
    classes: Counter[int] = Counter()
    for number, count in zip(numbers, one.values.values(), strict=True):
        if number != IGNORED:
            classes[number] += count
    if classes:
        return one._replace(classes=dict(classes))
    alone = ", ".join(map(str, sorted(one.values)[:4]))
    return one._replace(problem="masks in which nothing counts", said=f"they hold {alone} alone")


def _problems(parts: Sequence[MaskSplit], seen: Sequence[Sequence[_Seen]]) -> list[Finding]:
    kinds: dict[str, list[str]] = {}
    for split, part in zip(parts, seen, strict=True):
        for place, one in enumerate(part):
            if one.problem:
                mask = split.pairs.masks[place]
                own = kinds.setdefault(one.problem, [])
                own.append(f"{mask} ({one.said})" if one.said else mask)
    return [_finding(kind, places, LEFT_OUT) for kind, places in kinds.items()]


def _finding(what: str, places: Sequence[str], consequence: str) -> Finding:
    return Finding(what, len(places), tuple(places[:MAX_EXAMPLES]), consequence)


def _unpaired(parts: Iterable[MaskSplit]) -> list[Finding]:
    images = [path for part in parts for path in part.without_mask]
    masks = [path for part in parts for path in part.without_image]
    same = [paths for part in parts for paths in part.same_name]
    findings = [
        _finding("images without a mask", images, LEFT_OUT),
        _finding("masks without an image", masks, LEFT_OUT),
        _finding("names of two images or two masks", same, LEFT_OUT),
    ]
    return [finding for finding in findings if finding.count]


def _beyond(
    parts: Sequence[MaskSplit], seen: Sequence[Sequence[_Seen]], count: int, rule: Rule
) -> list[Finding]:
    """Masks with a value that is no class."""
    places = []
    for split, part in zip(parts, seen, strict=True):
        for place, one in enumerate(part):
            if max(one.classes, default=-1) >= count:
                values = np.array(sorted(one.values))
                largest = values[rule.to_classes(values) >= count][-1]
                places.append(f"{split.pairs.masks[place]} (value {largest})")
    what = f"masks with a value beyond the {count} classes"
    return [_finding(what, places, FATAL)] if places else []


def _sparse(
    parts: Sequence[MaskSplit],
    seen: Sequence[Sequence[_Seen]],
    names: dict[int, str],
    rule: Rule,
    count: int,
    names_file: Path | None,
) -> Finding:
    """Values so far apart that hardly any class would occur: one of them is no class."""
    where = {rule.to_value(number): f"in {names_file}" for number in names}
    for split, part in zip(parts, seen, strict=True):
        for place, one in enumerate(part):
            if not one.problem:
                where |= dict.fromkeys(one.values, f"in {split.pairs.masks[place]}")
    values = np.array(sorted(where))
    values = values[rule.to_classes(values) != IGNORED]
    what = f"values, so far apart that {count} classes would be counted up to the largest"
    examples = tuple(f"{value} {where[value]}" for value in values[::-1][:MAX_EXAMPLES].tolist())
    return Finding(what, len(values), examples, FATAL)


def _look_at(split: MaskSplit, advance: Callable[[int], object]) -> list[_Seen]:
    """Every pair, read by a thread for each core: decoders let others run meanwhile."""
    pairs = split.pairs
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        found = threads.map(_seen, pairs.paths, pairs.masks)
        looked = []
        for one in found:
            looked.append(one)
            advance(1)
    return looked


def _seen(image: str, mask: str) -> _Seen:
    try:
        height, width = read_image_size(image)
    except Exception as error:  # Pillow raises anything
        return _Seen("images that cannot be read", _short(error), {}, {})
    try:
        values = read_values(mask)
    except ColourMaskError:
        return _Seen("masks that are colour pictures, not numbers of classes", "", {}, {})
    except UnreadableImageError as error:
        return _Seen("masks that cannot be read", _short(error), {}, {})
    if values.shape != (height, width):
        sizes = f"{values.shape[1]} x {values.shape[0]}, the image {width} x {height}"
        return _Seen("masks of another size than their image", sizes, {}, {})
    return _Seen("", "", count_values(values), {})


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__


def read_image_size(image: str) -> tuple[int, int]:
    """Height and width of an image, upright, from its header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as where it is decoded
        with Image.open(image, formats=FORMATS) as file:
            width, height = file.size
            turned = file.getexif().get(ORIENTATION) in TURNED
    return (width, height) if turned else (height, width)


def require_usable(found: FoundPairs, checked: CheckedMasks) -> None:
    """Stop where the pairs cannot be used.

    Raises:
        UserError: A value is no class, there are fewer than two classes, or fewer than half of a
            part can be used.
    """
    for finding in checked.findings:
        if finding.consequence == FATAL:
            wider = "set --num-classes, or " if found.with_training else ""
            raise UserError(
                f"{finding.count} {finding.what}, {finding.examples[0]} for one: "
                f"{wider}--ignore-index for a value that counts for nothing"
            )
    for split, usable, part in zip(
        (found.train, found.test), checked.usable, ("learn from", "test on"), strict=True
    ):
        all_pairs = len(split.pairs) + len(split.same_name)
        if (found.with_training or split is found.test) and len(usable) < max(1, all_pairs / 2):
            worst = max(checked.findings, key=lambda finding: finding.count, default=None)
            why = f"; {worst.count} {worst.what}, {worst.examples[0]} for one" if worst else ""
            raise UserError(
                f"{all_pairs - len(usable)} of the {all_pairs} pairs to {part} cannot be used"
                f"{why}{_remedy(found, checked)}"
            )
    if checked.num_classes < 2:
        raise UserError(
            f"the masks of {found.test.pairs.name} hold 1 class only, of values "
            f"{', '.join(map(str, sorted(checked.values)[:9]))}: classes are 0, 1, 2, ..., and "
            f"{ALWAYS_IGNORED} never counts{_remedy(found, checked)}"
        )


def _remedy(found: FoundPairs, checked: CheckedMasks) -> str:
    """What an `--ignore-index` that was chosen has to do with it, if it has."""
    ignored = checked.rule.ignored
    if ignored is not None:
        return f"; {ignored} counts for nothing here, and --ignore-index none makes it a class"
    if not found.alternatives and ALWAYS_IGNORED in checked.values and found.with_training:
        return "; without --ignore-index masks of 0 and 255 alone have two classes"
    return ""


def usable_data(found: FoundPairs, checked: CheckedMasks) -> SegmentationData:
    """The pairs that can be used.

    Raises:
        UserError: See `refuse`.
    """
    require_usable(found, checked)
    train, test = (
        split.pairs.select(usable).with_rule(checked.rule)
        for split, usable in zip((found.train, found.test), checked.usable, strict=True)
    )
    names = class_names(checked.names, checked.num_classes, checked.rule)
    return SegmentationData(train, test, found.split, names)
