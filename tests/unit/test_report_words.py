"""What a report says: times, paths, verdicts and comparisons in words."""

from pathlib import Path

import pytest

from mvmae.tasks.reporting import charts, compare, words
from mvmae.tasks.reporting.gather import JUDGED, Result, RunFacts, verb_of


def result(verb: str, images: str = "/data/cats", *, num_test: int = 400, **content) -> Result:
    headline = {k: v for k, v in content.get("headline", {}).items() if isinstance(v, int | float)}
    content.setdefault("data", {"num_test": num_test})
    return Result(f"{verb}.json", verb, images, "", headline, content)


def knn(top1: float, data: str = "/data/cats", **baselines: float) -> Result:
    names = {"untrained": words.UNTRAINED, "pixels": words.PIXELS}
    rows = [
        {"name": names[name], "token": token, "top1": value, "notes": {"k": k}}
        for name, right in baselines.items()
        for token, k, value in (("cls", 20, 1.0), ("mean", 10, 2.0), ("mean", 20, right))
        if name != "pixels" or token == "mean"
    ]
    headline = {"token": "mean", "top1": top1, "k": 20}
    return result("knn", data, headline=headline, rows=rows)


def run(name: str = "run", *, verb: str = "pretrain", **known) -> RunFacts:
    empty = {
        "config": {},
        "environment": {},
        "health": {},
        "records": [],
        "results": [],
        "skipped": [],
        "finished": True,
        "age": None,
    }
    return RunFacts(Path(name), name, verb, **empty | known)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (3, "3 s"),
        (89.4, "89 s"),
        (1319, "22 min"),
        (5400, "1 h 30 min"),
        (7200, "2 h"),
        (2e5, "2.3 days"),
    ],
)
def test_durations_are_in_units_that_matter(seconds, said):
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/home/ann/runs/a", "~/runs/a"),
        ("mvmae knn /home/ann/runs/a /home/ann", "mvmae knn ~/runs/a ~"),
        ('["/home/ann/x"]', '["~/x"]'),
        ("/home/anna/x", "/home/anna/x"),
        ("/mnt/home/ann/x", "/mnt/home/ann/x"),
    ],
)
def test_home_is_a_tilde(monkeypatch, text, said):
    monkeypatch.setenv("HOME", "/home/ann")
    assert words.without_home(text) == said


def test_baselines_are_those_of_the_same_token_and_neighbours():
    found = knn(57.1, untrained=34.2, pixels=27.1)
    assert words.baseline(found, words.UNTRAINED) == 34.2
    assert words.baseline(found, words.PIXELS) == 27.1
    assert words.baseline(knn(57.1), words.PIXELS) is None


def test_verdict_says_what_must_be_beaten_and_whether_it_was():
    facts = run(results=[knn(57.1, untrained=34.2, pixels=27.1)], health={"status": "good"})
    (said,) = words.verdict(facts).reasons
    assert said == (
        "By its nearest neighbours alone, 57.1 % of the test images of cats are given the right "
        "class; before training it was 34.2 %, with raw pixels 27.1 %."
    )
    worse = run(results=[knn(40.0, untrained=34.2, pixels=50.9)])
    assert "Raw pixels do better" in words.verdict(worse).reasons[0]
    useless = run(results=[knn(30.0, untrained=34.2, pixels=20.0)])
    assert words.verdict(useless).reasons[0].endswith("Training did not help on these images.")


def test_result_on_the_images_of_the_training_comes_first():
    facts = run(
        results=[knn(10.0, "/data/dogs"), knn(20.0, "/data/cats")],
        config={"data": ["/data/cats/train"]},
    )
    (tile,) = words.verdict(facts).tiles
    assert (tile.value, tile.note) == ("20.0 %", "on cats")


def test_rebuilding_no_better_than_a_blur_is_called_so():
    records = [{"step": 1, "reconstruction": 1.05, "mean_error": 1.0}]
    (said,) = words.verdict(run(records=records)).reasons
    assert "with 105 % of the error" in said
    assert said.endswith("which is no better.")


def test_clear_leads_need_more_images_for_smaller_gaps():
    def word(one: float, other: float, images: int) -> str:
        runs = []
        for name, top1 in (("a", one), ("b", other)):
            found = knn(top1)._replace(
                content={"data": {"num_test": images}, "headline": {"top1": top1}}
            )
            runs.append(run(name, results=[found]))
        return compare.winner(runs).word

    assert word(60.0, 55.0, 100) == "No clear winner"
    assert word(60.0, 55.0, 10_000) == "a is ahead"
    assert word(50.0, 55.0, 10_000) == "b is ahead"


def test_standard_error_is_that_of_two_independent_shares():
    one, other = result("knn", headline={"top1": 50.0}), result("knn", headline={"top1": 80.0})
    expected = 100 * ((0.25 + 0.16) / 400) ** 0.5
    assert compare.standard_error(one, other) == pytest.approx(expected)
    assert compare.standard_error(one, result("detect", headline={"box_ap": 3.0})) is None


def test_runs_without_a_common_score_have_no_winner():
    runs = [run("a", results=[knn(50.0)]), run("b", results=[knn(60.0, "/data/dogs")])]
    said = compare.winner(runs)
    assert said.word == "2 runs"
    assert "No two of these runs were judged on the same images." in said.summary
    assert compare.winner([run("a"), run("b")]).word == "2 runs"


def test_differences_of_other_verbs_are_what_both_have():
    runs = [
        run("a", config={"epochs": 3, "seed": 0, "model": {"mask_ratio": 0.8}, "out": "x"}),
        run("b", config={"epochs": 4, "seed": 0, "model": {"mask_ratio": 0.8}, "out": "y"}),
        run("c", verb="finetune", config={"epochs": 3, "seed": 0, "mixup": 0.5}),
    ]
    table = compare.differences(runs)
    rows = {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in table.rows}
    assert rows == {"verb": ["pretrain", "pretrain", "finetune"], "epochs": ["3", "4", "3"]}
    assert compare.differences([runs[0], runs[0]]) is None


def test_label_curves_have_means_and_spreads():
    cells = [
        {"name": "me", "count": count, "top1": top1}
        for count, top1 in ((10, 20.0), (10, 24.0), (100, 50.0))
    ]
    line = charts.label_line("me", {10: [20.0, 24.0], 100: [50.0]}, 0)
    assert line.xs == [10, 100]
    assert line.ys == [22.0, 50.0]
    assert line.spread == [pytest.approx(2.828, abs=1e-3), 0.0]
    data = {"classes": list("abcde")}
    made = charts.label_curve(
        result("labels", cells=cells, data=data, config={"encoder": "me"}, verdict="it helps.")
    )
    assert "guessing: 20." in made.drawings[0]
    assert "this encoder: from 22 to 50" in made.drawings[0]
    assert made.caption.startswith("It helps. The share")
    assert charts.label_curve(result("labels", cells=[{"name": 3}])) is None


def test_verbs_are_known_by_their_settings():
    assert verb_of({"model": {}, "objective": {}, "views": {}, "epochs": 1}) == "pretrain"
    assert verb_of({"encoder": "a", "mixup": 0.1, "layer_decay": 0.7}) == "finetune"
    assert verb_of({"encoder": "a", "proposals": 100}) == "detect"
    assert verb_of({}) == JUDGED


def test_several_runs_have_one_style_each_in_all_charts():
    records = [
        {"step": s, "contrastive": 1.0, "positive_similarity": 0.5, "negative_similarity": 0.1}
        for s in (1, 2)
    ]
    drawn = charts.curves([run("a", records=records), run("b", records=records)])
    assert all(chart.legend == [(0, "a"), (1, "b")] for chart in drawn.charts)
    titles = [chart.title for chart in drawn.charts]
    assert "Alike or different: crops of one image" in titles
    alone = charts.curves([run("a", records=records)])
    (alike,) = [chart for chart in alone.charts if chart.title == "Alike or different"]
    assert [name for _, name in alike.legend] == ["crops of one image", "of different images"]
