"""Whether images and masks fit together: every pair is looked at once, before any training."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from mvmae.data.decode import FORMATS, UnreadableImageError
from mvmae.data.segmentation import (
    IGNORED,
    ColourMaskError,
    Found,
    Rule,
    Segmented,
    Split,
    class_names,
    read_values,
)
from mvmae.errors import UserError

EXAMPLES = 3  # named of each kind
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
ORIENTATION = 0x0112  # EXIF's tag

LEFT_OUT = "left out"
FATAL = "fatal"


class Finding(NamedTuple):
    """One kind of thing that is not as it should be."""

    what: str
    count: int
    examples: tuple[str, ...]
    consequence: str


class Checked(NamedTuple):
    """What a look at all pairs gave."""

    findings: tuple[Finding, ...]
    usable: tuple[tuple[int, ...], tuple[int, ...]]
    """Places of the pairs that can be used, to learn from and to test on."""

    pixels: tuple[tuple[int, ...], tuple[int, ...]]
    """Pixels of each class in them."""

    @property
    def num_classes(self) -> int:
        """Classes, those without a pixel included."""
        return len(self.pixels[0])


class _Seen(NamedTuple):
    """What one pair is."""

    problem: str
    """Kind, or nothing."""

    said: str
    classes: dict[int, int]
    """Pixels of each class."""


def check_pairs(
    found: Found, num_classes: int | None = None, advance: Callable[[int], object] = lambda n: None
) -> Checked:
    """Read every mask and every image's header, and say what is wrong.

    Args:
        found: Where images and masks lie.
        num_classes: Default: as many as have names, else as the masks hold.
        advance: Told of each pair that is done.
    """
    parts = (found.train, found.test)
    seen = [_look_at(part, advance) for part in parts]
    used = [one for part in seen for one in part if not one.problem]
    counted = max((number for one in used for number in one.classes), default=-1) + 1
    named = max(found.names, default=-1) + 1
    count = num_classes or named or counted
    findings = _unpaired(parts)
    problems = [
        (one.problem, f"{split.pairs.masks[place]} ({one.said})" if one.said else "", split, place)
        for split, part in zip(parts, seen, strict=True)
        for place, one in enumerate(part)
        if one.problem
    ]
    for kind in dict.fromkeys(problem for problem, *_ in problems):
        own = [said or s.pairs.masks[at] for problem, said, s, at in problems if problem == kind]
        findings.append(_finding(kind, own, LEFT_OUT))
    findings += _beyond(parts, seen, count, found.rule)
    usable, pixels = [], []
    for part in seen:
        places = [place for place, one in enumerate(part) if not one.problem]
        total: Counter[int] = Counter()
        for place in places:
            total.update(part[place].classes)
        usable.append(tuple(places))
        pixels.append(tuple(total[number] for number in range(count)))
    return Checked(tuple(findings), (usable[0], usable[1]), (pixels[0], pixels[1]))


def _finding(what: str, places: Sequence[str], consequence: str) -> Finding:
    return Finding(what, len(places), tuple(places[:EXAMPLES]), consequence)


def _unpaired(parts: Iterable[Split]) -> list[Finding]:
    images = [path for part in parts for path in part.without_mask]
    masks = [path for part in parts for path in part.without_image]
    findings = [
        _finding("images without a mask", images, LEFT_OUT),
        _finding("masks without an image", masks, LEFT_OUT),
    ]
    return [finding for finding in findings if finding.count]


def _beyond(
    parts: Sequence[Split], seen: Sequence[Sequence[_Seen]], count: int, rule: Rule
) -> list[Finding]:
    """Masks with a value that is no class."""
    places = []
    for split, part in zip(parts, seen, strict=True):
        for place, one in enumerate(part):
            if (largest := max(one.classes, default=0)) >= count:
                places.append(f"{split.pairs.masks[place]} (value {rule.value(largest)})")
    what = f"masks with a value beyond the {count} classes"
    return [_finding(what, places, FATAL)] if places else []


def _look_at(split: Split, advance: Callable[[int], object]) -> list[_Seen]:
    """Every pair, read by a thread for each core: decoders let others run meanwhile."""
    pairs = split.pairs
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        found = threads.map(_seen, pairs.paths, pairs.masks, [pairs.rule] * len(pairs))
        looked = []
        for one in found:
            looked.append(one)
            advance(1)
    return looked


def _seen(image: str, mask: str, rule: Rule) -> _Seen:
    try:
        height, width = size_of(image)
    except Exception as error:  # Pillow raises anything
        return _Seen("images that cannot be read", _short(error), {})
    try:
        values = read_values(mask)
    except ColourMaskError:
        return _Seen("masks that are colour pictures, not numbers of classes", "", {})
    except UnreadableImageError as error:
        return _Seen("masks that cannot be read", _short(error), {})
    if values.shape != (height, width):
        sizes = f"{values.shape[1]} x {values.shape[0]}, the image {width} x {height}"
        return _Seen("masks of another size than their image", sizes, {})
    numbers, counts = np.unique(rule.classes(values), return_counts=True)
    classes = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    classes.pop(IGNORED, None)
    return _Seen("" if classes else "masks in which nothing counts", "", classes)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__


def size_of(image: str) -> tuple[int, int]:
    """Height and width of an image, upright, from its header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as where it is decoded
        with Image.open(image, formats=FORMATS) as file:
            width, height = file.size
            turned = file.getexif().get(ORIENTATION) in TURNED
    return (width, height) if turned else (height, width)


def refuse(found: Found, checked: Checked) -> None:
    """Stop where the pairs cannot be used.

    Raises:
        UserError: A value is no class, there are fewer than two classes, or fewer than half of a
            part can be used.
    """
    for finding in checked.findings:
        if finding.consequence == FATAL:
            raise UserError(
                f"{finding.count} {finding.what}, {finding.examples[0]} for one: "
                "set --num-classes, or --ignore-index for a value that counts for nothing"
            )
    for split, usable, part in zip(
        (found.train, found.test), checked.usable, ("learn from", "test on"), strict=True
    ):
        if len(usable) < len(split.pairs) / 2 or not usable:
            worst = max(checked.findings, key=lambda finding: finding.count)
            raise UserError(
                f"{len(split.pairs) - len(usable)} of the {len(split.pairs)} pairs to {part} "
                f"cannot be used; {worst.count} {worst.what}, {worst.examples[0]} for one"
            )
    if checked.num_classes < 2:
        raise UserError(
            f"the masks of {found.test.pairs.name} hold {checked.num_classes} class only: values "
            f"of classes are 0, 1, 2, ... and 255 never counts (ignored here: "
            f"{found.rule.ignored if found.rule.ignored is not None else 'no other'})"
        )


def accepted(found: Found, checked: Checked) -> Segmented:
    """The pairs that can be used.

    Raises:
        UserError: See `refuse`.
    """
    refuse(found, checked)
    train, test = (
        split.pairs.only(usable)
        for split, usable in zip((found.train, found.test), checked.usable, strict=True)
    )
    return Segmented(train, test, found.split, class_names(found.names, checked.num_classes))
