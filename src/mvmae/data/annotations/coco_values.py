"""What numbers, polygons and run lengths of a COCO file can be, and whether a mask fits its box."""

from __future__ import annotations

from typing import Any, TypeGuard

from faster_coco_eval.core import mask as rle

from mvmae.data.annotations.coco import compress_mask

MAX_COORDINATE = 1e6  # pixels from the corner that anything can be
MAX_ID = 2**63 - 1  # faster-coco-eval's
MIN_MASK_PIXELS = 4  # of a mask that something can be learnt of
TINY_MASK = (
    f"masks of fewer than {MIN_MASK_PIXELS} pixels in boxes of more: nothing is learnt of them"
)
MASK_OUTSIDE_BOX = "masks that lie outside their box"
BOX_TOLERANCE = 1.0  # pixels that a box may stick out of its image: files round


def is_id(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number of 64 bit."""
    return type(value) is int and abs(value) <= MAX_ID


def is_coordinate(value: Any) -> bool:
    """Whether a value can be a place in an image; NaN is above nothing."""
    return type(value) in (int, float) and abs(value) <= MAX_COORDINATE


def is_polygon(points: Any) -> bool:
    """Whether a value is x and y of three points or more, one after the other."""
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(map(is_coordinate, points))
    )


def is_decodable(value: dict) -> bool:
    """Whether run lengths fill their size; the decoder does not look, and writes beyond it."""
    counts, (height, width) = value["counts"], value["size"]
    if isinstance(counts, list):
        return all(is_id(n) and n >= 0 for n in counts) and sum(counts) == height * width
    try:
        return sum(_decompress_runs(counts)) == height * width
    except (ValueError, IndexError, TypeError, AttributeError):
        return False


def _decompress_runs(text: str) -> list[int]:
    """Run lengths of COCO's compressed text: 5 bits a letter, later runs as differences."""
    runs: list[int] = []
    at = 0
    while at < len(text):
        value, shift, bits = 0, 0, 0x20
        while bits & 0x20:
            bits = ord(text[at]) - 48
            if not 0 <= bits < 64:
                raise ValueError(text[at])
            value |= (bits & 0x1F) << shift
            at, shift = at + 1, shift + 5
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            raise ValueError("a run of negative length")
    return runs


def mask_problem(one: dict[str, Any], size: tuple[int, int]) -> str:
    """What is wrong with a mask that can be decoded, if anything is."""
    packed = compress_mask(one["segmentation"], size)
    if int(rle.area(packed)) < MIN_MASK_PIXELS:
        _, _, w, h = one["bbox"]
        return (
            TINY_MASK if w * h >= 2 * MIN_MASK_PIXELS else ""
        )  # a tiny thing may well have such a mask
    left, top, width, height = rle.toBbox(packed).tolist()
    x, y, w, h = one["bbox"]
    beside = max(x - left - width, left - x - w, y - top - height, top - y - h)
    return MASK_OUTSIDE_BOX if beside > BOX_TOLERANCE else ""
