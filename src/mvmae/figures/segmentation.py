"""Images with their true and their predicted segmentation.

Shapes: C channels, H x W pixels of a mask, K classes.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int16, UInt8
from torch import Tensor

from mvmae.figures import page
from mvmae.figures.page import Column

IGNORED = (242, 242, 240)  # pixels that do not count
COLOURS = (  # of the first classes: far apart in hue and lightness
    *("#7db7e8", "#b5654a", "#f2c14e", "#6b6f76", "#d9a5c7", "#3f8f4f", "#e4572e", "#8e6bbf"),
    *("#17768c", "#c2d368", "#9c1c4b", "#2b3f8c", "#f58fa0", "#5a3a22", "#3cc4b0", "#b08d2e"),
)
GOLDEN_RATIO = 0.618034  # of the colour circle, so that consecutive classes differ in hue
CELL = 3.0  # inches of a panel's longer side
MAX_NAMED = 40  # classes in the legend
THUMBNAIL = 640  # pixels of a panel's longer side


class Shown(NamedTuple):
    """One row of the figure."""

    name: str
    image: UInt8[Tensor, "C rows columns"]
    truth: Int16[Tensor, "H W"]
    predicted: Int16[Tensor, "H W"]


def palette(count: int) -> UInt8[np.ndarray, "K 3"]:
    """Return a colour for each class."""
    given = [tuple(int(code[at : at + 2], 16) for at in (1, 3, 5)) for code in COLOURS[:count]]
    for number in range(len(COLOURS), count):
        light, full = (0.42, 0.7, 0.56)[number % 3], (0.75, 0.5)[number // 3 % 2]
        colour = colorsys.hls_to_rgb(number * GOLDEN_RATIO % 1, light, full)
        given.append(tuple(round(255 * part) for part in colour))
    return np.array(given, dtype=np.uint8).reshape(count, 3)


def colour_classes(
    classes: Int16[Tensor, "H W"], colours: np.ndarray
) -> UInt8[np.ndarray, "H W 3"]:
    """Colour a mask; ignored pixels are nearly white."""
    table = np.concatenate([colours, np.array([IGNORED], dtype=np.uint8)])
    return table[classes.numpy()]  # -1 is the last row


def overlay_classes(
    image: UInt8[Tensor, "C H W"], classes: Int16[Tensor, "H W"], colours: np.ndarray
) -> UInt8[np.ndarray, "H W 3"]:
    """Lay a mask over its image, with white borders between classes."""
    pixels = image.permute(1, 2, 0).numpy().astype(np.float32)
    mixed = 0.45 * pixels + 0.55 * colour_classes(classes, colours)
    # A pixel is a border if the one to its right or below has another class.
    mixed[:, :-1][(classes[:, :-1] != classes[:, 1:]).numpy()] = 255
    mixed[:-1][(classes[:-1] != classes[1:]).numpy()] = 255
    return mixed.round().astype(np.uint8)


def draw(rows: Sequence[Shown], classes: Sequence[str], *, title: str, note: str) -> bytes:
    """Draw a PNG with a row for each image (image, truth, prediction) and a legend of classes."""
    colours = palette(len(classes))
    masks = {"truth": [one.truth for one in rows], "prediction": [one.predicted for one in rows]}
    columns = [Column("image", [_small(one.image.permute(1, 2, 0).numpy()) for one in rows])]
    for heading, column in masks.items():
        columns.append(Column(heading, [_small(colour_classes(mask, colours)) for mask in column]))
    pixels = torch.cat([mask.flatten() for column in masks.values() for mask in column])
    numbers, areas = pixels.unique(return_counts=True)
    largest = numbers[areas.argsort(descending=True, stable=True)]
    present = largest[largest >= 0].tolist()
    codes = ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in (*colours.tolist(), IGNORED)]
    legend = [(codes[number], classes[number]) for number in sorted(present[:MAX_NAMED])]
    if len(present) > MAX_NAMED:
        legend.append(("white", f"and {len(present) - MAX_NAMED} more"))
    if bool((numbers < 0).any()):
        legend.append((codes[-1], "does not count"))
    sheet = page.columns_to_rows(columns, [Path(shown.name).name for shown in rows])
    return page.draw(sheet, title=title, note=note, side=CELL, legend=legend)


def _small(picture: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "h w C"]:
    """Subsample a picture, so that class colours do not blend as they would when resized."""
    step = max(1, max(picture.shape[:2]) // THUMBNAIL)
    return picture[::step, ::step]
