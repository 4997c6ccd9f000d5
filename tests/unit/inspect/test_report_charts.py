"""Charts of a report: points at their places, gaps where there is no number, words for ears."""

import re
from html import unescape
from math import inf, nan

import numpy as np
import pytest
from PIL import Image

from mvmae.inspect.report import blocks, svg
from mvmae.inspect.report.svg import Level, Line


def drawn(lines, **options) -> str:
    said = {"label": "a chart", "x_name": "steps"} | options
    return str(svg.draw(lines, **said))


def paths(chart: str) -> list[list[list[tuple[float, float]]]]:
    """The points of each line, piece by piece."""
    found = []
    for d in re.findall(r'<path class="line[^>]* d="([^"]*)"', chart):
        pieces = [re.findall(r"([\d.]+),([\d.]+)", piece) for piece in d.split("M")[1:]]
        found.append([[(float(x), float(y)) for x, y in piece] for piece in pieces])
    return found


def scale(chart: str, axis: str) -> svg.Scale:
    low, high, begin, end, kind = re.search(rf'data-{axis}="([^"]*)"', chart)[1].split()
    return svg.Scale(float(low), float(high), float(begin), float(end), kind == "log")


def test_a_line_passes_through_its_points():
    line = Line("loss", [0, 50, 200], [4.0, 1.5, 1.0])
    chart = drawn([line])
    x, y = scale(chart, "x"), scale(chart, "y")
    (((first, _, last),),) = paths(chart)
    assert first == pytest.approx((x.place(0.0), y.place(4.0)), abs=0.01)
    assert last == pytest.approx((x.place(200.0), y.place(1.0)), abs=0.01)
    assert x.place(0.0) == svg.LEFT + 8
    assert x.place(200.0) == svg.WIDTH - svg.RIGHT - 8
    assert y.place(y.low) == svg.HEIGHT - svg.BOTTOM  # higher values stand higher
    assert y.place(4.0) < y.place(1.0)


def test_a_level_is_drawn_at_its_height_with_its_name():
    chart = drawn([Line("loss", [1, 2], [5.0, 1.0])], levels=[Level("guessing", 5.541)])
    y = scale(chart, "y")
    at = float(re.search(r'class="level"[^>]* y1="([\d.]+)"', chart)[1])
    assert at == pytest.approx(y.place(5.541), abs=0.01)
    assert "guessing 5.54<" in chart
    assert y.high >= 5.541  # the axis makes room for it


def test_values_that_are_no_numbers_leave_gaps():
    ys = [1.0, 2.0, nan, 3.0, inf, 2.0, 1.0]
    ((first, alone, last),) = paths(drawn([Line("a", range(7), ys)]))
    assert [len(first), len(alone), len(last)] == [2, 1, 2]
    chart = drawn([Line("a", range(7), ys)])
    assert chart.count("<circle") == 1  # the point between two gaps
    assert "nan" not in chart.lower()
    assert "inf" not in chart.lower()


def test_a_line_of_no_numbers_at_all_is_not_drawn():
    chart = drawn([Line("a", [1, 2], [nan, nan]), Line("b", [1, 2], [1.0, 2.0], 1)])
    assert len(paths(chart)) == 1
    assert paths(drawn([Line("a", [], [])])) == []


@pytest.mark.parametrize("value", [0.0, 1e-12, -3.0, 1e300, 7.0])
def test_a_flat_line_and_a_single_point_have_a_place(value):
    for xs in ([1, 2], [5]):
        chart = drawn([Line("a", xs, [value] * len(xs))])
        y = scale(chart, "y")
        assert y.low < value < y.high or y.low <= value <= y.high
        assert "nan" not in chart
    assert drawn([Line("a", [5], [value])]).count("<circle") == 1


def test_long_lines_keep_their_ends_and_their_extremes():
    ys = np.sin(np.linspace(0, 30, 20_000))
    ys[12_345] = 9.0
    points = svg.thinned(Line("a", range(20_000), ys.tolist()))
    assert len(points) <= svg.MOST_POINTS + 2
    assert points[0] == (0.0, ys[0])
    assert points[-1] == (19_999.0, ys[-1])
    assert (12_345.0, 9.0) in points
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_short_lines_are_drawn_whole():
    line = Line("a", [3, 4], [1.0, 2.0])
    assert svg.thinned(line) == [(3.0, 1.0), (4.0, 2.0)]


def test_logarithmic_axes_have_equal_steps_for_equal_factors():
    line = Line("a", [10, 100, 1000], [1.0, 2.0, 3.0])
    x, _ = svg.scales([line], log_x=True)
    assert x.place(100.0) - x.place(10.0) == pytest.approx(x.place(1000.0) - x.place(100.0))
    ticks = re.findall(r'text-anchor="middle">([\d,]+)<', drawn([line], log_x=True))
    assert ticks == ["10", "100", "1,000"]


def test_ticks_are_round_and_within_the_axis():
    assert svg.nice_ticks(0.0, 1460.0, 6) == [0, 500, 1000]
    assert svg.nice_range(0.61, 5.54) == (0.0, 6.0)
    for low, high in ((0.013, 0.0171), (-3.2, 900.0), (1e-9, 2e-3)):
        bottom, top = svg.nice_range(low, high)
        assert bottom <= low + 1e-12 < high <= top + 1e-12
        assert top - bottom < 2.5 * (high - low)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (0.05, "0.05"), (1500.0, "1,500"), (25_000.0, "25k"), (2e6, "2M"), (8e-4, "8e-4")],
)
def test_ticks_are_short(value, said):
    assert svg.number(value) == said


def test_a_band_is_as_high_as_the_spread():
    line = Line("a", [1, 2], [10.0, 20.0], spread=[1.0, 0.0])
    chart = drawn([line])
    y = scale(chart, "y")
    points = re.search(r'points="([^"]*)"', chart)[1].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights[0] == pytest.approx(y.place(11.0), abs=0.1)
    assert heights[-1] == pytest.approx(y.place(9.0), abs=0.1)


def test_styles_beyond_the_colours_have_other_dashes():
    seen = {(style % svg.COLOURS, svg.dash(style)) for style in range(12)}
    assert len(seen) == 12


def test_names_in_a_chart_are_text():
    chart = drawn([Line('"><script>', [1, 2], [1.0, 2.0])], label='"><script>', x_name="<b>")
    assert "<script" not in chart
    assert "<b>" not in chart
    assert '"><script>' in unescape(chart)


def test_a_chart_is_told_in_words():
    chart = blocks.chart(
        "Loss",
        "",
        {"steps": [Line("train", [1, 2, 3], [4.0, nan, 0.5])]},
        levels=[Level("guessing", 5.5)],
    )
    label = re.search(r'aria-label="([^"]*)"', chart.drawings[0])[1]
    assert label == "Loss, against steps. train: from 4 to 0.5; guessing: 5.5."
    assert chart.legend == []  # one line needs none


def test_several_lines_have_a_legend():
    lines = [Line("a", [1, 2], [1.0, 2.0], 0), Line("b", [1, 2], [2.0, 1.0], 1)]
    assert blocks.chart("t", "", {"steps": lines}).legend == [(0, "a"), (1, "b")]


def decoded(picture: blocks.Picture) -> Image.Image:
    import base64
    import io

    head, body = picture.uri.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert head == f"data:image/{image.format.lower()};base64"
    return image


def test_small_pictures_keep_every_pixel():
    pixels = np.random.default_rng(0).random((8, 12, 3))
    shown = blocks.picture(pixels, alt="a", caption="b")
    assert shown.pixelated
    assert np.array_equal(np.asarray(decoded(shown)), np.round(255 * pixels).astype(np.uint8))


def test_large_pictures_are_shrunk_and_gray_stays_gray():
    shown = blocks.picture(np.full((600, 300, 1), 0.5), alt="a", caption="b")
    image = decoded(shown)
    assert (image.size, image.mode, image.format) == ((128, 256), "L", "JPEG")
    assert not shown.pixelated
    assert np.abs(np.asarray(image).astype(int) - 128).max() <= 1


def test_pixels_that_are_no_numbers_are_gray():
    shown = blocks.picture(np.array([[[nan], [2.0], [-1.0]]]), alt="a", caption="b")
    assert np.asarray(decoded(shown)).tolist() == [[128, 255, 0]]


def test_a_levels_name_is_not_written_over_a_line_that_ends_just_above_it():
    def places(end: float) -> tuple[float, float]:
        lines = [Line("a", [0, 1, 2], [2.0, 1.0, end])]
        drawn = str(svg.draw(lines, label="l", x_name="steps", levels=[Level("blur", 0.4)]))
        height = re.search(r'class="level"[^>]*y1="([\d.]+)"', drawn)
        name = re.search(r'class="level-name"[^>]*y="([\d.]+)"', drawn)
        assert height
        assert name
        return float(height[1]), float(name[1])

    height, name = places(0.48)
    assert name > height
    height, name = places(1.5)
    assert name < height
