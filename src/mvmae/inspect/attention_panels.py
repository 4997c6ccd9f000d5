"""Figure 2 of the paper: images, where an encoder looks, and the two over each other.

Shapes: B images, H and W pixels, C channels 1 or 3, rows x columns of patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from PIL import Image

from mvmae.figures import page
from mvmae.figures.page import Column, Group, Scale

COLOURS = "inferno"  # perceptually uniform: equal steps of attention look equal
LOW, HIGH = 0.02, 0.99  # quantiles of a map that get the darkest and the brightest colour
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
EVEN = 0.5, 2.0  # a scale shared by maps reaches at least as far, as multiples of even attention
FAINTEST, STRONGEST = 0.25, 0.85  # share of the colour in an overlay, from low to high heat

Limits = tuple[float, float]
"""What gets the darkest and the brightest colour."""


class Maps(NamedTuple):
    """Maps of one encoder under one heading: its heat, or that of one of its heads."""

    heading: str
    heat: Float[np.ndarray, "B rows columns"]
    """As multiples of even attention: 1 where a patch gets what all would get."""


class Model(NamedTuple):
    """One encoder: what it was shown, and where it looked."""

    heading: str
    images: Sequence[Float[np.ndarray, "H W C"]]
    """The part of each image that it saw, as finely as it is drawn; values in [0, 1]."""

    maps: Sequence[Maps]


def limits(heat: Float[np.ndarray, ...]) -> Limits:
    """Robust ends of a scale: a patch in a hundred may be brighter than the brightest colour."""
    low, high = np.quantile(heat, (LOW, HIGH))
    return float(low), float(high)


def shared_limits(maps: Iterable[Float[np.ndarray, ...]]) -> Limits:
    """One scale for several maps, from the lowest to the highest end of any.

    Nearly even attention is drawn nearly even: the scale is never narrower than `EVEN`, or rounding
    would look like an object.

    Args:
        maps: As multiples of even attention.
    """
    each = [EVEN, *map(limits, maps)]
    return min(low for low, _ in each), max(high for _, high in each)


def peak(heat: Float[np.ndarray, ...]) -> str:
    """How far the highest value lies above even attention, in words."""
    return f"peak {heat.max():.1f}x even"


def scaled(heat: Float[np.ndarray, ...], ends: Limits) -> Float[np.ndarray, ...]:
    """Heat between its ends as 0 to 1; 0 everywhere where the ends are the same."""
    low, high = ends
    if high - low <= 1e-6 * max(abs(high), abs(low)):  # rounding is no pattern
        return np.zeros_like(heat)
    return ((heat - low) / (high - low)).clip(0, 1)


def enlarged(
    heat: Float[np.ndarray, "rows columns"], height: int, width: int
) -> Float[np.ndarray, "height width"]:
    """Heat for each pixel, bicubic between the middles of the patches."""
    picture = Image.fromarray(heat.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def heat_picture(
    heat: Float[np.ndarray, "rows columns"], height: int, width: int, ends: Limits | None = None
) -> Float[np.ndarray, "height width 3"]:
    """Heat as colours, dark to bright, in [0, 1]; `ends` default to those of `limits`."""
    return _coloured(_shades(heat, height, width, ends))


def overlay(
    image: Float[np.ndarray, "H W C"],
    heat: Float[np.ndarray, "rows columns"],
    ends: Limits | None = None,
) -> Float[np.ndarray, "H W 3"]:
    """Heat in colours over the image in gray, in [0, 1]; the image shows through where it is low.

    Args:
        image: Of 1 or 3 channels, values in [0, 1].
        heat: A value for each patch.
        ends: See `heat_picture`.
    """
    gray = image[..., 0] if image.shape[2] == 1 else image @ LUMA
    shades = _shades(heat, image.shape[0], image.shape[1], ends)
    share = (FAINTEST + (STRONGEST - FAINTEST) * shades)[..., None]
    return ((1 - share) * gray[..., None] + share * _coloured(shades)).astype(np.float32)


def _shades(heat: np.ndarray, height: int, width: int, ends: Limits | None) -> np.ndarray:
    """Each pixel's place in the scale, 0 to 1; bicubic may leave the ends and is cut there."""
    return enlarged(scaled(heat, ends or limits(heat)), height, width).clip(0, 1)


def _coloured(shades: np.ndarray) -> np.ndarray:
    return mpl.colormaps[COLOURS](shades)[..., :3].astype(np.float32)


def draw(
    models: Sequence[Model],
    *,
    names: Sequence[str],
    title: str,
    note: str,
    shared_scale: bool = True,
    heat_column: bool = True,
) -> bytes:
    """A PNG with a row an image: the image, and for each encoder its heat and its overlay.

    Args:
        models: At least one; all of the same images.
        names: What each row shows, in small print beside it.
        title: Above the figure.
        note: Below it, how it was made.
        shared_scale: Whether the maps of an image have one scale of colours.
        heat_column: Whether the heat stands alone too, or as an overlay only.
    """
    ends = [_row_ends(models, row) if shared_scale else None for row in range(len(names))]
    first = models[0].images
    groups = []
    for place, model in enumerate(models):
        columns = []
        if place and model.images[0].shape != first[0].shape:
            columns.append(Column("its part", model.images))
        for maps in model.maps:
            columns += _columns(model.images, maps, ends, heat_column=heat_column)
        groups.append(Group(model.heading if len(models) > 1 else "", columns))
    original = Column("original", first)
    if len(models) == 1:
        groups = [Group("", [original, *groups[0].columns])]
    else:
        groups = [Group("", [original]), *groups]
    scale = Scale(COLOURS, "little attention", "much")
    return page.draw(groups, names=names, title=title, note=note, scale=scale)


def _row_ends(models: Sequence[Model], row: int) -> Limits:
    """One scale for all maps of an image."""
    return shared_limits(maps.heat[row] for model in models for maps in model.maps)


def _columns(
    images: Sequence[np.ndarray], maps: Maps, ends: Sequence[Limits | None], *, heat_column: bool
) -> list[Column]:
    rows = list(zip(images, maps.heat, ends, strict=True))
    captions = [peak(heat) for heat in maps.heat]
    over = [overlay(image, heat, end) for image, heat, end in rows]
    if not heat_column:
        return [Column(maps.heading, over, captions)]
    alone = [heat_picture(heat, image.shape[0], image.shape[1], end) for image, heat, end in rows]
    return [Column(maps.heading, alone, captions), Column("overlay", over)]
