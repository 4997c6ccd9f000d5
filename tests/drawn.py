"""Find the pictures in a figure by its pixels."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

WHITE = 250  # grey levels from which a pixel counts for paper


def cells(figure: bytes | str | Path, aspect: float = 1.0) -> list[np.ndarray]:
    """The pictures of the first row, from left to right, as H x W x 3; they hold no white.

    Args:
        figure: A PNG, or where it is.
        aspect: Height of a picture over its width.
    """
    png = figure if isinstance(figure, bytes) else Path(figure).read_bytes()
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)
    coloured = (pixels < WHITE).any(2)
    full = coloured.mean(1) > 0.4
    top = int(np.flatnonzero(full[:-9] & full[9:])[0])  # skips thin rules
    edges = np.flatnonzero(np.diff(np.pad(coloured[top + 20].astype(int), 1)))
    spans = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 60]
    return [pixels[top : top + round((b - a) * aspect), a:b] for a, b in spans]
