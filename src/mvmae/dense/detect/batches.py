"""Batches of images with boxes and masks: large-scale jitter for training, whole for testing.

As everywhere, what becomes of an image is a function of (seed, epoch, index).
Shapes: C channels, h x w pixels of a prepared image, N things in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import functional as tv

from mvmae.data.annotations.coco import AnnotatedImage, CocoSplit, decode_masks
from mvmae.data.annotations.coco_values import MIN_MASK_PIXELS
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.reading.loader import Skipped, StepSampler, loading
from mvmae.data.reading.samples import readable
from mvmae.data.sources.base import Source
from mvmae.method.views import Box, crop, resize

LEAST_SIDE = 1.0  # pixels of a box that is worth learning


class Target(NamedTuple):
    """What is to be found in an image."""

    boxes: Float[Tensor, "N 4"]
    """Left, top, right and bottom in pixels."""

    labels: Int[Tensor, " N"]
    """From 1."""

    masks: UInt8[Tensor, "N h w"] | None


class PreparedImage(NamedTuple):
    """An image and what is in it."""

    image: UInt8[Tensor, "C h w"]
    target: Target


class Jitter(NamedTuple):
    """What happens to an image before it is trained on."""

    seed: int
    batch_size: int
    """Images in a step, over all processes."""

    side: int
    """Of the square that images are fitted into."""

    scale: tuple[float, float]
    flip: bool
    interpolation: str


class DetectionBatch(NamedTuple):
    """What one process trains on in one step; images differ in size."""

    images: list[Tensor]
    targets: list[Target]
    skipped: list[Skipped]
    is_whole: bool
    """Whether something readable was found for every place."""


def fitted_size(size: Sequence[int], side: int, scale: float = 1.0) -> tuple[int, int]:
    """Height and width of an image whose longer side becomes `scale` times `side`."""
    factor = scale * side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def jitter_image(
    image: UInt8[Tensor, "C H W"], target: Target, jitter: Jitter, rng: np.random.Generator
) -> PreparedImage:
    """Large-scale jitter (Ghiasi et al. 2020) and a flip, drawn from `rng`.

    The image is resized by a random factor and, where it is then larger than the square, a random
    part is kept. Smaller ones are not padded here: the model does that. Things that are cut get
    the boxes of what is left of their masks.
    """
    size = (int(image.shape[1]), int(image.shape[2]))
    whole = fitted_size(size, jitter.side, rng.uniform(*jitter.scale))
    seen = min(whole[0], jitter.side), min(whole[1], jitter.side)
    height, width = (max(1, round(s * n / w)) for s, n, w in zip(size, seen, whole, strict=True))
    top = int(rng.integers(size[0] - height + 1))
    left = int(rng.integers(size[1] - width + 1))
    box = top, left, height, width
    flips = jitter.flip and rng.random() < 0.5

    make: Any = tv_tensors.BoundingBoxes  # its own signature is hidden by Tensor's
    boxes = make(target.boxes, format="XYXY", canvas_size=size)
    image = crop(image, Box(*box), seen, jitter.interpolation)
    boxes = tv.resized_crop(boxes, *box, size=list(seen))
    masks = None if target.masks is None else resize_masks(target.masks, Box(*box), seen)
    if flips:
        image, boxes = tv.horizontal_flip(image), tv.horizontal_flip(boxes)
        masks = None if masks is None else masks.flip(-1)
    boxes = tv.clamp_bounding_boxes(boxes).as_subclass(Tensor)
    return PreparedImage(image, drop_invisible(Target(boxes, target.labels, masks)))


def resize_masks(
    masks: UInt8[Tensor, "N H W"], box: Box, size: tuple[int, int]
) -> UInt8[Tensor, "N h w"]:
    """A part of masks, resized; a pixel is inside where half of it was.

    torchvision takes the nearest pixel to the left and above, which moves masks, and boxes around
    them, by half a pixel.
    """
    if not len(masks):
        return masks.new_zeros(0, *size)
    return (crop(255 * masks, box, size, "bilinear") > 127).byte()


def drop_invisible(target: Target) -> Target:
    """Without what is no longer to be seen; boxes are drawn tight around the masks."""
    boxes, labels, masks = target
    if masks is not None:
        keep = masks.flatten(1).sum(dim=1, dtype=torch.int64) >= MIN_MASK_PIXELS
        masks, labels = masks[keep], labels[keep]
        boxes = masks_to_boxes(masks) if len(masks) else boxes[:0]
        boxes = boxes + boxes.new_tensor([0, 0, 1, 1])  # its corners are pixels, not edges
        return Target(boxes.float(), labels, masks)
    keep = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(dim=1)
    return Target(boxes[keep], labels[keep], None)


def build_target(picture: AnnotatedImage, *, with_masks: bool) -> Target:
    """What is to be found in a picture, in its own pixels."""
    boxes = [thing.box for thing in picture.instances]
    labels = [thing.label for thing in picture.instances]
    return Target(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        decode_masks(picture.instances, picture.size) if with_masks else None,
    )


class _Sample(NamedTuple):
    prepared: PreparedImage | None
    skipped: list[Skipped]


class JitteredDataset(Dataset):
    """A jittered image by (epoch, index)."""

    def __init__(self, split: CocoSplit, jitter: Jitter) -> None:
        self.split, self.jitter = split, jitter

    def __getitem__(self, index: tuple[int, int]) -> _Sample:
        rng = np.random.default_rng((self.jitter.seed, *index))
        pixels, place, skipped = readable(self.split, index[1], rng)
        if pixels is None:
            return _Sample(None, skipped)
        target = build_target(self.split.images[place], with_masks=self.split.with_masks)
        return _Sample(jitter_image(pixels, target, self.jitter, rng), skipped)


def _collate(samples: list[_Sample]) -> DetectionBatch:
    read = [sample.prepared for sample in samples if sample.prepared is not None]
    skipped = [skip for sample in samples for skip in sample.skipped]
    images, targets = [one.image for one in read], [one.target for one in read]
    return DetectionBatch(images, targets, skipped, len(read) == len(samples))


def training_batches(
    split: CocoSplit,
    jitter: Jitter,
    steps: range,
    *,
    rank: int,
    world_size: int,
    workers: int | None,
    cuda: bool,
) -> DataLoader:
    """Batches for the given steps of a run; iterating yields `DetectionBatch`."""
    return DataLoader(
        JitteredDataset(split, jitter),
        batch_sampler=StepSampler(len(split), jitter, steps, rank, world_size),
        **loading(workers, cuda),
        collate_fn=_collate,
    )


class FittedImages(NamedTuple):
    """Images as they are judged, each fitted into the square."""

    images: list[Tensor]
    indices: list[int]
    """Places in the source."""

    sizes: list[tuple[int, int]]
    """Height and width of the images as they were."""

    skipped: list[Skipped]


class FittedDataset(Dataset):
    """An image fitted into the square, by its place in the source."""

    def __init__(self, source: Source, side: int, interpolation: str) -> None:
        self.source, self.side, self.interpolation = source, side, interpolation

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> FittedImages:
        try:
            pixels = self.source.read(index)
        except UnreadableImageError as error:
            return FittedImages([], [], [], [Skipped(self.source.path(index), str(error))])
        size = (int(pixels.shape[1]), int(pixels.shape[2]))
        wanted = list(fitted_size(size, self.side))
        image = resize(pixels, wanted, self.interpolation)
        return FittedImages([image], [index], [size], [])


def _joined(samples: list[FittedImages]) -> FittedImages:
    columns = zip(*samples, strict=True)
    return FittedImages(*([item for part in column for item in part] for column in columns))


def evaluation_batches(
    source: Source,
    side: int,
    *,
    interpolation: str,
    batch_size: int,
    places: Sequence[int],
    workers: int | None,
    cuda: bool,
) -> DataLoader:
    """The images at some places once, in order; iterating yields `WholeImages`."""
    return DataLoader(
        FittedDataset(source, side, interpolation),
        sampler=list(places),
        batch_size=batch_size,
        **loading(workers, cuda),
        collate_fn=_joined,
    )
