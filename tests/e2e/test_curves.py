"""`mvmae curves` as a user types it."""

import json

import pytest
from PIL import Image

from mvmae.cli.main import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Three runs: a finished one, one that only began, one that has written nothing."""
    monkeypatch.chdir(tmp_path)
    for name, steps in (("a", 6), ("b", 1), ("empty", 0)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        records = [
            {"step": n, "epoch": n / 2, "images": 8 * n, "loss": 3.0 / n, "seconds": 30.0 * n}
            for n in range(1, steps + 1)
        ]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "metrics.jsonl").write_text(text)
        (folder / "config.json").write_text('{"epochs": 3}')
    return tmp_path


def test_curves_of_one_run_are_written_to_its_folder(here, capsys):
    assert main(["curves", "runs/a"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "a: 6 steps, epoch 3 of 3, 3:00  loss 0.500"
    assert second == "written: runs/a/figures/curves.png"
    with Image.open("runs/a/figures/curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 400


def test_curves_of_several_runs_are_written_beside_them(here, capsys):
    assert main(["curves", "runs/a", "runs/b", "runs/empty", "--against", "hours"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "b: 1 steps, epoch 0.5 of 3, 0:30  loss 3.000"
    assert said[2:] == ["empty: no metrics yet", "written: runs/curves.png"]
    with Image.open("runs/curves.png") as picture:
        assert picture.format == "PNG"


def test_the_suffix_of_out_chooses_the_format(here):
    assert main(["curves", "runs/a", "--out", "c.svg"]) == 0
    assert main(["curves", "runs/a", "--out", "deep/c.PDF", "--smooth", "3"]) == 0
    assert (here / "c.svg").read_text().startswith("<?xml")
    assert ">loss<" in (here / "c.svg").read_text()
    assert (here / "deep" / "c.PDF").read_bytes().startswith(b"%PDF")


def test_the_metrics_file_may_be_named_instead_of_its_run(here):
    assert main(["curves", "runs/a/metrics.jsonl"]) == 0
    assert (here / "runs/a/figures/curves.png").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "no RUN: name a run folder"),
        ("nothing", "no folder nothing: name a run folder"),
        ("runs", "runs is not a run folder: it has no metrics.jsonl"),
        ("runs/empty", "runs/empty has written no metrics yet"),
        ("runs/a runs/a/", "runs/a is named twice"),
        ("runs/a --out runs.png/", "is a folder"),
        ("runs/a --out c.jpg", "must end in .png or .svg or .pdf"),
        ("runs/a --against epochs", "against"),
        ("runs/a --smooth 0", "smooth must be between 1 and"),
        ("runs/a --out runs/a/config.json/c.png", "config.json"),
    ],
)
def test_errors_are_one_line_and_write_nothing(here, capsys, words, complaint):
    (here / "runs.png").mkdir()
    assert main(["curves", *words.split()]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert complaint in line
    assert said.out == ""
    assert not (here / "runs/a/figures").exists()


def test_metrics_without_images_can_be_drawn_against_steps_only(here, capsys):
    (here / "runs/a/metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert main(["curves", "runs/a", "--against", "images"]) == 2
    assert "does not say its images: try --against steps" in capsys.readouterr().err
    assert main(["curves", "runs/a"]) == 0
