"""features-map.png: all images in the plane, similar images close together.

Shapes: M images, H and W pixels, C channels 1 or 3. Lengths are in inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mvmae.config.figures import MIN_IMAGES
from mvmae.figures.sheet import SIDE, TOP, Sheet, draw_frame
from mvmae.figures.text import FAINT, INK, shortened
from mvmae.inspect.features.feature_cache import Drawing, ImageFeatures, Job, sample_indices
from mvmae.metrics.plane import embed_in_plane

METHODS = {"tsne": "t-SNE", "umap": "UMAP"}
MIN_SPREAD = 1e-6  # of the features' size: less is rounding
THUMBNAILS, MIN_THUMBNAILS, UNLABELLED_THUMBNAILS = 40, 6, 120  # class colours must stay visible
# Ten colours that colour-blind readers can tell apart: Paul Tol's "muted" scheme and black.
COLOURS = (
    *("#332288", "#cc6677", "#117733", "#ddcc77", "#88ccee", "#882255", "#44aa99", "#999933"),
    *("#aa4499", "#000000"),
)
STYLES = [(colour, marker) for marker in ("o", "^") for colour in COLOURS]
MAX_NAMED = len(STYLES)
OTHERS = "#b9bec4"
MAP_WIDTH = 6.4
MIN_HEIGHT = 0.6  # of the map's width: room for twenty class names beside it
LEGEND_WIDTH, NAME_WIDTH = 1.9, 1.35
MARGIN = 0.05  # of the map's width, around the points
THUMBNAIL, LARGE_THUMBNAIL = 0.38, 0.5  # longer side; large where no colours need room


class Thumbnail(NamedTuple):
    """An image at the place of its point."""

    point: int
    image: UInt8[np.ndarray, "H W C"]


def draw(job: Job, images: ImageFeatures) -> Drawing:
    """Draw a map of the images, or of a random sample if there are more than --most."""
    config = job.config
    images = images.select(sample_indices(len(job.source), config.most, config.seed))
    count = len(images.indices)
    if count < MIN_IMAGES:
        return Drawing(None, {"images": count}, f"a map needs at least {MIN_IMAGES} images")
    spread = (images.features - images.features.mean(dim=0)).norm() / images.features.norm()
    if not spread > MIN_SPREAD:
        return Drawing(None, {"images": count}, "no map: the features of all images are the same")
    points = fit_to_square(embed_in_plane(images.features, config.map, config.seed))
    order = np.random.default_rng((config.seed, 2)).permutation(count).tolist()
    limit, side = UNLABELLED_THUMBNAILS, LARGE_THUMBNAIL
    if images.labels is not None:
        limit, side = min(THUMBNAILS, max(MIN_THUMBNAILS, count // 10)), THUMBNAIL
    size = job.opened.encoder.image_size
    chosen = choose_thumbnails(points, order, limit, size, long_side=side)
    method = METHODS[config.map]
    png = draw_map(
        points,
        images.labels,
        images.classes,
        [Thumbnail(at, job.picture(images.indices[at])) for at in chosen],
        title=f"{method} of {job.source.name}, {job.encoder_name}",
        note=write_note(count, len(job.source)),
    )
    facts = {"images": count, "method": config.map, "classes": len(images.classes)}
    return Drawing(png, facts, f"{method} of {count:,} images")


def write_note(count: int, total: int) -> str:
    """The note below the map: what it shows, and what it does not."""
    share = f"{count:,} images" if count == total else f"{count:,} of {total:,} images"
    return (
        f"{share}. Images close together are similar to the encoder. The distances between groups, "
        "their sizes and their places mean nothing, and groups may come from the method alone: "
        "rely on mvmae knn, not on the map."
    )


def fit_to_square(points: Float[np.ndarray, "M 2"]) -> Float[np.ndarray, "M 2"]:
    """Scale points into the unit square less its margin, both axes by the same factor."""
    low, high = points.min(axis=0), points.max(axis=0)
    span = float((high - low).max()) or 1.0
    middle = (low + high) / 2
    return 0.5 + (points - middle) / span * (1 - 2 * MARGIN)


def choose_thumbnails(
    points: Float[np.ndarray, "M 2"],
    order: Sequence[int],
    limit: int,
    shape: tuple[int, int],
    *,
    long_side: float = THUMBNAIL,
) -> list[int]:
    """Choose points whose thumbnails do not overlap.

    Args:
        points: In the unit square.
        order: Order in which points are tried.
        limit: Maximum number of thumbnails.
        shape: Height and width of an image, in any unit.
        long_side: Longer side of a thumbnail on the page.
    """
    width, height = (side / MAP_WIDTH * 1.12 for side in _thumbnail_size(shape, long_side))
    kept: list[int] = []
    for point in order:
        apart = np.abs(points[kept] - points[point]) >= (width, height)
        if apart.any(axis=1).all():
            kept.append(point)
        if len(kept) == limit:
            break
    return kept


def select_named_classes(labels: Int[np.ndarray, " M"]) -> list[int]:
    """The largest classes, which get a colour, in ascending order; the others stay gray."""
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    largest = np.argsort(-counts, kind="stable")[:MAX_NAMED]
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
    """Draw points in the unit square, in the colours of their classes.

    Args:
        points: In the unit square.
        labels: Class of each point; None draws all points gray.
        classes: Names of the classes.
        thumbnails: Images drawn over their points.
        title: Heading of the page.
        note: Small print at the bottom.
    """
    low, high = _vertical_range(points)
    height = MAP_WIDTH * (high - low)
    width = 2 * SIDE + MAP_WIDTH + (LEGEND_WIDTH if labels is not None else 0)
    sheet = Sheet(width, height + 0.1, title=title, note=note)
    axes = sheet.axes(SIDE, TOP, MAP_WIDTH, height)
    axes.set(xlim=(0, 1), ylim=(low, high), xticks=[], yticks=[])
    draw_frame(axes, "#d0d5da", 0.6)
    area = float(np.clip(14_000 / len(points), 5, 24))  # of a marker, in square points
    named = [] if labels is None else select_named_classes(labels)
    styles = dict(zip(named, STYLES, strict=False))
    shown = np.full(len(points), -1) if labels is None else labels
    _scatter(axes, points[~np.isin(shown, named)], OTHERS, "o", area)
    for label, (colour, marker) in styles.items():
        _scatter(axes, points[shown == label], colour, marker, area)
    long_side = LARGE_THUMBNAIL if labels is None else THUMBNAIL
    for point, image in thumbnails:
        size = _thumbnail_size(image.shape[:2], long_side)
        middle = points[point][0] * MAP_WIDTH, (high - points[point][1]) * MAP_WIDTH
        # A thumbnail at the edge is moved inwards.
        left, top = (
            float(np.clip(at - side / 2, 0.02, extent - side - 0.02))
            for at, side, extent in zip(middle, size, (MAP_WIDTH, height), strict=True)
        )
        axes_of_image = sheet.picture(SIDE + left, TOP + top, size, image)
        colour, _ = styles.get(int(shown[point]), ("#8a8f98", ""))
        draw_frame(axes_of_image, colour, 1.2)
    if labels is not None:
        _legend(axes, labels, styles, classes)
    return sheet.png()


def _scatter(axes: Axes, points: np.ndarray, colour: str, marker: str, area: float) -> None:
    if len(points):
        axes.scatter(
            *points.T, s=area, c=colour, marker=marker, alpha=0.85, linewidths=0, rasterized=True
        )


def _thumbnail_size(shape: tuple[int, ...], long_side: float) -> tuple[float, float]:
    """Width and height of a thumbnail on the page."""
    return long_side * shape[1] / max(shape), long_side * shape[0] / max(shape)


def _vertical_range(points: Float[np.ndarray, "M 2"]) -> tuple[float, float]:
    """Lower and upper end of the map, which is as flat as its points and its legend allow."""
    low, high = float(points[:, 1].min()) - MARGIN, float(points[:, 1].max()) + MARGIN
    lacking = max(0.0, MIN_HEIGHT - (high - low)) / 2
    return low - lacking, high + lacking


def _legend(
    axes: Axes,
    labels: Int[np.ndarray, " M"],
    styles: dict[int, tuple[str, str]],
    classes: Sequence[str],
) -> None:
    handles = []
    for label, (colour, marker) in styles.items():
        name = shortened(classes[label], NAME_WIDTH, 7.5)
        handles.append(_legend_entry(f"{name}  {(labels == label).sum():,}", colour, marker))
    others = ~np.isin(labels, list(styles))
    if others.any():
        count = len(np.unique(labels[others]))
        words = f"{count:,} smaller {'class' if count == 1 else 'classes'}  {others.sum():,}"
        handles.append(_legend_entry(words, OTHERS, "o"))
    legend = axes.legend(
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


def _legend_entry(words: str, colour: str, marker: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5, label=words)
