"""A contact sheet: images, and what the network sees of each.

Shapes: B images, H and W pixels, C channels 1 or 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mvmae.figures import page
from mvmae.figures.page import Column, Group

HIDDEN = 0.5  # gray of hidden patches, in [0, 1]


class Views(NamedTuple):
    """One view of each image; values in [0, 1]."""

    whole: Float[np.ndarray, "B H W C"]
    masked: Float[np.ndarray, "B H W C"]


def draw(
    images: Sequence[Float[np.ndarray, "_ _ C"]],
    views: Sequence[Views],
    *,
    names: Sequence[str],
    title: str,
    note: str,
) -> bytes:
    """Draw a PNG with a row for each image: the whole image, then each view, plain and masked.

    Args:
        images: Values in [0, 1], each in its own shape.
        views: One to eight.
        names: Names of the images, in small print beside them.
        title: Above the sheet.
        note: Below it.
    """
    groups = [Group("", [Column("image", images)])]
    for number, view in enumerate(views, 1):
        which = f"view {number}" if len(views) > 1 else "view"
        columns = [Column(which, list(view.whole)), Column("what is seen", list(view.masked))]
        groups.append(Group("", columns))
    return page.draw(groups, names=names, title=title, note=note)
