"""Meaning of the values in mask files, and the names of their classes.

Shapes: H x W pixels.
"""

import csv
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvmae.data.reading.decode import UnreadableImageError, unreadable
from mvmae.data.reading.deep_formats import open_image
from mvmae.data.sources.folders import read_file
from mvmae.errors import UserError

IGNORED = -1  # class of pixels that are neither trained nor tested on
ALWAYS_IGNORED = 255  # value that only black-and-white masks use for a class
MAX_CLASS = 2**15 - 1  # masks are int16; larger classes become this one
MAX_VALUE = 2**16 - 1  # mask files have up to 16 bits
WHITE_VALUES = (ALWAYS_IGNORED, MAX_VALUE)  # in black-and-white masks of 8 and 16 bits


class Rule(NamedTuple):
    """What a value in a mask file means.

    Values above the ignored one move down by one, so that classes count from 0 without a gap; 255
    and negative values are always ignored. In black-and-white masks, `foreground` and 1 are both
    class 1 instead, and other values are not classes.
    """

    ignored: int | None
    foreground: int | None = None

    def to_classes(self, values: np.ndarray) -> np.ndarray:
        """Convert values to classes, as int16; values too large for that become `MAX_CLASS`."""
        values = values.astype(np.int64)  # unsigned values would wrap around below 0
        if self.foreground is not None:
            known = np.where(values == self.foreground, 1, values)
            known = np.where(known > 1, MAX_CLASS, known)
            is_ignored = values < 0
        else:
            known = values - (0 if self.ignored is None else (values > self.ignored))
            is_ignored = (values == ALWAYS_IGNORED) | (values == self.ignored) | (values < 0)
        return np.where(is_ignored, IGNORED, np.minimum(known, MAX_CLASS)).astype(np.int16)

    def to_values(self, classes: np.ndarray) -> np.ndarray:
        """Convert classes back to the values of a file: the inverse of `to_classes`."""
        if self.foreground is not None:
            return np.where(classes == 1, self.foreground, classes)
        return classes + (0 if self.ignored is None else (classes >= self.ignored))

    def to_value(self, number: int) -> int:
        """Convert one class back to its value."""
        return int(self.to_values(np.array([number]))[0])


class ColourMaskError(UnreadableImageError):
    """A mask that is a picture, in which each class has a colour instead of a number."""


def read_values(path: str) -> np.ndarray:
    """Read the values of a mask file, H x W: gray of any depth, or the indices of a palette.

    Raises:
        UnreadableImageError: It cannot be decoded, or its colours are not class numbers.
    """
    try:
        with open_image(read_file(path)) as file:
            values = np.array(file)
    except Exception as error:  # decoders raise anything
        raise unreadable(error) from error
    if values.ndim == 3:  # painting programs save gray as colour
        colours = values[..., : 1 if values.shape[2] == 2 else 3]  # without transparency
        if (colours != colours[..., :1]).any():
            raise ColourMaskError("it has colours instead of class numbers")
        values = colours[..., 0]
    if values.dtype.kind == "f":
        raise UnreadableImageError("it has floating-point numbers instead of class numbers")
    return values.astype(np.int64) if values.dtype.kind != "b" else values.astype(np.uint8)


def count_values(values: np.ndarray) -> dict[int, int]:
    """Count the pixels of each value."""
    if values.size and values.min() >= 0 and values.max() <= MAX_VALUE:
        counts = np.bincount(values.reshape(-1))  # ten times as fast as sorting
        numbers = counts.nonzero()[0]
        counts = counts[numbers]
    else:
        numbers, counts = np.unique(values, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def read_class_names(file: Path, rule: Rule) -> dict[int, str]:
    """Read the names of classes from a file.

    A .csv has rows of a mask value and a name, objectInfo150.txt a tab-separated table of the same;
    any other file has one name per line, starting with class 0.

    Raises:
        UserError: It cannot be read, names no class, or has a value that masks cannot have.
    """
    names: dict[int, str] = {}
    try:
        text = file.read_text(encoding="utf-8-sig")
        lines = [line for line in text.splitlines() if line.strip()]
        if lines and "\t" in lines[0] and lines[0].startswith("Idx"):
            cells = [line.split("\t") for line in lines[1:]]
            rows = [(row[0], row[-1].split(",")[0]) for row in cells]
        elif file.suffix.lower() == ".csv":
            rows = [(row[0], row[1]) for row in csv.reader(lines) if len(row) > 1]
        else:
            rows, names = [], dict(enumerate(line.strip() for line in lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read class names from {file}: {error}") from error
    for value, name in rows:
        if (number := _class_of_row(value, rule, file)) != IGNORED:
            names[number] = name.strip()
    if not names:
        raise UserError(
            f"{file} names no classes: a .csv needs rows of value,name; a .txt one name per line"
        )
    return {number: "".join(filter(str.isprintable, name)) for number, name in names.items()}


def _class_of_row(value: str, rule: Rule, file: Path) -> int:
    """Class of a row's value; `IGNORED` for a heading or anything else that is not a number."""
    if not re.fullmatch(r"\s*\d+\s*", value):
        return IGNORED
    # The length first: Python refuses to convert thousands of digits.
    digits = value.strip().lstrip("0") or "0"
    if len(digits) > 5 or int(digits) > MAX_VALUE:
        raise UserError(f"{file} names value {digits[:12]}: masks have values 0 to {MAX_VALUE}")
    return int(rule.to_classes(np.array(int(digits))))
