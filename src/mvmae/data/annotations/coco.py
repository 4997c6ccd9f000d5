"""Images with boxes and masks in COCO's layout: where they are, and what is in them.

Shapes: C channels, H x W pixels, N instances in an image.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from jaxtyping import UInt8
from torch import Tensor

from mvmae.data.reading.decode import Pixels, UnreadableImageError
from mvmae.data.sources.folders import Files
from mvmae.errors import UserError

FILE_PREFIX = "instances_"
LAYOUT = "annotations/instances_train.json beside images/train"
Entry = dict[str, Any]  # an object of a file in COCO's layout
Box = tuple[float, float, float, float]
MIN_MASK_PIXELS = 4  # smaller masks teach nothing


class Instance(NamedTuple):
    """One annotated object."""

    box: Box
    """Left, top, right and bottom in pixels."""

    label: int
    """Class, counted from 1; 0 is the background."""

    segmentation: Any
    """Polygons or run lengths as in the file; None where there are only boxes."""


class AnnotatedImage(NamedTuple):
    """An image and the instances in it."""

    image_id: int
    """Its id in the file."""

    path: Path
    size: tuple[int, int]
    """Height and width in pixels."""

    instances: tuple[Instance, ...]
    """Without crowds, which are not learnt."""


class CocoSplit(Files):
    """The images of one annotation file; boxes are not labels.

    Args:
        files: Where the split is.
        content: Content of the annotation file, checked and repaired (`coco_check.check_coco`).
        channels: Channels of the decoded images: 1 or 3.
        with_masks: Whether instances keep their masks.
    """

    def __init__(
        self,
        files: SplitFiles,
        content: Entry,
        *,
        channels: int,
        with_masks: bool,
    ) -> None:
        self.file, self.annotations, self.with_masks = files.file, content, with_masks
        self.ids = [int(category["id"]) for category in content["categories"]]
        self.images = _annotated_images(content, files.images, with_masks)
        super().__init__(files.name, [str(image.path) for image in self.images], channels)
        self.classes = [str(category["name"]) for category in content["categories"]]

    def read(self, index: int) -> Pixels:
        """Decode an image.

        Raises:
            UnreadableImageError: It cannot be read, or its size differs from the annotations.
        """
        pixels, (height, width) = super().read(index), self.images[index].size
        if pixels.shape[1:] != (height, width):
            size = f"{pixels.shape[2]} x {pixels.shape[1]}"
            raise UnreadableImageError(f"it is {size}, not {width} x {height}")
        return pixels

    def fingerprint(self) -> str:
        """Hash the annotations and the images' paths and sizes in bytes."""
        # Sizes in place of the contents, all of which would have to be read.
        digest = hashlib.sha256(json.dumps(self.annotations, sort_keys=True).encode())
        for image in self.images:
            digest.update(str(image.path).encode(errors="surrogateescape") + b"\0")
            with contextlib.suppress(OSError):
                digest.update(f"{image.path.stat().st_size}".encode())
        return digest.hexdigest()[:16]


def _annotated_images(content: Entry, folder: Path, with_masks: bool) -> list[AnnotatedImage]:
    # 0 is the background.
    labels = {int(one["id"]): label for label, one in enumerate(content["categories"], start=1)}
    instances: dict[int, list[Instance]] = {int(image["id"]): [] for image in content["images"]}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            x, y, w, h = annotation["bbox"]
            segmentation = annotation.get("segmentation") if with_masks else None
            label = labels[annotation["category_id"]]
            instance = Instance((x, y, x + w, y + h), label, segmentation)
            instances[annotation["image_id"]].append(instance)
    return [
        AnnotatedImage(
            int(image["id"]),
            folder / image["file_name"],
            (image["height"], image["width"]),
            tuple(instances[int(image["id"])]),
        )
        for image in content["images"]
    ]


def compress_mask(segmentation: Any, size: tuple[int, int]) -> Entry:
    """Convert polygons or run lengths to COCO's compressed run lengths.

    Args:
        segmentation: From a COCO file: a list of polygons, or a dict of `counts` and `size`.
        size: Height and width of the image.
    """
    # The package has no types.
    compress: Any = rle.frPyObjects  # returns a list for a list, otherwise a dict
    if isinstance(segmentation, list):
        return rle.merge(compress(segmentation, *size))
    is_compressed = not isinstance(segmentation["counts"], list)
    return segmentation if is_compressed else compress(segmentation, *size)


def decode_masks(instances: Sequence[Instance], size: tuple[int, int]) -> UInt8[Tensor, "N H W"]:
    """Decode the masks of instances: 1 inside, 0 outside."""
    if not instances:
        return torch.zeros(0, *size, dtype=torch.uint8)
    planes = rle.decode([compress_mask(instance.segmentation, size) for instance in instances])
    return torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1)))


def encode_mask(mask: np.ndarray) -> Entry:
    """Encode an H x W mask of zeros and ones as compressed run lengths that JSON can hold."""
    # COCO counts runs down the columns.
    made = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = made["counts"]  # bytes, which JSON cannot hold
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in made["size"]], "counts": text}


class SplitFiles(NamedTuple):
    """Where the files of a split are."""

    name: str
    file: Path
    """The annotation file."""

    images: Path
    """The folder of the images."""


def find_splits(folder: Path, train: str | None, val: str | None) -> tuple[SplitFiles, SplitFiles]:
    """Find the training and the validation split of a folder.

    Args:
        folder: In COCO's layout.
        train: Name of the training split. Default: the one that begins with train.
        val: Name of the validation split. Default: the one that begins with val, else with test.

    Raises:
        UserError: The folder or a split does not exist, or both splits are the same.
    """
    names = split_names(folder)
    chosen = [
        _choose_split(names, train, ("train",), "--train-split", folder),
        _choose_split(names, val, ("val", "test"), "--val-split", folder),
    ]
    if chosen[0] == chosen[1]:
        raise UserError(
            f"split {chosen[0]} is both the training and the validation split: choose two splits"
        )
    return find_split(folder, chosen[0]), find_split(folder, chosen[1])


def split_names(folder: Path) -> list[str]:
    """Names of the splits of a folder in COCO's layout.

    Raises:
        UserError: The folder is not in that layout.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {problem}: name a folder with {LAYOUT}")
    files = sorted((folder / "annotations").glob(f"{FILE_PREFIX}*.json"))
    if not files:
        raise UserError(
            f"{folder} has no annotations/{FILE_PREFIX}SPLIT.json: COCO's layout is {LAYOUT}"
        )
    return [file.stem.removeprefix(FILE_PREFIX) for file in files]


def _choose_split(
    names: list[str],
    given: str | None,
    prefixes: tuple[str, ...],
    flag: str,
    folder: Path,
) -> str:
    known = f"{folder} has {', '.join(names)}"
    if given is not None:
        if given not in names:
            raise UserError(f"{flag} {given}: unknown split ({known})")
        return given
    for prefix in prefixes:
        found = [name for name in names if name.startswith(prefix)]
        if len(found) > 1:
            raise UserError(f"more than one split could be meant ({', '.join(found)}): set {flag}")
        if found:
            return found[0]
    raise UserError(f"no split begins with {' or '.join(prefixes)} ({known}): set {flag}")


def find_split(folder: Path, name: str) -> SplitFiles:
    """Find the annotation file and the image folder of a split.

    Raises:
        UserError: There is no folder of images.
    """
    file = folder / "annotations" / f"{FILE_PREFIX}{name}.json"
    # COCO's own layout first; the last folder may be shared by several splits.
    choices = (folder / "images" / name, folder / name, folder / "images")
    for images in choices:
        if images.is_dir():
            return SplitFiles(name, file, images)
    raise UserError(f"no images for {file}: neither {choices[0]} nor {choices[1]} is a folder")
