"""What a detector finds in images, in their own pixels, and how good that is.

Shapes: N things found in an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from mvmae import encoders
from mvmae.data.annotations.coco import CocoSplit, encode_mask
from mvmae.data.reading.loader import Skipped
from mvmae.data.sources.base import Source
from mvmae.dense.detect.batches import evaluation_batches
from mvmae.encoders import Preprocessing
from mvmae.method.views import normalized
from mvmae.metrics.coco_ap import AveragePrecision, average_precision
from mvmae.training import distributed, precision

MOST_AT_ONCE = 8  # images
INSIDE = 0.5  # probability from which a pixel belongs to a thing


class Detector(NamedTuple):
    """A detector with what one must know to use it."""

    model: FasterRCNN
    side: int
    preprocessing: Preprocessing
    device: torch.device
    precision: str
    batch_size: int
    workers: int | None


class Detections(NamedTuple):
    """What is in one image, the surest first."""

    index: int
    """Place of the image in its source."""

    boxes: list[list[float]]
    """Left, top, right and bottom in the pixels of the image's file."""

    labels: list[int]
    """From 1."""

    scores: list[float]
    masks: list[dict[str, Any]] | None
    """Run lengths, of the size of the image's file."""

    def above(self, score: float) -> Detections:
        """What has at least this score."""
        kept = [at for at, value in enumerate(self.scores) if value >= score]
        return Detections(
            self.index,
            [self.boxes[at] for at in kept],
            [self.labels[at] for at in kept],
            [self.scores[at] for at in kept],
            None if self.masks is None else [self.masks[at] for at in kept],
        )

    def as_coco(self, image: int, ids: Sequence[int]) -> list[dict[str, Any]]:
        """In COCO's result format, for an image and classes of these ids."""
        masks = self.masks or [None] * len(self.boxes)
        return [
            {
                "image_id": image,
                "category_id": ids[label - 1],
                "bbox": [round(v, 2) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])],
                "score": round(score, 5),
            }
            | ({} if mask is None else {"segmentation": mask})
            for box, label, score, mask in zip(
                self.boxes, self.labels, self.scores, masks, strict=True
            )
        ]


def find_objects(
    finder: Detector,
    source: Source,
    places: Sequence[int],
    skipped: list[Skipped],
    advance: Callable[[int], object] = lambda count: None,
) -> Iterator[Detections]:
    """Look for things in some images of a source.

    Args:
        finder: The detector.
        source: The images.
        places: Of those to look at.
        skipped: Gets what could not be read.
        advance: Told how many more images are done.
    """
    model, preprocessing = finder.model, finder.preprocessing
    was_training = model.training
    model.eval()
    try:
        for batch in evaluation_batches(
            source,
            finder.side,
            interpolation=preprocessing.interpolation,
            batch_size=min(finder.batch_size, MOST_AT_ONCE),
            places=places,
            workers=finder.workers,
            cuda=finder.device.type == "cuda",
        ):
            skipped += batch.skipped
            results = _results(finder, batch.images) if batch.images else []
            for image, result, index, size in zip(
                batch.images, results, batch.indices, batch.sizes, strict=True
            ):
                yield _found(result, index, size, (image.shape[1], image.shape[2]))
            advance(len(batch.images) + len(batch.skipped))
    finally:
        model.train(was_training)


def _results(finder: Detector, images: list[Tensor]) -> list[dict[str, Tensor]]:
    mean, std, _ = finder.preprocessing
    prepared = [normalized(image[None], mean, std, finder.device)[0] for image in images]
    with torch.inference_mode(), precision.autocast(finder.device, finder.precision):
        return finder.model(prepared)


def _found(
    result: dict[str, Tensor], index: int, size: tuple[int, int], seen: tuple[int, int]
) -> Detections:
    """What was found in a prepared image, in the pixels of its file."""
    result = {name: tensor.float().cpu() for name, tensor in result.items()}
    scale = torch.tensor([size[1] / seen[1], size[0] / seen[0]]).repeat(2)
    boxes = result["boxes"] * scale
    masks = None
    if "masks" in result:
        masks = [
            paste_mask(one, box, size, (float(scale[1]), float(scale[0])))
            for one, box in zip(result["masks"], boxes, strict=True)
        ]
    labels = [int(label) for label in result["labels"].tolist()]
    return Detections(index, boxes.tolist(), labels, result["scores"].tolist(), masks)


def paste_mask(
    mask: Float[Tensor, "1 s s"],
    box: Float[Tensor, " 4"],
    size: tuple[int, int],
    scale: tuple[float, float] = (1.0, 1.0),
) -> dict[str, Any]:
    """A mask of probabilities in a box as run lengths of the whole image.

    torchvision's own way widens the mask by a pixel, much for small things. Where it cuts masks for
    training, a pixel's middle is half a pixel too far to the left and the top: this undoes that.

    Args:
        mask: What the mask head gives.
        box: In the pixels of the image.
        size: Height and width of the image.
        scale: Of the image to the one that was looked at, in height and width.
    """
    left, top, right, bottom = box.tolist()
    inside = torch.zeros(size, dtype=torch.bool)
    rows, v = _middles(top, bottom, size[0], scale[0])
    columns, u = _middles(left, right, size[1], scale[1])
    if len(u) and len(v):
        places = torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)[None]
        values = F.grid_sample(mask[None], places, padding_mode="border", align_corners=False)
        inside[rows, columns] = values[0, 0] >= INSIDE
    return encode_mask(inside.numpy())


def _middles(
    begin: float, end: float, side: int, scale: float
) -> tuple[slice, Float[Tensor, " n"]]:
    """The pixels whose middle lies in a stretch, and where in it: -1 its begin, 1 its end."""
    first, after = max(0, ceil(begin - 0.5)), min(side, ceil(end - 0.5))
    middles = torch.arange(first, max(first, after)) + 0.5 - 0.5 * scale
    return slice(first, max(first, after)), (middles - begin) / (end - begin) * 2 - 1


class Evaluation(NamedTuple):
    """What the detector makes of the test images."""

    found: list[Detections]
    skipped: list[Skipped]
    box: AveragePrecision
    mask: AveragePrecision | None

    def figures(self) -> dict[str, float | None]:
        """The headline."""
        made = {"box_ap": self.box.figures["AP"], "box_ap50": self.box.figures["AP50"]}
        if self.mask is not None:
            made |= {"mask_ap": self.mask.figures["AP"], "mask_ap50": self.mask.figures["AP50"]}
        return made


def evaluate(
    finder: Detector, split: CocoSplit, advance: Callable[[int], object] = lambda count: None
) -> Evaluation | None:
    """Find things in all images of a split; all processes look, the main one judges.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    skipped: list[Skipped] = []
    places = range(distributed.rank(), len(split), distributed.world_size())
    found = distributed.gather_objects(list(find_objects(finder, split, places, skipped, advance)))
    skipped = distributed.gather_objects(skipped)
    if not distributed.is_main():
        return None
    encoders.require_readable(split, skipped)
    found.sort(key=lambda one: one.index)
    detections = to_coco_results(found, split)
    box = average_precision(split.annotations, detections, "bbox")
    mask = average_precision(split.annotations, detections, "segm") if split.with_masks else None
    return Evaluation(found, skipped, box, mask)


def to_coco_results(found: Sequence[Detections], split: CocoSplit) -> list[dict[str, Any]]:
    """All that was found, as COCO's evaluation reads it."""
    return [
        row for one in found for row in one.as_coco(split.images[one.index].image_id, split.ids)
    ]
