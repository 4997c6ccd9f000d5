"""Images with masks: where they lie, and how they are shared out for learning and for testing.

A mask becomes int16 classes, in which `IGNORED` counts for nothing. Shapes: H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int16
from torch import Tensor

from mvmae.data.annotations.mask_values import WHITE_VALUES, Rule, read_class_names, read_values
from mvmae.data.reading.decode import EXTENSIONS, Pixels, UnreadableImageError
from mvmae.data.sources.folders import Files
from mvmae.data.sources.labelled import TEST, TRAIN
from mvmae.errors import UserError

MASK_FOLDERS = ("annotations", "masks", "labels")  # usual names of their folder
CLASS_NAME_FILES = ("classes.csv", "objectInfo150.txt")  # usual files of the classes' names
EVERY_FIFTH_IMAGE_TESTS = "every fifth image tests"
ALL_IMAGES_TEST = "all images test"
MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif")


class Pair(NamedTuple):
    """An image and its mask, as paths."""

    image: str
    mask: str


class ImageMaskPairs(Files):
    """Images with masks, as a source of images; the masks are read by `read_mask`."""

    def __init__(self, name: str, pairs: Sequence[Pair], channels: int, rule: Rule) -> None:
        super().__init__(name, [pair.image for pair in pairs], channels)
        self.channels = channels
        self.masks, self.rule = [pair.mask for pair in pairs], rule

    def read_mask(self, index: int) -> Int16[Tensor, "H W"]:
        """The classes of an image's pixels.

        Raises:
            UnreadableImageError: The mask cannot be read, or is a colour picture.
        """
        return torch.from_numpy(self.rule.to_classes(read_values(self.masks[index])))

    def read_pair(self, index: int) -> tuple[Pixels, Int16[Tensor, "H W"]]:
        """An image and its mask.

        Raises:
            UnreadableImageError: One cannot be read, or their sizes differ.
        """
        pixels, classes = self.read(index), self.read_mask(index)
        if pixels.shape[1:] != classes.shape:
            raise UnreadableImageError(
                f"the mask is {classes.shape[1]} x {classes.shape[0]}, the image "
                f"{pixels.shape[2]} x {pixels.shape[1]}"
            )
        return pixels, classes

    def select(self, indices: Sequence[int]) -> ImageMaskPairs:
        """Some of them."""
        kept = [Pair(self.paths[index], self.masks[index]) for index in indices]
        return ImageMaskPairs(self.name, kept, self.channels, self.rule)

    def with_rule(self, rule: Rule) -> ImageMaskPairs:
        """The same with another rule."""
        return ImageMaskPairs(
            self.name, list(map(Pair, self.paths, self.masks)), self.channels, rule
        )


class MaskSplit(NamedTuple):
    """The images of a part, before anything in them is looked at."""

    pairs: ImageMaskPairs
    without_mask: list[str]
    """Images."""

    without_image: list[str]
    """Masks."""

    same_name: tuple[str, ...] = ()
    """Images, or masks, whose names differ by their suffix alone, joined by commas."""


class FoundPairs(NamedTuple):
    """Images with masks to learn from and to test on, as they lie on the disk."""

    train: MaskSplit
    test: MaskSplit
    split: str
    """Where the split comes from, in words."""

    rule: Rule
    names: dict[int, str]
    """Of classes, where a file tells them."""

    alternatives: tuple[Rule, ...] = ()
    """Rules to take where `rule` leaves fewer than two classes."""

    names_file: Path | None = None
    with_training: bool = True
    """Whether there must be something to learn from."""


class SegmentationData(NamedTuple):
    """What passed the check: pairs to learn from and to test on."""

    train: ImageMaskPairs
    test: ImageMaskPairs
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
    with_training: bool = True,
    rules: tuple[Rule, ...] | None = None,
) -> FoundPairs:
    """Look for images and masks; nothing is read but the classes' names.

    Args:
        data: Folder of images/ and annotations/ (or masks/).
        folders: Of images and of masks, in place of `data`.
        channels: Of the images.
        ignore_index: A value, "none", or "auto" (see `candidate_rules`).
        test_split: Name of the part that tests.
        names: File of the classes' names.
        with_training: Whether there must be a part to learn from; without, everything tests.
        rules: In place of those that `ignore_index` stands for.

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
    parts = _parts(images, masks, test_split, with_training=with_training)
    rules = rules or candidate_rules(ignore_index, has_parts=parts is not None)
    told = names or next(
        (f for n in CLASS_NAME_FILES if (f := Path(data) / n).is_file() and data), None
    )
    known = _read_known_names(told, rules) if told else {}
    meaning = (rules[0], known, rules[1:], told, with_training)
    if parts:
        test = match_by_name(name, images / parts[1], masks / parts[1], channels, rules[0])
        train = _without_pairs(test)
        if with_training:
            train = match_by_name(name, images / parts[0], masks / parts[0], channels, rules[0])
        return FoundPairs(train, test, f"{parts[0]}/ and {parts[1]}/", *meaning)
    whole = match_by_name(name, images, masks, channels, rules[0])
    if not with_training:
        return FoundPairs(_without_pairs(whole), whole, ALL_IMAGES_TEST, *meaning)
    tests = [index for index in range(len(whole.pairs)) if index % 5 == 1]
    trains = [index for index in range(len(whole.pairs)) if index % 5 != 1]
    if not tests:
        raise UserError(f"{name} has too few images with masks: {len(whole.pairs)}, of 2 at least")
    train = whole._replace(pairs=whole.pairs.select(trains))
    test = MaskSplit(whole.pairs.select(tests), [], [])
    return FoundPairs(train, test, EVERY_FIFTH_IMAGE_TESTS, *meaning)


def _without_pairs(split: MaskSplit) -> MaskSplit:
    return MaskSplit(split.pairs.select([]), [], [])


def candidate_rules(ignore_index: int | str, *, has_parts: bool) -> tuple[Rule, ...]:
    """What values can mean, the likeliest first.

    A number or "none" is what it is. For "auto" 0 is ignored where there are splits, as in ADE20K;
    where that leaves one class, or in a plain pair of folders, all values are classes; and masks
    that are black and white have two.
    """
    if ignore_index == "auto":
        first = (Rule(0),) if has_parts else ()
        return (*first, Rule(None), *black_and_white_rules())
    return (Rule(ignore_index if isinstance(ignore_index, int) else None),)


def black_and_white_rules() -> tuple[Rule, ...]:
    """Rules of masks of two values, as programs for microscopes and for painting save them."""
    return tuple(Rule(None, white) for white in WHITE_VALUES)


def _read_known_names(file: Path, rules: Sequence[Rule]) -> dict[int, str]:
    """Names by the first rule that leaves any: which rule holds is known once masks are read."""
    for rule in rules[:-1]:
        try:
            return read_class_names(file, rule)
        except UserError:
            continue
    return read_class_names(file, rules[-1])


def _folders_of(data: Path) -> tuple[Path, Path]:
    if not data.is_dir():
        raise UserError(f"no such folder: {data} (DATA holds images/ and annotations/ or masks/)")
    masks = next((data / name for name in MASK_FOLDERS if (data / name).is_dir()), None)
    if masks is None or not (data / "images").is_dir():
        raise UserError(
            f"{data} holds no images/ and annotations/ (or masks/): lay it out so, or name both "
            "folders with --images and --masks"
        )
    return data / "images", masks


def _parts(
    images: Path, masks: Path, test_split: str | None, *, with_training: bool
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
    train = train if with_training else test
    if train is None or test is None or test not in own:
        raise UserError(
            f"{images} has the parts {', '.join(own) or 'none'}: there must be one to learn from "
            f"({' or '.join(TRAIN)}) and {test_split or 'one to test on (validation or test)'}"
        )
    if train == test and with_training:
        raise UserError(f"--test-split {test} is what is learnt from: choose another")
    for name in (train, test):
        if not (masks / name).is_dir():
            raise UserError(f"no folder {masks / name} for the masks of {images / name}")
    return train, test


def match_by_name(name: str, images: Path, masks: Path, channels: int, rule: Rule) -> MaskSplit:
    """Images and masks of the same name, in the order of the paths.

    Where two images or two masks differ by their suffix alone it is not known which is meant.

    Raises:
        UserError: No image has a mask.
    """
    own, others = _by_stem(images, EXTENSIONS), _by_stem(masks, MASK_EXTENSIONS)
    doubtful = {stem for known in (own, others) for stem, paths in known.items() if len(paths) > 1}
    both = sorted((own.keys() & others.keys()) - doubtful)
    same_name = tuple(
        ", ".join(known[stem])
        for stem in sorted(doubtful)
        for known in (own, others)
        if len(known.get(stem, ())) > 1
    )
    if not both:
        twice = f"; names that occur twice: {same_name[0]}" if same_name else ""
        raise UserError(
            f"no image of {images} ({_describe_files(own)}) has a mask of its name in {masks} "
            f"({_describe_files(others)}; {', '.join(MASK_EXTENSIONS[:3])} are read; JPEG is not, "
            f"because it changes values){twice}"
        )
    return MaskSplit(
        ImageMaskPairs(
            name, [Pair(own[stem][0], others[stem][0]) for stem in both], channels, rule
        ),
        [own[stem][0] for stem in sorted(own.keys() - others.keys() - doubtful)],
        [others[stem][0] for stem in sorted(others.keys() - own.keys() - doubtful)],
        same_name,
    )


def _describe_files(found: dict[str, list[str]]) -> str:
    """How many files there are, and the name of one."""
    return f"{len(found)} there{f', such as {Path(min(found)).name}' if found else ''}"


def _by_stem(folder: Path, extensions: Sequence[str] | frozenset[str]) -> dict[str, list[str]]:
    """Files to the bottom of a folder, by their path in it without suffix."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix.lower() in extensions and not hidden and path.is_file():
            found.setdefault(str(inside.with_suffix("")), []).append(str(path))
    return found


def class_names(names: dict[int, str], count: int, rule: Rule | None = None) -> tuple[str, ...]:
    """A name for each class: the file's, or its value in the masks (without `rule` its number)."""
    values = (rule or Rule(None)).to_values(np.arange(count)).tolist()
    return tuple(names.get(number, str(value)) for number, value in enumerate(values))


def fingerprint(data: SegmentationData) -> str:
    """A short hash of the pairs, to notice when data change: their places and sizes in bytes."""
    whole = hashlib.sha256(repr((data.train.rule, len(data.classes))).encode())
    for part in (data.train, data.test):
        for path in (*part.paths, "", *part.masks, ""):
            whole.update(path.encode(errors="surrogateescape") + b"\0")
            whole.update(f"{_file_size(path)}".encode())
    return whole.hexdigest()[:16]


def _file_size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1


def hash_images(pairs: ImageMaskPairs) -> list[str]:
    """A short hash of each image file, to know it again wherever it lies."""
    return [_hash_file(path) for path in pairs.paths]


def _hash_file(path: str) -> str:
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
    except OSError:
        return ""
