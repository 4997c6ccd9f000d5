"""Images with masks: where they lie, what the values in the masks mean, and the classes' names.

A mask becomes int16 classes, in which `IGNORED` counts for nothing. Shapes: H x W pixels.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int16
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mvmae.data.decode import EXTENSIONS, FORMATS, Pixels, UnreadableImageError
from mvmae.data.sources.files import Files
from mvmae.data.sources.opening import TEST, TRAIN, stamp
from mvmae.errors import UserError

IGNORED = -1
NEVER_COUNTS = 255  # a value that no rule makes a class
MASKS = ("annotations", "masks", "labels")  # usual names of their folder
NAMES = ("classes.csv", "objectInfo150.txt")  # usual files of the classes' names
MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif")


class Rule(NamedTuple):
    """What a value in a mask file means.

    Values above the one that is ignored move down by one, so that classes count from 0 without a
    gap; 255 never counts.
    """

    ignored: int | None

    def classes(self, values: np.ndarray) -> np.ndarray:
        """Class of each value, as int16; values too large for that become the largest."""
        known = np.minimum(values.astype(np.int64), 2**15 - 1)
        classes = known - (0 if self.ignored is None else (known > self.ignored))
        nothing = (values == NEVER_COUNTS) | (values == self.ignored)
        return np.where(nothing, IGNORED, classes).astype(np.int16)

    def values(self, classes: np.ndarray) -> np.ndarray:
        """What `classes` undoes: the file's value of each class."""
        return classes + (0 if self.ignored is None else (classes >= self.ignored))

    def value(self, number: int) -> int:
        """The file's value of one class."""
        return int(self.values(np.array([number]))[0])


class Pair(NamedTuple):
    """An image and its mask, as paths."""

    image: str
    mask: str


class Pairs(Files):
    """Images with masks, as a source of images; the masks are read by `mask`."""

    def __init__(self, name: str, pairs: Sequence[Pair], channels: int, rule: Rule) -> None:
        super().__init__(name, [pair.image for pair in pairs], channels)
        self.masks, self.rule = [pair.mask for pair in pairs], rule

    def mask(self, index: int) -> Int16[Tensor, "H W"]:
        """The classes of an image's pixels.

        Raises:
            UnreadableImageError: The mask cannot be read, or is a colour picture.
        """
        return torch.from_numpy(self.rule.classes(read_values(self.masks[index])))

    def both(self, index: int) -> tuple[Pixels, Int16[Tensor, "H W"]]:
        """An image and its mask.

        Raises:
            UnreadableImageError: One cannot be read, or their sizes differ.
        """
        pixels, classes = self.read(index), self.mask(index)
        if pixels.shape[1:] != classes.shape:
            raise UnreadableImageError(
                f"the mask is {classes.shape[1]} x {classes.shape[0]}, the image "
                f"{pixels.shape[2]} x {pixels.shape[1]}"
            )
        return pixels, classes

    def only(self, indices: Sequence[int]) -> Pairs:
        """Some of them."""
        kept = [Pair(self.paths[index], self.masks[index]) for index in indices]
        return Pairs(self.name, kept, self.channels, self.rule)


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
        raise UnreadableImageError("no image of a kind that is read") from error
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


class ColourMaskError(UnreadableImageError):
    """A mask that is a picture: each class has a colour in place of a number."""


class Split(NamedTuple):
    """The images of a part, before anything in them is looked at."""

    pairs: Pairs
    without_mask: list[str]
    """Images."""

    without_image: list[str]
    """Masks."""


class Found(NamedTuple):
    """Images with masks to learn from and to test on, as they lie on the disk."""

    train: Split
    test: Split
    split: str
    """Where the split comes from, in words."""

    rule: Rule
    names: dict[int, str]
    """Of classes, where a file tells them."""


class Segmented(NamedTuple):
    """What passed the check: pairs to learn from and to test on."""

    train: Pairs
    test: Pairs
    split: str
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the user called the images."""
        return self.test.name


def find_pairs(
    data: str,
    *,
    folders: tuple[Path, Path] | None,
    channels: int,
    ignore_index: int | str,
    test_split: str | None,
    names: Path | None,
    learns: bool = True,
) -> Found:
    """Look for images and masks; nothing is read but the classes' names.

    Args:
        data: Folder of images/ and annotations/ (or masks/).
        folders: Of images and of masks, in place of `data`.
        channels: Of the images.
        ignore_index: A value, "none", or "auto" for 0 where there are splits and none elsewhere.
        test_split: Name of the part that tests.
        names: File of the classes' names.
        learns: Whether there must be a part to learn from; without, the tests stand in its place.

    Raises:
        UserError: Nothing is there, or half of it.
    """
    if not data and folders is None:
        raise UserError(
            "no DATA: name a folder with images/ and annotations/ (or masks/), or both folders "
            "with --images and --masks"
        )
    images, masks = folders or _folders_of(Path(data))
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(f"no such folder: {folder}")
    name = data or str(images)
    parts = _parts(images, masks, test_split, learns=learns)
    rule = Rule(_ignored(ignore_index, has_parts=parts is not None))
    told = names or next((f for n in NAMES if (f := Path(data) / n).is_file() and data), None)
    known = read_names(told, rule) if told else {}
    if parts:
        train, test = (pair_up(name, images / part, masks / part, channels, rule) for part in parts)
        return Found(train, test, f"{parts[0]}/ and {parts[1]}/", rule, known)
    whole = pair_up(name, images, masks, channels, rule)
    tests = [index for index in range(len(whole.pairs)) if index % 5 == 1]
    trains = [index for index in range(len(whole.pairs)) if index % 5 != 1]
    if not tests:
        raise UserError(f"{name} has too few images with masks: {len(whole.pairs)}, of 2 at least")
    train = whole._replace(pairs=whole.pairs.only(trains))
    test = Split(whole.pairs.only(tests), [], [])
    return Found(train, test, "every fifth image tests", rule, known)


def _folders_of(data: Path) -> tuple[Path, Path]:
    if not data.is_dir():
        raise UserError(f"no such folder: {data} (DATA holds images/ and annotations/ or masks/)")
    masks = next((data / name for name in MASKS if (data / name).is_dir()), None)
    if masks is None or not (data / "images").is_dir():
        raise UserError(
            f"{data} holds no images/ and annotations/ (or masks/): lay it out so, or name both "
            "folders with --images and --masks"
        )
    return data / "images", masks


def _parts(
    images: Path, masks: Path, test_split: str | None, *, learns: bool
) -> tuple[str, str] | None:
    """Names of the parts' folders; none where the images are not in parts.

    Raises:
        UserError: There is one part alone, or no such part.
    """
    own = sorted(folder.name for folder in images.iterdir() if folder.is_dir())
    train = next((name for name in TRAIN if name in own), None)
    test = test_split or next((name for name in TEST if name in own), None)
    if train is None and test is None:
        return None
    train = train if learns else test
    if train is None or test is None or test not in own:
        raise UserError(
            f"{images} has the parts {', '.join(own) or 'none'}: there must be one to learn from "
            f"({' or '.join(TRAIN)}) and {test_split or 'one to test on (validation or test)'}"
        )
    if train == test and learns:
        raise UserError(f"--test-split {test} is what is learnt from: choose another")
    for name in (train, test):
        if not (masks / name).is_dir():
            raise UserError(f"no folder {masks / name} for the masks of {images / name}")
    return train, test


def _ignored(ignore_index: int | str, *, has_parts: bool) -> int | None:
    if isinstance(ignore_index, int):
        return ignore_index
    return 0 if ignore_index == "auto" and has_parts else None


def pair_up(name: str, images: Path, masks: Path, channels: int, rule: Rule) -> Split:
    """Images and masks of the same name, in the order of the paths.

    Raises:
        UserError: No image has a mask.
    """
    own, others = _by_stem(images, EXTENSIONS), _by_stem(masks, MASK_EXTENSIONS)
    both = sorted(own.keys() & others.keys())
    if not both:
        raise UserError(
            f"no image of {images} ({len(own)} there) has a mask of its name in {masks} "
            f"({len(others)} there; {', '.join(MASK_EXTENSIONS[:3])} are read)"
        )
    return Split(
        Pairs(name, [Pair(own[stem], others[stem]) for stem in both], channels, rule),
        [own[stem] for stem in sorted(own.keys() - others.keys())],
        [others[stem] for stem in sorted(others.keys() - own.keys())],
    )


def _by_stem(folder: Path, extensions: Sequence[str] | frozenset[str]) -> dict[str, str]:
    """Files to the bottom of a folder, by their path in it without suffix."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix.lower() in extensions and not hidden and path.is_file():
            found[str(inside.with_suffix(""))] = str(path)
    return found


def read_names(file: Path, rule: Rule) -> dict[int, str]:
    """Names of classes from a file.

    A .csv has rows of a mask file's value and a name, objectInfo150.txt a table with tabs of the
    same; any other file has a name a line, of class 0 first.

    Raises:
        UserError: It cannot be read, or names nothing.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the classes' names in {file}: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and "\t" in lines[0] and lines[0].startswith("Idx"):
        rows = [(cells[0], cells[-1].split(",")[0]) for cells in (s.split("\t") for s in lines[1:])]
    elif file.suffix.lower() == ".csv":
        rows = [(row[0], row[1]) for row in csv.reader(lines) if len(row) > 1]
    else:
        return _checked_names(dict(enumerate(line.strip() for line in lines)), file)
    numbered = [(int(value), name) for value, name in rows if re.fullmatch(r"\s*\d+\s*", value)]
    named = ((int(rule.classes(np.array(value))), name.strip()) for value, name in numbered)
    return _checked_names({at: name for at, name in named if at != IGNORED}, file)


def _checked_names(names: dict[int, str], file: Path) -> dict[int, str]:
    if not names:
        raise UserError(
            f"{file} names no classes: a .csv has rows of value,name; a .txt a name a line"
        )
    return names


def class_names(names: dict[int, str], count: int) -> tuple[str, ...]:
    """A name for each class: the file's, or its number."""
    return tuple(names.get(number, str(number)) for number in range(count))


def fingerprint(data: Segmented) -> str:
    """A short hash of the pairs, to notice when data change."""
    whole = hashlib.sha256(repr((data.train.rule, len(data.classes))).encode())
    for part in (data.train, data.test):
        for path in (*part.paths, "", *part.masks, ""):
            whole.update(path.encode(errors="surrogateescape") + b"\0")
    return whole.hexdigest()[:16]


def masks_stamp(split: Split) -> str:
    """Changes with any image or mask of a part, by name, size and time."""
    paths: Any = [*split.pairs.paths, *split.pairs.masks, *split.without_mask, *split.without_image]
    return stamp(Files(split.pairs.name, paths, split.pairs.channels))
