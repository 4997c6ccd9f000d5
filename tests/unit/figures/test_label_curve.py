import functools
import io
import warnings

import numpy as np
import pytest
from PIL import Image

from mvmae.figures.label_curve import Curve, draw

NAMES = {"title": "curves", "note": "of a test", "chance": 10.0}


def curve(name: str = "ours", means=(40.0, 60.0, 80.0), *, spread=0.0, baseline=False) -> Curve:
    counts = [10**n for n in range(1, len(means) + 1)]
    return Curve(name, tuple(counts), means, (spread,) * len(means), baseline)


@functools.cache
def pixels(*curves: Curve, **names: str) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = draw(curves, **(NAMES | names))
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def drawn_in(picture: np.ndarray, colour: str) -> np.ndarray:
    """Marks the pixels of a colour."""
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return np.abs(picture - wanted).sum(axis=2) < 12


RED, BLUE, GRAY = "#d1495b", "#2e6f95", "#8a8f98"


def test_the_picture_has_a_fixed_size_and_white_margins():
    picture = pixels(curve())
    assert picture.shape == (750, 1200, 3)
    assert (picture[0] == 255).all()


def test_the_better_curve_is_drawn_above_the_worse():
    high, low = (80.0, 85.0, 90.0), (20.0, 22.0, 25.0)
    picture = pixels(curve("a", high), curve("b", low))
    red, blue = (np.nonzero(drawn_in(picture, colour))[0] for colour in (RED, BLUE))
    assert red.size > 100
    assert blue.size > 100
    assert red.max() < blue.min()
    swapped = pixels(curve("a", low), curve("b", high))
    assert not np.array_equal(swapped, picture)
    red, blue = (np.nonzero(drawn_in(swapped, colour))[0] for colour in (RED, BLUE))
    assert red.min() > blue.max()


def test_a_line_rises_where_the_accuracy_does():
    picture = pixels(curve("a", (20.0, 50.0, 80.0)))[:, :800]  # without the name at its end
    rows, columns = np.nonzero(drawn_in(picture, RED))
    assert np.corrcoef(rows, columns)[0, 1] < -0.95


def test_baselines_are_gray():
    assert not drawn_in(pixels(curve(baseline=True)), RED).any()
    assert drawn_in(pixels(curve(baseline=True)), GRAY).sum() > 1000


def test_a_band_shows_the_spread():
    assert (pixels(curve(spread=8.0)) != pixels(curve(spread=0.0))).any()


@pytest.mark.parametrize("change", ["title", "note", "chance"])
def test_title_note_and_chance_are_in_the_picture(change):
    other = {"title": "other", "note": "otherwise", "chance": 20.0}[change]
    assert (pixels(curve(), **{change: other}) != pixels(curve())).any()


def test_the_name_stands_at_the_lines_end():
    assert (pixels(curve("ours")) != pixels(curve("theirs"))).any()


ODD = (r"a$\frac$", "$_{", "a_b^c", "画像/模型", "im\udcff", "two\nlines", "")


@pytest.mark.parametrize("title", [ODD[0], ODD[3], ODD[4]])
def test_any_name_can_be_drawn(title):
    picture = pixels(*(curve(name) for name in ODD), title=title)
    assert picture.shape == (750, 1200, 3)


def test_long_names_leave_the_curves_room_and_are_not_cut_at_the_edge():
    picture = pixels(curve("runs/" + "W" * 300), title="W" * 300)
    dark = picture.sum(axis=2) < 200
    assert dark.sum(axis=1).max() > 500  # the axis below
    assert (picture[:, -3:] == 255).all()


def test_names_of_curves_that_end_together_do_not_touch():
    many = [curve(f"n{n}", (10.0 + 20 * n, 50.0, 80.0)) for n in range(4)]
    picture = pixels(*many)
    ends = np.nonzero(drawn_in(picture, BLUE)[:, 1010:].any(axis=1))[0]
    reds = np.nonzero(drawn_in(picture, RED)[:, 1010:].any(axis=1))[0]
    assert ends.size
    assert reds.size
    assert ends.max() < reds.min() or reds.max() < ends.min()


def test_chance_is_named_after_the_last_points():
    """A curve that begins at chance has no word under it."""
    picture = pixels(curve(means=(10.0, 50.0, 80.0)), chance=10.0)
    gray = drawn_in(picture, GRAY)[:700]  # without the note
    assert gray[:, 1010:].any(axis=1).sum() > 8
    assert 0 < gray[:, :900].any(axis=1).sum() <= 4  # the line alone


def test_one_point_is_a_dot():
    assert drawn_in(pixels(curve(means=(50.0,))), RED).sum() > 20


def test_many_curves_and_equal_accuracies_are_drawn():
    pixels(*(curve(f"model {n}", (0.0, 0.0, 0.0)) for n in range(9)))
    pixels(curve(means=(100.0, 100.0, 100.0)), chance=100.0)


def test_the_same_curves_give_the_same_bytes():
    assert draw([curve()], **NAMES) == draw([curve()], **NAMES)
