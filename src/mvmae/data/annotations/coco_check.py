"""What is wrong with a COCO file: found, counted, repaired where that is harmless.

`checked` is a function of the file's content and of the images' sizes; `sizes_in` looks those up.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from mvmae.data.annotations.coco_values import (
    BOX_TOLERANCE,
    MASK_OUTSIDE_BOX,
    TINY_MASK,
    is_coordinate,
    is_decodable,
    is_id,
    is_polygon,
    mask_problem,
)
from mvmae.data.reading.decode import FORMATS
from mvmae.errors import UserError

Remedy = Literal["stop", "left out", "clipped", "renumbered", "kept"]
MAX_EXAMPLES = 3  # named of each kind
READER_THREADS = 16  # threads that look at image files
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that swap the sides


class Finding(NamedTuple):
    """One kind of trouble in a file."""

    what: str
    count: int
    examples: tuple[str, ...]
    remedy: Remedy
    """What is done about it."""


class CheckedCoco(NamedTuple):
    """A file's content as it can be used, and what was found."""

    content: dict[str, Any]
    """Images, annotations and categories; annotations are numbered from 1."""

    findings: list[Finding]
    has_masks: bool
    """Whether every annotation has a mask."""

    @property
    def fatal(self) -> list[Finding]:
        """What stops."""
        return [finding for finding in self.findings if finding.remedy == "stop"]


class _Notes:
    """Counts what is found."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.remedies: dict[str, Remedy] = {}

    def add(self, what: str, example: str, remedy: Remedy, count: int = 1) -> None:
        self.counts[what] += count
        self.remedies[what] = remedy
        if len(examples := self.examples.setdefault(what, [])) < MAX_EXAMPLES:
            examples.append(_printable(example))

    def findings(self) -> list[Finding]:
        return [
            Finding(what, count, tuple(self.examples[what]), self.remedies[what])
            for what, count in self.counts.items()
        ]


def _printable(text: str) -> str:
    """With what no screen can show written as in Python: names in JSON can hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def load_coco(file: Path) -> dict[str, Any]:
    """The content of an annotation file.

    Raises:
        UserError: It cannot be read, or is not COCO's.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        listed = content.get(key) if isinstance(content, dict) else None
        if not isinstance(listed, list):
            raise UserError(f"{file} is not in COCO's format: it has no list '{key}' of objects")
        if odd := [at for at, one in enumerate(listed) if not isinstance(one, dict)]:
            more = f" (and {len(odd) - 1} more)" if odd[1:] else ""
            raise UserError(
                f"{file} is not in COCO's format: entry {odd[0] + 1} of {len(listed)} in '{key}' "
                f"is no object but {json.dumps(listed[odd[0]])[:40]}{more}"
            )
    return content


def read_image_sizes(folder: Path, content: Mapping[str, Any]) -> dict[str, tuple[int, int] | None]:
    """Height and width, upright, of the images that a file names; none for what is no image.

    Files that are missing have no entry. Only the headers are read.
    """
    names = [name for one in content["images"] if isinstance(name := one.get("file_name"), str)]
    with ThreadPoolExecutor(READER_THREADS) as pool:
        found = pool.map(lambda name: _read_image_size(folder / name), names)
        return {name: size for name, size in zip(names, found, strict=True) if size != "missing"}


def _read_image_size(path: Path) -> Any:
    try:
        if not path.is_file():
            return "missing"
    except (OSError, ValueError):  # a name that no file can have
        return "missing"
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in TURNED
    except Exception:  # Pillow raises anything: OSError, SyntaxError, ValueError, ...
        return None
    return (width, height) if turned else (height, width)


def check_coco(
    content: Mapping[str, Any],
    sizes: Mapping[str, tuple[int, int] | None] | None = None,
    *,
    with_masks: bool = True,
) -> CheckedCoco:
    """Look at everything that a file says.

    Args:
        content: From `load`; not changed.
        sizes: Of the image files, from `sizes_in`. Default: files are not looked at.
        with_masks: Whether masks are looked at; without, they are as if the file had none.

    Returns:
        What remains of it, and what was found.
    """
    notes = _Notes()
    categories = _category_ids(content["categories"], notes)
    images = _checked_images(content["images"], sizes, notes)
    known = {one["id"] for one in content["images"] if is_id(one.get("id"))}
    kept = []
    for one in content["annotations"]:
        one = one if with_masks else {**one, "segmentation": None}
        repaired = _checked_annotation(one, images, known, categories, notes)
        if repaired is not None:
            kept.append(repaired)
    kept = _with_fitting_masks(kept, images, notes)
    kept, has_masks = _with_masks(kept, notes) if with_masks else (kept, False)
    _note_repeated_ids(content["annotations"], notes)
    kept = [{**one, "id": number} for number, one in enumerate(kept, start=1)]
    empty = images.keys() - {one["image_id"] for one in kept}
    for number in sorted(empty):
        notes.add("images without annotations", images[number]["file_name"], "kept")
    if not images:
        notes.add("no image is left", "", "stop")
    elif all(one["iscrowd"] for one in kept):
        notes.add("no annotation is left", "", "stop")
    repaired = {
        "images": list(images.values()),
        "annotations": kept,
        "categories": [dict(one) for one in content["categories"]],
    }
    return CheckedCoco(repaired, notes.findings(), has_masks)


def _category_ids(categories: list[dict], notes: _Notes) -> set[int]:
    if not categories:
        notes.add("no categories", "", "stop")
    ids: set[int] = set()
    names: set[str] = set()
    for one in categories:
        number, name = one.get("id"), one.get("name")
        if not is_id(number) or not isinstance(name, str):
            notes.add(
                "categories whose id is no whole number of 64 bit, or without name",
                str(one)[:60],
                "stop",
            )
            continue
        if number in ids or name in names:
            notes.add("categories that occur twice", f"{number} {name}", "stop")
        ids.add(number)
        names.add(name)
    return ids


def _checked_images(
    images: list[dict], sizes: Mapping | None, notes: _Notes
) -> dict[int, dict[str, Any]]:
    kept: dict[int, dict[str, Any]] = {}
    files: dict[str, int] = {}
    lost = 0
    for one in images:
        number, name = one.get("id"), one.get("file_name")
        size = _stated_size(one)
        if not is_id(number) or not isinstance(name, str):
            notes.add(
                "images whose id is no whole number of 64 bit, or without file_name",
                str(one)[:60],
                "stop",
            )
        elif number in kept:
            notes.add(
                "images of the same id", f"{number}: {kept[number]['file_name']}, {name}", "stop"
            )
        elif (file := posixpath.normpath(name)) in files:
            said = f"{name}: {files[file]} and {number}"
            notes.add("images of the same file_name", said, "stop")
        elif size is None:
            notes.add("images without a size", name, "stop")
        elif sizes is None or sizes.get(name) == size:
            kept[number] = {"id": number, "file_name": name, "height": size[0], "width": size[1]}
            files[file] = number
        else:
            lost += 1
            _note_unusable_image(name, size, sizes, notes)
    if lost > len(images) / 2:
        notes.add("more than half of the images cannot be used", f"{lost} of {len(images)}", "stop")
    return kept


def _stated_size(image: dict) -> tuple[int, int] | None:
    """Height and width, where the file says them."""
    sides: list[Any] = [image.get("height"), image.get("width")]
    if not all(is_coordinate(side) and side >= 1 and side == int(side) for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _note_unusable_image(name: str, size: tuple, sizes: Mapping, notes: _Notes) -> None:
    if name not in sizes:
        notes.add("image files that are missing", name, "left out")
    elif sizes[name] is None:
        notes.add("files that are no image", name, "left out")
    else:
        height, width = sizes[name]
        said = f"{name} is {width} x {height}, not {size[1]} x {size[0]}"
        notes.add("images of another size than the file says", said, "left out")


def _checked_annotation(
    one: dict, images: dict[int, dict], known: set[int], categories: set[int], notes: _Notes
) -> dict[str, Any] | None:
    """An annotation as it can be used, or none."""
    name = f"annotation {one.get('id')}"
    image = images.get(one["image_id"]) if is_id(one.get("image_id")) else None
    if image is None:
        if not is_id(one.get("image_id")) or one["image_id"] not in known:
            notes.add("annotations of unknown images", name, "left out")
        return None
    if not is_id(one.get("category_id")) or one["category_id"] not in categories:
        example = f"{name}: category {one.get('category_id')}"
        notes.add("annotations of unknown categories", example, "stop")
        return None
    name = f"{name} in {image['file_name']}"
    size = image["height"], image["width"]
    box = _checked_box(one.get("bbox"), size, name, notes)
    if box is None:
        return None
    mask = _checked_segmentation(one.get("segmentation"), size, name, notes)
    if mask == "wrong":
        return None
    area: Any = one.get("area")
    good_area = is_coordinate(area) and area >= 0
    return {
        "image_id": one["image_id"],
        "category_id": one["category_id"],
        "bbox": list(box),
        "iscrowd": int(_is_crowd(one.get("iscrowd"))),
        "area": area if good_area else box[2] * box[3],
    } | ({} if mask is None else {"segmentation": mask})


def _is_crowd(value: Any) -> bool:
    """Some programs write numbers as text."""
    return value.strip().lower() in ("1", "true") if isinstance(value, str) else bool(value)


def _checked_box(
    box: Any, size: tuple[int, int], name: str, notes: _Notes
) -> tuple[float, float, float, float] | None:
    """Left, top, width and height within the image, or none."""
    numbers = list(box) if isinstance(box, list) else []
    if len(numbers) != 4 or not all(map(is_coordinate, numbers)):
        notes.add("boxes that are not four numbers", f"{name}: {box}"[:90], "left out")
        return None
    x, y, w, h = (float(n) for n in numbers)
    if w <= 0 or h <= 0:
        notes.add("boxes without an area", f"{name}: {box}", "left out")
        return None
    height, width = size
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        notes.add("boxes outside their image", f"{name}: {box}", "left out")
        return None
    if max(-x, -y, x + w - width, y + h - height) <= BOX_TOLERANCE:
        return x, y, w, h
    notes.add("boxes that stick out of their image", f"{name}: {box}", "clipped")
    return left, top, right - left, bottom - top


def _checked_segmentation(value: Any, size: tuple[int, int], name: str, notes: _Notes) -> Any:
    """Polygons or run lengths that can be decoded; none without them; "wrong" otherwise."""
    if value is None or value == []:
        return None
    if isinstance(value, list):
        polygons = [one for one in value if is_polygon(one)]
        if not polygons:
            notes.add("polygons of fewer than three points", name, "left out")
            return "wrong"
        if bad := len(value) - len(polygons):
            what = "polygons of fewer than three points beside good ones"
            notes.add(what, name, "left out", bad)
        return polygons
    if not isinstance(value, dict) or not {"size", "counts"} <= value.keys():
        notes.add("masks that cannot be read", name, "left out")
        return "wrong"
    if value["size"] != list(size):
        said = f"{name}: {value['size']}, not {list(size)}"
        notes.add("masks of another size than their image", said, "left out")
        return "wrong"
    if not is_decodable(value):
        notes.add("masks that cannot be read", name, "left out")
        return "wrong"
    return value


def _with_fitting_masks(
    kept: list[dict[str, Any]], images: Mapping[int, dict[str, Any]], notes: _Notes
) -> list[dict[str, Any]]:
    """Without things whose mask lies elsewhere than their box; the smallest masks are counted."""
    fitting, things, odd = [], 0, 0
    for one in kept:
        image = images[one["image_id"]]
        found = ""
        if "segmentation" in one and not one["iscrowd"]:
            things += 1
            found = mask_problem(one, (image["height"], image["width"]))
        if found:
            odd += 1
            said = f"{image['file_name']}: box {[round(v, 1) for v in one['bbox']]}"
            notes.add(found, said, "kept" if found == TINY_MASK else "left out")
        if found != MASK_OUTSIDE_BOX:
            fitting.append(one)
    if odd > things / 2:
        said = f"{odd} of {things}; points are in pixels of the image, not shares of it"
        notes.add("more than half of the masks do not fit their boxes", said, "stop")
    return fitting


def _with_masks(kept: list[dict[str, Any]], notes: _Notes) -> tuple[list[dict[str, Any]], bool]:
    """Masks are used where most things have one; the few without are left out."""
    things = [one for one in kept if not one["iscrowd"]]
    bare = [one for one in things if "segmentation" not in one]
    if bare and 2 * len(bare) >= len(things):
        if len(bare) < len(things):
            said = f"{len(bare)} of {len(things)}: boxes alone are used"
            notes.add("annotations without a mask", said, "kept", len(bare))
        return kept, False
    for one in bare:
        said = f"one in image {one['image_id']}, though others have masks"
        notes.add("annotations without a mask", said, "left out")
    kept = [one for one in kept if one["iscrowd"] or "segmentation" in one]
    return [_crowd_with_mask(one, notes) if things else one for one in kept], bool(things)


def _crowd_with_mask(one: dict[str, Any], notes: _Notes) -> dict[str, Any]:
    """A crowd without a mask gets its box: COCO's figures want masks of all, or of none."""
    if "segmentation" in one:
        return one
    x, y, w, h = one["bbox"]
    notes.add("crowds without a mask: their box is it", f"image {one['image_id']}", "kept")
    return {**one, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}


def _note_repeated_ids(annotations: list[dict], notes: _Notes) -> None:
    counts = Counter(str(one.get("id")) for one in annotations)
    for number, count in counts.items():
        if count > 1:
            notes.add("annotations of the same id", number, "renumbered", count - 1)
