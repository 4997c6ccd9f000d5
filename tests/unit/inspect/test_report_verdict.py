"""A report in words: times, paths, verdicts and comparisons."""

import math
from pathlib import Path

import pytest

from mvmae import terminal
from mvmae.config.files import to_plain
from mvmae.config.pretrain import PretrainConfig
from mvmae.inspect.report import compare, curves, html, scores, verdict
from mvmae.inspect.report.gather import JUDGED, Result, RunFacts, recognise_command


def plain(text: str) -> str:
    """With usual spaces for those that no line breaks at."""
    return text.replace("\u00a0", " ")


def result(command: str, images: str = "/data/cats", *, num_test: int = 400, **content) -> Result:
    headline = {k: v for k, v in content.get("headline", {}).items() if isinstance(v, int | float)}
    content.setdefault("data", {"num_test": num_test})
    return Result(f"{command}.json", command, images, "", headline, content)


def knn(top1: float, data: str = "/data/cats", *, images: int = 4000, **baselines: float) -> Result:
    names = {"untrained": scores.UNTRAINED, "pixels": scores.PIXELS}
    rows = [
        {"name": names[name], "token": token, "top1": value, "notes": {"k": k}}
        for name, right in baselines.items()
        for token, k, value in (("cls", 20, 1.0), ("mean", 10, 2.0), ("mean", 20, right))
        if name != "pixels" or token == "mean"
    ]
    headline = {"token": "mean", "top1": top1, "k": 20}
    return result("knn", data, num_test=images, headline=headline, rows=rows)


def run(name: str = "run", *, command: str = "pretrain", **known) -> RunFacts:
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
    return RunFacts(Path(name), name, command, **empty | known)


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
def test_durations_are_written_in_their_two_largest_units(seconds, said):
    assert terminal.duration(seconds) == said


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
def test_the_home_folder_is_written_as_a_tilde(monkeypatch, text, said):
    monkeypatch.setenv("HOME", "/home/ann")
    assert html.make_safe(text) == said


def probe(top1: float, data: str = "/data/cats", **baselines: float) -> Result:
    return knn(top1, data, **baselines)._replace(command="probe")


def test_baselines_have_the_same_number_of_neighbours():
    found = knn(57.1, untrained=34.2, pixels=27.1)
    assert scores.baselines(found) == {scores.UNTRAINED: 34.2, scores.PIXELS: 27.1}
    assert scores.baselines(knn(57.1)) == {}


def test_the_better_token_represents_an_untrained_encoder():
    found = knn(39.3, untrained=24.6, pixels=50.9)
    found.content["rows"][0]["top1"] = 29.5  # of its class token
    assert scores.baselines(found)[scores.UNTRAINED] == 29.5
    said = plain(verdict.verdict(run(results=[found])).reasons[0])
    assert "before training it was 29.5 %, with raw pixels 50.9 %" in said


def test_the_verdict_names_the_baselines_and_whether_they_were_beaten():
    facts = run(results=[knn(57.1, untrained=34.2, pixels=27.1)], health={"status": "good"})
    (said,) = verdict.verdict(facts).reasons
    assert plain(said) == (
        "With nearest neighbours alone, 57.1 % of the test images of cats are classified "
        "correctly; before training it was 34.2 %, with raw pixels 27.1 %."
    )
    worse = run(results=[knn(40.0, untrained=34.2, pixels=50.9)])
    assert "Raw pixels do better" in verdict.verdict(worse).reasons[0]
    useless = run(results=[knn(30.0, untrained=34.2, pixels=20.0)])
    assert verdict.verdict(useless).reasons[0].endswith("Training did not help on these images.")
    said = plain(verdict.verdict(run(results=[probe(60.1, untrained=45.2)])).reasons[0])
    assert said == (
        "With a linear classifier on its frozen features, 60.1 % of the test images of cats are "
        "classified correctly; before training it was 45.2 %."
    )


GOOD = {"status": "good", "contrastive": 0.2, "reconstruction": 0.5, "colour_error": 0.6}


@pytest.mark.parametrize(
    ("results", "status", "word"),
    [
        ([], "good", "Pre-training worked"),
        ([knn(57.0, untrained=34.0, pixels=27.0)], "good", "Pre-training worked"),
        ([knn(57.0)], "good", "Pre-training worked"),  # nothing beside it
        ([knn(39.3, untrained=24.6, pixels=50.9)], "weak", "but not useful here yet"),
        ([knn(39.3, untrained=39.3, pixels=20.0)], "weak", "but not useful here yet"),
        ([knn(39.3, pixels=50.9), probe(60.0, pixels=48.0)], "good", "Pre-training worked"),
        ([knn(39.3, pixels=50.9), probe(37.1, pixels=37.1)], "weak", "but not useful here yet"),
        ([knn(55.0, pixels=50.0, images=200)], "weak", "with no clear gain here yet"),
        ([knn(55.0, pixels=50.0, images=4000)], "good", "Pre-training worked"),
        ([knn(9.0, "/data/dogs", pixels=50.0), knn(57.0, pixels=27.0)], "good", "worked"),
    ],
)
def test_an_encoder_that_does_not_beat_its_baselines_is_not_a_success(results, status, word):
    said = verdict.verdict(run(results=results, health=GOOD, config={"data": ["/data/cats/train"]}))
    assert said.status == status
    assert said.word.endswith(word)


def test_the_summary_names_the_baseline_that_was_not_beaten():
    results = [knn(39.3, untrained=29.5, pixels=50.9), probe(37.1, untrained=37.1, pixels=30.0)]
    said = plain(verdict.verdict(run(results=results, health=GOOD)).summary)
    assert said.startswith(
        "Its losses fell as they should, but on cats it does no better than raw pixels or the "
        "untrained encoder (kNN 39.3 %, raw pixels 50.9 %; linear probe 37.1 %, the untrained "
        "encoder 37.1 %). "
    )
    small = run(results=[knn(55.0, pixels=50.0, images=200)], health=GOOD)
    assert (
        "ahead by no more than the sampling error of 200 test images"
        in verdict.verdict(small).summary
    )


def test_a_clear_lead_outweighs_weak_losses():
    facts = run(results=[knn(72.6, untrained=66.1, pixels=31.4)], health=GOOD | {"status": "weak"})
    said = verdict.verdict(facts)
    assert (said.status, said.word) == ("good", "Useful here already")
    assert said.summary.startswith(
        "On cats it beats the untrained encoder and raw pixels. Its losses"
    )


def test_bad_health_takes_precedence_over_scores():
    for status, word in (("weak", "Pre-training is weak"), ("collapsed", "Pre-training collapsed")):
        facts = run(results=[knn(9.0, pixels=50.0)], health=GOOD | {"status": status})
        assert verdict.verdict(facts).word == word


def test_the_result_on_the_training_images_comes_first():
    facts = run(
        results=[knn(10.0, "/data/dogs"), knn(20.0, "/data/cats")],
        config={"data": ["/data/cats/train"]},
    )
    (tile,) = verdict.verdict(facts).tiles
    assert (plain(tile.value), tile.note) == ("20.0 %", "on cats")


@pytest.mark.parametrize(("channels", "filled"), [(3, "its average colour"), (1, "its mean")])
def test_the_reconstruction_is_compared_with_its_own_level(channels, filled):
    records = [{"step": 1, "reconstruction": 1.05, "colour_error": 1.0}]
    config = {"model": {"in_channels": channels}}
    (said,) = verdict.verdict(run(records=records, config=config)).reasons
    assert plain(said) == (
        "Hidden patches of an image are rebuilt with 105 % of the error of filling each with "
        f"{filled}: no better than that yet."
    )


def test_the_summary_does_not_overstate_the_reconstruction():
    health = {"status": "good", "reconstruction": 0.7, "colour_error": 0.6}
    for known, said in {
        "contrast and no": (health | {"contrastive": 0.2}, "tells images apart, and does not re"),
        "contrast and yes": (GOOD, "tells images apart, and rebuilds hidden patches better than"),
        "contrast": ({"status": "good", "contrastive": 0.2}, "tells images apart."),
        "yes": (health | {"reconstruction": 0.5}, "rebuilds hidden patches better than filling"),
    }.values():
        assert verdict.verdict(run(health=known)).summary.startswith(f"The encoder {said}")


def test_chance_is_a_readable_number():
    records = [{"step": 1, "contrastive_top1": 96.1, "chance": math.log(8.2)}]
    (said,) = verdict.verdict(run(records=records)).reasons
    assert plain(said).endswith("in 96 % of cases (chance: 12 %).")


def test_no_line_ends_between_a_number_and_its_percent_sign():
    records = [{"step": 1, "contrastive_top1": 96.1, "chance": 5.5, "reconstruction": 1.0}]
    facts = run(records=records, results=[knn(40.0, pixels=50.0)], health=GOOD)
    said = verdict.verdict(facts)
    for text in (
        said.summary,
        *said.reasons,
        *(f"{tile.value} {tile.note}" for tile in said.tiles),
    ):
        assert " %" not in text
    assert "40.0\u00a0%" in said.summary


# Runs that did not end as they should


def make_planned_run(steps: int, **known) -> RunFacts:
    """Make a run of this many steps of 8 images, with the first of its records."""
    config = to_plain(PretrainConfig(data=("cats",), batch_size=8, epochs=1, warmup_epochs=0.0))
    return run(config=config, environment={"num_images": 8 * steps}, **known)


def test_a_loss_that_ends_not_finite_is_a_divergence_whatever_health_says():
    records = [{"step": n, "loss": 1.0 if n < 30 else math.nan} for n in range(10, 60, 10)]
    for finished in (True, False):
        facts = run(records=records, finished=finished, age=1.0, health=GOOD | {"sentence": "fine"})
        said = verdict.verdict(facts)
        assert (said.status, said.word) == ("bad", "Diverged")
        assert said.summary.startswith("From step 30 on the loss is not finite")
        assert said.reasons == []  # nothing measured before says how it ended
    records[-1] = {"step": 50, "loss": 0.9}  # a gap in a curve, and no more
    assert verdict.verdict(run(records=records, health=GOOD)).word == "Pre-training worked"


def test_a_run_that_stopped_because_it_diverged_says_so_and_why():
    why = "the loss is not finite at step 12: begin a new run with a lower --base-lr"
    health = {"status": "diverged", "sentence": why, "step": 12}
    said = verdict.verdict(
        make_planned_run(90, records=[{"step": 10}], finished=False, age=1.0, health=health)
    )
    assert (said.status, said.word) == ("bad", "Diverged")
    assert said.summary == f"T{why[1:]}."
    (cell,) = [row[1] for row in compare.ranking([run(health=health, finished=False)]).rows]
    assert cell.text == "diverged"


def test_metrics_that_end_before_the_run_are_reported_and_not_trusted():
    records = [{"step": 730, "reconstruction": 0.79, "seconds": 60.0, "contrastive": 1.0}]
    health = GOOD | {"colour_error": 1.0, "reconstruction": 0.76}
    said = verdict.verdict(make_planned_run(1460, records=records, health=health))
    assert (said.status, said.word) == ("weak", "Part of its metrics is missing")
    assert any("with 76 % of the error" in plain(reason) for reason in said.reasons)
    assert "metrics.jsonl ends at step 730 of 1,460" in said.reasons[-1]
    tiles = {tile.name: (tile.value, tile.note) for tile in said.tiles}
    assert tiles["steps"] == ("1,460", "8 images each")
    assert tiles["training time"] == ("60 s", "for the first 730 steps")
    whole = verdict.verdict(make_planned_run(730, records=records, health=health))
    assert (whole.status, whole.word) == ("good", "Pre-training worked")
    assert not any("ends at" in reason for reason in whole.reasons)


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


def test_a_score_is_called_best_only_where_others_are_clearly_below():
    runs = [
        run("a", results=[knn(60.0), knn(50.0, "/data/dogs", images=100)]),
        run("b", results=[knn(40.0), knn(49.0, "/data/dogs", images=100)]),
        run("c", results=[knn(30.0, "/data/owls")]),
    ]
    notes = {tile.name: tile.note for tile in compare.winner(runs).tiles}
    assert notes == {
        "kNN, cats": "best: a",
        "kNN, dogs": "a, not clearly above b",
        "kNN, owls": "of c; no other was judged on these",
    }


def test_reconstruction_errors_name_the_masking_where_it_differs():
    def notes(*ratios: float) -> list[str]:
        health = {"status": "good", "reconstruction": 0.5, "colour_error": 1.0}
        runs = [run(str(r), config={"model": {"mask_ratio": r}}, health=health) for r in ratios]
        table = compare.ranking(runs)
        at = table.headings.index("rebuilding error")
        return [plain(row[at].note) for row in table.rows]

    assert notes(0.8, 0.8) == ["", ""]
    assert notes(0.8, 0.75) == ["80 % hidden", "75 % hidden"]


def test_a_run_that_is_not_useful_is_not_called_good_beside_others():
    runs = [
        run("a", results=[knn(40.0, pixels=50.0)], health=GOOD),
        run("b", results=[knn(60.0, pixels=50.0)], health=GOOD),
        run("c", health=GOOD | {"status": "collapsed"}),
    ]
    states = {row[0].text: row[1].text for row in compare.ranking(runs).rows}
    assert states == {"a": "trained well, but not useful here yet", "b": "good", "c": "collapsed"}


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


def test_runs_of_different_commands_differ_only_in_shared_settings():
    runs = [
        run("a", config={"epochs": 3, "seed": 0, "model": {"mask_ratio": 0.8}, "out": "x"}),
        run("b", config={"epochs": 4, "seed": 0, "model": {"mask_ratio": 0.8}, "out": "y"}),
        run("c", command="finetune", config={"epochs": 3, "seed": 0, "mixup": 0.5}),
    ]
    table = compare.differences(runs)
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows == {"command": ["pretrain", "pretrain", "finetune"], "epochs": ["3", "4", "3"]}
    assert compare.differences([runs[0], runs[0]]) is None


def test_label_curves_have_means_and_spreads():
    cells = [
        {"name": "me", "count": count, "top1": top1}
        for count, top1 in ((10, 20.0), (10, 24.0), (100, 50.0))
    ]
    line = curves.label_line("me", {10: [20.0, 24.0], 100: [50.0]}, 0)
    assert line.x.tolist() == [10, 100]
    assert line.y.tolist() == [22.0, 50.0]
    assert line.spread.tolist() == [pytest.approx(2.828, abs=1e-3), 0.0]
    data = {"classes": list("abcde")}
    made = curves.label_curve(
        result("labels", cells=cells, data=data, config={"encoder": "me"}, verdict="it helps.")
    )
    assert "chance 20." in made.drawings[0]
    assert "this encoder: from 22 to 50" in made.drawings[0]
    assert made.caption.startswith("It helps. Share of test images")
    assert curves.label_curve(result("labels", cells=[{"name": 3}])) is None


def test_the_command_is_recognised_by_its_settings():
    assert recognise_command({"model": {}, "objective": {}, "views": {}, "epochs": 1}) == "pretrain"
    assert recognise_command({"encoder": "a", "mixup": 0.1, "layer_decay": 0.7}) == "finetune"
    assert recognise_command({"encoder": "a", "proposals": 100}) == "detect"
    assert recognise_command({}) == JUDGED


def test_several_runs_have_one_style_each_in_all_charts():
    records = [
        {"step": s, "contrastive": 1.0, "positive_similarity": 0.5, "negative_similarity": 0.1}
        for s in (1, 2)
    ]
    (drawn,) = curves.curves([run("a", records=records), run("b", records=records)])
    assert all(chart.legend == [(0, "a"), (1, "b")] for chart in drawn.charts)
    titles = [chart.title for chart in drawn.charts]
    assert "Similarity of two crops: same image" in titles
    (alone,) = curves.curves([run("a", records=records)])
    (alike,) = [chart for chart in alone.charts if chart.title == "Similarity of two crops"]
    assert [name for _, name in alike.legend] == ["same image", "different images"]
