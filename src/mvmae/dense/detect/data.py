"""Images with boxes and masks: opened and checked, jittered for training, fitted for evaluation.

Shapes: C channels, H x W pixels of a file, h x w pixels of a prepared image, N objects in it.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import functional as tv

from mvmae.config.detect import DetectConfig
from mvmae.data.annotations import coco_check
from mvmae.data.annotations.coco import MIN_MASK_PIXELS, CocoSplit, decode_masks, find_splits
from mvmae.data.annotations.findings import print_findings
from mvmae.data.reading.decode import Pixels
from mvmae.data.sources.base import Source
from mvmae.dense.batches import scaled_size, training_batches
from mvmae.dense.train import Job
from mvmae.encoders import Preprocessing
from mvmae.errors import UserError
from mvmae.method.views import Box, crop, resize
from mvmae.training import distributed

MIN_SIDE = 1.0  # pixels; smaller boxes are not trained on


class DetectionData(NamedTuple):
    """Training and validation images with boxes."""

    train: CocoSplit
    test: CocoSplit


DetectJob = Job[DetectConfig, DetectionData]


def open_detection(config: DetectConfig, channels: int) -> DetectionData:
    """Open and check the images with boxes that a config names.

    Raises:
        UserError: There are none, or they cannot be used.
    """
    # Everything is checked now: a night's training must not end at an invalid polygon.
    files = find_splits(Path(config.data), config.train_split, config.val_split)
    checked = []
    for split in files:
        content = coco_check.load_coco(split.file)
        sizes = coco_check.read_image_sizes(split.images, content)
        checked.append(coco_check.check_coco(content, sizes, with_masks=not config.boxes_only))
    if distributed.is_main():
        findings = {split.name: one.findings for split, one in zip(files, checked, strict=True)}
        print_findings("annotations", findings)
    for split, one in zip(files, checked, strict=True):
        if one.fatal:
            problems = "; ".join(
                f"{finding.what} ({', '.join(finding.examples) or finding.count})"
                for finding in one.fatal
            )
            raise UserError(f"{split.file} cannot be used: {problems}")
    coco_check.require_same_categories(files, checked)
    # A model has a mask head or not, so both splits must have masks for it to be trained.
    options = {"channels": channels, "with_masks": all(one.has_masks for one in checked)}
    train, test = (
        CocoSplit(split, one.content, **options) for split, one in zip(files, checked, strict=True)
    )
    return DetectionData(train, test)


class Target(NamedTuple):
    """Ground truth of an image."""

    boxes: Float[Tensor, "N 4"]
    """Left, top, right and bottom in pixels."""

    labels: Int[Tensor, " N"]
    """Classes from 1; 0 is the background."""

    masks: UInt8[Tensor, "N h w"] | None


def read_fitted(
    source: Source, side: int, interpolation: str, index: int
) -> tuple[UInt8[Tensor, "C h w"], tuple[int, int]]:
    """Read a whole image, fitted into a square; also return the height and width of its file.

    Raises:
        UnreadableImageError: The image cannot be read.
    """
    pixels = source.read(index)
    size = (int(pixels.shape[1]), int(pixels.shape[2]))
    return resize(pixels, scaled_size(size, side / max(size)), interpolation), size


def jitter_batches(
    split: CocoSplit, config: DetectConfig, preprocessing: Preprocessing, steps: range, **share: Any
) -> DataLoader:
    """Load jittered images, each with its `Target`; `share` is as in `training_batches`."""
    jitter = partial(jitter_image, config=config, interpolation=preprocessing.interpolation)
    return training_batches(split, partial(read_annotated, split), jitter, config, steps, **share)


def read_annotated(split: CocoSplit, index: int) -> tuple[Pixels, Target]:
    """Read an image with its ground truth, in its own pixels.

    Raises:
        UnreadableImageError: The image cannot be read.
    """
    pixels, image = split.read(index), split.images[index]
    target = Target(
        torch.tensor([one.box for one in image.instances], dtype=torch.float32).view(-1, 4),
        torch.tensor([one.label for one in image.instances], dtype=torch.int64),
        decode_masks(image.instances, image.size) if split.with_masks else None,
    )
    return pixels, target


def jitter_image(
    image: UInt8[Tensor, "C H W"],
    target: Target,
    config: DetectConfig,
    interpolation: str,
    rng: np.random.Generator,
) -> tuple[UInt8[Tensor, "C h w"], Target]:
    """Apply large-scale jitter (Ghiasi et al. 2020) and a flip, drawn from `rng`.

    The image is resized by a random factor and cropped at random where it is then larger than the
    square. Smaller images are not padded here: the model does that. Objects that are cut get the
    boxes of what is left of their masks.
    """
    size = (int(image.shape[1]), int(image.shape[2]))
    side = config.image_size
    resized = scaled_size(size, rng.uniform(*config.scale_jitter) * side / max(size))
    visible = min(resized[0], side), min(resized[1], side)
    # Cropping before resizing is cheaper than the reverse.
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
    return image, drop_invisible(Target(boxes, target.labels, masks))


def resize_masks(
    masks: UInt8[Tensor, "N H W"], box: Box, size: tuple[int, int]
) -> UInt8[Tensor, "N h w"]:
    """Crop masks and resize them; a pixel is inside if half of its area was.

    torchvision's nearest-neighbour resizing takes the pixel to the left and above, which shifts
    masks by half a pixel.
    """
    if not len(masks):
        return masks.new_zeros(0, *size)
    # As an 8-bit picture, whose grey levels are the shares of the area.
    return (crop(255 * masks, box, size, "bilinear") > 127).byte()


def drop_invisible(target: Target) -> Target:
    """Drop objects that the crop has cut away, and tighten the boxes around the masks."""
    boxes, labels, masks = target
    if masks is None:
        keep = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(dim=1)
        return Target(boxes[keep], labels[keep], None)
    keep = masks.flatten(1).sum(dim=1, dtype=torch.int64) >= MIN_MASK_PIXELS
    masks, labels = masks[keep], labels[keep]
    boxes = masks_to_boxes(masks).float()
    boxes = boxes + boxes.new_tensor([0, 0, 1, 1])  # corners were pixels, not their edges
    return Target(boxes, labels, masks)
