"""Boxes and masks drawn into images: predictions below the ground truth.

Shapes: H x W pixels, C channels 1 or 3, N objects in an image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

INK, FAINT = "#1f2933", "#66707a"
CELL = 2.5  # inches of a picture's width
FLATTEST = 0.2  # height over width of a row
MIN_SIDE = 480  # pixels of the longer side; smaller images are enlarged
OPACITY = 0.35  # of a mask
MAX_NAMED = 12  # objects of an image; more are not named
MAX_CLASSES = 12  # in a legend
DPI = 150


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


def colour_of(number: int) -> tuple[int, int, int]:
    """Return one of twenty strong colours; later numbers repeat them."""
    red, green, blue, _ = colormaps["tab20"]((2 * number + number // 10 % 2) % 20)
    return round(255 * red), round(255 * green), round(255 * blue)


def drawn(
    image: UInt8[np.ndarray, "H W C"], things: Things, classes: Sequence[str]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw objects into an image, enlarged where it is small.

    Colours distinguish classes, or objects where there is one class. An object is drawn as its
    mask where there is one, else as its box; up to MAX_NAMED objects are named.
    """
    picture = Image.fromarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image)
    scale = max(1.0, MIN_SIDE / max(picture.size))
    size = round(picture.width * scale), round(picture.height * scale)
    canvas = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    single = len(classes) == 1
    order = range(len(things.boxes))
    colours = [colour_of(at if single else things.labels[at] - 1) for at in order]
    line = max(1, round(max(size) / 320))
    for at in order:
        if things.masks is not None:
            _fill(canvas, things.masks[at], colours[at], line)
    made = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(made)
    for at in order:
        box = [value * scale for value in things.boxes[at]]
        if things.masks is None:
            corners = [*box[:2], max(box[0], box[2] - 1), max(box[1], box[3] - 1)]
            pen.rectangle(corners, outline=colours[at], width=line)
    if len(order) <= MAX_NAMED and not (single and things.scores is None):
        for at in reversed(order):  # above all boxes, the highest scores, which come first, on top
            box = [value * scale for value in things.boxes[at]]
            _name(pen, box, _words(things, at, classes), colours[at], made.size)
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


def _words(things: Things, at: int, classes: Sequence[str]) -> str:
    words = [] if len(classes) == 1 else [classes[things.labels[at] - 1]]
    return " ".join(words + ([] if things.scores is None else [f"{things.scores[at]:.2f}"]))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def _name(
    pen: ImageDraw.ImageDraw,
    box: Sequence[float],
    words: str,
    colour: tuple[int, int, int],
    size: tuple[int, int],
) -> None:
    """Write a tag above the box, or inside it where there is no room."""
    font = _font(max(10, round(max(size) / 40)))
    left, top, right, bottom = pen.textbbox((0, 0), words, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(0.0, box[0]), max(0, size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    is_light = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 140
    pen.rectangle([x, y, x + width, y + height], fill=colour)
    pen.text((x + 2 - left, y + 2 - top), words, font=font, fill="black" if is_light else "white")


def png_of(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encode pixels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def draw(panels: Sequence[Panel], classes: Sequence[str], *, title: str, note: str) -> bytes:
    """Draw a PNG with a column for each image: ground truth above, predictions below.

    Args:
        panels: At least one.
        classes: Names of the classes; the first has label 1.
        title: Above it.
        note: Below it, how it was made.
    """
    rows = (
        [drawn(one.image, one.truth, classes) for one in panels],
        [drawn(one.image, one.found, classes) for one in panels],
    )
    shape = max(one.shape[0] / one.shape[1] for one in rows[0])
    count = len(panels)
    size = CELL * count + 0.35, 2 * CELL * min(max(shape, FLATTEST), 1.4) + 1.25
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, count, squeeze=False)
    figure.subplots_adjust(
        left=0.3 / size[0],
        right=1 - 0.05 / size[0],
        top=1 - 0.62 / size[1],
        bottom=(0.3 if len(classes) == 1 else 0.55) / size[1],
        wspace=0.04,
        hspace=0.04,
    )
    for row, heading in enumerate(("truth", "found")):
        for axis, picture in zip(axes[row], rows[row], strict=True):
            axis.imshow(picture, interpolation="antialiased")
            axis.set_axis_off()
        axes[row][0].text(
            -0.03,
            0.5,
            heading,
            transform=axes[row][0].transAxes,
            rotation=90,
            ha="right",
            va="center",
            fontsize=9,
            color=INK,
        )
    for axis, one in zip(axes[0], panels, strict=True):
        counts = f"{len(one.truth.boxes)} there, {len(one.found.boxes)} found"
        axis.set_title(f"{_short(one.name)}: {counts}", fontsize=6.5, color=FAINT, pad=4)
    heading = {"fontsize": 10, "color": INK, "weight": "bold", "va": "top", "parse_math": False}
    figure.text(0.5, 1 - 0.1 / size[1], title, ha="center", **heading)
    figure.text(0.5, 0.1 / size[1], note, fontsize=6.5, color=FAINT, ha="center", va="bottom")
    _legend(figure, panels, classes, 0.26 / size[1])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:10]}...{name[-10:]}"


def _legend(figure: Figure, panels: Sequence[Panel], classes: Sequence[str], height: float) -> None:
    """Draw the colours of the classes that occur."""
    if len(classes) == 1:
        return
    seen = sorted({label for one in panels for label in (*one.truth.labels, *one.found.labels)})
    if not 0 < len(seen) <= MAX_CLASSES:
        return
    patches = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*colour_of(label - 1)), label=classes[label - 1])
        for label in seen
    ]
    figure.legend(
        handles=patches,
        loc="lower center",
        bbox_to_anchor=(0.5, height),
        ncols=len(patches),
        fontsize=7,
        frameon=False,
        handlelength=1,
        handleheight=1,
    )
