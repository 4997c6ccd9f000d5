"""Images with their true and their predicted segmentation.

Shapes: C channels, H x W pixels of a mask, K classes.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int16, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from mvmae.figures.text import FAINT, INK, drawable

IGNORED = (242, 242, 240)  # pixels that do not count
COLOURS = (  # of the first classes: far apart in hue and lightness
    *("#7db7e8", "#b5654a", "#f2c14e", "#6b6f76", "#d9a5c7", "#3f8f4f", "#e4572e", "#8e6bbf"),
    *("#17768c", "#c2d368", "#9c1c4b", "#2b3f8c", "#f58fa0", "#5a3a22", "#3cc4b0", "#b08d2e"),
)
GOLDEN_RATIO = 0.618034  # of the colour circle, so that consecutive classes differ in hue
WIDTH = 3.0  # inches of a panel
MIN_ASPECT = 0.2  # height over width of a row
MAX_NAMED = 40  # classes in the legend
THUMBNAIL = 640  # pixels of a panel's longer side


class Shown(NamedTuple):
    """One row of the figure."""

    name: str
    image: UInt8[Tensor, "C rows columns"]
    truth: Int16[Tensor, "H W"] | None
    predicted: Int16[Tensor, "H W"]


def palette(count: int) -> UInt8[np.ndarray, "K 3"]:
    """Return a colour for each class."""
    given = [tuple(int(code[at : at + 2], 16) for at in (1, 3, 5)) for code in COLOURS[:count]]
    for number in range(len(COLOURS), count):
        light, full = (0.42, 0.7, 0.56)[number % 3], (0.75, 0.5)[number // 3 % 2]
        colour = colorsys.hls_to_rgb(number * GOLDEN_RATIO % 1, light, full)
        given.append(tuple(round(255 * part) for part in colour))
    return np.array(given, dtype=np.uint8).reshape(count, 3)


def coloured(classes: Int16[Tensor, "H W"], colours: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """Colour a mask; ignored pixels are nearly white."""
    table = np.concatenate([colours, np.array([IGNORED], dtype=np.uint8)])
    return table[classes.numpy()]  # -1 is the last row


def overlaid(
    image: UInt8[Tensor, "C H W"], classes: Int16[Tensor, "H W"], colours: np.ndarray
) -> UInt8[np.ndarray, "H W 3"]:
    """Lay a mask over its image, with white borders between classes."""
    pixels = image.permute(1, 2, 0).numpy().astype(np.float32)
    mixed = 0.45 * pixels + 0.55 * coloured(classes, colours)
    mixed[borders(classes)] = 255
    return mixed.round().astype(np.uint8)


def borders(classes: Int16[Tensor, "H W"]) -> np.ndarray:
    """Whether the pixel to the right or below has another class."""
    plain = classes.numpy()
    edge = np.zeros(plain.shape, dtype=bool)
    edge[:, :-1] |= plain[:, :-1] != plain[:, 1:]
    edge[:-1] |= plain[:-1] != plain[1:]
    return edge


def draw(rows: Sequence[Shown], classes: Sequence[str], *, title: str, note: str) -> bytes:
    """Draw a PNG with a row for each image (image, truth, prediction) and a legend of classes."""
    colours = palette(len(classes))
    present = _present(rows)
    aspect = float(np.mean([shown.image.shape[1] / shown.image.shape[2] for shown in rows]))
    aspect = min(max(aspect, MIN_ASPECT), 1 / MIN_ASPECT)
    columns = 3 if rows[0].truth is not None else 2
    legend_rows = -(-(min(len(present), MAX_NAMED) + 1) // (2 * columns))
    size = (WIDTH * columns + 0.4, WIDTH * aspect * len(rows) + 0.85 + 0.22 * legend_rows)
    figure = Figure(figsize=size, dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    bottom = (0.28 + 0.22 * legend_rows) / size[1]
    figure.subplots_adjust(
        left=0.3 / size[0],
        right=1 - 0.1 / size[0],
        top=1 - 0.6 / size[1],
        bottom=bottom,
        wspace=0.03,
        hspace=0.05,
    )
    for number, (row, shown) in enumerate(zip(axes, rows, strict=True)):
        for axis, (heading, picture) in zip(row, _panels(shown, colours), strict=True):
            is_thin = not MIN_ASPECT <= picture.shape[0] / picture.shape[1] <= 1 / MIN_ASPECT
            stretched = "auto" if is_thin else "equal"  # a line of pixels would vanish otherwise
            axis.imshow(picture, interpolation="antialiased", aspect=stretched)
            axis.set_axis_off()
            if number == 0:
                axis.set_title(heading, fontsize=9, color=INK, pad=4)
        _name_row(row[0], shown.name)
    blank = any(bool((shown.truth < 0).any()) for shown in rows if shown.truth is not None)
    _legend(figure, present, classes, colours, 2 * columns, bottom, blank=blank)
    heading = {"fontsize": 10, "color": INK, "weight": "bold", "va": "top", "parse_math": False}
    figure.text(0.5, 1 - 0.1 / size[1], drawable(title), ha="center", **heading)
    small = {"fontsize": 6.5, "color": FAINT, "ha": "center", "va": "bottom"}
    figure.text(0.5, 0.07 / size[1], drawable(note), parse_math=False, **small)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _panels(shown: Shown, colours: np.ndarray) -> list[tuple[str, np.ndarray]]:
    pixels = shown.image.permute(1, 2, 0).numpy()
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    panels = [("image", _small(pixels))]
    if shown.truth is not None:
        panels.append(("truth", _small(coloured(shown.truth, colours))))
    panels.append(("prediction", _small(coloured(shown.predicted, colours))))
    return panels


def _small(picture: np.ndarray) -> np.ndarray:
    """Subsample a picture, so that class colours do not blend as they would when resized."""
    step = max(1, max(picture.shape[:2]) // THUMBNAIL)
    return picture[::step, ::step]


def _present(rows: Sequence[Shown]) -> list[int]:
    """Return the classes in the rows, the largest area first."""
    masks = [mask for shown in rows for mask in (shown.truth, shown.predicted) if mask is not None]
    numbers, counts = torch.cat([mask.flatten() for mask in masks]).unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return [number for number in numbers[order].tolist() if number >= 0]


def _name_row(axis, name: str) -> None:  # noqa: ANN001 - matplotlib's Axes
    axis.text(
        -0.025,
        0.5,
        drawable(Path(name).name),
        parse_math=False,
        rotation=90,
        fontsize=6,
        color=FAINT,
        ha="right",
        va="center",
        transform=axis.transAxes,
    )


def _legend(
    figure: Figure,
    present: Sequence[int],
    classes: Sequence[str],
    colours: np.ndarray,
    columns: int,
    top: float,
    *,
    blank: bool,
) -> None:
    named = sorted(present[:MAX_NAMED])
    patches = [Patch(facecolor=colours[n] / 255, label=drawable(classes[n])[:22]) for n in named]
    if len(present) > MAX_NAMED:
        patches.append(Patch(facecolor="none", label=f"and {len(present) - MAX_NAMED} more"))
    if blank:
        white = "#{:02x}{:02x}{:02x}".format(*IGNORED)
        patches.append(Patch(facecolor=white, edgecolor=FAINT, lw=0.4, label="does not count"))
    legend = figure.legend(
        handles=patches,
        loc="upper center",
        bbox_to_anchor=(0.5, top),
        ncols=min(columns, max(1, len(patches))),
        fontsize=7.5,
        labelcolor=INK,
        frameon=False,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.4,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
