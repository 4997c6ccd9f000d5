"""A page on which pictures and captions are placed by hand.

Shapes: H and W pixels, C channels 1 or 3. Lengths are in inches.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mvmae.figures.text import BOLD, FAINT, INK, drawable, shortened, wrapped

DPI, MAX_DOTS = 150, 30_000  # many programs cannot open a PNG with a longer side
SIDE, TOP, NOTE_LINE = 0.14, 0.46, 0.13  # margin; top of the first row; one line of the note
MIN_WIDTH = 5.2  # of a page, for its title and note


class Tile(NamedTuple):
    """A picture with two lines below it."""

    image: UInt8[np.ndarray, "H W C"]
    name: str
    detail: str


class Sheet:
    """A white page with a title and a note; positions are measured from its upper left corner.

    Args:
        width: Width of the content; a narrow page is widened for its title and note.
        height: Height of the content, between title and note.
        title: Heading of the page.
        note: Small print at the bottom, wrapped into as many lines as it needs.
    """

    def __init__(self, width: float, height: float, *, title: str, note: str) -> None:
        self.width = max(width, MIN_WIDTH)
        lines = wrapped(note, self.width - 2 * SIDE, 6.5)
        self.height = TOP + height + NOTE_LINE * len(lines) + 0.16
        dpi = min(DPI, MAX_DOTS / max(self.width, self.height))
        self.figure = Figure(figsize=(self.width, self.height), dpi=dpi, facecolor="white")
        FigureCanvasAgg(self.figure)
        heading = shortened(title, (self.width - 2 * SIDE) / BOLD, 10.0)
        self.text(SIDE, 0.13, heading, fontsize=10, weight="bold", va="top")
        for number, line in enumerate(reversed(lines)):
            bottom = self.height - 0.1 - number * NOTE_LINE
            self.text(SIDE, bottom, line, fontsize=6.5, color=FAINT, va="bottom")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes."""
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def picture(
        self,
        left: float,
        top: float,
        size: tuple[float, float],
        image: UInt8[np.ndarray, "H W C"] | Float[np.ndarray, "H W C"],
        *,
        smooth: bool = True,
    ) -> Axes:
        """Draw an image, of 0 to 255 or 0 to 1, at a width and height; return its axes."""
        axes = self.axes(left, top, *size)
        axes.imshow(
            image.squeeze(-1) if image.shape[-1] == 1 else image,
            cmap="gray",
            vmin=0,
            vmax=255 if image.dtype == np.uint8 else 1,
            interpolation="antialiased" if smooth else "nearest",
            aspect="auto",
        )
        axes.set_axis_off()
        return axes

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Write text."""
        style = {"color": INK, "parse_math": False} | style
        self.figure.text(left / self.width, 1 - top / self.height, drawable(words)).set(**style)

    def caption(
        self,
        middle: float,
        top: float,
        words: str,
        width: float,
        colour: str,
        points: float = 6.0,
    ) -> None:
        """Write a centred line of small print, shortened to a width."""
        words = shortened(words, width, points)
        self.text(middle, top, words, fontsize=points, color=colour, ha="center", va="top")

    def tile(
        self,
        left: float,
        top: float,
        size: tuple[float, float],
        tile: Tile,
        *,
        points: float = 6.0,
        frame: tuple[str, float] | None = None,
    ) -> None:
        """Draw a picture at a width and height, in a frame of a colour and line width."""
        axes = self.picture(left, top, size, tile.image)
        if frame:
            draw_frame(axes, *frame)
        width, height = size
        middle, step = left + width / 2, points / 54  # lines are a third higher than letters
        detail_colour = frame[0] if frame and frame[1] > 1 else FAINT
        self.caption(middle, top + height + 0.05, tile.name, width, INK, points)
        detail_top = top + height + 0.05 + step
        self.caption(middle, detail_top, tile.detail, width, detail_colour, points)

    def png(self) -> bytes:
        """The page as a PNG file."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def draw_frame(axes: Axes, colour: str, width: float) -> None:
    """Draw a frame around axes, without ticks."""
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=width)


def cell_size(
    image: UInt8[np.ndarray, "H W C"], long_side: float, min_width: float
) -> tuple[float, float]:
    """Width and height of a picture on the page."""
    height, width = image.shape[:2]
    cell_width = max(long_side * width / max(height, width), min_width)
    return cell_width, cell_width * height / width
