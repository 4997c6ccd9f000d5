"""Figure 5 of the paper: what was there, what the encoder saw, what the decoder made of it.

Shapes: B images, H and W pixels, C channels 1 or 3.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mvmae.figures.neighbours import drawable

INK, FAINT = "#1f2933", "#66707a"
CELL = 1.7  # inches


class Panels(NamedTuple):
    """One row for each image; values in [0, 1]."""

    original: Float[np.ndarray, "B H W C"]
    masked: Float[np.ndarray, "B H W C"]
    prediction: Float[np.ndarray, "B H W C"]
    pasted: Float[np.ndarray, "B H W C"]


COLUMNS = {
    "original": "original",
    "masked": "what the encoder sees",
    "prediction": "prediction",
    "pasted": "prediction + visible",
}


def draw(panels: Panels, *, names: Sequence[str], title: str, note: str) -> bytes:
    """A PNG with a row an image and the four panels as columns.

    Args:
        panels: The pictures.
        names: What each row shows, in small print beside it.
        title: Above the figure.
        note: Below it, how it was made.
    """
    count, height, width = panels.original.shape[:3]
    aspect = height / width
    size = (CELL * len(COLUMNS) + 0.35, CELL * aspect * count + 1.05)
    figure = Figure(figsize=size, dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(count, len(COLUMNS), squeeze=False)
    figure.subplots_adjust(
        left=0.3 / size[0],
        right=1 - 0.05 / size[0],
        top=1 - 0.68 / size[1],
        bottom=0.34 / size[1],
        wspace=0.05,
        hspace=0.05,
    )
    for row in range(count):
        for axis, (field, heading) in zip(axes[row], COLUMNS.items(), strict=True):
            picture = np.clip(getattr(panels, field)[row], 0, 1)
            # Small images are shown as their pixels, large ones smoothed to the figure.
            smoothing = "nearest" if height < 128 else "antialiased"
            axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation=smoothing)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(heading, fontsize=9, color=INK, pad=5)
        axes[row][0].text(
            -0.04,
            0.5,
            drawable(names[row]),
            parse_math=False,
            rotation=90,
            fontsize=6,
            color=FAINT,
            ha="right",
            va="center",
            transform=axes[row][0].transAxes,
        )
    heading = {"fontsize": 10, "color": INK, "weight": "bold", "va": "top", "parse_math": False}
    figure.text(0.5, 1 - 0.12 / size[1], drawable(title), ha="center", **heading)
    figure.text(0.5, 0.1 / size[1], note, fontsize=6.5, color=FAINT, ha="center", va="bottom")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
