"""Boxes and masks drawn into images: predictions below the ground truth.

Shapes: H x W pixels, C channels 1 or 3, N objects in an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mvmae.figures import page
from mvmae.figures.page import Column
from mvmae.figures.text import FONT

CELL = 2.5  # inches of a picture's longer side
MIN_SIDE = 480  # pixels of the longer side; smaller images are enlarged
OPACITY = 0.35  # of a mask
MAX_NAMED = 12  # objects of an image; more are not named
MAX_CLASSES = 12  # in a legend


class Things(NamedTuple):
    """Objects to draw into an image."""

    boxes: Sequence[Sequence[float]]
    """Corners (x1, y1, x2, y2) in pixels."""

    labels: Sequence[int]
    """Counted from 1."""

    scores: Sequence[float] | None = None
    masks: Sequence[Bool[np.ndarray, "H W"]] | None = None


class Panel(NamedTuple):
    """An image with its true and its predicted objects."""

    name: str
    image: UInt8[np.ndarray, "H W C"]
    truth: Things
    found: Things


def object_colour(number: int) -> tuple[int, int, int]:
    """Return one of twenty strong colours; later numbers repeat them."""
    # The map alternates strong and pale colours: the strong ones come first.
    red, green, blue, _ = colormaps["tab20"]((2 * number + number // 10 % 2) % 20)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_objects(
    image: UInt8[np.ndarray, "H W C"], things: Things, classes: Sequence[str]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw objects into an image, enlarged where it is small.

    Colours distinguish classes, or objects where there is one class. An object is drawn as its
    mask where there is one, else as its box; up to MAX_NAMED objects are named.
    """
    # Small images are enlarged: lines are at least a pixel wide, and names ten pixels high.
    picture = Image.fromarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image)
    scale = max(1.0, MIN_SIDE / max(picture.size))
    size = round(picture.width * scale), round(picture.height * scale)
    canvas = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    is_single = len(classes) == 1
    numbers = range(len(things.boxes)) if is_single else [label - 1 for label in things.labels]
    boxes = np.array(things.boxes, dtype=float).reshape(-1, 4) * scale
    objects = list(zip(boxes.tolist(), map(object_colour, numbers), strict=True))
    line = max(1, round(max(size) / 320))
    if things.masks is not None:
        for mask, (_, colour) in zip(things.masks, objects, strict=True):
            _fill(canvas, mask, colour, line)
    made = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(made)
    if things.masks is None:
        for (left, top, right, bottom), colour in objects:
            corners = (left, top, max(left, right - 1), max(top, bottom - 1))
            pen.rectangle(corners, outline=colour, width=line)
    if len(objects) <= MAX_NAMED and not (is_single and things.scores is None):
        pen.font = ImageFont.truetype(findfont(FONT), max(10, round(max(size) / 40)))
        for at in reversed(range(len(objects))):  # the highest scores come first, and lie on top
            name = "" if is_single else classes[things.labels[at] - 1]
            score = "" if things.scores is None else f"{things.scores[at]:.2f}"
            _name(pen, *objects[at], f"{name} {score}".strip(), made.size)
    return np.asarray(made)


def _fill(
    canvas: Float[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "H W"],
    colour: tuple[int, int, int],
    line: int,
) -> None:
    """Shade the area of a mask and draw its outline."""
    height, width = canvas.shape[:2]
    shade = Image.fromarray((255 * mask).astype(np.uint8))
    shade = shade.resize((width, height), Image.Resampling.BILINEAR)
    inside = np.asarray(shade) > 127
    outline = inside & (np.asarray(shade.filter(ImageFilter.MinFilter(2 * line + 1))) <= 127)
    canvas[inside] = (1 - OPACITY) * canvas[inside] + OPACITY * np.array(colour)
    canvas[outline] = colour


def _name(
    pen: ImageDraw.ImageDraw,
    box: Sequence[float],
    colour: tuple[int, int, int],
    words: str,
    size: tuple[int, int],
) -> None:
    """Write a tag above the box, or inside it where there is no room."""
    left, top, right, bottom = pen.textbbox((0, 0), words)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(0.0, box[0]), max(0, size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    is_light = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 140
    pen.rectangle([x, y, x + width, y + height], fill=colour)
    pen.text((x + 2 - left, y + 2 - top), words, fill="black" if is_light else "white")


def draw(panels: Sequence[Panel], classes: Sequence[str], *, title: str, note: str) -> bytes:
    """Draw a PNG with a column for each image: ground truth above, predictions below.

    Args:
        panels: At least one.
        classes: Names of the classes; the first has label 1.
        title: Above it.
        note: Below it, how it was made.
    """
    columns = [
        Column(
            one.name,
            [draw_objects(one.image, things, classes) for things in (one.truth, one.found)],
            [f"{len(one.truth.boxes)} there", f"{len(one.found.boxes)} found"],
        )
        for one in panels
    ]
    seen = {label - 1 for one in panels for label in (*one.truth.labels, *one.found.labels)}
    # The colours of a single class tell its objects apart, and those of many classes repeat.
    if len(classes) == 1 or len(seen) > MAX_CLASSES:
        seen = set()
    codes = {number: "#{:02x}{:02x}{:02x}".format(*object_colour(number)) for number in seen}
    legend = [(code, classes[number]) for number, code in sorted(codes.items())]
    rows = page.columns_to_rows(columns, ("truth", "found"))
    return page.draw(rows, title=title, note=note, side=CELL, legend=legend)
