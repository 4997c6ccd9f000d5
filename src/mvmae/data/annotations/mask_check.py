"""Whether images and masks fit together: every pair is checked once, before any training."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from mvmae.data.annotations.findings import Finding, FindingCounter
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
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.reading.deep_formats import open_image, upright_size
from mvmae.errors import UserError

MIN_SPARSE_CLASSES = 64  # fewer classes are never suspected
MAX_DESCRIBED_VALUES = 6  # ignored ones and classes each
MAX_CLASSES_PER_KNOWN = 4  # with more for each class that occurs or has a name, a value is odd


class CheckedMasks(NamedTuple):
    """What the check of all pairs found."""

    findings: tuple[Finding, ...]
    usable: tuple[tuple[int, ...], tuple[int, ...]]
    """Indices of the usable training and test pairs."""

    pixels: tuple[tuple[int, ...], tuple[int, ...]]
    """Training and test pixels of each class."""

    rule: Rule
    """What the values mean, now that all of them are known."""

    names: dict[int, str]
    """Names of the classes by that rule."""

    values: dict[int, int]
    """Pixels of each value in both splits."""

    @property
    def num_classes(self) -> int:
        """Number of classes, including those without a pixel."""
        return len(self.pixels[0])


class _PairFacts(NamedTuple):
    """What was found in one pair."""

    mask: str
    problem: str = ""
    """Empty where the pair can be used."""

    detail: str = ""
    values: Mapping[int, int] = {}
    """Pixels of each value."""

    classes: Mapping[int, int] = {}
    """Pixels of each class, once it is known what the values mean."""


def check_pairs(
    found: FoundPairs,
    num_classes: int | None = None,
    advance: Callable[[int], object] = lambda n: None,
) -> CheckedMasks:
    """Read every mask and every image's header, and list what is wrong.

    Args:
        found: Where images and masks are.
        num_classes: Number of classes. Default: as many as have names, else as the masks have.
        advance: Called with 1 after each pair.

    Raises:
        UserError: The file of class names cannot be read by the rule that holds.
    """
    splits = (found.train, found.test)
    # What a value means is known only when all masks were read.
    read = [_read_pairs(split, advance) for split in splits]
    occurring = {value for pairs in read for pair in pairs for value in pair.values}
    rule = _choose_rule(found, occurring)
    names = read_class_names(found.names_file, rule) if found.names_file else found.names
    train, test = ([_with_classes(pair, rule) for pair in pairs] for pairs in read)
    used = [pair for pair in (*train, *test) if not pair.problem]
    known = {number for pair in used for number in pair.classes}
    count = num_classes or max(names, default=-1) + 1 or max(known, default=-1) + 1
    notes = FindingCounter()
    _count_unpaired(splits, notes)
    for pair in (*train, *test):
        if pair.problem:
            example = f"{pair.mask} ({pair.detail})" if pair.detail else pair.mask
            notes.add(pair.problem, example, "left out")
    _count_beyond(used, count, rule, notes)
    most = max(MIN_SPARSE_CLASSES, MAX_CLASSES_PER_KNOWN * max(len(known), len(names)))
    if num_classes is None and count > most:
        where = {rule.to_value(number): f"in {found.names_file}" for number in names}
        for pair in used:
            where |= dict.fromkeys(pair.values, f"in {pair.mask}")
        _count_sparse(where, rule, count, notes)
    return CheckedMasks(
        tuple(notes.values()),
        (_usable_indices(train), _usable_indices(test)),
        (_pixels_of_each_class(train, count), _pixels_of_each_class(test, count)),
        rule,
        names,
        dict(_sum_counts(pair.values for pair in used)),
    )


def _choose_rule(found: FoundPairs, occurring: set[int]) -> Rule:
    """Choose the first rule that gives two classes or more, none of them too large to be one.

    Black and white is only assumed where exactly these two values occur. Nothing is assumed where
    a file of values and names gives two classes, or where there is one split, in which classes may
    well be missing.
    """
    if _num_names_by_value(found) > 1 or (found.with_training and not len(found.train.pairs)):
        return found.rule
    values = np.array(sorted(occurring), dtype=np.int64)
    for rule in (found.rule, *found.alternatives):
        classes = set(rule.to_classes(values).tolist()) - {IGNORED}
        is_assumed = rule.foreground is not None and rule != found.rule
        if is_assumed and occurring != {0, rule.foreground}:
            continue
        if len(classes) > 1 and max(classes) < MAX_CLASS:
            return rule
    return found.rule


def _num_names_by_value(found: FoundPairs) -> int:
    """Number of classes that a file names by their mask values, if `found.rule` holds."""
    file = found.names_file
    if file is None or not (file.suffix.lower() == ".csv" or file.name.startswith("objectInfo")):
        return 0
    with suppress(UserError):  # it names none by this rule
        return len(read_class_names(file, found.rule))
    return 0


def _with_classes(pair: _PairFacts, rule: Rule) -> _PairFacts:
    """Add the classes of a pair's values."""
    if pair.problem:
        return pair
    numbers = rule.to_classes(np.array(list(pair.values), dtype=np.int64)).tolist()
    classes: Counter[int] = Counter()
    for number, count in zip(numbers, pair.values.values(), strict=True):
        if number != IGNORED:
            classes[number] += count
    if classes:
        return pair._replace(classes=dict(classes))
    values = ", ".join(map(str, sorted(pair.values)[:4]))
    problem = "masks in which every pixel is ignored"
    return pair._replace(problem=problem, detail=f"only values {values}")


def _usable_indices(pairs: Sequence[_PairFacts]) -> tuple[int, ...]:
    return tuple(index for index, pair in enumerate(pairs) if not pair.problem)


def _pixels_of_each_class(pairs: Sequence[_PairFacts], count: int) -> tuple[int, ...]:
    total = _sum_counts(pair.classes for pair in pairs)
    return tuple(total[number] for number in range(count))


def _sum_counts(counts: Iterable[Mapping[int, int]]) -> Counter[int]:
    total: Counter[int] = Counter()
    for one in counts:
        total.update(one)
    return total


def _count_unpaired(splits: Sequence[MaskSplit], notes: FindingCounter) -> None:
    for what, field in (
        ("images without a mask", "without_mask"),
        ("masks without an image", "without_image"),
        ("names of two images or two masks", "same_name"),
    ):
        for split in splits:
            for paths in getattr(split, field):
                notes.add(what, paths, "left out")


def _count_beyond(pairs: list[_PairFacts], count: int, rule: Rule, notes: FindingCounter) -> None:
    """Count masks with a value beyond the last class."""
    for pair in pairs:
        if max(pair.classes) >= count:
            values = np.array(sorted(pair.values))
            largest = values[rule.to_classes(values) >= count][-1]
            what = f"masks with a value beyond the {count} classes"
            notes.add(what, f"{pair.mask} (value {largest})", "stop")


def _count_sparse(where: dict[int, str], rule: Rule, count: int, notes: FindingCounter) -> None:
    """Count values so far apart that hardly any class would occur: one of them is not a class."""
    values = np.array(sorted(where))
    values = values[rule.to_classes(values) != IGNORED]
    what = f"values, so far apart that {count} classes would be counted up to the largest"
    for value in values[::-1].tolist():
        notes.add(what, f"{value} {where[value]}", "stop")


def _read_pairs(split: MaskSplit, advance: Callable[[int], object]) -> list[_PairFacts]:
    """Read every pair, in one thread per core: decoders release the interpreter lock."""
    facts = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for pair in threads.map(_read_pair, split.pairs.paths, split.pairs.masks):
            facts.append(pair)
            advance(1)
    return facts


def _read_pair(image: str, mask: str) -> _PairFacts:
    try:
        with open_image(image) as file:
            height, width = upright_size(file)
    except Exception as error:  # Pillow raises anything
        return _PairFacts(mask, "images that cannot be read", _one_line(error))
    try:
        values = read_values(mask)
    except ColourMaskError:
        return _PairFacts(mask, "masks that are colour pictures, not class numbers")
    except UnreadableImageError as error:
        return _PairFacts(mask, "masks that cannot be read", _one_line(error))
    if values.shape != (height, width):
        sizes = f"{values.shape[1]} x {values.shape[0]}, the image {width} x {height}"
        return _PairFacts(mask, "masks of a different size than their image", sizes)
    return _PairFacts(mask, values=count_values(values))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__


def require_usable(found: FoundPairs, checked: CheckedMasks) -> None:
    """Make sure that the pairs can be trained and tested on.

    Raises:
        UserError: A value is not a class, there are fewer than two classes, or fewer than half of
            a split's pairs can be used.
    """
    for finding in checked.findings:
        if finding.remedy == "stop":
            more_classes = "set --num-classes, or " if found.with_training else ""
            raise UserError(
                f"{finding.count} {finding.what}, for example {finding.examples[0]}: "
                f"{more_classes}set --ignore-index to a value that is not a class"
            )
    for split, usable, name in zip(
        (found.train, found.test), checked.usable, ("training", "test"), strict=True
    ):
        total = len(split.pairs) + len(split.same_name)  # each of these would have been a pair
        is_needed = found.with_training or split is found.test
        if is_needed and len(usable) < max(1, total / 2):
            worst = max(checked.findings, key=lambda finding: finding.count, default=None)
            example = f", for example {worst.examples[0]}" if worst else ""
            why = f"; {worst.count} {worst.what}{example}" if worst else ""
            raise UserError(
                f"{total - len(usable)} of the {total} {name} pairs cannot be used"
                f"{why}{_ignore_index_hint(found, checked)}"
            )
    if checked.num_classes < 2:
        values = ", ".join(map(str, sorted(checked.values)[:9]))
        raise UserError(
            f"the masks of {found.test.pairs.name} have only 1 class, of values {values}: classes "
            f"are 0, 1, 2, ..., and {ALWAYS_IGNORED} is always ignored"
            f"{_ignore_index_hint(found, checked)}"
        )


def _ignore_index_hint(found: FoundPairs, checked: CheckedMasks) -> str:
    """Explain what another --ignore-index would change, if it would."""
    ignored = checked.rule.ignored
    if ignored is not None:
        return f"; {ignored} is ignored here, and --ignore-index none makes it a class"
    if not found.alternatives and ALWAYS_IGNORED in checked.values and found.with_training:
        return "; without --ignore-index, masks of only 0 and 255 have two classes"
    return ""


def usable_data(found: FoundPairs, checked: CheckedMasks) -> SegmentationData:
    """Return the pairs that can be used.

    Raises:
        UserError: As `require_usable`.
    """
    require_usable(found, checked)
    train, test = (
        split.pairs.select(usable, checked.rule)
        for split, usable in zip((found.train, found.test), checked.usable, strict=True)
    )
    names = class_names(checked.names, checked.num_classes, checked.rule)
    return SegmentationData(train, test, found.split, names)


def describe_values(checked: CheckedMasks, classes: Sequence[str]) -> str:
    """Describe what each value in the masks means, with its share of the pixels."""
    rule, values = checked.rule, checked.values
    total = sum(values.values())
    order = sorted(values, key=lambda value: -values[value])
    numbers = rule.to_classes(np.array(order, dtype=np.int64)).tolist()
    ignored, used = [], []
    for value, number in zip(order, numbers, strict=True):
        share = f"({100 * values[value] / total:.1f} %)"
        if number == IGNORED:
            ignored.append(f"{value} is ignored {share}")
            continue
        name = classes[number] if number < len(classes) else "not a class"
        called = f"class {name}" if name.isdecimal() else name
        used.append(f"{value} is {'a class' if name == str(value) else called} {share}")
    shown = [*ignored[:MAX_DESCRIBED_VALUES], *used[:MAX_DESCRIBED_VALUES]]
    if more := len(ignored) + len(used) - len(shown):
        shown.append(f"and {more} more")
    return f"{', '.join(shown)}{_meaning_hint(rule, values)}"


def _meaning_hint(rule: Rule, values: Mapping[int, int]) -> str:
    if rule.foreground is not None:
        return "; black-and-white masks have two classes, --ignore-index none would leave one"
    if rule.ignored == 0 and 0 in values:  # any other value was asked for by the user
        return "; --ignore-index none makes 0 a class"
    if ALWAYS_IGNORED in values:
        return f"; {ALWAYS_IGNORED} is always ignored beside other classes"
    return ""
