import math

import numpy as np
import pytest

from mvmae.config.evaluation import LabelsConfig
from mvmae.evaluation import labels
from mvmae.evaluation.labels import Cell, CellCache, curve_points, describe_gain, paired_gains
from mvmae.metrics.label_curve import class_counts, labels_needed, stratified_draw

# Draws


def draw(classes: list[int], amount: float, seed: int = 0) -> np.ndarray:
    return stratified_draw(np.array(classes), amount, np.random.default_rng(seed))


def test_a_share_is_taken_of_every_class():
    classes = [0] * 100 + [1] * 20 + [7] * 10
    drawn = np.array(classes)[draw(classes, 0.1)]
    assert np.unique(drawn, return_counts=True)[1].tolist() == [10, 2, 1]


def test_a_small_share_is_at_least_one_image_of_every_class():
    classes = [0] * 100 + [1] * 3
    assert np.array(classes)[draw(classes, 0.001)].tolist() == [0, 1]


def test_a_number_is_taken_of_every_class_or_all_there_is():
    classes = [0] * 100 + [1] * 3
    assert np.array(classes)[draw(classes, 5)].tolist() == [0] * 5 + [1] * 3
    assert np.array(classes)[draw(classes, 1)].tolist() == [0, 1]  # not 1.0, all


def test_all_of_it_is_every_image_once():
    assert draw([1, 0, 1, 0, 2], 1.0).tolist() == [0, 1, 2, 3, 4]


def test_another_seed_draws_others():
    classes = [0, 1] * 200
    assert draw(classes, 0.1).tolist() == draw(classes, 0.1).tolist()
    assert draw(classes, 0.1).tolist() != draw(classes, 0.1, seed=1).tolist()


# What the untrained one needs


def test_labels_needed_lie_between_two_points_on_a_log_scale():
    assert labels_needed([10, 1000], [20.0, 60.0], 40.0) == pytest.approx(100)
    assert labels_needed([1000, 10], [60.0, 20.0], 40.0) == pytest.approx(100)  # in any order
    between = math.exp(0.75 * math.log(10) + 0.25 * math.log(1000))
    assert labels_needed([10, 1000], [20.0, 60.0], 30.0) == pytest.approx(between)


def test_the_first_crossing_counts():
    assert labels_needed([1, 10, 100, 1000], [0.0, 50.0, 20.0, 90.0], 50.0) == pytest.approx(10)


def test_a_curve_that_starts_above_needs_its_first_count_at_most():
    assert labels_needed([10, 100], [50.0, 60.0], 40.0) == 10
    assert labels_needed([10, 100], [50.0, 60.0], 50.0) == 10


def test_a_curve_that_stays_below_never_gets_there():
    assert labels_needed([10, 100], [50.0, 60.0], 60.1) is None
    assert labels_needed([10], [50.0], 51.0) is None


def test_a_flat_curve_divides_by_nothing():
    assert labels_needed([10, 100, 1000], [50.0, 50.0, 70.0], 60.0) == pytest.approx(10**2.5)


# Amounts

TEN = np.repeat([0, 1], [10, 40])


def test_a_draw_has_the_counts_that_are_told():
    for amount in (0.01, 0.11, 0.5, 1.0, 1, 12, 99):
        drawn = TEN[stratified_draw(TEN, amount, np.random.default_rng(0))]
        assert class_counts(TEN, amount) == np.unique(drawn, return_counts=True)[1].tolist()


def test_every_set_of_counts_is_drawn_once_and_all_of_it_in_one_way():
    """1 % and 3 % of 10 and of 40 images are 1 and 1."""
    config = LabelsConfig(encoder="run", shares=(0.03, 0.01, 0.1, 0.999, 1.0), draws=4)
    assert labels.draws_per_amount(TEN, config) == {0.03: 4, 0.1: 4, 0.999: 1}
    assert labels.remarks(TEN, config) == [
        "left out of --shares, because another value draws as many images of every class: 0.01, 1"
    ]
    config = LabelsConfig(encoder="run", per_class=(1, 20, 40, 50), draws=4)
    assert labels.draws_per_amount(TEN, config) == {1: 4, 20: 4, 40: 1}


def test_what_is_as_asked_for_needs_no_remark():
    assert labels.remarks(TEN, LabelsConfig(encoder="run", shares=(0.1, 1.0))) == []
    assert labels.remarks(TEN, LabelsConfig(encoder="run", per_class=(1, 10))) == []


def test_numbers_a_class_that_are_too_large_and_shares_beside_them_are_remarked():
    config = LabelsConfig(encoder="run", per_class=(5, 20), shares=(0.5,))
    assert labels.remarks(TEN, config) == [
        "--shares is not used, because --per-class replaces it",
        "1 of 2 classes have fewer than 20 images: all of theirs were used",
    ]


# Cells


def cells(name: str, **accuracies: list[float]) -> list[Cell]:
    """Draws by the number of labels: `n20=[50.0, 60.0]`."""
    return [
        Cell(name, int(key[1:]) / 1000, draw, int(key[1:]), top1)
        for key, values in accuracies.items()
        for draw, top1 in enumerate(values)
    ]


def test_points_are_means_and_deviations_from_the_fewest_labels_on():
    points = curve_points(cells("a", n100=[90.0], n20=[50.0, 60.0]) + cells("b", n20=[1.0]), "a")
    assert points[0] == (20, 55, pytest.approx(math.sqrt(50)))
    assert points[1] == (100, 90, 0)


def test_gains_are_of_the_same_draws():
    ours, theirs = cells("a", n20=[50.0, 70.0, 60.0]), cells("b", n20=[40.0, 66.0, 49.0])
    ((count, gain, error, draws),) = paired_gains(ours + theirs, "a", "b", num_test=100)
    assert (count, gain, draws) == (20, pytest.approx(25 / 3), 3)  # 10, 4 and 11
    deviation = math.sqrt(((10 - 25 / 3) ** 2 + (4 - 25 / 3) ** 2 + (11 - 25 / 3) ** 2) / 2)
    assert error == pytest.approx(deviation / math.sqrt(3))


def test_draws_are_paired_whatever_their_order():
    ours, theirs = cells("a", n20=[50.0, 70.0]), cells("b", n20=[40.0, 60.0])
    for given in (ours + theirs, ours + theirs[::-1], theirs + ours[::-1]):
        assert paired_gains(given, "a", "b", num_test=9) == [(20, 10, 0, 2)]


def test_the_error_of_one_draw_is_that_of_two_proportions():
    given = cells("a", n20=[80.0]) + cells("b", n20=[50.0])
    ((_, gain, error, _),) = paired_gains(given, "a", "b", num_test=400)
    assert gain == 30
    assert error == pytest.approx(100 * math.sqrt((0.8 * 0.2 + 0.5 * 0.5) / 400))


# The verdict

UNTRAINED, PIXELS = "the same, untrained", "raw pixels"
LIMIT = "All draws are tested on the same 1000 images; 1000 others would change an accuracy by"


def test_better_for_every_number_of_labels_is_worth_it():
    given = cells("run", n10=[60.0, 62.0], n100=[80.0], n1000=[90.0])
    given += cells(UNTRAINED, n10=[20.0, 24.0], n100=[51.0], n1000=[71.0])
    assert describe_gain(given, "run", num_test=1000) == (
        "pre-training was worth it: against the same encoder untrained +39.0 points with 10, "
        "+29.0 points with 100, +19.0 points with 1000 labels. To match its accuracy with "
        f"10 labels, the untrained encoder needs about 316. {LIMIT} about 0.9 points."
    )


def test_better_for_some_numbers_of_labels_is_worth_it_for_those():
    given = cells("run", n10=[40.0, 60.0], n100=[80.0, 80.0], n1000=[90.0])
    given += cells(UNTRAINED, n10=[60.0, 50.0], n100=[51.0, 52.0], n1000=[90.0])
    assert describe_gain(given, "run", num_test=1000) == (
        "pre-training was worth it with 100 labels: against the same encoder untrained -5.0 points "
        "with 10, +28.5 points with 100, +0.0 points with 1000 labels. To match its accuracy with "
        f"100 labels, the untrained encoder needs about 550. {LIMIT} about 0.9 points."
    )


def test_what_the_untrained_one_never_reaches_is_said():
    given = cells("run", n10=[60.0], n100=[80.0]) + cells(UNTRAINED, n10=[20.0], n100=[51.0])
    said = describe_gain(given, "run", num_test=1000)
    never = "Even with all 100, the untrained encoder does not match its accuracy with 10 labels."
    assert f"{never} All draws" in said


@pytest.mark.parametrize(
    "theirs",
    [
        {"n10": [60.0, 20.0, 40.0], "n100": [82.0]},
        {"n10": [30.0, 50.0, 48.0], "n100": [79.9]},  # a gain within the error of one test set
    ],
)
def test_no_better_than_chance_would_have_it_was_not_worth_it(theirs):
    given = cells("run", n10=[40.0, 40.0, 40.0], n100=[80.0]) + cells(UNTRAINED, **theirs)
    said = describe_gain(given, "run", num_test=100)
    some = "not clearly" if theirs["n100"][0] < 80 else "not"
    assert said.startswith(f"pre-training was {some} worth it here: against the same encoder untr")
    assert "points with 10, " in said
    assert f"{80.0 - theirs['n100'][0]:+.1f} points with 100 labels. " in said


def test_a_gain_must_be_beyond_what_chance_makes_over_so_few_draws():
    """Five draws whose mean is 2.63 standard errors above 0: chance makes 2.78 in one of 20."""
    ours = cells("run", n204=[25.4, 29.0, 26.3, 32.1, 26.8])
    theirs = cells(UNTRAINED, n204=[24.1, 26.8, 25.9, 32.1, 24.1])
    ((_, gain, error, _),) = paired_gains(ours + theirs, "run", UNTRAINED, num_test=224)
    assert 2.4 < gain / error < 2.78
    said = describe_gain(ours + theirs, "run", num_test=224)
    assert said.startswith("pre-training was not clearly worth it here: ")
    better = [cell._replace(top1=cell.top1 + 0.3) for cell in ours]
    assert describe_gain(better + theirs, "run", num_test=224).startswith(
        "pre-training was worth it:"
    )


def test_raw_pixels_that_do_as_well_are_told():
    given = cells("run", n10=[40.0, 42.0], n100=[80.0])
    given += cells(UNTRAINED, n10=[1.0, 2.0], n100=[2.0])
    few = describe_gain(given + cells(PIXELS, n10=[44.0, 44.0], n100=[70.0]), "run", num_test=1000)
    assert "Raw pixels do as well or better with 10 labels. All draws" in few
    every = describe_gain(
        given + cells(PIXELS, n10=[44.0, 44.0], n100=[80.0]), "run", num_test=1000
    )
    assert "Raw pixels do as well or better with every number of labels." in every
    none = describe_gain(given + cells(PIXELS, n10=[4.0, 4.0], n100=[8.0]), "run", num_test=1000)
    assert "pixels" not in none


def test_what_was_not_pre_trained_is_not_judged():
    given = cells("random:vit_pico", n10=[10.0]) + cells(UNTRAINED, n10=[60.0])
    assert describe_gain(given, "random:vit_pico", num_test=1000) == (
        "random:vit_pico was not pre-trained, so there is nothing to judge"
    )


def test_without_a_baseline_there_is_no_verdict():
    said = describe_gain(cells("run", n10=[40.0]) + cells("other", n10=[10.0]), "run", num_test=10)
    assert said == "run has no baseline beside it: leave out --no-baselines to compare"


# What an interrupted command left

CELL = Cell("run", 0.1, 2, 40, 61.25)


def test_cells_are_known_again(tmp_path):
    file = tmp_path / "cache" / "labels.jsonl"
    known = CellCache(file)
    assert known.cells == {}
    known.add(CELL)
    known.add(CELL._replace(draw=3))
    assert list(CellCache(file).cells.values()) == [CELL, CELL._replace(draw=3)]


def test_one_image_of_each_class_is_not_the_share_of_all(tmp_path):
    known = CellCache(tmp_path / "labels.jsonl")
    known.add(CELL._replace(amount=1))
    assert ("run", "1.0", 2) not in CellCache(known.file).cells
    assert ("run", "1", 2) in CellCache(known.file).cells


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_that_was_cut_short_costs_that_cell_alone(tmp_path, cut):
    known = CellCache(tmp_path / "labels.jsonl")
    known.add(CELL)
    known.add(CELL._replace(draw=3))
    known.file.write_bytes(known.file.read_bytes()[:-cut])
    assert list(CellCache(known.file).cells.values()) == [CELL]
    CellCache(known.file).add(CELL._replace(draw=4))
    assert list(CellCache(known.file).cells.values()) == [CELL, CELL._replace(draw=4)]


@pytest.mark.parametrize("line", ["}", "[1]", "{}", '{"name": 3}', "null", "\x00\xff", ""])
def test_a_line_that_is_no_cell_is_passed_over(tmp_path, line):
    file = tmp_path / "labels.jsonl"
    file.write_bytes(line.encode("latin-1"))
    CellCache(file).add(CELL)
    assert list(CellCache(file).cells.values()) == [CELL]


def test_amounts_are_numbers_of_images_where_those_are_named():
    config = LabelsConfig(encoder="run", per_class=(1, 5))
    assert config.shares == (0.01, 0.05, 0.1, 1.0)
    assert labels.curve_points([], "run") == []
