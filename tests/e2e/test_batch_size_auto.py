"""`--batch-size auto` and `--micro-batch-size auto`: find what fits and write it down."""

import json
import os
import subprocess
import sys

import pytest
from run_folders import metrics, timeless

from mvmae.cli.main import main
from mvmae.method.preflight import measured_step
from mvmae.training import memory

AUTO = {"batch-size": "auto", "device": "cpu"}
LITTLE = 5_000_000  # bytes: the model's state takes 2.6 million, an image a quarter of one


@pytest.fixture
def images(image_folder):
    return image_folder(per_class=20)


def settings(run) -> dict:
    return json.loads((run / "config.json").read_text())


@pytest.mark.parametrize(
    ("count", "batch"),
    [(2, 2), (5, 4), (40, 16), (300, 32)],  # an eighth, but 16 at least where there are so many
)
def test_a_small_set_gets_small_batches(image_folder, pretrain, tmp_path, count, batch):
    run = tmp_path / "run"
    images = image_folder(classes=("red",), per_class=count)
    assert pretrain(images, run, AUTO | {"epochs": 1}) == 0
    assert settings(run)["batch_size"] == batch
    assert metrics(run)[-1]["step"] == count // batch


def test_one_image_is_refused_as_it_is(image_folder, pretrain, tmp_path, capsys):
    images = image_folder(classes=("red",), per_class=1)
    assert pretrain(images, tmp_path / "run", AUTO) == 2
    assert "1 images are too few: give at least 2" in capsys.readouterr().err


def test_what_cannot_be_is_refused_before_anything_is_tried(
    images, pretrain, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("mvmae.method.preflight.auto_batch_size.measure_cpu_memory", None)
    given = {"batch-size": 64, "micro-batch-size": "auto", "device": "cpu"}
    assert pretrain(images, tmp_path / "run", given) == 2
    assert "40 training images are fewer than a batch of 64" in capsys.readouterr().err


def test_what_was_tried_leaves_no_trace_in_the_run(images, pretrain, tmp_path, capfd):
    assert pretrain(images, tmp_path / "found", AUTO) == 0
    assert "batches of 16 images, 2 steps per epoch" in capfd.readouterr().out
    assert pretrain(images, tmp_path / "given", AUTO | {"batch-size": 16}) == 0
    assert timeless(tmp_path / "found") == timeless(tmp_path / "given")


def test_a_run_goes_on_with_the_batches_it_found(images, pretrain, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert pretrain(images, run, AUTO | {"save-every-minutes": 0}) == 0
    whole = timeless(run)
    (run / "checkpoints" / "last.pt").unlink()  # on with the one before the end
    monkeypatch.setattr(memory, "total", lambda _: 1)  # nobody looks again
    assert pretrain(images, run, AUTO | {"save-every-minutes": 0}, "--resume") == 0
    assert timeless(run) == whole


def test_parts_that_fit_make_the_same_run(images, pretrain, tmp_path, monkeypatch, capfd):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    given = {"batch-size": 16, "device": "cpu"}
    assert pretrain(images, whole, given) == 0
    monkeypatch.setattr(measured_step, "initial_resident_bytes", lambda: 0)
    monkeypatch.setattr(memory, "total", lambda _: int(LITTLE / 0.9))
    assert pretrain(images, parts, given | {"micro-batch-size": "auto"}) == 0
    part = settings(parts)["micro_batch_size"]
    assert part == 8
    assert f"parts of {part} images" in capfd.readouterr().out
    for ours, theirs in zip(metrics(parts), metrics(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_what_fits_as_a_whole_is_not_taken_apart(images, pretrain, tmp_path):
    given = {"batch-size": 16, "micro-batch-size": "auto", "device": "cpu"}
    assert pretrain(images, tmp_path / "run", given) == 0
    assert settings(tmp_path / "run")["micro_batch_size"] is None


def test_a_machine_that_is_too_small_is_told_in_a_line(
    images, pretrain, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(memory, "total", lambda _: 2**20)
    assert pretrain(images, tmp_path / "run", AUTO) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not even 2 images fit into memory" in error
    assert not (tmp_path / "run").exists()


def test_a_system_that_tells_nothing_is_told_in_a_line(
    images, pretrain, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(memory, "total", lambda _: 0)
    assert pretrain(images, tmp_path / "run", AUTO) == 2
    assert "give a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch-size", "0"], "--batch-size: at least 1, or auto, not 0"),
        (["--batch-size", "None"], "'None' is neither a whole number nor auto"),
        (["--batch-size", "many"], "'many' is neither a whole number nor auto"),
        (["--micro-batch-size", "-1"], "--micro-batch-size: at least 1, or auto, not -1"),
        (
            ["--batch-size", "auto", "--micro-batch-size", "4"],
            "leave out --micro-batch-size",
        ),
    ],
)
def test_other_words_are_refused(words, said, capsys):
    assert main(["pretrain", "photos", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.slow
def test_two_processes_find_one_batch_size(images, pretrain_command, tmp_path, free_port):
    run = tmp_path / "run"
    words = pretrain_command(images, run, AUTO | {"epochs": 1})
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "mvmae", *words],
            env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert settings(run)["batch_size"] == 16  # eight a process
    assert (b"trying how many" in said[0], b"trying how many" in said[1]) == (True, False)
