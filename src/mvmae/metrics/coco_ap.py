"""COCO's average precision, by faster-coco-eval, whose figures equal pycocotools'."""

from __future__ import annotations

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
LARGEST_AREA, MAX_DETECTIONS = 0, 2  # places of "all" and of 100 in the evaluation's axes


class AveragePrecision(NamedTuple):
    """COCO's figures in percent; none where there is nothing to find."""

    figures: dict[str, float | None]
    """The twelve, by `NAMES`."""

    by_class: dict[str, float | None]
    """AP of each class."""


def average_precision(
    truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    kind: Literal["bbox", "segm"],
) -> AveragePrecision:
    """The figures of detections in COCO's result format.

    Args:
        truth: Content of an annotation file, crowds included; annotation ids from 1.
        detections: `image_id`, `category_id`, `bbox` (left, top, width, height), `score` and, for
            "segm", `segmentation`.
        kind: Whether boxes or masks must overlap.
    """
    classes = [str(one["name"]) for one in truth["categories"]]
    ids = [one["id"] for one in truth["categories"]]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(_copied(truth))
        found = known.loadRes([dict(one) for one in detections] or [_nothing(truth)])
        judged = COCOeval_faster(known, found, kind)
        judged.params.catIds = ids
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    precision = np.asarray(judged.eval["precision"])  # IoU, recall, class, area, most detections
    order = [int(number) for number in judged.params.catIds]
    by_class = {}
    for name, number in zip(classes, ids, strict=True):
        values = precision[:, :, order.index(number), LARGEST_AREA, MAX_DETECTIONS]
        values = values[values > -1]
        by_class[name] = _percent(float(values.mean())) if values.size else None
    figures = [_percent(float(value)) for value in judged.stats[: len(NAMES)]]
    return AveragePrecision(dict(zip(NAMES, figures, strict=True)), by_class)


def _copied(truth: Mapping[str, Any]) -> dict[str, Any]:
    """The library writes into the annotations."""
    whole: dict[str, Any] = {
        key: [dict(one) for one in truth[key]] for key in ("images", "annotations", "categories")
    }
    return whole


def _percent(value: float) -> float | None:
    return None if value < 0 else round(100 * value, 6)


def _nothing(truth: Mapping[str, Any]) -> dict[str, Any]:
    """A detection that finds nothing: without one the library has nothing to read."""
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
