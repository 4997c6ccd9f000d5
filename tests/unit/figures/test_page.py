"""Sheets of pictures: cells keep their shapes and places, and words stay within their room."""

import io

import numpy as np
import pytest
from PIL import Image

from mvmae.figures import page
from mvmae.figures.page import Cell, Group, Row
from mvmae.figures.text import drawable, shorten, text_width, wrap

SIDE = 1.2


def cell(first: str = "cat", *, shape: tuple[int, int, int] = (32, 32, 3), shade: int = 0) -> Cell:
    return Cell(np.full(shape, shade, np.uint8), captions=(first, "0.5"), frame="#00796b")


def draw(rows: list[Row], title: str = "title", note: str = "note", **options) -> np.ndarray:
    png = page.draw(rows, title=title, note=note, side=SIDE, **options)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def neighbours(query: Cell, found: list[Cell]) -> Row:
    return Row([Group([query]), Group(found)])


@pytest.mark.parametrize("shape", [(32, 32, 3), (32, 32, 1), (16, 64, 3), (64, 16, 1)])
def test_pictures_of_any_shape_are_drawn_as_they_are(shape):
    row = neighbours(cell(shape=shape, shade=200), [cell(shape=shape, shade=90)] * 2)
    picture = draw([row, row])
    for shade, times in ((200, 2), (90, 4)):
        area = (np.abs(picture - shade).max(axis=2) <= 2).sum()
        ratio = min(shape[:2]) / max(shape[:2])
        expected = times * (SIDE * page.DPI) ** 2 * ratio
        assert area == pytest.approx(expected, rel=0.12)  # frames cover the edges


def test_a_row_without_neighbours_and_one_with_more_are_drawn():
    rows = [neighbours(cell(), []), neighbours(cell(), [cell()] * 12)]
    assert draw(rows).shape[1] > 12 * SIDE * page.DPI


@pytest.mark.parametrize("name", ["W" * 60, "i" * 300, "a $x_1$ name " * 9, "漢字" * 40])
def test_long_names_stay_under_their_picture(name):
    """Two pictures with nothing but the gap between them: the gap stays white under them."""
    plain = [cell(name, shade=9)._replace(frame="") for _ in range(3)]
    picture = draw([neighbours(plain[0], plain[1:])], name, name)
    dark = (np.abs(picture - 9).max(axis=2) == 0).sum(axis=0) > 50
    edges = np.flatnonzero(np.diff(dark.astype(int)))
    gap = picture[:, edges[3] + 4 : edges[4] - 2]
    below = int((page.TOP + SIDE) * page.DPI)
    assert gap.shape[1] > 5
    assert (gap[below + 3 : below + int(2 * page.CAPTION * page.DPI)] == 255).all()
    assert (picture[:, -3:] == 255).all()


def test_groups_and_rows_have_names_beside_the_pictures():
    plain = Cell(np.full((8, 8, 3), 90, np.uint8))
    rows = [Row([Group([plain] * 2, "heading"), Group([plain])], "name", "detail")]
    bare = [Row([Group([plain] * 2), Group([plain])])]
    drawn, other = (draw(some) for some in (rows, bare))
    (top, left), (bare_top, bare_left) = (
        np.argwhere((one == 90).all(axis=2)).min(axis=0) for one in (drawn, other)
    )
    assert top - bare_top == round(page.GROUP_LINE * page.DPI)
    assert left - bare_left == round(2 * page.NAME * page.DPI)
    assert (drawn[top:, :left] < 200).any()
    assert (drawn[: top - 9] < 200).sum() > (other[: bare_top - 9] < 200).sum()


def test_a_legend_is_drawn_in_as_many_lines_as_it_needs():
    rows = [Row([Group([Cell(np.full((8, 8, 1), 90, np.uint8))])])]
    few, many = (draw(rows, legend=[("#ff0000", "a class $x$")] * count) for count in (1, 40))
    red = [(np.abs(one - (255, 0, 0)).max(axis=2) <= 2).sum() for one in (few, many)]
    assert red[1] == pytest.approx(40 * red[0], rel=0.1)
    assert len(many) - len(few) > 3 * page.LEGEND_LINE * page.DPI


def test_pictures_are_spread_evenly_over_rows():
    assert [len(row) for row in page.split_evenly(10, 8)] == [5, 5]
    assert [len(row) for row in page.split_evenly(17, 8)] == [6, 6, 5]
    assert [len(row) for row in page.split_evenly(8, 8)] == [8]


def test_rows_of_many_cells_are_broken_into_blocks():
    cells = [cell(str(number)) for number in range(9)]
    blocks = page.in_blocks([Row([Group(cells)], "image"), Row([Group(cells)], "a", "b")], 8)
    assert [(row.name, len(row.cells)) for row in blocks] == [
        *(("image", 5), ("a", 5)),
        *(("image", 4), ("a", 4)),
    ]
    assert [one.captions[0] for one in blocks[3].cells] == ["5", "6", "7", "8"]


def test_shortened_text_keeps_both_ends_and_fits():
    assert shorten("short", 2.0, 7.0) == "short"
    long = shorten("beginning-of-a-very-long-name-end.jpg", 1.0, 7.0)
    assert long.startswith("begin")
    assert long.endswith("end.jpg")
    assert "…" in long
    assert text_width(long, 7.0) <= 1.0


def test_line_breaks_and_missing_characters_are_replaced():
    assert drawable("a\nb\t漢") == "a b ?"


def test_notes_are_wrapped_into_lines_that_fit():
    lines = wrap("some words " * 30 + "W" * 300, 3.0, 6.5)
    assert len(lines) > 4
    assert all(text_width(line, 6.5) <= 3.0 for line in lines)
    assert " ".join(lines[:-1]).startswith("some words some")
