"""Batches of images with boxes and masks: large-scale jitter for training, whole for evaluation.

As everywhere, the augmentation of an image is a function of (seed, epoch, index).
Shapes: C channels, h x w pixels of a prepared image, N objects in it.
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

from mvmae.config.detect import DetectConfig
from mvmae.data.annotations.coco import MIN_MASK_PIXELS, AnnotatedImage, CocoSplit, decode_masks
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.reading.loader import Skipped, StepSampler, loading
from mvmae.data.reading.samples import first_readable
from mvmae.data.sources.base import Source
from mvmae.method.views import Box, crop, resize

MAX_BATCH_SIZE = 8  # images, in evaluation
MIN_SIDE = 1.0  # pixels; smaller boxes are not trained on


class Target(NamedTuple):
    """Ground truth of an image."""

    boxes: Float[Tensor, "N 4"]
    """Left, top, right and bottom in pixels."""

    labels: Int[Tensor, " N"]
    """Classes from 1; 0 is the background."""

    masks: UInt8[Tensor, "N h w"] | None


class PreparedImage(NamedTuple):
    """Image with its ground truth."""

    image: UInt8[Tensor, "C h w"]
    target: Target


class DetectionBatch(NamedTuple):
    """Images for one process and one step; they differ in size."""

    images: list[Tensor]
    targets: list[Target]
    skipped: list[Skipped]
    is_whole: bool
    """Whether a readable image was found for every position of the batch."""


def fitted_size(size: Sequence[int], side: int, scale: float = 1.0) -> tuple[int, int]:
    """Height and width of an image whose longer side becomes `scale` times `side`."""
    factor = scale * side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def jitter_image(
    image: UInt8[Tensor, "C H W"],
    target: Target,
    config: DetectConfig,
    interpolation: str,
    rng: np.random.Generator,
) -> PreparedImage:
    """Apply large-scale jitter (Ghiasi et al. 2020) and a flip, drawn from `rng`.

    The image is resized by a random factor and cropped at random where it is then larger than the
    square. Smaller images are not padded here: the model does that. Objects that are cut get the
    boxes of what is left of their masks.
    """
    size = (int(image.shape[1]), int(image.shape[2]))
    side = config.image_size
    resized = fitted_size(size, side, rng.uniform(*config.scale_jitter))
    visible = min(resized[0], side), min(resized[1], side)
    height, width = (
        max(1, round(s * v / r)) for s, v, r in zip(size, visible, resized, strict=True)
    )
    top = int(rng.integers(size[0] - height + 1))
    left = int(rng.integers(size[1] - width + 1))
    box = Box(top, left, height, width)
    flips = config.flip == "horizontal" and rng.random() < 0.5

    make: Any = tv_tensors.BoundingBoxes  # type checkers take Tensor's signature for this class's
    boxes = make(target.boxes, format="XYXY", canvas_size=size)
    image = crop(image, box, visible, interpolation)
    boxes = tv.resized_crop(boxes, *box, size=list(visible))
    masks = None if target.masks is None else resize_masks(target.masks, box, visible)
    if flips:
        image, boxes = tv.horizontal_flip(image), tv.horizontal_flip(boxes)
        masks = None if masks is None else masks.flip(-1)
    boxes = tv.clamp_bounding_boxes(boxes).as_subclass(Tensor)
    return PreparedImage(image, drop_invisible(Target(boxes, target.labels, masks)))


def resize_masks(
    masks: UInt8[Tensor, "N H W"], box: Box, size: tuple[int, int]
) -> UInt8[Tensor, "N h w"]:
    """Crop masks and resize them; a pixel is inside if half of its area was.

    torchvision's nearest-neighbour resizing takes the pixel to the left and above, which shifts
    masks by half a pixel.
    """
    if not len(masks):
        return masks.new_zeros(0, *size)
    return (crop(255 * masks, box, size, "bilinear") > 127).byte()


def drop_invisible(target: Target) -> Target:
    """Drop objects that the crop has cut away, and tighten the boxes around the masks."""
    boxes, labels, masks = target
    if masks is not None:
        keep = masks.flatten(1).sum(dim=1, dtype=torch.int64) >= MIN_MASK_PIXELS
        masks, labels = masks[keep], labels[keep]
        boxes = masks_to_boxes(masks) if len(masks) else boxes[:0]
        boxes = boxes + boxes.new_tensor([0, 0, 1, 1])  # corners were pixels, not their edges
        return Target(boxes.float(), labels, masks)
    keep = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(dim=1)
    return Target(boxes[keep], labels[keep], None)


def build_target(image: AnnotatedImage, *, with_masks: bool) -> Target:
    """Build the ground truth of an image, in its own pixels."""
    boxes = [instance.box for instance in image.instances]
    labels = [instance.label for instance in image.instances]
    return Target(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        decode_masks(image.instances, image.size) if with_masks else None,
    )


class _Sample(NamedTuple):
    prepared: PreparedImage | None
    skipped: list[Skipped]


class JitteredDataset(Dataset):
    """Jittered image by (epoch, index)."""

    def __init__(self, split: CocoSplit, config: DetectConfig, interpolation: str) -> None:
        self.split, self.config, self.interpolation = split, config, interpolation

    def __getitem__(self, index: tuple[int, int]) -> _Sample:
        rng = np.random.default_rng((self.config.seed, *index))
        pixels, place, skipped = first_readable(self.split.read, self.split, index[1], rng)
        if pixels is None:
            return _Sample(None, skipped)
        target = build_target(self.split.images[place], with_masks=self.split.with_masks)
        prepared = jitter_image(pixels, target, self.config, self.interpolation, rng)
        return _Sample(prepared, skipped)


def _collate(samples: list[_Sample]) -> DetectionBatch:
    prepared = [sample.prepared for sample in samples if sample.prepared is not None]
    return DetectionBatch(
        [image for image, _ in prepared],
        [target for _, target in prepared],
        [skip for sample in samples for skip in sample.skipped],
        len(prepared) == len(samples),
    )


def training_batches(
    split: CocoSplit,
    config: DetectConfig,
    interpolation: str,
    steps: range,
    *,
    rank: int,
    world_size: int,
    cuda: bool,
) -> DataLoader:
    """Load the batches of the given steps; iterating yields `DetectionBatch`."""
    return DataLoader(
        JitteredDataset(split, config, interpolation),
        batch_sampler=StepSampler(
            len(split), config.seed, config.batch_size, steps, rank, world_size
        ),
        **loading(config.workers, cuda),
        collate_fn=_collate,
    )


class FittedImages(NamedTuple):
    """Whole images, each fitted into the square."""

    images: list[Tensor]
    indices: list[int]
    """Positions in the source."""

    sizes: list[tuple[int, int]]
    """Heights and widths of the original images."""

    skipped: list[Skipped]


class FittedDataset(Dataset):
    """Image fitted into the square, by its index in the source."""

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
        image = resize(pixels, fitted_size(size, self.side), self.interpolation)
        return FittedImages([image], [index], [size], [])


def _concatenate(samples: list[FittedImages]) -> FittedImages:
    columns = zip(*samples, strict=True)
    return FittedImages(*([item for part in column for item in part] for column in columns))


def evaluation_batches(
    source: Source, indices: Sequence[int], config: DetectConfig, interpolation: str, *, cuda: bool
) -> DataLoader:
    """Load the images at `indices` once, in order; iterating yields `FittedImages`."""
    return DataLoader(
        FittedDataset(source, config.image_size, interpolation),
        sampler=list(indices),
        batch_size=min(config.batch_size, MAX_BATCH_SIZE),
        **loading(config.workers, cuda),
        collate_fn=_concatenate,
    )
