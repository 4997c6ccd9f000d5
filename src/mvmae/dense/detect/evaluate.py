"""Detect objects in images, in the pixels of their files, and compute COCO's metrics.

Shapes: N objects detected in an image, s x s scores of a mask in its box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from faster_coco_eval.core import mask as rle
from jaxtyping import Float
from torch import Tensor

from mvmae import encoders
from mvmae.data.annotations.coco import encode_mask
from mvmae.data.reading.loader import Skipped
from mvmae.data.sources.base import Source
from mvmae.dense.batches import whole_images
from mvmae.dense.detect.data import DetectJob, read_fitted
from mvmae.dense.saved_model import Predictor
from mvmae.figures.detection import Things
from mvmae.method.views import normalize
from mvmae.metrics.coco_ap import AveragePrecision, average_precision
from mvmae.training import distributed, precision

MASK_THRESHOLD = 0.5  # probability from which a pixel belongs to an object
MAX_BATCH_SIZE = 8  # images; training batches may be too large for one device


class Detections(NamedTuple):
    """Objects detected in one image, by falling score."""

    index: int
    """Position of the image in its source."""

    boxes: list[list[float]]
    """Left, top, right and bottom in pixels of the image's file."""

    labels: list[int]
    """Classes from 1."""

    scores: list[float]
    masks: list[dict[str, Any]] | None
    """Run-length encoded, in the size of the image's file."""

    def above(self, score: float) -> Detections:
        """Keep the detections of at least this score."""
        count = sum(value >= score for value in self.scores)  # the first ones: scores fall
        masks = None if self.masks is None else self.masks[:count]
        return Detections(
            self.index, self.boxes[:count], self.labels[:count], self.scores[:count], masks
        )

    def as_things(self) -> Things:
        """Convert for drawing."""
        masks = None
        if self.masks is not None:
            masks = [rle.decode(mask).astype(bool) for mask in self.masks]
        return Things(self.boxes, self.labels, self.scores, masks)

    def as_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Convert to COCO's result format; `category_ids` has the id of each class."""
        masks = self.masks or [None] * len(self.boxes)
        rows = zip(self.boxes, self.labels, self.scores, masks, strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": category_ids[label - 1],
                "bbox": [round(v, 2) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])],
                "score": round(score, 5),
            }
            | ({} if mask is None else {"segmentation": mask})
            for box, label, score, mask in rows
        ]


def detect_objects(
    predictor: Predictor,
    source: Source,
    indices: Sequence[int],
    skipped: list[Skipped],
    advance: Callable[[int], object] = lambda count: None,
) -> Iterator[Detections]:
    """Detect objects in some images of a source; leaves the model in evaluation mode.

    Args:
        predictor: The detector.
        source: The images.
        indices: Images to process.
        skipped: List that images that cannot be read are added to.
        advance: Called with the number of images processed since the last call.
    """
    model, opened, config, device = predictor
    mean, std, interpolation = opened.preprocessing
    model.eval()
    batch_size = min(config.batch_size, MAX_BATCH_SIZE)
    images = whole_images(
        source,
        partial(read_fitted, source, config.image_size, interpolation),
        indices,
        workers=config.workers,
        cuda=device.type == "cuda",
        batch_size=batch_size,
    )
    while batch := list(islice(images, batch_size)):
        skipped += [skip for one in batch for skip in one.skipped]
        read = [(one.index, *one.content) for one in batch if one.content]
        prepared = [normalize(image[None], mean, std, device)[0] for _, image, _ in read]
        with torch.inference_mode(), precision.autocast(device, config.precision):
            results = model(prepared) if prepared else []
        for (index, image, size), result in zip(read, results, strict=True):
            yield _to_detections(result, index, size, (image.shape[1], image.shape[2]))
        advance(len(batch))


def _to_detections(
    result: dict[str, Tensor], index: int, size: tuple[int, int], resized: tuple[int, int]
) -> Detections:
    """Convert what was detected in a resized image to the pixels of its file."""
    result = {name: tensor.float().cpu() for name, tensor in result.items()}
    scale = torch.tensor([size[1] / resized[1], size[0] / resized[0]]).repeat(2)
    boxes = result["boxes"] * scale
    masks = None
    if "masks" in result:
        masks = [
            paste_mask(mask, box, size, (float(scale[1]), float(scale[0])))
            for mask, box in zip(result["masks"], boxes, strict=True)
        ]
    labels = result["labels"].int().tolist()  # made floats above
    return Detections(index, boxes.tolist(), labels, result["scores"].tolist(), masks)


def paste_mask(
    mask: Float[Tensor, "1 s s"],
    box: Float[Tensor, " 4"],
    size: tuple[int, int],
    scale: tuple[float, float] = (1.0, 1.0),
) -> dict[str, Any]:
    """Paste a mask of probabilities into its box and encode the whole image's mask as run lengths.

    torchvision's pasting widens masks by a pixel, which is much for small objects. Where it crops
    masks for training, it places a pixel's centre half a pixel too far to the left and the top;
    this function undoes that.

    Args:
        mask: Output of the mask head.
        box: Left, top, right and bottom in pixels of the image.
        size: Height and width of the image.
        scale: Height and width of the image relative to the resized one that the model saw.
    """
    left, top, right, bottom = box.tolist()
    inside = torch.zeros(size, dtype=torch.bool)
    rows, v = _pixel_centres(top, bottom, size[0], scale[0])
    columns, u = _pixel_centres(left, right, size[1], scale[1])
    if len(u) and len(v):
        grid = torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)[None]
        values = F.grid_sample(mask[None], grid, padding_mode="border", align_corners=False)
        inside[rows, columns] = values[0, 0] >= MASK_THRESHOLD
    return encode_mask(inside.numpy())


def _pixel_centres(
    start: float, end: float, side: int, scale: float
) -> tuple[slice, Float[Tensor, " n"]]:
    """Return the pixels whose centre is between `start` and `end`, and where: from -1 to 1."""
    first = max(0, ceil(start - 0.5))
    after = max(first, min(side, ceil(end - 0.5)))
    centres = torch.arange(first, after) + 0.5 - 0.5 * scale
    return slice(first, after), (centres - start) / (end - start) * 2 - 1


class Evaluation(NamedTuple):
    """Detections in all images of a split, with COCO's metrics."""

    found: list[Detections]
    results: list[dict[str, Any]]
    """The same in COCO's result format."""

    skipped: list[Skipped]
    box: AveragePrecision
    mask: AveragePrecision | None

    def figures(self) -> dict[str, float | None]:
        """Headline metrics, in percent; None where the split has no object to find."""
        figures = {"box_ap": self.box.figures["AP"], "box_ap50": self.box.figures["AP50"]}
        if self.mask is not None:
            figures |= {"mask_ap": self.mask.figures["AP"], "mask_ap50": self.mask.figures["AP50"]}
        return figures


def evaluate(job: DetectJob, _is_last: bool) -> Evaluation | None:
    """Detect objects in all validation images; all processes detect, the main one evaluates.

    Returns:
        The metrics on the main process, None on the others.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    split, skipped = job.data.test, []
    predictor = Predictor(job.model, job.opened, job.config, job.device)
    indices = range(distributed.rank(), len(split), distributed.world_size())
    found = distributed.gather_objects(list(detect_objects(predictor, split, indices, skipped)))
    skipped = distributed.gather_objects(skipped)
    if not distributed.is_main():
        return None
    encoders.require_readable(split, skipped)
    # Processes took every n-th image; files must not depend on their number.
    found.sort(key=lambda detections: detections.index)
    results = [
        row
        for detections in found
        for row in detections.as_coco(split.images[detections.index].image_id, split.ids)
    ]
    box = average_precision(split.annotations, results, "bbox")
    mask = average_precision(split.annotations, results, "segm") if split.with_masks else None
    return Evaluation(found, results, skipped, box, mask)
