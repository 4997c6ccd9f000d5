"""Images with boxes and masks in COCO's layout: where they lie, and what is in them.

Shapes: C channels, H x W pixels, N things in an image.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from jaxtyping import UInt8
from torch import Tensor

from mvmae.data.reading.decode import Pixels, UnreadableImageError, Wanted, decode
from mvmae.data.sources.base import Source
from mvmae.data.sources.folders import file_version, read_file
from mvmae.errors import UserError

FILE_PREFIX = "instances_"
LAYOUT = "annotations/instances_train.json beside images/train"


class Instance(NamedTuple):
    """An annotated object."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels."""

    label: int
    """Place of its class, from 1; 0 is the background."""

    segmentation: Any
    """Polygons or run lengths, as the file has them; none where there are only boxes."""


class AnnotatedImage(NamedTuple):
    """An image and what is in it."""

    image_id: int
    """Its id in the file."""

    path: Path
    size: tuple[int, int]
    """Height and width in pixels."""

    instances: tuple[Instance, ...]
    """Crowds left out."""


class CocoSplit(Source):
    """The images of one annotation file; a `Source` without labels.

    Args:
        name: Of the split.
        file: The annotations.
        content: What it says, checked and repaired (`coco_check.checked`).
        folder: Of the images.
        channels: Of the pixels to give.
        with_masks: Whether things keep their masks.
    """

    def __init__(
        self,
        name: str,
        file: Path,
        content: dict[str, Any],
        folder: Path,
        *,
        channels: int,
        with_masks: bool,
    ) -> None:
        self.name, self.file, self.annotations = name, file, content
        self.channels, self.with_masks = channels, with_masks
        self.wanted = Wanted(channels)
        self.ids = [int(category["id"]) for category in content["categories"]]
        self.classes = [str(category["name"]) for category in content["categories"]]
        self.images = _annotated_images(content, folder, self.ids, with_masks=with_masks)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Pixels:
        """See `Source`.

        Raises:
            UnreadableImageError: It cannot be read, or is of another size than the file says.
        """
        picture = self.images[index]
        pixels = read_pixels(picture.path, self.channels)
        if tuple(pixels.shape[1:]) != picture.size:
            raise UnreadableImageError(
                f"it is {_width_by_height(pixels.shape[1:])}, not {_width_by_height(picture.size)}"
            )
        return pixels

    def path(self, index: int) -> str:
        return str(self.images[index].path)

    def content(self, index: int) -> bytes:
        return read_file(self.path(index))

    def version(self, index: int) -> str:
        return file_version(self.path(index))

    def fingerprint(self) -> str:
        """A short hash of the images' places and sizes in bytes, and of the annotations."""
        digest = hashlib.sha256(json.dumps(self.annotations, sort_keys=True).encode())
        for picture in self.images:
            digest.update(str(picture.path).encode(errors="surrogateescape") + b"\0")
            with contextlib.suppress(OSError):
                digest.update(f"{picture.path.stat().st_size}".encode())
        return digest.hexdigest()[:16]


def _width_by_height(size: Sequence[int]) -> str:
    """Width x height, as COCO's files have it."""
    return f"{size[1]} x {size[0]}"


def read_pixels(path: Path, channels: int) -> Pixels:
    """The pixels of an image file.

    Raises:
        UnreadableImageError: It cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(str(error.strerror)) from error
    return decode(data, channels)


def _annotated_images(
    content: dict[str, Any], folder: Path, ids: list[int], *, with_masks: bool
) -> list[AnnotatedImage]:
    places = {number: place for place, number in enumerate(ids, start=1)}
    things: dict[int, list[Instance]] = {int(image["id"]): [] for image in content["images"]}
    for one in content["annotations"]:
        if not one.get("iscrowd"):
            x, y, w, h = one["bbox"]
            segmentation = one.get("segmentation") if with_masks else None
            label = places[one["category_id"]]
            things[one["image_id"]].append(Instance((x, y, x + w, y + h), label, segmentation))
    return [
        AnnotatedImage(
            int(image["id"]),
            folder / image["file_name"],
            (image["height"], image["width"]),
            tuple(things[int(image["id"])]),
        )
        for image in content["images"]
    ]


def compress_mask(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons or run lengths as compressed run lengths.

    Args:
        segmentation: Of a COCO file: a list of polygons, or `counts` and `size`.
        size: Height and width of the image.
    """
    compress: Any = rle.frPyObjects  # gives a list for a list, and else a dict
    if isinstance(segmentation, list):
        return rle.merge(compress(segmentation, *size))
    is_compressed = not isinstance(segmentation["counts"], list)
    return segmentation if is_compressed else compress(segmentation, *size)


def decode_masks(things: Sequence[Instance], size: tuple[int, int]) -> UInt8[Tensor, "N H W"]:
    """The things' masks, 1 inside."""
    if not things:
        return torch.zeros(0, *size, dtype=torch.uint8)
    planes = rle.decode([compress_mask(thing.segmentation, size) for thing in things])
    return torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1)))


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask of H x W zeros and ones as JSON's compressed run lengths."""
    made = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = made["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in made["size"]], "counts": text}


class SplitFiles(NamedTuple):
    """Where a split lies."""

    name: str
    file: Path
    images: Path


def find_splits(folder: Path, train: str | None, val: str | None) -> tuple[SplitFiles, SplitFiles]:
    """The training and the validation split of a folder.

    Args:
        folder: In COCO's layout.
        train: Name of the training split. Default: what begins with train.
        val: Of the validation split. Default: what begins with val, else with test.

    Raises:
        UserError: There is no such folder or split, or both are the same.
    """
    names = split_names(folder)
    chosen = [
        _choose_split(names, train, ("train",), "--train-split", folder),
        _choose_split(names, val, ("val", "test"), "--val-split", folder),
    ]
    if chosen[0] == chosen[1]:
        raise UserError(f"split {chosen[0]} would be trained and judged on: choose two")
    places = [find_split(folder, name) for name in chosen]
    return places[0], places[1]


def split_names(folder: Path) -> list[str]:
    """The splits of a folder in COCO's layout.

    Raises:
        UserError: It is not in that layout.
    """
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "not there"
        raise UserError(f"{folder} is {kind}: name a folder with {LAYOUT}")
    files = sorted((folder / "annotations").glob(f"{FILE_PREFIX}*.json"))
    if not files:
        raise UserError(
            f"{folder} has no annotations/{FILE_PREFIX}SPLIT.json: COCO's layout is {LAYOUT}"
        )
    return [file.stem.removeprefix(FILE_PREFIX) for file in files]


def _choose_split(
    names: list[str], given: str | None, starts: tuple[str, ...], flag: str, folder: Path
) -> str:
    there = f"{folder} has {', '.join(names)}"
    if given is not None:
        if given not in names:
            raise UserError(f"{flag} {given}: no such split ({there})")
        return given
    for start in starts:
        found = [name for name in names if re.match(start, name)]
        if len(found) > 1:
            raise UserError(f"{', '.join(found)} could all be meant: choose with {flag}")
        if found:
            return found[0]
    raise UserError(f"no split that begins with {' or '.join(starts)} ({there}): name it by {flag}")


def find_split(folder: Path, name: str) -> SplitFiles:
    """Where a split's annotations and images lie.

    Raises:
        UserError: There is no folder of images.
    """
    file = folder / "annotations" / f"{FILE_PREFIX}{name}.json"
    choices = (folder / "images" / name, folder / name, folder / "images")
    for images in choices:
        if images.is_dir():
            return SplitFiles(name, file, images)
    raise UserError(f"no images for {file}: neither {choices[0]} nor {choices[1]} is a folder")
