"""metrics.jsonl is read however the run ended, and the curves show what it holds."""

import io
import json
from math import log
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from mvmae.config.figures import CurvesConfig
from mvmae.errors import UserError
from mvmae.figures.charts import COLOURS, Line, Panel, build_figure, draw, grid, moving_mean
from mvmae.inspect import curves
from mvmae.storage import metrics_file
from mvmae.storage.outputs import short_names

SAID = {"title": "run", "note": "of a test", "x_label": "steps"}


def record(step: int, **more) -> dict:
    return {"step": step, "images": 16 * step, "seconds": 36.0 * step, "loss": 10.0 / step} | more


def folder(path, records, tail: str = ""):
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + tail)
    return path


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def drawn_in(picture: np.ndarray, colour: str) -> np.ndarray:
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return np.abs(picture - wanted).sum(axis=2) < 20


# reading


@pytest.mark.parametrize(
    "tail", ['{"step": 30, "lo', "\0\0\0", "no json\n", '[1]\n{"loss": 3}\n', ""]
)
def test_incomplete_or_foreign_lines_are_skipped(tmp_path, tail):
    run = folder(tmp_path / "run", [record(10), record(20)], tail)
    assert [line["step"] for line in metrics_file.read(run)] == [10, 20]


def test_a_run_without_metrics_has_no_records(tmp_path):
    assert metrics_file.read(tmp_path) == []
    assert metrics_file.read(folder(tmp_path / "run", [])) == []


def test_losses_and_knn_of_one_step_are_one_record(tmp_path):
    run = folder(tmp_path / "run", [record(10), {"step": 10, "knn_top1": 40.0, "seconds": 400.0}])
    (line,) = metrics_file.read(run)
    assert (line["loss"], line["knn_top1"], line["seconds"]) == (1.0, 40.0, 400.0)


def test_records_written_again_after_a_resume_replace_the_earlier_ones(tmp_path):
    again = [record(20, loss=7.0), record(30)]
    run = folder(tmp_path / "run", [record(10), record(20), record(30), *again])
    x, y = metrics_file.columns(metrics_file.read(run))["loss"]
    assert x.tolist() == [10, 20, 30]
    assert y[1] == 7.0


@pytest.mark.parametrize(
    ("against", "last"), [("steps", 30), ("images", 480), ("hours", 30 * 36 / 3600)]
)
def test_x_has_the_requested_unit(against, last):
    x, _ = metrics_file.columns([record(10), record(30)], against)["loss"]
    assert x[-1] == pytest.approx(last)


def test_a_column_has_its_own_steps_and_nan_where_not_finite():
    records = [
        record(1),
        record(2, knn_top1=3.0),
        record(3, loss=float("inf"), note="a", good=True),
    ]
    found = metrics_file.columns([*records, record(4, loss=10**400)])
    assert found["knn_top1"].x.tolist() == [2]
    assert np.isnan(found["loss"].y).tolist() == [False, False, True, True]
    assert found.keys() == {"loss", "knn_top1"}


def test_chance_of_finding_the_partner_is_one_over_the_candidates():
    found = metrics_file.columns([record(1, chance=log(15), contrastive_top1=50.0)])
    assert metrics_file.level(found, "contrastive_top1").y[0] == pytest.approx(100 / 15)
    assert metrics_file.level(found, "loss") is None


# drawing


def make_run(name, records, against="steps") -> curves.Run:
    return curves.Run(Path(name), name, records, metrics_file.columns(records, against))


def test_chance_is_drawn_at_its_height_and_within_the_axes():
    chance = log(2 * 64 - 1)
    records = [record(n, contrastive=4.0 / n, chance=chance) for n in (1, 2, 3, 4)]
    panels = curves.build_panels([make_run("a", records)])
    at = [panel.title for panel in panels].index("contrast, $L_c$")
    axes = build_figure(panels, ["a"], **SAID).axes[at]
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [list(line.get_ydata()) for line in dotted] == [[pytest.approx(chance)] * 2]
    low, high = axes.get_ylim()
    assert low < chance < high
    assert [text.get_text() for text in axes.texts] == ["chance 4.84"]


def test_levels_that_differ_between_runs_are_drawn_for_each():
    runs = [
        make_run(name, [record(n, reconstruction=0.7, colour_error=error) for n in (1, 2)])
        for name, error in (("a", 0.6), ("b", 0.99))
    ]
    (panel,) = [panel for panel in curves.build_panels(runs) if panel.levels]
    colour = "each patch's average colour"
    assert [(one.name, one.y[0]) for one in panel.levels] == [(colour, 0.6), (colour, 0.99)]


def test_a_level_below_the_lines_has_its_name_below_it():
    heights = (0.4, 0.5, 0.45)
    records = [
        record(n, reconstruction=0.7, colour_error=height) for n, height in enumerate(heights, 1)
    ]
    panels = curves.build_panels([make_run("a", records)])
    at = [panel.title for panel in panels].index("reconstruction, $L_r$")
    figure = build_figure(panels, ["a"], **SAID)
    figure.draw_without_rendering()
    axes = figure.axes[at]
    (name,) = axes.texts
    (dotted,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    lowest = axes.transData.transform(dotted.get_xydata()[1:])[:, 1].min()
    box = name.get_window_extent()
    assert axes.get_window_extent().y0 <= box.y0 < box.y1 <= lowest


def test_similarities_are_shown_up_to_1():
    records = [record(n, positive_similarity=0.1 * n, negative_similarity=0.0) for n in (1, 2, 3)]
    panels = curves.build_panels([make_run("a", records)])
    at = [panel.title for panel in panels].index("similarity of two crops")
    figure = build_figure(panels, ["a"], **SAID)
    figure.draw_without_rendering()
    axes = figure.axes[at]
    low, high = axes.get_ylim()
    assert 1.0 < high < 1.3
    assert low > -0.3
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert "1" in shown


def test_levels_that_differ_have_the_colours_of_their_runs():
    runs = [
        make_run(name, [record(n, contrastive=1.0, chance=log(2 * size - 1)) for n in (1, 2)])
        for name, size in (("a", 8), ("b", 64))
    ]
    (panel,) = [panel for panel in curves.build_panels(runs) if panel.levels]
    assert [level.colour for level in panel.levels] == list(COLOURS[:2])
    assert [level.y[0] for level in panel.levels] == pytest.approx([log(15), log(127)])


def test_two_runs_have_two_colours_and_the_lower_loss_is_drawn_below():
    high, low = ([Line(np.arange(9.0), np.full(9, y), run)] for run, y in ((0, 5.0), (1, 1.0)))
    picture = pixels(draw([Panel("loss", "", [*high, *low])], ["a", "b"], **SAID))[120:]
    first, second = (np.nonzero(drawn_in(picture, COLOURS[run]))[0] for run in (0, 1))
    assert first.size > 200
    assert second.size > 200
    assert first.max() < second.min()


def test_all_panels_share_their_x_axis():
    short, long = Line(np.array([1.0, 2]), np.ones(2), 0), Line(np.array([1.0, 90]), np.ones(2), 0)
    figure = build_figure([Panel("a", "", [short]), Panel("b", "", [long])], ["a"], **SAID)
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert figure.axes[0].get_xlim()[1] > 90


def test_a_run_that_diverged_is_marked_where_it_did():
    y = np.array([3.0, 2.0, np.nan, np.nan])
    figure = build_figure([Panel("loss", "", [Line(np.arange(4.0), y, 0)])], ["a"], **SAID)
    (mark,) = [line for line in figure.axes[0].lines if line.get_marker() == "X"]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (2.0, 2.0)


@pytest.mark.parametrize("values", [[1.0], [np.nan], [np.nan, np.nan], [0.0, 0.0], [1e-30, 1e30]])
def test_any_values_can_be_drawn(values):
    line = Line(np.arange(float(len(values))), np.array(values), 0)
    assert pixels(draw([Panel("a", "", [line])], ["a"], **SAID)).shape[2] == 3


def test_measured_values_stay_visible_behind_a_smoothed_line():
    y = np.array([0.0, 10.0] * 20)
    panel = Panel("loss", "", [Line(np.arange(40.0), y, 0)])
    raw, mean = build_figure([panel], ["a"], window=5, **SAID).axes[0].lines
    assert list(raw.get_ydata()) == list(y)
    assert raw.get_alpha() < 0.5
    assert 3 < min(mean.get_ydata()[2:-2]) <= max(mean.get_ydata()[2:-2]) < 7


def test_smoothing_is_a_centred_mean_of_finite_values():
    y = np.array([1.0, 2.0, np.nan, 4.0, 9.0])
    assert moving_mean(y, 1)[[0, 1, 3, 4]].tolist() == [1, 2, 4, 9]
    got = moving_mean(y, 3)
    assert got[[0, 1, 3, 4]].tolist() == [1.5, 1.5, 6.5, 6.5]
    assert np.isnan(got[2])


def test_a_grid_has_a_place_for_each_panel_and_few_to_spare():
    for count in range(1, 25):
        columns, rows = grid(count)
        assert columns <= 4
        assert count <= columns * rows < count + columns


def test_the_same_curves_give_the_same_bytes():
    panel = Panel("loss", "", [Line(np.arange(3.0), np.arange(3.0), 0)])
    for kind in ("png", "svg", "pdf"):
        assert draw([panel], ["a"], kind=kind, **SAID) == draw([panel], ["a"], kind=kind, **SAID)


def test_drawing_restores_the_settings_of_matplotlib():
    before = mpl.rcParams["font.size"], mpl.rcParams["svg.hashsalt"]
    draw([Panel("a", "", [Line(np.arange(2.0), np.arange(2.0), 0)])], ["a"], **SAID)
    assert (mpl.rcParams["font.size"], mpl.rcParams["svg.hashsalt"]) == before


# names


def test_folders_with_the_same_name_get_longer_names(tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert short_names(list(map(str, paths))) == ["a/run", "b/run"]
    assert short_names([str(paths[0]), str(tmp_path / "other")]) == ["run", "other"]


def test_an_unknown_metric_is_drawn_last_and_is_not_a_formula():
    run = make_run("a", [record(n, **{"my_$x^{": 1.0}, lr=1.0) for n in (1, 2)])
    panels = curves.build_panels([run])
    assert [panel.title for panel in panels] == ["loss", "learning rate", "my ?x^{"]
    draw(panels, ["$a_{"], **SAID)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runs": ()}, "no RUN"),
        ({"runs": (Path("a"), Path("a/"))}, "named twice"),
        ({"runs": tuple(map(Path, "abcdefghi"))}, "9 runs are more than the 8 colours"),
        ({"runs": (Path("a"),), "smooth": 0}, "smooth must be between"),
        ({"runs": (Path("a"),), "out": Path("a.jpg")}, "must end in .png or .svg or .pdf"),
    ],
)
def test_invalid_options_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        CurvesConfig(**options)
