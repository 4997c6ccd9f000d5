"""features-map.png: all images in the plane, similar images close together.

Shapes: M images. Lengths are in inches.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from mvmae.config.figures import MIN_IMAGES
from mvmae.figures import page
from mvmae.figures.page import Picture, Sheet
from mvmae.figures.text import INK, shorten
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
OTHERS = ("#b9bec4", "o")
THUMBNAIL_FRAME = ("#8a8f98", "")  # of an image without a named class
MAP_WIDTH = 6.4
MIN_HEIGHT = 0.6  # of the map's width: room for twenty class names beside it
LEGEND_WIDTH, NAME_WIDTH, LEGEND_LINE = 1.9, 1.35, 0.17
MARGIN = 0.05  # of the map's width, around the points
THUMBNAIL, LARGE_THUMBNAIL = 0.38, 0.5  # longer side; large where no colours need room


def draw(job: Job, images: ImageFeatures) -> Drawing:
    """Draw a map of the images, or of a random sample if there are more than --most."""
    config = job.config
    images = images.select(sample_indices(len(job.source), config.most, config.seed))
    count, total = len(images.indices), len(job.source)
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
    chosen = choose_thumbnails(points, order, limit, job.opened.encoder.image_size, long_side=side)
    method = METHODS[config.map]
    share = f"{count:,} images" if count == total else f"{count:,} of {total:,} images"
    png = draw_map(
        points,
        images.labels,
        images.classes,
        {at: job.cell(images.indices[at]).picture for at in chosen},
        title=f"{method} of {job.source.name}, {job.encoder_name}",
        note=(
            f"{share}. Images close together are similar to the encoder. The distances between "
            "groups, their sizes and their places mean nothing, and groups may come from the "
            "method alone: rely on mvmae knn, not on the map."
        ),
    )
    facts = {"images": count, "method": config.map, "classes": len(images.classes)}
    return Drawing(png, facts, f"{method} of {count:,} images")


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
    # A gap of an eighth of a thumbnail keeps its neighbours apart.
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
    thumbnails: Mapping[int, Picture],
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
    low, high = float(points[:, 1].min()) - MARGIN, float(points[:, 1].max()) + MARGIN
    lacking = max(0.0, MIN_HEIGHT - (high - low)) / 2
    low, high = low - lacking, high + lacking
    height = MAP_WIDTH * (high - low)
    width = 2 * page.MARGIN + MAP_WIDTH + (LEGEND_WIDTH if labels is not None else 0)
    sheet = page.Sheet(width, height + 0.1, title=title, note=note)
    corner, extent = np.array((page.MARGIN, page.TOP)), (MAP_WIDTH, height)
    sheet.frame(page.MARGIN, page.TOP, extent, "#d0d5da", 0.6)
    places = corner + np.stack([points[:, 0], high - points[:, 1]], axis=1) * MAP_WIDTH
    area = float(np.clip(14_000 / len(points), 5, 24))  # of a marker, in square points
    shown = np.full(len(points), -1) if labels is None else labels
    styles = dict(zip(select_named_classes(shown), STYLES, strict=False))
    others = ~np.isin(shown, list(styles))
    _scatter(sheet, places[others], OTHERS, area)
    for label, style in styles.items():
        _scatter(sheet, places[shown == label], style, area)
    long_side = LARGE_THUMBNAIL if labels is None else THUMBNAIL
    for point, image in thumbnails.items():
        size = _thumbnail_size(image.shape[:2], long_side)
        # A thumbnail at the edge is moved inwards.
        last = corner + extent - size - 0.02
        left, top = np.clip(places[point] - np.array(size) / 2, corner + 0.02, last).tolist()
        colour, _ = styles.get(int(shown[point]), THUMBNAIL_FRAME)
        sheet.picture(left, top, size, image, colour)
    if labels is not None:
        counts = np.bincount(labels, minlength=len(classes))
        rows = [
            (style, f"{shorten(classes[label], NAME_WIDTH, 7.5)}: {counts[label]:,}")
            for label, style in styles.items()
        ]
        if others.any():
            count = len(np.unique(labels[others]))
            rows.append((OTHERS, f"{count:,} smaller classes: {others.sum():,}"))
        _draw_legend(sheet, rows)
    return sheet.png()


def _scatter(sheet: Sheet, places: np.ndarray, style: tuple[str, str], area: float) -> None:
    """Draw points of a colour and a marker, below the thumbnails."""
    colour, marker = style
    looks = {"c": colour, "marker": marker, "alpha": 0.85, "linewidths": 0, "zorder": -1}
    sheet.axes.scatter(*places.T, s=area, **looks)


def _draw_legend(sheet: Sheet, rows: Sequence[tuple[tuple[str, str], str]]) -> None:
    """Draw markers, names and counts of images right of the map."""
    left, y = page.MARGIN + MAP_WIDTH + 0.12, page.TOP + 0.08
    sheet.write(left, y, "class, images on the map", LEGEND_WIDTH, 6.5, ha="left")
    for style, words in rows:
        y += LEGEND_LINE
        _scatter(sheet, np.array([[left + 0.04, y]]), style, 25.0)
        sheet.write(left + 0.14, y, words, LEGEND_WIDTH, 7.5, ha="left", color=INK)


def _thumbnail_size(shape: tuple[int, ...], long_side: float) -> tuple[float, float]:
    """Width and height of a thumbnail on the page."""
    return long_side * shape[1] / max(shape), long_side * shape[0] / max(shape)
