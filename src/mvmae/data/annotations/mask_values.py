"""What the numbers in a mask file mean, and what their classes are called.

Shapes: H x W pixels.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from mvmae.data.reading.decode import FORMATS, UnreadableImageError
from mvmae.errors import UserError

IGNORED = -1
ALWAYS_IGNORED = 255  # a value that no rule but that of two values makes a class
MAX_CLASS = 2**15 - 1  # of int16; what is larger becomes this
MAX_VALUE = 2**16 - 1  # of a mask file's 16 bit
WHITE_VALUES = (ALWAYS_IGNORED, MAX_VALUE)  # the second value of black-and-white masks


class Rule(NamedTuple):
    """What a value in a mask file means.

    Values above the one that is ignored move down by one, so that classes count from 0 without a
    gap; 255 never counts, and neither do negative values. In masks of two values, `foreground` is
    class 1 in place of that, and so is 1; other values are no classes.
    """

    ignored: int | None
    foreground: int | None = None

    def to_classes(self, values: np.ndarray) -> np.ndarray:
        """Class of each value, as int16; values too large for that become the largest."""
        values = values.astype(np.int64)
        if self.foreground is not None:
            known = np.where(values == self.foreground, 1, values)
            known = np.where(known > 1, MAX_CLASS, known)
            nothing = values < 0
        else:
            known = values - (0 if self.ignored is None else (values > self.ignored))
            nothing = (values == ALWAYS_IGNORED) | (values == self.ignored) | (values < 0)
        return np.where(nothing, IGNORED, np.minimum(known, MAX_CLASS)).astype(np.int16)

    def to_values(self, classes: np.ndarray) -> np.ndarray:
        """What `to_classes` undoes: the file's value of each class."""
        if self.foreground is not None:
            return np.where(classes == 1, self.foreground, classes)
        return classes + (0 if self.ignored is None else (classes >= self.ignored))

    def to_value(self, number: int) -> int:
        """The file's value of one class."""
        return int(self.to_values(np.array([number]))[0])


class ColourMaskError(UnreadableImageError):
    """A mask that is a picture: each class has a colour in place of a number."""


def read_values(path: str) -> np.ndarray:
    """The numbers in a mask file, H x W: gray of any depth, or a palette's indices.

    Raises:
        UnreadableImageError: It cannot be decoded, or its colours are no numbers.
    """
    try:
        data = Path(path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as for images: odd metadata that is then read
            with Image.open(io.BytesIO(data), formats=FORMATS) as file:
                values = np.array(file)
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image of a supported kind") from error
    except Exception as error:  # decoders raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(reason[:200]) from error
    return _one_channel(values)


def _one_channel(values: np.ndarray) -> np.ndarray:
    if values.ndim == 3:
        colours = values[..., : 1 if values.shape[2] == 2 else 3]  # without transparency
        if (colours != colours[..., :1]).any():
            raise ColourMaskError("colours, where numbers of classes should be")
        values = colours[..., 0]
    if values.dtype.kind == "f":
        raise UnreadableImageError("floating-point numbers, where classes should be")
    return values.astype(np.int64) if values.dtype.kind != "b" else values.astype(np.uint8)


def count_values(values: np.ndarray) -> dict[int, int]:
    """How many pixels have each value."""
    if values.size and values.min() >= 0 and values.max() <= MAX_VALUE:
        counts = np.bincount(values.reshape(-1))  # a tenth of the time of sorting
        numbers = counts.nonzero()[0]
        return dict(zip(numbers.tolist(), counts[numbers].tolist(), strict=True))
    numbers, counts = np.unique(values, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def read_class_names(file: Path, rule: Rule) -> dict[int, str]:
    """Names of classes from a file.

    A .csv has rows of a mask file's value and a name, objectInfo150.txt a table with tabs of the
    same; any other file has a name a line, of class 0 first.

    Raises:
        UserError: It cannot be read, names nothing, or has a value that no mask file can have.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        lines = [line for line in text.splitlines() if line.strip()]
        if lines and "\t" in lines[0] and lines[0].startswith("Idx"):
            cells = [line.split("\t") for line in lines[1:]]
            rows = [(row[0], row[-1].split(",")[0]) for row in cells]
        elif file.suffix.lower() == ".csv":
            rows = [(row[0], row[1]) for row in csv.reader(lines) if len(row) > 1]
        else:
            return _printable_names(dict(enumerate(line.strip() for line in lines)), file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the classes' names in {file}: {error}") from error
    named = ((_class_of(value, rule, file), name.strip()) for value, name in rows)
    return _printable_names({at: name for at, name in named if at != IGNORED}, file)


def _class_of(value: str, rule: Rule, file: Path) -> int:
    """The class of a row; none for what is no number, such as a heading."""
    if not re.fullmatch(r"\s*\d+\s*", value):
        return IGNORED
    digits = value.strip().lstrip("0") or "0"
    if len(digits) > 5 or int(digits) > MAX_VALUE:
        raise UserError(f"{file} names value {digits[:12]}: masks hold 0 to {MAX_VALUE}")
    return int(rule.to_classes(np.array(int(digits))))


def _printable_names(names: dict[int, str], file: Path) -> dict[int, str]:
    if not names:
        raise UserError(
            f"{file} names no classes: a .csv has rows of value,name; a .txt a name a line"
        )
    return {at: "".join(filter(str.isprintable, name)) for at, name in names.items()}
