"""Charts of a report: points at their places, gaps where values are not finite, an alt text."""

import re
from html import unescape
from math import inf, isfinite, log10, nan

import numpy as np
import pytest

from mvmae.figures import chart_svg
from mvmae.figures.chart_svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from mvmae.figures.charts import Level, Line, Panel, tick_label
from mvmae.inspect.report import curves


def line(name: str, xs, ys, style: int = 0, spread=None) -> Line:
    spread = None if spread is None else np.array(spread, float)
    return Line(np.array(xs, float), np.array(ys, float), style, False, name, spread)


def level(name: str, height: float) -> Level:
    return Level(np.array([1.0, 2.0]), np.array([height, height]), name)


def draw_chart(lines, *, levels=(), log_x=False, label="a chart", x_label="steps") -> str:
    panel = Panel("", "", lines, levels, log_x=log_x)
    return chart_svg.draw(panel, label=label, x_label=x_label)


def pieces_of_lines(chart: str) -> list[list[list[tuple[float, float]]]]:
    """Return the points of each line, piece by piece."""
    found = []
    for d in re.findall(r'<path class="line[^>]* d="([^"]*)"', chart):
        pieces = [re.findall(r"([\d.]+) ([\d.]+)", piece) for piece in d.split("M")[1:]]
        found.append([[(float(x), float(y)) for x, y in piece] for piece in pieces])
    return found


def limits(chart: str, axis: str) -> tuple[float, float]:
    low, high, *_ = re.search(rf'data-{axis}="([^"]*)"', chart)[1].split()
    return float(low), float(high)


def place(chart: str, axis: str, value: float) -> float:
    """Return where the page's script places a value."""
    *numbers, kind = re.search(rf'data-{axis}="([^"]*)"', chart)[1].split()
    low, high, begin, end = map(float, numbers)
    if kind == "log":
        low, high, value = (log10(number) for number in (low, high, value))
    return begin + (value - low) / (high - low) * (end - begin)


def heights_of_levels(chart: str) -> list[float]:
    return [float(y) for y in re.findall(r'class="level" d="M [\d.]+ ([\d.]+)', chart)]


def test_a_line_passes_through_its_points():
    chart = draw_chart([line("loss", [0, 50, 200], [4.0, 1.5, 1.0])])
    (((first, _, last),),) = pieces_of_lines(chart)
    assert first == pytest.approx((place(chart, "x", 0), place(chart, "y", 4.0)), abs=0.01)
    assert last == pytest.approx((place(chart, "x", 200), place(chart, "y", 1.0)), abs=0.01)
    assert LEFT < first[0] < LEFT + 10
    assert WIDTH - RIGHT - 10 < last[0] < WIDTH - RIGHT
    low, high = limits(chart, "y")
    assert place(chart, "y", low) == HEIGHT - BOTTOM  # higher values stand higher
    assert place(chart, "y", high) == TOP
    assert place(chart, "y", 4.0) < place(chart, "y", 1.0)


def test_a_level_is_drawn_at_its_height_with_its_name():
    chart = draw_chart([line("loss", [1, 2], [5.0, 1.0])], levels=[level("chance 5.54", 5.541)])
    (height,) = heights_of_levels(chart)
    assert height == pytest.approx(place(chart, "y", 5.541), abs=0.01)
    assert ">chance 5.54<" in chart
    assert limits(chart, "y")[1] >= 5.541  # the axis makes room for it


def test_values_that_are_not_finite_leave_gaps():
    chart = draw_chart([line("a", range(7), [1.0, 2.0, nan, 3.0, inf, 2.0, 1.0])])
    ((first, alone, last),) = pieces_of_lines(chart)
    assert [len(first), len(alone), len(last)] == [2, 1, 2]
    assert chart.count("<circle") == 1  # the point between two gaps
    assert "nan" not in chart.lower()
    assert "inf" not in chart.lower()


def test_a_line_without_a_finite_value_is_not_drawn():
    chart = draw_chart([line("a", [1, 2], [nan, nan]), line("b", [1, 2], [1.0, 2.0], 1)])
    assert len(pieces_of_lines(chart)) == 1
    assert pieces_of_lines(draw_chart([line("a", [], [])])) == []


@pytest.mark.parametrize("value", [0.0, 1e-12, -3.0, 1e300, 7.0])
def test_a_flat_line_and_a_single_point_have_a_place(value):
    for xs in ([1, 2], [5]):
        chart = draw_chart([line("a", xs, [value] * len(xs))])
        low, high = limits(chart, "y")
        assert low <= value <= high
        assert isfinite(low)
        assert isfinite(high)
        assert "nan" not in chart
    assert draw_chart([line("a", [5], [value])]).count("<circle") == 1


def test_long_lines_keep_their_ends_and_their_extremes():
    ys = np.sin(np.linspace(0, 30, 20_000))
    ys[12_345] = 9.0
    kept = chart_svg.thin(ys).tolist()
    assert len(kept) <= chart_svg.MAX_POINTS + 2
    assert kept[0] == 0
    assert kept[-1] == 19_999
    assert 12_345 in kept
    assert kept == sorted(kept)


def test_a_long_gap_stays_a_gap():
    ys = np.ones(20_000)
    ys[5_000:15_000] = nan
    assert np.isnan(ys[chart_svg.thin(ys)]).any()


def test_short_lines_are_drawn_whole():
    assert chart_svg.thin(np.array([1.0, 2.0])).tolist() == [0, 1]


def test_logarithmic_axes_have_equal_steps_for_equal_factors():
    chart = draw_chart([line("a", [10, 100, 1000], [1.0, 2.0, 3.0])], log_x=True)
    (((one, _), (two, _), (three, _)),) = pieces_of_lines(chart)[0:1][0]
    assert two - one == pytest.approx(three - two, abs=0.02)
    ticks = re.findall(r'<text class="tick" [^>]*text-anchor="middle">([\d,]+)<', chart)
    assert ticks == ["10", "100", "1,000"]
    assert one == pytest.approx(place(chart, "x", 10), abs=0.01)


def test_ticks_are_round_and_within_the_axis():
    chart = draw_chart([line("a", [0, 1460], [0.61, 5.54])])
    assert limits(chart, "y") == (0.0, 6.0)
    ticks = re.findall(r'<text class="tick" x="([\d.]+)" [^>]*="middle">([\d,]+)<', chart)
    assert [label for _, label in ticks] == ["0", "500", "1,000"]
    assert all(LEFT <= float(x) <= WIDTH - RIGHT for x, _ in ticks)
    for low, high in ((0.013, 0.0171), (-3.2, 900.0), (1e-9, 2e-3)):
        bottom, top = limits(draw_chart([line("a", [1, 2], [low, high])]), "y")
        assert bottom <= low + 1e-12 < high <= top + 1e-12
        assert top - bottom < 2.5 * (high - low)


@pytest.mark.parametrize(
    ("value", "label"),
    [(0.0, "0"), (0.05, "0.05"), (1500.0, "1,500"), (25_000.0, "25k"), (2e6, "2M"), (8e-4, "8e-4")],
)
def test_ticks_are_short(value, label):
    assert tick_label(value) == label


def test_a_band_is_as_high_as_the_spread():
    chart = draw_chart([line("a", [1, 2], [10.0, 20.0], spread=[1.0, 0.0])])
    d = re.search(r'class="band band-0" d="([^"]*)"', chart)[1]
    heights = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", d)]
    assert heights[0] == pytest.approx(place(chart, "y", 11.0), abs=0.1)
    assert heights[3] == pytest.approx(place(chart, "y", 9.0), abs=0.1)


def test_styles_beyond_the_colours_have_other_dashes():
    seen = {(style % chart_svg.COLOURS, chart_svg.dash(style)) for style in range(12)}
    assert len(seen) == 12


def test_a_chart_has_no_colours_of_its_own_and_refers_to_nothing():
    """The page's style sheet colours it, in light and in dark."""
    chart = draw_chart([line("a", [1, 2], [1.0, 2.0], spread=[1.0, 1.0])], levels=[level("b", 1.5)])
    assert not re.search(r'style=|#[0-9a-f]{3}|url\(|xlink|href|\bid="', chart)
    assert len(chart) < 3000


def test_names_in_a_chart_are_text():
    name = '"><script>'
    chart = draw_chart([line(name, [1, 2], [1.0, 2.0])], label=name, x_label="<b>")
    assert "<script" not in chart
    assert "<b>" not in chart
    assert name in unescape(chart)


def test_a_chart_is_described_in_words():
    panel = Panel("", "", [line("train", [1, 2, 3], [4.0, nan, 0.5])], [level("chance 5.5", 5.5)])
    chart = curves.chart("Loss", "", {"steps": panel})
    label = re.search(r'aria-label="([^"]*)"', chart.drawings[0])[1]
    assert label == "Loss, against steps. train: from 4 to 0.5; chance 5.5."
    assert chart.legend == []  # one line needs none


def test_several_lines_have_a_legend():
    lines = [line("a", [1, 2], [1.0, 2.0], 0), line("b", [1, 2], [2.0, 1.0], 1)]
    chart = curves.chart("t", "", {"steps": Panel("", "", lines)})
    assert chart.legend == [(0, "a"), (1, "b")]


def test_a_levels_name_is_not_written_over_a_line_that_ends_just_above_it():
    def places(end: float) -> tuple[float, float]:
        chart = draw_chart([line("a", [0, 1, 2], [2.0, 1.0, end])], levels=[level("blur", 0.4)])
        (height,) = heights_of_levels(chart)
        name = re.search(r'class="level-name"[^>]*y="([\d.]+)"', chart)
        assert name
        return height, float(name[1])

    height, name = places(0.48)
    assert name > height
    height, name = places(1.5)
    assert name < height
