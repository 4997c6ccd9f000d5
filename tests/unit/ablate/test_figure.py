"""Means over seeds, differences between runs of the same seed, and their picture."""

import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from mvmae.ablate.figure import Row, _range, draw
from mvmae.metrics.accuracy import paired_difference, significance_threshold, spread_over_seeds

ONE = np.array([81.2, 79.9, 80.4, 83.0])
OTHER = np.array([78.0, 77.1, 79.9, 79.5])


def test_mean_and_deviation_over_seeds():
    found = spread_over_seeds(ONE)
    assert found.mean == pytest.approx(81.125)
    assert found.sd == pytest.approx(np.sqrt(((ONE - 81.125) ** 2).sum() / 3))
    assert found.count == 4


def test_the_difference_over_its_error_is_students_paired_t():
    found = paired_difference(ONE, OTHER)
    reference = stats.ttest_rel(ONE, OTHER)
    assert found.mean == pytest.approx((ONE - OTHER).mean())
    assert found.error is not None
    assert found.mean / found.error == pytest.approx(reference.statistic)


def test_what_a_seed_does_to_both_falls_out_of_the_difference():
    shift = np.array([30.0, -20.0, 5.0, 0.0])
    apart, shifted = paired_difference(ONE, OTHER), paired_difference(ONE + shift, OTHER + shift)
    assert shifted.error == pytest.approx(apart.error)
    assert spread_over_seeds(ONE + shift).sd > 10 * spread_over_seeds(ONE).sd


def test_one_seed_has_neither_deviation_nor_error():
    assert spread_over_seeds(ONE[:1]) == (81.2, None, 1)
    assert paired_difference(ONE[:1], OTHER[:1]).error is None
    assert significance_threshold(1) is None


@pytest.mark.parametrize("count", [*range(2, 40), 100])
def test_the_limit_of_chance_is_students(count):
    assert significance_threshold(count) == pytest.approx(stats.t.ppf(0.975, count - 1), rel=1e-9)


# The picture

PANELS = {"knn": "kNN", "probe": "linear"}


def row(name: str, *values: float, trained=True, baseline=False, paper=None, said="") -> Row:
    scores = {"knn": np.array(values), "probe": np.array(values) - 5}
    return Row(name, scores, dict.fromkeys(scores, said), paper, baseline, trained)


ROWS = [
    row("base", 80.0, 81.0, baseline=True, paper=79.09),
    row("other $x_1$", 78.0, 78.4, said="-2.3 ±0.1"),
    row("raw pixels", 31.4, trained=False, said="-49.1 ±0.5"),
    row("untrained", 77.5, 77.0, trained=False, said="-3.2 ±0.5"),
]


def picture(rows, axis: str = "", kind: str = "svg") -> bytes:
    return draw(rows, PANELS, title="t", subtitle="s", note="a note", axis=axis, kind=kind)


def test_the_picture_names_every_row_its_mean_and_difference():
    said = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture(ROWS).decode()))
    words = ("base", "other $x_1$", "80.5", "baseline", "78.2", "\N{MINUS SIGN}2.3 ±0.1", "31.4")
    for word in (*words, "\N{MINUS SIGN}49.1 ±0.5", "kNN", "linear", "a note", "t: s"):
        assert word in said, word
    assert "the paper, not ours" in said
    assert "79.09" in said
    assert said.count("no figure") == 1  # of what was trained and the paper has not


def test_without_figures_of_the_paper_it_has_no_panel():
    rows = [one._replace(paper=None) for one in ROWS]
    assert b"not ours" not in picture(rows)


def test_what_is_far_from_the_trained_rows_does_not_press_them_together():
    low, high = _range(ROWS, "knn")
    assert 75 < low < 77.0  # the untrained one is near, raw pixels are not
    assert 81.0 < high < 83
    low, high = _range(ROWS[2:], "knn")
    assert low <= 31.4
    assert high >= 77.5


def test_values_become_a_curve_with_what_was_not_trained_as_levels():
    rows = [row("0.5", 80.0, 81.0, paper=79.22), row("0.75", 82.0, baseline=True, paper=79.09)]
    shown = picture([*rows, *ROWS[2:]], axis="mask ratio").decode()
    said = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", shown))
    for word in ("0.5", "0.75", "mask ratio", "raw pixels 31.4", "untrained 77.2"):
        assert word in said, word


@pytest.mark.parametrize(("kind", "axis"), [("png", ""), ("svg", "mask ratio")])
def test_the_same_table_is_the_same_picture(kind, axis):
    assert picture(ROWS, axis, kind) == picture(ROWS, axis, kind)


@pytest.mark.parametrize("axis", ["", "mask ratio"])
def test_rows_that_are_not_finished_leave_a_gap(axis):
    empty = row("later")
    with Image.open(BytesIO(picture([ROWS[0], empty, *ROWS[2:]], axis, "png"))) as shown:
        assert min(shown.size) > 200
    with Image.open(BytesIO(picture([empty, row("too")], axis, "png"))) as shown:
        assert min(shown.size) > 200
