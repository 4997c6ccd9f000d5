"""Problems of the masks of a COCO file: polygons or run lengths of each object."""

from typing import Any

from faster_coco_eval.core import mask as rle

from mvmae.data.annotations.coco import MIN_MASK_PIXELS, Entry, compress_mask
from mvmae.data.annotations.findings import FindingCounter

MAX_COORDINATE = 1e6  # pixels
BOX_TOLERANCE = 1.0  # pixels that a box may extend beyond its image or mask: files round
TINY_MASK = (
    f"masks of fewer than {MIN_MASK_PIXELS} pixels in larger boxes: nothing is learnt from them"
)
MASK_OUTSIDE_BOX = "masks outside their box"

Size = tuple[int, int]  # height and width


class UnusableError(Exception):
    """An annotation that has to be left out; `args` are what is wrong, an example, the remedy."""


def repair_mask(value: Any, size: Size, name: str, notes: FindingCounter) -> Any:
    """Return polygons or run lengths that can be decoded; None if there are none.

    Raises:
        UnusableError: The annotation has to be left out.
    """
    if value is None or value == []:
        return None
    if isinstance(value, list):
        polygons = [one for one in value if _is_polygon(one)]
        if not polygons:
            raise UnusableError("polygons with fewer than three points", name, "left out")
        if bad := len(value) - len(polygons):
            what = "polygons with fewer than three points beside valid ones"
            notes.add(what, name, "left out", bad)
        return polygons
    has_runs = isinstance(value, dict) and {"size", "counts"} <= value.keys()
    if has_runs and value["size"] != list(size):
        example = f"{name}: {value['size']}, not {list(size)}"
        raise UnusableError("masks of a different size than their image", example, "left out")
    if not has_runs or not _is_decodable(value):
        raise UnusableError("masks that cannot be read", name, "left out")
    return value


def drop_misplaced_masks(
    kept: list[Entry], images: dict[int, Entry], notes: FindingCounter
) -> list[Entry]:
    """Drop objects whose mask lies outside their box; tiny masks are only counted."""
    fitting, objects, odd = [], 0, 0
    for one in kept:
        image = images[one["image_id"]]
        problem = ""
        if "segmentation" in one and not one["iscrowd"]:
            objects += 1
            problem = _mask_problem(one, (image["height"], image["width"]))
        if problem:
            odd += 1
            example = f"{image['file_name']}: box {[round(v, 1) for v in one['bbox']]}"
            notes.add(problem, example, "kept" if problem == TINY_MASK else "left out")
        if problem != MASK_OUTSIDE_BOX:
            fitting.append(one)
    if odd > objects / 2:
        example = f"{odd} of {objects}; points must be in pixels, not in fractions of the image"
        notes.add("more than half of the masks do not fit their boxes", example, "stop")
    return fitting


def _mask_problem(one: Entry, size: Size) -> str:
    """Return what is wrong with a mask that can be decoded, or an empty string."""
    packed = compress_mask(one["segmentation"], size)
    x, y, w, h = one["bbox"]
    if int(rle.area(packed)) < MIN_MASK_PIXELS:
        return TINY_MASK if w * h >= 2 * MIN_MASK_PIXELS else ""  # right for a tiny object
    left, top, width, height = rle.toBbox(packed).tolist()
    gap = max(x - left - width, left - x - w, y - top - height, top - y - h)
    return MASK_OUTSIDE_BOX if gap > BOX_TOLERANCE else ""


def decide_on_masks(kept: list[Entry], notes: FindingCounter) -> tuple[list[Entry], bool]:
    """Use masks where most objects have one, and leave out the few objects without."""
    objects = [one for one in kept if not one["iscrowd"]]
    bare = [one for one in objects if "segmentation" not in one]
    if bare and 2 * len(bare) >= len(objects):
        if len(bare) < len(objects):
            example = f"{len(bare)} of {len(objects)}: only boxes are used"
            notes.add("annotations without a mask", example, "kept", len(bare))
        return kept, False
    for one in bare:
        example = f"one in image {one['image_id']}, though others have masks"
        notes.add("annotations without a mask", example, "left out")
    kept = [one for one in kept if one["iscrowd"] or "segmentation" in one]
    for one in kept if objects else ():
        if "segmentation" not in one:  # COCO's metrics need masks of all or of none
            what = "crowds without a mask: their box is used instead"
            notes.add(what, f"image {one['image_id']}", "kept")
            x, y, w, h = one["bbox"]
            one["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return kept, bool(objects)


def is_coordinate(value: Any) -> bool:
    """Whether a value can be a position in an image; NaN cannot, as it compares false."""
    return type(value) in (int, float) and abs(value) <= MAX_COORDINATE


def _is_polygon(points: Any) -> bool:
    """Whether a value is a flat list x, y, x, y, ... of at least three points."""
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(map(is_coordinate, points))
    )


def _is_decodable(value: Entry) -> bool:
    """Whether run lengths are 64-bit counts that fill the mask's size exactly.

    faster-coco-eval does not check this, and writes beyond the mask's memory.

    Args:
        value: `size` (height and width) and `counts`: a list, or COCO's compressed text.
    """
    counts, (height, width) = value["counts"], value["size"]
    if isinstance(counts, list):
        are_counts = all(type(n) is int and 0 <= n < 2**63 for n in counts)
        return are_counts and sum(counts) == height * width
    try:
        return sum(_decompress(counts)) == height * width
    except (ValueError, IndexError, TypeError, AttributeError):
        return False


def _decompress(text: str) -> list[int]:
    """Decode run lengths from COCO's text: 5 bits a letter, later runs as differences."""
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
