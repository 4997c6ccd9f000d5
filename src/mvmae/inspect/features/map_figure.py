"""A map of images: a point each, a colour a class, some of the images at their places.

Shapes: M images, H and W pixels, C channels 1 or 3. Lengths are in inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mvmae.figures.neighbours import FAINT, INK, shortened
from mvmae.inspect.features.figures import SIDE, TOP, Sheet

# Ten colours that stay apart for eyes without red or green: Paul Tol's "muted" scheme and black.
COLOURS = (
    *("#332288", "#cc6677", "#117733", "#ddcc77", "#88ccee", "#882255", "#44aa99", "#999933"),
    *("#aa4499", "#000000"),
)
MARKS = ("o", "^")  # the second ten classes are triangles
MOST_NAMED = len(COLOURS) * len(MARKS)
OTHERS = "#b9bec4"
MAP = 6.4  # width of the map
LOWEST = 0.6  # of that, for twenty names beside it
LEGEND = 1.9
MARGIN = 0.05  # of the map's side, around the points
THUMB, LARGE_THUMB = 0.38, 0.5  # longer side of a thumbnail; where no colours must be seen
NAME = 1.35  # of a class


class Thumbnail(NamedTuple):
    """An image at the place of its point."""

    point: int
    image: UInt8[np.ndarray, "H W C"]


def scaled(points: Float[np.ndarray, "M 2"]) -> Float[np.ndarray, "M 2"]:
    """Points in the unit square less its margin, both axes by the same factor."""
    low, high = points.min(axis=0), points.max(axis=0)
    span = float((high - low).max()) or 1.0
    middle = (low + high) / 2
    return 0.5 + (points - middle) / span * (1 - 2 * MARGIN)


def places_for_thumbnails(
    points: Float[np.ndarray, "M 2"],
    order: Sequence[int],
    most: int,
    shape: tuple[int, int],
    *,
    longest: float = THUMB,
) -> list[int]:
    """Points at which thumbnails can lie without touching, the first in the order first.

    Args:
        points: As `scaled` gives them.
        order: In which points are tried.
        most: Thumbnails.
        shape: Height and width of an image, in any unit.
        longest: Side of a thumbnail on the page.
    """
    width, height = (side / MAP * 1.12 for side in _thumb(shape, longest))
    kept: list[int] = []
    for point in order:
        apart = np.abs(points[kept] - points[point]) >= (width, height)
        if apart.any(axis=1).all():
            kept.append(point)
        if len(kept) == most:
            break
    return kept


def named_classes(labels: Int[np.ndarray, " M"]) -> list[int]:
    """The classes that get a colour, the largest, in the order of their names; others are gray."""
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    largest = np.argsort(-counts, kind="stable")[:MOST_NAMED]
    return sorted(int(label) for label in classes[largest])


def draw_map(
    points: Float[np.ndarray, "M 2"],
    labels: Int[np.ndarray, " M"] | None,
    classes: Sequence[str],
    thumbnails: Sequence[Thumbnail],
    *,
    title: str,
    note: str,
) -> bytes:
    """A PNG of points in the unit square.

    Args:
        points: As `scaled` gives them.
        labels: The class of each; without, all points are gray.
        classes: Names of the classes.
        thumbnails: Images drawn over their points.
        title: Above everything.
        note: Below it.
    """
    width = 2 * SIDE + MAP + (LEGEND if labels is not None else 0)
    low, high = _ends(points)
    height = MAP * (high - low)
    sheet = Sheet(width, height + 0.1, title=title, note=note)
    axis = sheet.axes(SIDE, TOP, MAP, height)
    axis.set(xlim=(0, 1), ylim=(low, high), xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color="#d0d5da", linewidth=0.6)
    size = float(np.clip(14_000 / len(points), 5, 24))  # square points
    named: list[int] = [] if labels is None else named_classes(labels)
    gray = np.ones(len(points), dtype=bool) if labels is None else ~np.isin(labels, named)
    _scatter(axis, points[gray], OTHERS, "o", size)
    for label, (colour, mark) in zip(named, _styles(), strict=False):
        _scatter(axis, points[labels == label], colour, mark, size)
    colours = {label: style[0] for label, style in zip(named, _styles(), strict=False)}
    for thumbnail in thumbnails:
        label = -1 if labels is None else int(labels[thumbnail.point])
        size = _thumb(thumbnail.image.shape[:2], LARGE_THUMB if labels is None else THUMB)
        colour = colours.get(label, "#8a8f98")
        right, up = points[thumbnail.point]
        middle = right * MAP, (high - up) * MAP
        _thumbnail(sheet, middle, (MAP, height), thumbnail.image, size, colour)
    if labels is not None:
        _legend(axis, labels, named, classes)
    return sheet.png()


def _styles() -> list[tuple[str, str]]:
    return [(colour, mark) for mark in MARKS for colour in COLOURS]


def _scatter(axis: Axes, points: np.ndarray, colour: str, mark: str, size: float) -> None:
    if len(points):
        axis.scatter(
            *points.T, s=size, c=colour, marker=mark, alpha=0.85, linewidths=0, rasterized=True
        )


def _thumb(shape: tuple[int, int], longest: float) -> tuple[float, float]:
    """Width and height of a thumbnail on the page."""
    return longest * shape[1] / max(shape), longest * shape[0] / max(shape)


def _ends(points: Float[np.ndarray, "M 2"]) -> tuple[float, float]:
    """Lower and upper end of the map: no higher than its points need, and high enough for names."""
    low, high = float(points[:, 1].min()) - MARGIN, float(points[:, 1].max()) + MARGIN
    lacking = max(0.0, LOWEST - (high - low)) / 2
    return low - lacking, high + lacking


def _thumbnail(
    sheet: Sheet,
    middle: tuple[float, float],
    page: tuple[float, float],
    image: np.ndarray,
    size: tuple[float, float],
    colour: str,
) -> None:
    """An image around a place of the map, moved in where it would stand out."""
    width, height = size
    left = float(np.clip(middle[0] - width / 2, 0.02, page[0] - width - 0.02))
    down = float(np.clip(middle[1] - height / 2, 0.02, page[1] - height - 0.02))
    axis = sheet.axes(SIDE + left, TOP + down, width, height)
    picture = image.squeeze(-1) if image.shape[-1] == 1 else image
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="antialiased", aspect="auto")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=1.2)


def _legend(
    axis: Axes, labels: Int[np.ndarray, " M"], named: Sequence[int], classes: Sequence[str]
) -> None:
    handles = []
    for label, (colour, mark) in zip(named, _styles(), strict=False):
        name = shortened(classes[label], NAME, 7.5)
        handles.append(_handle(f"{name}  {(labels == label).sum():,}", colour, mark))
    others = ~np.isin(labels, named)
    if others.any():
        count = len(np.unique(labels[others]))
        words = f"{count:,} smaller {'class' if count == 1 else 'classes'}  {others.sum():,}"
        handles.append(_handle(words, OTHERS, "o"))
    legend = axis.legend(
        handles=handles,
        title="class, images on the map",
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        fontsize=7.5,
        title_fontsize=6.5,
        labelcolor=INK,
        frameon=False,
        handletextpad=0.3,
        borderaxespad=0,
        alignment="left",
    )
    legend.get_title().set_color(FAINT)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _handle(words: str, colour: str, mark: str) -> Line2D:
    return Line2D([], [], color=colour, marker=mark, linestyle="", markersize=5, label=words)
