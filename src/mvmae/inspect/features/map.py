"""features-map.png: all images in the plane, like near like."""

from __future__ import annotations

import numpy as np

from mvmae.config.features import FEWEST
from mvmae.inspect.features.feature_cache import Images, Picture, Setting, pixels, sample
from mvmae.inspect.features.map_figure import (
    LARGE_THUMB,
    THUMB,
    Thumbnail,
    draw_map,
    places_for_thumbnails,
    scaled,
)
from mvmae.metrics.plane import embed_in_plane

LABELLED, UNLABELLED = 40, 120  # thumbnails: colours must be seen between them, or there are none
METHODS = {"tsne": "t-SNE", "umap": "UMAP"}
SAME = 1e-6  # of the features' size


def picture_of(setting: Setting, images: Images) -> Picture:
    """A map of the images, of very many a sample."""
    config = setting.config
    images = images.only(sample(len(setting.source), config.most, config.seed))
    count = len(images.places)
    if count < FEWEST:
        return Picture(None, {"images": count}, f"no map of fewer than {FEWEST} images")
    spread = (images.features - images.features.mean(dim=0)).norm() / images.features.norm()
    if not spread > SAME:
        return Picture(None, {"images": count}, "no map: the features of all images are the same")
    points = scaled(embed_in_plane(images.features, config.map, config.seed))
    order = np.random.default_rng((config.seed, 2)).permutation(count).tolist()
    most, side = UNLABELLED, LARGE_THUMB
    if images.labels is not None:
        most, side = min(LABELLED, max(6, count // 10)), THUMB
    size = setting.opened.encoder.image_size
    chosen = places_for_thumbnails(points, order, most, size, longest=side)
    png = draw_map(
        points,
        images.labels,
        images.classes,
        [Thumbnail(at, pixels(setting, images.places[at])) for at in chosen],
        title=f"{METHODS[config.map]} of {setting.source.name}, {setting.name}",
        note=note_of(setting, count),
    )
    about = {"images": count, "method": config.map, "classes": len(images.classes)}
    return Picture(png, about, f"{METHODS[config.map]} of {count:,} images")


def note_of(setting: Setting, count: int) -> str:
    """What the map is, and what it is not."""
    of_all = len(setting.source)
    share = f"{count:,} images" if count == of_all else f"{count:,} of {of_all:,} images"
    return (
        f"{share}. Near images are alike to the encoder. How far groups lie apart, how large they "
        "are and where they lie mean nothing; groups may also come from the method alone: count "
        "on mvmae knn, not on the map."
    )
