"""The figure of neighbours: captions of any length stay below their picture."""

import io

import numpy as np
import pytest
from PIL import Image

from mvmae.figures.neighbours import Row, draw
from mvmae.figures.sheet import Tile
from mvmae.figures.text import drawable, shortened, width_of


def cell(first: str = "cat", *, shape: tuple[int, int, int] = (32, 32, 3), shade: int = 0) -> Tile:
    return Tile(np.full(shape, shade, np.uint8), first, "0.5")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.mark.parametrize("shape", [(32, 32, 3), (32, 32, 1), (16, 64, 3), (64, 16, 1)])
def test_pictures_of_any_shape_are_drawn_as_they_are(shape):
    row = Row(cell(shape=shape, shade=200), [cell(shape=shape, shade=90)] * 2)
    picture = pixels(draw([row, row], title="title", note="note"))
    for shade, times in ((200, 2), (90, 4)):
        area = (np.abs(picture - shade).max(axis=2) <= 2).sum()
        ratio = shape[0] / shape[1]
        width = max(1.25 * min(1, 1 / ratio), 0.95) * 150
        assert area == pytest.approx(times * width**2 * ratio, rel=0.17)  # frames cover the edges


def test_a_query_without_neighbours_and_one_with_more_are_drawn():
    rows = [Row(cell(), []), Row(cell(), [cell()] * 12)]
    assert pixels(draw(rows, title="t", note="n")).shape[1] > 12 * 150


@pytest.mark.parametrize("name", ["W" * 60, "i" * 300, "a $x_1$ name " * 9, "漢字" * 40])
def test_long_names_stay_under_their_picture(name):
    """Two pictures with nothing but the gap between them: the gap stays white under them."""
    row = Row(cell(shade=9), [cell(name, shade=9), cell(name, shade=9)])
    picture = pixels(draw([row], title=name, note=name))
    dark = (np.abs(picture - 9).max(axis=2) == 0).sum(axis=0) > 50
    edges = np.flatnonzero(np.diff(dark.astype(int)))
    gap = picture[:, edges[3] + 4 : edges[4] - 2]
    below = gap[int(0.48 * 150) + int(1.25 * 150) + 6 : -int(0.34 * 150)]
    assert (below == 255).all()
    assert (picture[:, -3:] == 255).all()


def test_shortened_text_keeps_both_ends_and_fits():
    assert shortened("short", 2.0, 7.0) == "short"
    long = shortened("beginning-of-a-very-long-name-end.jpg", 1.0, 7.0)
    assert long.startswith("begin")
    assert long.endswith("end.jpg")
    assert "…" in long
    assert width_of(long, 7.0) <= 1.0


def test_line_breaks_and_missing_characters_are_replaced():
    assert drawable("a\nb\t漢") == "a b ?"
