"""Figure 5 of the paper: what was there, what the encoder saw, what the decoder made of it.

Shapes: B images, H and W pixels, C channels 1 or 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mvmae.figures import page
from mvmae.figures.page import Column, Group


class Panels(NamedTuple):
    """One row for each image; values in [0, 1]."""

    original: Float[np.ndarray, "B H W C"]
    masked: Float[np.ndarray, "B H W C"]
    prediction: Float[np.ndarray, "B H W C"]
    pasted: Float[np.ndarray, "B H W C"]
    error: Float[np.ndarray, " B"]
    """Mean squared error of the prediction as it is drawn, over hidden patches and all channels."""

    plain: Float[np.ndarray, " B"]
    """The same of filling each hidden patch with its average colour, which no model is shown."""


class Model(NamedTuple):
    """What one model made of the images."""

    heading: str
    panels: Panels


COLUMNS = {
    "original": "original",
    "masked": "visible patches",
    "prediction": "prediction",
    "pasted": "prediction + visible",
}


def draw(models: Sequence[Model], *, names: Sequence[str], title: str, note: str) -> bytes:
    """A PNG with a row an image, and for each model its prediction, alone and pasted.

    The original and the masked image stand before the first model's; before a further one's only
    where it saw another part of the image, or another mask.

    Args:
        models: At least one; all of the same images.
        names: What each row shows, in small print beside it.
        title: Above the figure.
        note: Below it, how it was made.
    """
    first = models[0].panels
    groups = []
    for place, model in enumerate(models):
        columns = [_column(model.panels, field) for field in ("prediction", "pasted")]
        if place and not _same(model.panels.masked, first.masked):
            columns.insert(0, _column(model.panels, "masked"))
        if place and not _same(model.panels.original, first.original):
            columns.insert(0, _column(model.panels, "original"))
        groups.append(Group(model.heading if len(models) > 1 else "", columns))
    shown = [_column(first, field) for field in ("original", "masked")]
    if len(models) == 1:
        groups = [Group("", [*shown, *groups[0].columns])]
    else:
        groups = [Group("", shown), *groups]
    return page.draw(groups, names=names, title=title, note=note)


def _column(panels: Panels, field: str) -> Column:
    errors = zip(panels.error, panels.plain, strict=True)
    captions = [f"MSE {error:.4f}, colours {plain:.4f}" for error, plain in errors]
    captions = captions if field == "prediction" else []
    return Column(COLUMNS[field], getattr(panels, field), captions)


def _same(pictures: np.ndarray, others: np.ndarray) -> bool:
    """Whether two columns show the same; exact but for rounding under other mean and deviation."""
    return pictures.shape == others.shape and bool(np.allclose(pictures, others, atol=1e-3))
