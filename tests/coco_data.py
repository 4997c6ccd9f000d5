"""Generated images with boxes and masks in COCO's layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvmae.data.annotations.coco import compress_mask

CLASSES = {3: "square", 7: "bar"}  # with gaps in their ids
COLOURS = {3: (220, 60, 40), 7: (40, 90, 220)}


def write_split(
    folder: Path,
    name: str,
    *,
    count: int = 4,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
    masks: bool = True,
    images: str | None = None,
) -> dict[str, Any]:
    """Write images with one to three rectangles, and their annotations; returns the content."""
    rng = np.random.default_rng(seed)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in CLASSES.items()],
    }
    place = folder / (images or f"images/{name}")
    place.mkdir(parents=True, exist_ok=True)
    height, width = size
    for number in range(1, count + 1):
        pixels = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
        file = f"{number:04}.png"
        content["images"].append(
            {"id": 10 * number, "file_name": file, "height": height, "width": width}
        )
        for _ in range(int(rng.integers(1, 4))):
            kind = int(rng.choice(list(CLASSES)))
            w, h = (14, 14) if kind == 3 else (26, 8)
            x, y = int(rng.integers(width - w)), int(rng.integers(height - h))
            pixels[y : y + h, x : x + w] = COLOURS[kind]
            one = annotation(len(content["annotations"]) + 1, 10 * number, kind, [x, y, w, h])
            content["annotations"].append(one)
            if not masks:
                del one["segmentation"]
        Image.fromarray(pixels).save(place / file)
    save(folder, name, content)
    return content


def annotation(number: int, image: int, kind: int, box: list[float]) -> dict[str, Any]:
    """A rectangle with its polygon."""
    x, y, w, h = box
    return {
        "id": number,
        "image_id": image,
        "category_id": kind,
        "bbox": box,
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
    }


def save(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """Write an annotation file."""
    file = folder / "annotations" / f"instances_{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def write_both(folder: Path, **options: Any) -> Path:
    """A training and a validation split."""
    write_split(folder, "train", **options)
    write_split(folder, "val", **{**options, "seed": 1})
    return folder


def coco_content(*annotations: dict, images: int = 1, **changes) -> dict:
    return {
        "images": [
            {"id": n, "file_name": f"{n}.png", "height": 40, "width": 60}
            for n in range(1, images + 1)
        ],
        "annotations": list(annotations),
        "categories": [{"id": n, "name": name} for n, name in CLASSES.items()],
    } | changes


GOOD = annotation(1, 1, 3, [5, 5, 10, 10])


def perfect_detections(truth: dict, score: float = 0.9) -> list[dict]:
    sizes = {one["id"]: (one["height"], one["width"]) for one in truth["images"]}
    return [
        {
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "bbox": one["bbox"],
            "score": score,
            "segmentation": compress_mask(one["segmentation"], sizes[one["image_id"]]),
        }
        for one in truth["annotations"]
    ]
