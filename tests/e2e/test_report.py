"""`mvmae report`: what is in the folder is on the page, whole or not, and nothing in it is run."""

import csv
import json
import os
import pickle
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from mvmae.cli.main import main
from mvmae.figures import chart_svg

A_SECOND = (
    "--recipe demo --model.image-size 16 --model.decoder-dim 32 --batch-size 8 --epochs 4 "
    "--warmup-epochs 0 --log-every 1 --device cpu --workers 0"
)
EVIL = "<script>alert(1)</script>\"'&"


def make_images(folder: Path, channels: str = "RGB") -> None:
    for label, colour in (("blue", (20, 40, 200)), ("red", (200, 40, 20))):
        (folder / label).mkdir(parents=True)
        for index in range(8):
            shade = tuple(value + 3 * index for value in colour)
            image = Image.new("RGB", (20, 16), shade).convert(channels)
            image.save(folder / label / f"{index}.png")


@pytest.fixture(scope="module", autouse=True)
def _draw_equal_charts_once():
    """Keep drawings: most tests report on the same runs, and charts take most of the time."""
    draw, drawings = chart_svg.draw, {}

    def draw_once(panel: chart_svg.Panel, **options) -> str:
        key = pickle.dumps((panel, options))
        if key not in drawings:
            drawings[key] = draw(panel, **options)
        return drawings[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chart_svg, "draw", draw_once)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Two runs of four steps, one of them judged, and their images."""
    home = tmp_path_factory.mktemp("home")
    make_images(home / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, recipe in (("a", "demo"), ("mae", "demo+mae")):
            command = f"pretrain images --out runs/{name} {A_SECOND}".replace("demo", recipe)
            assert main(command.split()) == 0
        knn = "knn runs/a images --k 2 --workers 0 --device cpu"
        assert main(knn.split()) == 0
    return home


def read_records(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


class Reader(HTMLParser):
    """The tables, pictures and headings of a page, and all its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[dict] = []
        self.headings: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("img", "meta", "input", "link", "br"):
            self._open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if {"style", "script"} & set(self._open):
            return
        data = data.replace("\u00a0", " ")
        self.text += data
        if {"h1", "h2", "h3"} & set(self._open):
            self.headings[-1] += data
        if {"th", "td"} & set(self._open) and "small" not in self._open:
            self.tables[-1][-1][-1] += data.strip()


def report(*words: str) -> Reader:
    """Give the command and read the page."""
    assert main(["report", *words, "--device", "cpu"]) == 0
    out = words[words.index("--out") + 1] if "--out" in words else f"{words[0]}/report.html"
    return Reader(Path(out).read_text(encoding="utf-8"))


def quick(*words: str) -> Reader:
    return report(*words, "--no-pictures")


def test_page_says_where_it_is_and_how_to_open_it(here, capsys):
    page = report("runs/a", "--count", "3")
    said = " ".join(capsys.readouterr().out.split())
    size = Path("runs/a/report.html").stat().st_size
    assert said.startswith(f"written: runs/a/report.html ({size / 1e3:.0f} kB, ")
    assert said.endswith("open it in a browser, or: python -m webbrowser runs/a/report.html")
    assert size < 3e6
    assert page.headings[0] == "a"


def test_scores_equal_those_of_the_results(here):
    result = json.loads(Path("runs/a/results/knn-images.json").read_text())
    page = quick("runs/a")
    table = next(
        table for table in page.tables if table[0] == ["encoder", "token", "top-1", "top-5"]
    )
    rows = {(row["name"], row["token"]): row for row in result["rows"]}
    names = {"this encoder": "runs/a", "the same encoder, untrained": "the same, untrained"}
    tokens = {"mean of the patches": "mean", "class token": "cls", "pixels": "pixels"}
    assert len(table) == 1 + len(rows)
    shown = []
    for name, token, top1, top5 in table[1:]:
        row = rows[(names.get(name, name), tokens[token])]
        assert (top1, top5) == (f"{row['top1']:.1f} %", f"{row['top5']:.1f} %")
        shown.append(row["top1"])
    assert shown == sorted(shown, reverse=True)
    assert f"kNN top-1{result['headline']['top1']:.1f} %" in page.text
    assert f"{result['data']['num_train']} for training" in page.text


def test_verdict_is_that_of_the_run(here):
    Path("runs/a/results/knn-images.json").unlink()
    for status, words in {
        "good": "Pre-training worked",
        "weak": "Pre-training is weak",
        "collapsed": "Pre-training collapsed",
    }.items():
        health = json.loads(Path("runs/a/health.json").read_text())
        Path("runs/a/health.json").write_text(json.dumps(health | {"status": status}))
        page = quick("runs/a")
        assert f"Verdict: {words}" in page.headings
        assert health["sentence"] in page.text


def test_baselines_are_named_at_the_top(here):
    file = Path("runs/a/results/knn-images.json")
    result = json.loads(file.read_text()) | {"headline": {"token": "mean", "top1": 39.3}}
    result["rows"] = [
        {"name": name, "token": token, "top1": top1, "notes": {}}
        for name, token, top1 in (
            ("runs/a", "mean", 39.3),
            ("the same, untrained", "mean", 24.6),
            ("the same, untrained", "cls", 29.5),
            ("raw pixels", "pixels", 50.9),
        )
    ]
    file.write_text(json.dumps(result))
    health = json.loads(Path("runs/a/health.json").read_text()) | {"status": "good"}
    Path("runs/a/health.json").write_text(json.dumps(health))
    page = quick("runs/a")
    assert "Verdict: Trained well, but not useful here yet" in page.headings
    assert (
        "on images it does no better than raw pixels (kNN 39.3 %, raw pixels 50.9 %)" in page.text
    )
    assert (
        "before training it was 29.5 %, with raw pixels 50.9 %. Raw pixels do better" in page.text
    )


def test_a_run_that_stopped_at_a_loss_that_is_not_finite_has_diverged(here):
    command = f"pretrain images --out runs/far {A_SECOND} --base-lr 1e30"
    assert main(command.split()) == 2
    why = json.loads(Path("runs/far/health.json").read_text())["sentence"]
    page = quick("runs/far")
    assert "Verdict: Diverged" in page.headings
    assert why[1:] in page.text
    assert "lower --base-lr" in why
    assert "Still running" not in page.text


def test_metrics_that_were_cut_short_are_not_taken_for_the_end(here):
    lines = Path("runs/a/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("runs/a/metrics.jsonl").write_text("".join(lines[:4]))
    Path("runs/a/results/knn-images.json").unlink()
    health = json.loads(Path("runs/a/health.json").read_text()) | {"status": "good"}
    Path("runs/a/health.json").write_text(json.dumps(health))
    page = quick("runs/a")
    assert "Verdict: Part of its metrics is missing" in page.headings
    assert "metrics.jsonl ends at step 4 of 8" in page.text


def test_metrics_are_drawn_with_their_chance_level(here):
    assert main(["report", "runs/a", "--no-pictures"]) == 0
    html = Path("runs/a/report.html").read_text()
    records = read_records("runs/a")
    chart = html[html.index("<h3>Telling images apart</h3>") :]
    chart = chart[chart.index("<svg") : chart.index("</svg>")]
    low, high, begin, end, _ = re.search(r'data-y="([^"]*)"', chart)[1].split()
    height = {
        value: float(begin)
        + (value - float(low)) / (float(high) - float(low)) * (float(end) - float(begin))
        for value in [records[0]["contrastive"], records[-1]["contrastive"], records[-1]["chance"]]
    }
    d = re.search(r'class="line[^>]* d="([^"]*)"', chart)[1]
    ys = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", d)]
    level = float(re.search(r'class="level"[^>]* d="M [\d.]+ ([\d.]+)', chart)[1])
    assert len(ys) == len(records)
    assert ys[0] == pytest.approx(height[records[0]["contrastive"]], abs=0.01)
    assert ys[-1] == pytest.approx(height[records[-1]["contrastive"]], abs=0.01)
    assert level == pytest.approx(height[records[-1]["chance"]], abs=0.01)
    for axis in ("steps", "images", "hours"):
        assert f'data-axis="{axis}"' in html


def test_pictures_are_in_the_page_and_described_in_words(here):
    page = report("runs/a", "--count", "3")
    assert len(page.images) == 3 * 5  # image, seen, rebuilt, attention, features
    assert all(image["src"].startswith("data:image/") for image in page.images)
    said = [image["alt"] for image in page.images]
    assert all("blue/" in alt or "red/" in alt for alt in said)
    assert len(set(said)) == len(said)
    assert sum("4 x 4 patches" in alt for alt in said) == 3
    assert "Images that a was trained on." in page.text


def test_a_seed_gives_the_same_pictures(here):
    sources = [
        [image["src"] for image in report("runs/a", "--count", "2", *seed).images]
        for seed in ([], [], ["--seed", "1"])
    ]
    assert sources[0] == sources[1] != sources[2]


def test_missing_images_are_replaced_and_the_page_says_so(here):
    shutil.rmtree("images")
    page = report("runs/a", "--count", "2")
    assert "The built-in photographs, because the training images are no" in page.text
    assert len(page.images) == 2 * 5


def test_images_of_another_folder_are_shown_on_demand(here):
    make_images(Path("others"))
    for file in Path("others/red").iterdir():
        file.unlink()
    page = report("runs/a", "--data", "others", "--count", "20")
    assert len(page.images) == 8 * 5
    assert all("blue/" in image["alt"] for image in page.images)


def test_without_pictures_no_checkpoint_is_opened(here):
    shutil.rmtree("runs/a/checkpoints")
    Path("runs/a/encoder.safetensors").write_bytes(b"broken")
    page = quick("runs/a")
    assert page.images == []
    assert "Curves" in page.headings


def test_broken_weights_are_reported_on_the_page(here):
    Path("runs/a/encoder.safetensors").write_bytes(b"broken")
    Path("runs/a/checkpoints/last.pt").write_bytes(b"broken")
    page = report("runs/a")
    assert page.images == []
    assert "is damaged" in page.text


def test_the_page_of_a_running_run_says_how_far_it_is(here):
    for name in ("encoder.safetensors", "encoder.json", "health.json"):
        Path("runs/a", name).unlink()
    lines = Path("runs/a/metrics.jsonl").read_text().splitlines()
    Path("runs/a/metrics.jsonl").write_text("\n".join([*lines[:3], lines[3][:40]]))
    page = report("runs/a", "--count", "1")
    assert "Verdict: Still running" in page.headings
    assert "3 of 8 (38 %) steps are done" in page.text
    assert len(page.images) == 5  # from the checkpoint
    assert "To resume it" in page.text
    os.utime("runs/a/metrics.jsonl", (0, 0))
    assert "Verdict: Not finished" in quick("runs/a").headings


def test_a_folder_with_a_config_only_gets_a_page(here):
    for path in Path("runs/a").iterdir():
        if path.name != "config.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = report("runs/a")
    assert "The run has not written any metrics yet." in page.text
    assert "there are no curves" in page.text
    assert "no checkpoint" in page.text
    assert "It has not been evaluated yet" in page.text


def test_an_encoder_from_elsewhere_has_a_page_of_its_results(here):
    Path("runs/timm-vit").mkdir()
    shutil.copytree("runs/a/results", "runs/timm-vit/results")
    page = quick("runs/timm-vit")
    assert "Verdict: Judged, not trained here" in page.headings
    assert page.tables[0][0][0] == "encoder"


def test_values_that_are_not_finite_are_gaps_and_are_counted(here):
    lines = read_records("runs/a")
    lines[1]["contrastive"] = float("nan")
    lines[2]["contrastive"] = float("inf")
    Path("runs/a/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    health = json.loads(Path("runs/a/health.json").read_text()) | {"contrastive": float("nan")}
    Path("runs/a/health.json").write_text(json.dumps(health))
    page = quick("runs/a")
    assert "Gaps: 2 values were not a finite number." in page.text
    assert "nan" not in page.text.lower().replace("vit_nano", "")


def test_only_normalised_targets_need_estimated_brightness(here):
    assert "estimated from visible patches" in report("runs/a", "--count", "1").text
    for folder in ("runs/a", "runs/mae"):
        config = json.loads(Path(folder, "config.json").read_text())
        config["objective"]["normalize_targets"] = False
        Path(folder, "config.json").write_text(json.dumps(config))
    assert "estimated from visible patches" not in report("runs/a", "--count", "1").text
    both = report("runs/a", "runs/mae", "--out", "cmp.html", "--count", "1")
    assert "The decoder drew the others." in both.text
    assert "estimated from visible patches" not in both.text


def test_a_run_without_reconstruction_says_so(here):
    command = f"pretrain images --out runs/contrast {A_SECOND}".replace(
        "demo", "demo+contrast-only"
    )
    assert main(command.split()) == 0
    page = report("runs/contrast", "--count", "2")
    assert "contrast was trained without reconstruction (its weight is 0)" in page.text
    assert len(page.images) == 2 * 2  # attention and features


def test_gray_images_are_drawn_gray(here):
    make_images(Path("gray"), "L")
    command = f"pretrain gray --out runs/gray --model.in-channels 1 {A_SECOND}"
    assert main(command.split()) == 0
    page = report("runs/gray", "--count", "1")
    assert len(page.images) == 5
    assert "model.in_channels1Channels of the images: 3 for colour, 1 for gray" in page.text


def test_a_finetuned_run_shows_its_curves_and_results(here):
    command = (
        "finetune runs/a images --out runs/ft --epochs 2 --batch-size 4 --warmup-epochs 0 "
        "--workers 0 --device cpu --log-every 1 --recipe small-finetune"
    )
    assert main(command.split()) == 0
    result = json.loads(next(Path("runs/ft/results").glob("*.json")).read_text())
    page = report("runs/ft", "--count", "1")
    assert "Verdict: Fine-tuning is done" in page.headings
    assert "Accuracy on test images" in page.headings
    assert f"Top-1 of {result['headline']['top1']:.1f} % on the test images" in page.text
    assert len(page.images) == 2


# Nothing is trusted


def test_names_and_settings_and_results_are_text(here):
    run = Path("runs") / "a<script>alert(1)"
    Path("runs/a").rename(run)
    for name in ("config.json", "environment.json", "health.json", "results/knn-images.json"):
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(poison(content)))
    Path("images/red/0.png").rename('images/red/"><img src=x onerror=alert(1)>.png')
    with (run / "skipped.csv").open("w", newline="") as stream:
        rows = [(f"{EVIL}\n\u202e.png", EVIL), ("b\udcff.png", "bad")]
        writer = csv.writer(stream)
        writer.writerow(("path", "reason"))
        writer.writerows(
            [[c.encode("utf-8", "surrogateescape").decode("latin-1") for c in row] for row in rows]
        )
    page = report(str(run), "--data", "images", "--count", "16")
    html = (run / "report.html").read_text(encoding="utf-8")
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == len(page.images)
    assert all(set(image) <= {"src", "alt", "class"} for image in page.images)
    assert "alert(1)</script>" not in html
    assert "\u202e" not in html
    assert EVIL in page.text
    assert "2 images could not be read" in page.text


def poison(value):
    """Add to every text something that a browser would run."""
    if isinstance(value, dict):
        keep = {"command", "name", "token", "data", "encoder"}
        return {k: v if k in keep else poison(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poison(one) for one in value]
    return f"{value}{EVIL}" if isinstance(value, str) else value


def test_files_of_other_kinds_do_not_stop_the_page(here):
    Path("runs/a/environment.json").write_text("[1, 2]")
    Path("runs/a/health.json").write_text('{"status": 5, "sentence": ["x"], "contrastive": "x"}')
    Path("runs/a/metrics.jsonl").write_text(
        '{"step": "x"}\nnonsense\n{"step": 3, "loss": "x"}\n[]\n'
    )
    for number, text in enumerate(
        (
            "",
            "[]",
            "{}",
            '{"command": "knn"}',
            '{"command": "knn", "headline": {"top1": "x"}, "rows": [1, {"name": 3, "top1": null}]}',
            '{"command": "knn", "headline": [], "rows": {"a": 1}, "config": 3, "data": "x"}',
            '{"command": "labels", "cells": [1, {"name": "a"}], "data": {"classes": 4}}',
            '{"command": "labels", "cells": "x", "verdict": 3, "headline": {"top1": NaN}}',
            '{"command": "segment", "headline": {"miou": 3}, "per_class": [1, {"class": null}]}',
            '{"command": "detect", "headline": {"box_ap": 3}, "box": {"by_class": {"a": null}}}',
            '{"command": "<b>", "headline": {"<i>": 3}}',
        )
    ):
        Path(f"runs/a/results/{number}.json").write_text(text)
    Path("runs/a/skipped.csv").write_bytes(b"\xff\xfe,\x00\n")
    page = quick("runs/a")
    assert "Results" in page.headings
    assert "b" not in page.tags
    assert "i" not in [tag for tag in page.tags if tag == "b"]


def test_the_page_does_not_name_the_home_folder(here, monkeypatch):
    config = json.loads(Path("runs/a/config.json").read_text())
    config["data"] = [f"{here}/images"]
    Path("runs/a/config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HOME", str(here))
    assert main(["report", "runs/a", "--no-pictures"]) == 0
    html = unescape(Path("runs/a/report.html").read_text())
    assert str(here) not in html
    assert "~/images" in html


# Several runs


def test_runs_are_compared_by_what_differs(here):
    page = report("runs/a", "runs/mae", "--out", "cmp.html", "--count", "2")
    ranking, differences = page.tables[:2]
    assert ranking[0][:3] == ["run", "state", "kNN, images"]
    assert [row[0] for row in ranking[1:]] == ["a", "mae"]  # the one with a score first
    assert ranking[2][2] == "-"
    settings = {row[0]: row[1:] for row in differences[1:]}
    assert settings["views.num_views"] == ["2", "1"]
    assert settings["model.mask_ratio"] == ["0.8", "0.75"]
    assert "batch_size" not in settings
    assert "out" not in settings
    assert len(page.images) == 3 * 2 * (1 + 2)  # three kinds: the image, and each run's
    for kind in ("Rebuilt", "Attention", "Features"):
        assert kind in page.headings


def test_a_run_is_called_ahead_only_beyond_the_sampling_error(here):
    shutil.copytree("runs/a/results", "runs/mae/results")
    file = Path("runs/mae/results/knn-images.json")
    result = json.loads(file.read_text())
    for own, other, word in ((90.0, 80.0, "mae is ahead"), (90.0, 89.9, "No clear winner")):
        for run, value in (("mae", own), ("a", other)):
            result["headline"]["top1"] = value
            result["data"]["num_test"] = 1000
            Path(f"runs/{run}/results/knn-images.json").write_text(json.dumps(result))
        page = quick("runs/a", "runs/mae", "--out", "cmp.html")
        assert f"Verdict: {word}" in page.headings
        assert f"mae reaches {own:.1f} %, a {other:.1f} %" in page.text
        assert [row[0] for row in page.tables[0][1:]] == ["mae", "a"]


def test_several_runs_are_written_beside_the_first(here):
    assert main(["report", "runs/mae", "runs/a", "--no-pictures"]) == 0
    assert Path("runs/report.html").read_bytes().startswith(b"<!doctype html>")


def test_runs_with_the_same_name_are_named_with_their_folders(here):
    shutil.copytree("runs/a", "old/a")
    page = quick("runs/a", "old/a", "--out", "cmp.html")
    assert [row[0] for row in page.tables[0][1:]] == ["runs/a", "old/a"]
    assert "All settings are the same." in page.text


# Mistakes


def assert_refused(capsys, words: list[str], says: str) -> None:
    capsys.readouterr()
    assert main(["report", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line), line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "RUN"),
        (["runs/none"], "no such run: runs/none"),
        ([""], "RUN is empty"),
        (["images"], "images holds no run: neither config.json nor"),
        (["runs/a/config.json"], "is a file: name the run folder"),
        (["runs/a", "./runs/../runs/a"], "is the same run as runs/a"),
        (["runs/a", "--out", "page.pdf"], "must end in .html"),
        (
            ["runs/a", "--out", "images/blue/0.png/x.html"],
            "0.png is a file, not a folder",
        ),
        (["runs/a", "--count", "0"], "count must be between 1 and 64, not 0"),
        (["runs/a", "--data", "nowhere"], "no such folder: nowhere"),
        (["runs/a", "--data", "images", "--no-pictures"], "--data has no effect with"),
        (["runs/a", "--seed", "-1"], "seed must be between"),
        (["runs/a", "--device", "cuda"], "CUDA"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(here, capsys, words, says):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is CUDA")
    assert_refused(capsys, words, says)
    assert not list(here.rglob("*report.html"))


def test_a_page_that_report_did_not_write_is_not_replaced(here, capsys):
    Path("mine.html").write_text("<p>mine</p>")
    assert_refused(
        capsys,
        ["runs/a", "--out", "mine.html"],
        "mine.html exists and has no mark of mvmae, so it is not replaced",
    )
    assert Path("mine.html").read_text() == "<p>mine</p>"
    Path("folder.html").mkdir()
    assert_refused(capsys, ["runs/a", "--out", "folder.html"], "folder.html is a folder")
    assert main(["report", "runs/a", "--no-pictures"]) == 0
    assert main(["report", "runs/a", "--no-pictures"]) == 0  # our own is


def test_a_damaged_config_is_an_error(here, capsys):
    Path("runs/a/config.json").write_text("{")
    assert_refused(capsys, ["runs/a"], "config.json is damaged")
