"""COCO's average precision, computed by faster-coco-eval, whose figures equal pycocotools'."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as rle

NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
ALL_AREAS, MAX_DETECTIONS = 0, 2  # indices of "all" and 100 on the axes of `precision`


class AveragePrecision(NamedTuple):
    """COCO's figures in percent; None if there are no such objects."""

    figures: dict[str, float | None]
    """The twelve figures of `NAMES`."""

    by_class: dict[str, float | None]
    """AP of each class."""


def average_precision(
    truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: Literal["bbox", "segm"]
) -> AveragePrecision:
    """Compute COCO's figures of detections in its result format.

    Args:
        truth: Content of an annotation file, crowds included; annotation ids start at 1.
        detections: `image_id`, `category_id`, `bbox` (left, top, width, height), `score` and, for
            "segm", `segmentation`.
        kind: Whether the overlap is measured on boxes or on masks.
    """
    classes = [str(one["name"]) for one in truth["categories"]]
    ids = [one["id"] for one in truth["categories"]]
    with contextlib.redirect_stdout(io.StringIO()):
        # A copy, because the library writes into the annotations.
        parts = ("images", "annotations", "categories")
        known = COCO({part: [dict(one) for one in truth[part]] for part in parts})
        found = known.loadRes([dict(one) for one in detections] or [_empty_detection(truth)])
        evaluation = COCOeval_faster(known, found, kind)
        evaluation.params.catIds = ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = np.asarray(evaluation.eval["precision"])  # IoU, recall, class, area, detections
    order = [int(number) for number in evaluation.params.catIds]
    by_class = {}
    for name, number in zip(classes, ids, strict=True):
        values = precision[:, :, order.index(number), ALL_AREAS, MAX_DETECTIONS]
        values = values[values > -1]
        by_class[name] = _percent(float(values.mean())) if values.size else None
    figures = [_percent(float(value)) for value in evaluation.stats[: len(NAMES)]]
    return AveragePrecision(dict(zip(NAMES, figures, strict=True)), by_class)


def _percent(value: float) -> float | None:
    return None if value < 0 else round(100 * value, 6)


def _empty_detection(truth: Mapping[str, Any]) -> dict[str, Any]:
    """A detection that matches nothing, since the library cannot read an empty list."""
    image, kind = truth["images"][0], truth["categories"][0]
    empty = {
        "size": [image["height"], image["width"]],
        "counts": [image["height"] * image["width"]],
    }
    return {
        "image_id": image["id"],
        "category_id": kind["id"],
        "bbox": [0.0, 0.0, 0.0, 0.0],
        "segmentation": rle.frPyObjects(empty, *empty["size"]),
        "score": 0.0,
    }
