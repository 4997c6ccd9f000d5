"""Find images with masks, and split them into training and test images.

A mask is read as int16 classes; pixels of class `IGNORED` do not count. Shapes: H x W pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Sequence
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

MASK_FOLDERS = ("annotations", "masks", "labels")
CLASS_NAME_FILES = ("classes.csv", "objectInfo150.txt")
EVERY_FIFTH_IMAGE_TESTS = "every fifth image is a test image"
ALL_IMAGES_TEST = "all images test"
# Rules for masks of two values, as microscopy and painting programs save them.
BLACK_AND_WHITE_RULES = tuple(Rule(None, white) for white in WHITE_VALUES)
# JPEG is not among them, because it changes values.
MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif")


class ImageMaskPairs(Files):
    """Images with masks, as a source of images; `read_mask` reads the masks."""

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        masks: Sequence[str],
        channels: int,
        rule: Rule,
    ) -> None:
        super().__init__(name, paths, channels)
        self.channels, self.masks, self.rule = channels, list(masks), rule

    def read_mask(self, index: int) -> Int16[Tensor, "H W"]:
        """Read the classes of an image's pixels.

        Raises:
            UnreadableImageError: The mask cannot be read, or is a colour picture.
        """
        return torch.from_numpy(self.rule.to_classes(read_values(self.masks[index])))

    def read_pair(self, index: int) -> tuple[Pixels, Int16[Tensor, "H W"]]:
        """Read an image and its mask.

        Raises:
            UnreadableImageError: One of them cannot be read, or their sizes differ.
        """
        pixels, classes = self.read(index), self.read_mask(index)
        if pixels.shape[1:] != classes.shape:
            raise UnreadableImageError(
                f"the mask is {classes.shape[1]} x {classes.shape[0]}, the image "
                f"{pixels.shape[2]} x {pixels.shape[1]}"
            )
        return pixels, classes

    def select(self, indices: Sequence[int], rule: Rule | None = None) -> ImageMaskPairs:
        """Return the pairs at `indices`; with `rule`, the masks' values get another meaning."""
        paths, masks = ([own[index] for index in indices] for own in (self.paths, self.masks))
        return ImageMaskPairs(self.name, paths, masks, self.channels, rule or self.rule)


class MaskSplit(NamedTuple):
    """The files of one split, before any of them is opened."""

    pairs: ImageMaskPairs
    without_mask: list[str]
    """Paths of images without a mask."""

    without_image: list[str]
    """Paths of masks without an image."""

    same_name: tuple[str, ...] = ()
    """Paths, joined by commas, of images (or of masks) that differ only by their suffix."""


class FoundPairs(NamedTuple):
    """Training and test images with masks, as found on the disk."""

    train: MaskSplit
    test: MaskSplit
    split: str
    """Where the split comes from, in words."""

    rule: Rule
    """What the masks' values mean."""

    names: dict[int, str]
    """Class names by class; empty without a file of names."""

    alternatives: tuple[Rule, ...] = ()
    """Rules to try where `rule` leaves fewer than two classes."""

    names_file: Path | None = None
    """File of class names."""

    with_training: bool = True
    """Whether training images are needed."""


class SegmentationData(NamedTuple):
    """Training and test pairs that passed the check."""

    train: ImageMaskPairs
    test: ImageMaskPairs
    split: str
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the user called the data."""
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
    """Find images and masks; only the file of class names is read.

    Args:
        data: Folder that contains images/ and annotations/ (or masks/ or labels/).
        folders: Folder of the images and folder of the masks, instead of `data`.
        channels: Channels of the decoded images.
        ignore_index: A value, "none", or "auto" (see `candidate_rules`).
        test_split: Name of the test split.
        names: File of class names.
        with_training: Whether training images are needed; if not, all images are test images.
        rules: Candidate rules, instead of those that follow from `ignore_index`.

    Raises:
        UserError: Images, masks or a split are missing.
    """
    if not data and folders is None:
        raise UserError(
            "no DATA: name a folder with images/ and annotations/ (or masks/), or both folders "
            "with --images and --masks"
        )
    images, masks = folders or _image_and_mask_folder(Path(data))
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(f"no such folder: {folder}")
    name = data or str(images)
    parts = _split_folders(images, masks, test_split, with_training=with_training)
    rules = rules or candidate_rules(ignore_index, has_splits=parts is not None)
    files = [Path(data) / name for name in CLASS_NAME_FILES] if data else []
    names_file = names or next((file for file in files if file.is_file()), None)
    known = _read_names_by_first_rule(names_file, rules) if names_file else {}
    meaning = (rules[0], known, rules[1:], names_file, with_training)
    if parts:
        test = match_by_name(name, images / parts[1], masks / parts[1], channels, rules[0])
        train = without_files(test)
        if with_training:
            train = match_by_name(name, images / parts[0], masks / parts[0], channels, rules[0])
        return FoundPairs(train, test, f"{parts[0]}/ and {parts[1]}/", *meaning)
    whole = match_by_name(name, images, masks, channels, rules[0])
    if not with_training:
        return FoundPairs(without_files(whole), whole, ALL_IMAGES_TEST, *meaning)
    # The second of every five, so that two pairs give one training and one test pair.
    test_indices = [index for index in range(len(whole.pairs)) if index % 5 == 1]
    train_indices = [index for index in range(len(whole.pairs)) if index % 5 != 1]
    if not test_indices:
        raise UserError(f"{name} has only {len(whole.pairs)} images with masks: at least 2 needed")
    train = whole._replace(pairs=whole.pairs.select(train_indices))
    test = MaskSplit(whole.pairs.select(test_indices), [], [])
    return FoundPairs(train, test, EVERY_FIFTH_IMAGE_TESTS, *meaning)


def without_files(split: MaskSplit) -> MaskSplit:
    """Return an empty split of the same kind."""
    return MaskSplit(split.pairs.select([]), [], [])


def candidate_rules(ignore_index: int | str, *, has_splits: bool) -> tuple[Rule, ...]:
    """Return the possible meanings of the masks' values, the likeliest first.

    A number or "none" leaves one. "auto" gives, in this order: 0 is ignored, as in ADE20K, if the
    images are in splits; every value is a class; black-and-white masks have two classes.
    """
    if ignore_index == "auto":
        first = (Rule(0),) if has_splits else ()
        return (*first, Rule(None), *BLACK_AND_WHITE_RULES)
    return (Rule(ignore_index if isinstance(ignore_index, int) else None),)


def _read_names_by_first_rule(file: Path, rules: Sequence[Rule]) -> dict[int, str]:
    """Read class names by the first rule that leaves any; masks decide later which rule holds."""
    # In black-and-white masks, a file may name only 0 and 255, which other rules leave out.
    for rule in rules[:-1]:
        with contextlib.suppress(UserError):
            return read_class_names(file, rule)
    return read_class_names(file, rules[-1])


def _image_and_mask_folder(data: Path) -> tuple[Path, Path]:
    if not data.is_dir():
        raise UserError(f"no such folder: {data} (DATA has images/ and annotations/ or masks/)")
    masks = next((data / name for name in MASK_FOLDERS if (data / name).is_dir()), None)
    if masks is None or not (data / "images").is_dir():
        raise UserError(
            f"{data} has no images/ and annotations/ (or masks/): use this layout, or name both "
            "folders with --images and --masks"
        )
    return data / "images", masks


def _split_folders(
    images: Path,
    masks: Path,
    test_split: str | None,
    *,
    with_training: bool,
) -> tuple[str, str] | None:
    """Return the names of the training and test folders; None if the images are not in splits.

    Raises:
        UserError: A split is missing, or the test split is the training split.
    """
    own = sorted(folder.name for folder in images.iterdir() if folder.is_dir())
    train = next((name for name in TRAIN if name in own), None)
    test = test_split or next((name for name in TEST if name in own), None)
    if train is None and test is None:
        return None
    train = train if with_training else test  # then no training split needs to exist
    if train is None or test is None or test not in own:
        raise UserError(
            f"{images} has the splits {', '.join(own) or 'none'}: it needs a training split "
            f"({' or '.join(TRAIN)}) and {test_split or 'a test split (validation or test)'}"
        )
    if train == test and with_training:
        raise UserError(f"--test-split {test} is the training split: choose another")
    for name in (train, test):
        if not (masks / name).is_dir():
            raise UserError(f"no folder {masks / name} for the masks of {images / name}")
    return train, test


def match_by_name(name: str, images: Path, masks: Path, channels: int, rule: Rule) -> MaskSplit:
    """Match images and masks of the same name, in the order of the paths.

    Two images or two masks that differ only by their suffix are left out: either could be meant.

    Raises:
        UserError: No image has a mask.
    """
    own, others = _paths_by_stem(images, EXTENSIONS), _paths_by_stem(masks, MASK_EXTENSIONS)
    ambiguous = {stem for known in (own, others) for stem, paths in known.items() if len(paths) > 1}
    both = sorted((own.keys() & others.keys()) - ambiguous)
    same_name = tuple(
        ", ".join(known[stem])
        for stem in sorted(ambiguous)
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
    paths, partners = ([known[stem][0] for stem in both] for known in (own, others))
    return MaskSplit(
        ImageMaskPairs(name, paths, partners, channels, rule),
        [own[stem][0] for stem in sorted(own.keys() - others.keys() - ambiguous)],
        [others[stem][0] for stem in sorted(others.keys() - own.keys() - ambiguous)],
        same_name,
    )


def _describe_files(found: dict[str, list[str]]) -> str:
    """Number of files, and the name of one."""
    return f"{len(found)} found{f', such as {Path(min(found)).name}' if found else ''}"


def _paths_by_stem(folder: Path, extensions: Collection[str]) -> dict[str, list[str]]:
    """Files in a folder and all folders in it, by their relative path without suffix."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix.lower() in extensions and not is_hidden and path.is_file():
            found.setdefault(str(inside.with_suffix("")), []).append(str(path))
    return found


def class_names(names: dict[int, str], count: int, rule: Rule | None = None) -> tuple[str, ...]:
    """Return `count` class names: the given one, or else the class's value in the masks.

    Without `rule`, values equal classes.
    """
    values = (rule or Rule(None)).to_values(np.arange(count)).tolist()
    return tuple(names.get(number, str(value)) for number, value in enumerate(values))


def fingerprint(data: SegmentationData) -> str:
    """Hash the rule, the number of classes, and each file's path and size, to notice changes.

    Returns:
        16 hexadecimal digits.
    """
    whole = hashlib.sha256(repr((data.train.rule, len(data.classes))).encode())
    for part in (data.train, data.test):
        # The empty texts end the lists, so that no path moves unnoticed from one to the other.
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
    """Hash the content of each image file, to recognise it in any folder; empty if unreadable."""
    return [_hash_file(path) for path in pairs.paths]


def _hash_file(path: str) -> str:
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
    except OSError:
        return ""
