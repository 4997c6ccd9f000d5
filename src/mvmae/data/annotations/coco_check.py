"""Problems of a COCO file: found, counted, and repaired where that does no harm.

`check_coco` depends only on the content of the file and on the sizes of the images;
`read_image_sizes` reads those.
"""

import json
import os
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from mvmae.data.annotations.coco import Box, Entry, SplitFiles
from mvmae.data.annotations.coco_mask_check import (
    BOX_TOLERANCE,
    Size,
    UnusableError,
    decide_on_masks,
    drop_misplaced_masks,
    is_coordinate,
    repair_mask,
)
from mvmae.data.annotations.findings import Finding, FindingCounter
from mvmae.data.reading.deep_formats import open_image, upright_size
from mvmae.errors import UserError

READER_THREADS = 16  # they wait for the disk, not for a processor
MAX_DIFFERENCES = 3  # categories named in an error message
Sizes = Mapping[str, Size | None]  # by file name; None for files that are not images
MAX_ID = 2**63 - 1  # faster-coco-eval keeps ids as 64-bit integers


class CheckedCoco(NamedTuple):
    """The usable content of a file, and what was found."""

    content: Entry
    """Images, annotations and categories; annotations are numbered from 1."""

    findings: list[Finding]
    has_masks: bool
    """Whether every annotation has a mask."""

    @property
    def fatal(self) -> list[Finding]:
        """Findings that keep the file from being used."""
        return [finding for finding in self.findings if finding.remedy == "stop"]


def load_coco(file: Path) -> Entry:
    """Load an annotation file.

    Raises:
        UserError: It cannot be read, or is not in COCO's format.
    """
    try:
        # Programs on Windows begin such files with a byte order mark.
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{file} is not in COCO's format: it has no list '{key}' of objects")
        if odd := [at for at, entry in enumerate(entries) if not isinstance(entry, dict)]:
            more = f" (and {len(odd) - 1} more)" if odd[1:] else ""
            raise UserError(
                f"{file} is not in COCO's format: entry {odd[0] + 1} of {len(entries)} in '{key}' "
                f"is not an object but {json.dumps(entries[odd[0]])[:40]}{more}"
            )
    return content


def read_image_sizes(folder: Path, content: Entry) -> Sizes:
    """Read the upright height and width of the images that a file names, from their headers.

    Returns:
        Sizes by file name: None for files that are not images, no entry for missing files.
    """
    names = [name for one in content["images"] if isinstance(name := one.get("file_name"), str)]
    with ThreadPoolExecutor(READER_THREADS) as pool:
        # In threads, because on a network disk each file is waited for.
        sizes = pool.map(lambda name: _read_image_size(folder / name), names)
        return {name: size for name, size in zip(names, sizes, strict=True) if size != "missing"}


def _read_image_size(path: Path) -> Any:
    if not os.path.isfile(path):  # noqa: PTH113  # pathlib's raises for names that no file can have
        return "missing"
    try:
        with open_image(path) as image:
            return upright_size(image)
    except Exception:  # Pillow raises anything
        return None


def check_coco(
    content: Entry,
    sizes: Sizes | None = None,
    *,
    with_masks: bool = True,
) -> CheckedCoco:
    """Check everything that an annotation file says.

    Args:
        content: From `load_coco`; not changed.
        sizes: Sizes of the image files, from `read_image_sizes`. Default: files are not checked.
        with_masks: Whether to check masks; if not, the file is treated as having none.

    Returns:
        The usable part of the content, and what was found.
    """
    notes = FindingCounter()
    category_ids = _category_ids(content["categories"], notes)
    images = _usable_images(content["images"], sizes, notes)
    lost_ids = {one["id"] for one in content["images"] if is_id(one.get("id"))} - images.keys()
    kept = []
    for annotation in content["annotations"]:
        if is_id(annotation.get("image_id")) and annotation["image_id"] in lost_ids:
            continue  # its image was reported
        annotation = annotation if with_masks else {**annotation, "segmentation": None}
        try:
            kept.append(_repair_annotation(annotation, images, category_ids, notes))
        except UnusableError as problem:
            notes.add(*problem.args)
    kept = drop_misplaced_masks(kept, images, notes)
    kept, has_masks = decide_on_masks(kept, notes) if with_masks else (kept, False)
    # As text, because JSON may hold lists and objects, which cannot be counted.
    for number, count in Counter(str(one.get("id")) for one in content["annotations"]).items():
        if count > 1:
            notes.add("annotations with the same id", number, "renumbered", count - 1)
    # Ids may repeat, and metrics tell instances apart by them.
    kept = [{**one, "id": number} for number, one in enumerate(kept, start=1)]
    empty = images.keys() - {one["image_id"] for one in kept}
    for image_id in sorted(empty):
        notes.add("images without annotations", images[image_id]["file_name"], "kept")
    if not images:
        notes.add("no images are left", "", "stop")
    elif all(one["iscrowd"] for one in kept):
        notes.add("no annotations are left", "", "stop")
    usable = {
        "images": list(images.values()),
        "annotations": kept,
        "categories": [dict(one) for one in content["categories"]],
    }
    return CheckedCoco(usable, list(notes.values()), has_masks)


def require_same_categories(splits: Sequence[SplitFiles], checked: Sequence[CheckedCoco]) -> None:
    """Make sure that a category id means the same in two splits.

    Raises:
        UserError: It does not.
    """
    first, second = ({c["id"]: c["name"] for c in one.content["categories"]} for one in checked)
    differences = [
        f"{number} is {first.get(number, 'missing')} and {second.get(number, 'missing')}"
        for number in sorted({*first, *second})
        if first.get(number) != second.get(number)
    ]
    if differences:
        raise UserError(
            f"{splits[0].file.name} and {splits[1].file.name} have different categories: "
            f"{'; '.join(differences[:MAX_DIFFERENCES])}. Give both splits the same"
        )


def is_id(value: Any) -> TypeGuard[int]:
    """Whether a value is a 64-bit integer."""
    # True and False are integers too, but not of this type.
    return type(value) is int and abs(value) <= MAX_ID


def _category_ids(categories: list[Entry], notes: FindingCounter) -> set[int]:
    if not categories:
        notes.add("no categories", "", "stop")
    ids: set[int] = set()
    names: set[str] = set()
    for one in categories:
        number, name = one.get("id"), one.get("name")
        if not is_id(number) or not isinstance(name, str):
            what = "categories without a name, or whose id is not a 64-bit integer"
            notes.add(what, str(one)[:60], "stop")
            continue
        if number in ids or name in names:
            notes.add("categories that occur twice", f"{number} {name}", "stop")
        ids.add(number)
        names.add(name)
    return ids


def _usable_images(
    images: list[Entry], sizes: Sizes | None, notes: FindingCounter
) -> dict[int, Entry]:
    kept: dict[int, Entry] = {}
    id_of_file: dict[str, int] = {}
    lost = 0
    for one in images:
        number, name = one.get("id"), one.get("file_name")
        size = _stated_size(one)
        if not is_id(number) or not isinstance(name, str):
            what = "images without file_name, or whose id is not a 64-bit integer"
            notes.add(what, str(one)[:60], "stop")
        elif number in kept:
            example = f"{number}: {kept[number]['file_name']}, {name}"
            notes.add("images with the same id", example, "stop")
        # a.jpg and ./a.jpg are the same file.
        elif (file := posixpath.normpath(name)) in id_of_file:
            example = f"{name}: {id_of_file[file]} and {number}"
            notes.add("images with the same file_name", example, "stop")
        elif size is None:
            notes.add("images without a size", name, "stop")
        elif sizes is None or sizes.get(name) == size:
            kept[number] = {"id": number, "file_name": name, "height": size[0], "width": size[1]}
            id_of_file[file] = number
        else:
            lost += 1
            _count_lost_image(name, size, sizes, notes)
    # A wrong folder, rather than some damaged files.
    if lost > len(images) / 2:
        what = "more than half of the images cannot be used"
        notes.add(what, f"{lost} of {len(images)}", "stop")
    return kept


def _stated_size(image: Entry) -> Size | None:
    """Height and width as the file gives them; None where they are not positive integers."""
    sides: list[Any] = [image.get("height"), image.get("width")]
    if not all(is_coordinate(side) and side >= 1 and side == int(side) for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _count_lost_image(name: str, size: Size, sizes: Sizes, notes: FindingCounter) -> None:
    if name not in sizes:
        notes.add("missing image files", name, "left out")
    elif (real := sizes[name]) is None:
        notes.add("files that are not images", name, "left out")
    else:
        example = f"{name} is {real[1]} x {real[0]}, not {size[1]} x {size[0]}"
        notes.add("images of a different size than the file says", example, "left out")


def _repair_annotation(
    one: Entry, images: dict[int, Entry], category_ids: set[int], notes: FindingCounter
) -> Entry:
    """Return an annotation in usable form.

    Raises:
        UnusableError: It has to be left out.
    """
    name = f"annotation {one.get('id')}"
    image = images.get(one["image_id"]) if is_id(one.get("image_id")) else None
    if image is None:
        raise UnusableError("annotations of unknown images", name, "left out")
    if not is_id(one.get("category_id")) or one["category_id"] not in category_ids:
        example = f"{name}: category {one.get('category_id')}"
        raise UnusableError("annotations of unknown categories", example, "stop")
    name = f"{name} in {image['file_name']}"
    size = image["height"], image["width"]
    box = _repair_box(one.get("bbox"), size, name, notes)
    mask = repair_mask(one.get("segmentation"), size, name, notes)
    # COCO's metrics sort objects into small, medium and large by it.
    area: Any = one.get("area")
    is_area = is_coordinate(area) and area >= 0
    return {
        "image_id": one["image_id"],
        "category_id": one["category_id"],
        "bbox": list(box),
        "iscrowd": int(_is_crowd(one.get("iscrowd"))),
        "area": area if is_area else box[2] * box[3],
    } | ({} if mask is None else {"segmentation": mask})


def _is_crowd(value: Any) -> bool:
    """Read the flag, which some programs write as text."""
    return value.strip().lower() in ("1", "true") if isinstance(value, str) else bool(value)


def _repair_box(box: Any, size: Size, name: str, notes: FindingCounter) -> Box:
    """Return left, top, width and height within the image.

    Raises:
        UnusableError: The box has to be left out.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_coordinate, box)):
        raise UnusableError("boxes that are not four numbers", f"{name}: {box}"[:90], "left out")
    x, y, w, h = map(float, box)
    if w <= 0 or h <= 0:
        raise UnusableError("boxes without an area", f"{name}: {box}", "left out")
    height, width = size
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        raise UnusableError("boxes outside their image", f"{name}: {box}", "left out")
    if max(-x, -y, x + w - width, y + h - height) <= BOX_TOLERANCE:
        return x, y, w, h
    notes.add("boxes that stick out of their image", f"{name}: {box}", "clipped")
    return left, top, right - left, bottom - top
