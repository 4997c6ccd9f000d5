"""`mvmae finetune` on small images: what it leaves, and that stopping it changes nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import assert_same_run, metrics, names, state, timeless
from safetensors.torch import load_file

from mvmae import load_encoder
from mvmae.cli.main import main
from mvmae.recipes.supervised import FINETUNE

BEST = {"best.safetensors", "best.json"}
PRODUCTS = {"model.safetensors", "model.json", "encoder.safetensors", "encoder.json"}
LEFT = {"config.json", "environment.json", "metrics.jsonl", "checkpoints"}
COMPARED = BEST | PRODUCTS | {"predictions.csv"}
WHOLE = LEFT | BEST | PRODUCTS | {"predictions.csv", "results"}
A_SECOND = {  # 2 steps an epoch
    "image-size": 32,
    "batch-size": 8,
    "epochs": 3,
    "warmup-epochs": 1,
    "log-every": 2,
    "device": "cpu",
    "workers": 0,
}
EVERYTHING = {  # that is random, at once
    "mixup": 0.8,
    "cutmix": 1.0,
    "erasing": 0.5,
    "rand-augment": 9,
    "drop-path": 0.3,
    "ema": 0.9,
}


def command(data: Path | str, out: Path, options: dict | None = None) -> list[str]:
    words = ["finetune", "random:vit_pico", str(data), "--out", str(out)]
    for name, value in (A_SECOND | (options or {})).items():
        words += [f"--{name}", str(value)]
    return words


def finetune(data: Path | str, out: Path, options: dict | None = None, *flags: str) -> int:
    return main([*command(data, out, options), *flags])


def result(run: Path) -> dict:
    (file,) = (run / "results").iterdir()
    return json.loads(file.read_text())


def predictions(run: Path) -> list[dict]:
    with (run / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def images(image_folder) -> Path:
    """24 images in two colours: 18 for training, 6 for testing."""
    return image_folder(per_class=12)


# what a run leaves


def test_run_learns_and_leaves_its_folder(tmp_path, images, capsys):
    run = tmp_path / "run"
    assert finetune(images, run, {"epochs": 8, "base-lr": 0.03}) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"recipe: small-finetune ({FINETUNE['small-finetune'].summary}")
    assert names(run) == WHOLE
    for words in (
        "18 training and 6 test images of 2 classes "
        "(every fifth image of each class is for testing)",
        "8 epochs of 2 steps of 8 images",
        "chance level 50.0",
        "sampling error of one figure ±",
        "report the last",
        f"mvmae knn {run} OTHER_LABELLED_IMAGES",
    ):
        assert words in said

    kept = result(run)
    assert kept["command"] == "finetune"
    assert kept["headline"]["top1"] == 100  # two colours are not hard
    assert kept["headline"]["best_top1"] == 100
    assert kept["per_class"] == {"blue": 100, "red": 100}
    assert kept["confusion"] == [[3, 0], [0, 3]]
    assert kept["data"] | {"fingerprint": ""} == {
        "name": str(images),
        "fingerprint": "",
        "split": "every fifth image of each class is for testing",
        "num_train": 18,
        "num_test": 6,
        "classes": ["blue", "red"],
    }
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    assert losses[-1] < losses[0]


def test_command_of_the_result_is_the_run_again(tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path("run")
    finetune(images, run)
    words = result(run)["command_line"].split()
    assert words[:2] == ["mvmae", "finetune"]
    assert main([*words[1:], "--out", "again"]) == 0
    assert_same_run(Path("again"), run, COMPARED)
    assert main(["finetune", "--recipe", "run/config.json", "--out", "third"]) == 0
    assert_same_run(Path("third"), run, COMPARED)


def test_each_test_image_has_its_prediction(tmp_path, images):
    run = tmp_path / "run"
    finetune(images, run)
    rows = predictions(run)
    assert [Path(row["path"]).parent.name for row in rows] == [row["label"] for row in rows]
    fifths = ("1", "4", "9")  # of 0, 1, 10, 11, 2, ..., 9
    assert {row["path"] for row in rows} == {
        str(images / name / f"{index}.jpg") for name in ("blue", "red") for index in fifths
    }
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert result(run)["headline"]["top1"] == pytest.approx(100 * right / len(rows), abs=1e-3)
    assert all(0.5 <= float(row["confidence"]) <= 1 for row in rows)


def test_metrics_have_the_figures_of_each_epoch(tmp_path, images):
    run = tmp_path / "run"
    finetune(images, run, {"eval-every": 2})
    lines = metrics(run)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    judged = [line for line in lines if "top1" in line]
    assert [line["epoch"] for line in judged] == [2.0, 3.0]
    assert all(line.keys() >= {"top1", "top5", "test_loss"} for line in judged)
    lr = [line["lr"] for line in lines if "lr" in line]
    assert max(lr) <= 0.016 * 8 / 256


def test_judging_changes_nothing_in_the_training(tmp_path, images):
    often, seldom = tmp_path / "often", tmp_path / "seldom"
    finetune(images, often, EVERYTHING)
    finetune(images, seldom, EVERYTHING | {"eval-every": 3})
    one, other = (load_file(run / "model.safetensors") for run in (often, seldom))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_encoder_of_the_run_is_opened_and_judged(tmp_path, images, capsys):
    run = tmp_path / "run"
    finetune(images, run)
    encoder = load_encoder(run)
    weights = load_file(run / "model.safetensors")
    assert not encoder.variant.final_norm
    assert torch.equal(encoder.blocks[3].mlp.fc2.weight, weights["blocks.3.mlp.fc2.weight"])
    assert torch.equal(encoder.pos_embed, weights["pos_embed"])
    before = load_encoder("random:vit_pico", 32)
    assert not torch.equal(encoder.pos_embed, before.pos_embed)
    capsys.readouterr()
    assert main(["knn", str(run), str(images), "--workers", "0", "--device", "cpu"]) == 0
    assert "kNN on" in capsys.readouterr().out


def test_facts_of_the_classifier_name_the_classes(tmp_path, images):
    run = tmp_path / "run"
    finetune(images, run)
    facts = json.loads((run / "model.json").read_text())
    assert facts["classes"] == ["blue", "red"]
    assert facts["image_size"] == [32, 32]
    assert facts["final_norm"] is False
    assert facts["test_share"] == 0.875


def test_best_weights_are_those_of_the_best_epoch(tmp_path, images):
    run = tmp_path / "run"
    finetune(images, run, {"epochs": 4})
    figures = [(line["top1"], line["epoch"]) for line in metrics(run) if "top1" in line]
    best = max(figures, key=lambda one: (one[0], -one[1]))
    kept = result(run)["headline"]
    assert (kept["best_top1"], kept["best_epoch"]) == best
    assert kept["top1"] == figures[-1][0]
    saved, last = (load_file(run / f"{name}.safetensors") for name in ("best", "model"))
    same = all(torch.equal(saved[key], last[key]) for key in last)
    assert same == (best == figures[-1])


def test_average_of_the_weights_is_what_is_kept(tmp_path, images):
    run = tmp_path / "run"
    finetune(images, run, {"ema": 0.5})
    saved = state(run)
    kept = load_file(run / "model.safetensors")
    average = saved["average"]["module.encoder.blocks.0.mlp.fc1.weight"]
    assert torch.equal(kept["blocks.0.mlp.fc1.weight"], average)
    assert not torch.equal(average, saved["model"]["encoder.blocks.0.mlp.fc1.weight"])


def test_gray_images_are_trained_on_with_everything(tmp_path, images):
    run = tmp_path / "run"
    assert finetune(images, run, EVERYTHING | {"in-channels": 1}) == 0
    assert load_file(run / "model.safetensors")["patch_embed.proj.weight"].shape[1] == 1
    assert load_encoder(run).in_channels == 1


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tmp_path, images):
    one, parts = tmp_path / "one", tmp_path / "parts"
    finetune(images, one, {"epochs": 2})
    finetune(images, parts, {"epochs": 2, "accumulate": 3})
    weights, expected = (load_file(run / "model.safetensors") for run in (parts, one))
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-4)


# stopping and going on


@pytest.mark.parametrize(
    ("number", "workers", "lines"), [(signal.SIGINT, 0, 3), (signal.SIGTERM, 2, 4)]
)
def test_stopped_and_resumed_is_never_stopped(
    tmp_path, images, send_after, capsys, number, workers, lines
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = EVERYTHING | {"epochs": 9, "log-every": 3}
    assert finetune(images, whole, options) == 0
    send_after(number, stopped, lines)
    assert finetune(images, stopped, options | {"workers": workers}) == 128 + number
    step = state(stopped)["step"]
    assert 3 <= step < 18
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"stopped by {number.name} after step {step}, saved. Continue: "
        f"mvmae finetune --resume --out {stopped}"
    )
    assert names(stopped) in (LEFT, LEFT | BEST)

    assert main(["finetune", "--resume", "--out", str(stopped)]) == 0
    assert f"from step {step} ->" in capsys.readouterr().out
    assert_same_run(stopped, whole, COMPARED)


def test_finished_run_that_is_resumed_stays_as_it_is(tmp_path, images):
    run = tmp_path / "run"
    finetune(images, run)
    before = (run / "model.safetensors").read_bytes(), timeless(run), predictions(run)
    assert main(["finetune", "--resume", "--out", str(run)]) == 0
    assert ((run / "model.safetensors").read_bytes(), timeless(run), predictions(run)) == before


def test_overwriting_begins_anew_and_spares_what_is_not_the_runs(tmp_path, images, capsys):
    run = tmp_path / "run"
    finetune(images, run)
    (run / "notes.txt").write_text("mine")
    (run / "results" / "finetune-other.json").write_text("{}")
    assert finetune(images, run) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert finetune(images, run, {"seed": 1}, "--overwrite") == 0
    assert names(run) == WHOLE | {"notes.txt"}
    assert len(list((run / "results").iterdir())) == 1


@pytest.mark.slow
def test_two_processes_leave_one_run_like_that_of_one(tmp_path, images, free_port):
    alone, together = tmp_path / "alone", tmp_path / "together"
    options = {"ema": 0.5}
    assert finetune(images, alone, options) == 0
    words = [sys.executable, "-m", "mvmae", *command(images, together, options)]
    processes = []
    for rank in range(2):
        announced = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port),
        }
        processes.append(subprocess.Popen(words, env=os.environ | announced))
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert names(together) == names(alone)
    assert len(metrics(together)) == len(metrics(alone))
    weights, expected = (load_file(run / "model.safetensors") for run in (together, alone))
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-3)
    assert result(together)["world_size"] == 2


# what goes wrong


def complaint(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch-size": 100}, "18 training images are fewer than a batch of 100"),
        ({"batch-size": 0}, "batch_size must be at least 1, not 0"),
        ({"accumulate": 9}, "accumulate 9 is more than the 8 images"),
        ({"layer-decay": 0}, "layer_decay must be in (0, 1], not 0"),
        ({"layer-decay": "nan"}, "layer_decay must be in (0, 1], not nan"),
        ({"rand-augment": 11}, "rand_augment must be between 0 and 10, not 11"),
        ({"mixup": -1}, "mixup must be finite and not negative, not -1"),
        ({"cutmix": "inf"}, "cutmix must be finite and not negative, not inf"),
        ({"erasing": 2}, "erasing must be in [0, 1], not 2"),
        ({"label-smoothing": 1}, "label_smoothing must be in [0, 1), not 1"),
        ({"drop-path": 1}, "drop_path must be in [0, 1), not 1"),
        ({"test-share": 0}, "test_share must be in (0, 1], not 0"),
        ({"ema": 1}, "ema must be between 0 and 1, not 1"),
        ({"warmup-epochs": 3}, "warmup_epochs 3 must be less than epochs 3"),
        ({"min-lr": 1}, "min_lr 1 must be between 0 and the peak learning rate"),
        ({"image-size": 30}, "image size 30 x 30 is not a multiple of the patch size 16"),
        ({"in-channels": 2}, "have 3 channels, not 2"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_made(
    tmp_path, images, capsys, options, said
):
    assert finetune(images, tmp_path / "run", options) == 2
    assert said in complaint(capsys)
    assert not (tmp_path / "run").exists()


def test_unlabelled_images_are_refused(tmp_path, images, capsys):
    assert finetune(images / "red", tmp_path / "run") == 2
    assert "has no labels: put each class into its own folder" in complaint(capsys)
    assert finetune(tmp_path / "nothing", tmp_path / "run") == 2
    assert "no such folder" in complaint(capsys)
    assert not (tmp_path / "run").exists()


def test_encoder_must_be_named_and_there(tmp_path, images, capsys):
    assert main(["finetune"]) == 2
    assert "ENCODER" in complaint(capsys)
    assert main(["finetune", str(tmp_path / "no"), str(images), "--out", str(tmp_path / "r")]) == 2
    assert "no such encoder" in complaint(capsys)


def test_run_is_not_overwritten_by_the_fine_tuning_of_its_encoder(tmp_path, images, capsys):
    run = tmp_path / "run"
    finetune(images, run)
    capsys.readouterr()
    for encoder in (run, run / "encoder.safetensors"):
        words = ["finetune", str(encoder), str(images), "--out", str(run), "--overwrite"]
        assert main([*words, "--batch-size", "8"]) == 2
        assert "--overwrite would delete" in complaint(capsys)
    assert names(run) == WHOLE


def test_run_of_another_command_is_not_overwritten(tmp_path, images, capsys, pretrain_command):
    run = tmp_path / "run"
    assert main(pretrain_command(images, run, {"epochs": 1})) == 0
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert finetune(images, run, {}, "--overwrite") == 2
    assert "which is not a run of finetune: choose another --out" in complaint(capsys)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_nothing_to_resume_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", "--resume"]) == 2
    assert "no run in runs/finetune to resume" in complaint(capsys)


def test_run_of_other_settings_or_images_is_not_resumed(tmp_path, images, capsys):
    run = tmp_path / "run"
    finetune(images, run)
    capsys.readouterr()
    assert main(["finetune", "--resume", "--out", str(run), "--mixup", "0.1"]) == 2
    assert "was run with mixup 0.0, not 0.1" in complaint(capsys)
    (images / "red" / "1.jpg").rename(images / "red" / "new.jpg")
    assert main(["finetune", "--resume", "--out", str(run)]) == 2
    assert "are not those that" in complaint(capsys)


def test_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path, images, capsys):
    run = tmp_path / "run"
    options = {"base-lr": 1e30, "save-every-minutes": 0, "log-every": 1, "epochs": 8}
    assert finetune(images, run, options) == 2
    line = complaint(capsys)
    assert "a lower --base-lr, or with --clip-grad 1" in line
    step = int(line.split("not finite at step ")[1].split(":")[0])
    assert 1 <= state(run)["step"] < step
    assert not PRODUCTS & names(run)


def test_a_few_bad_files_are_passed_over_and_listed(tmp_path, images, capsys):
    for name in ("red/3.jpg", "blue/1.jpg"):  # one learns, one tests
        (images / name).write_bytes(b"no image")
    run = tmp_path / "run"
    assert finetune(images, run) == 0
    with (run / "skipped.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["path"] for row in rows} == {str(images / n) for n in ("red/3.jpg", "blue/1.jpg")}
    assert result(run)["data"]["num_test"] == 5
    assert len(predictions(run)) == 5
    assert "images that could not be read" in capsys.readouterr().out


def test_class_without_a_test_image_has_no_accuracy(tmp_path):
    rng = np.random.default_rng(0)
    rows = ["path,label"]
    for index, label in enumerate("aaaaaabbbbbbc"):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{label}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    run = tmp_path / "run"
    assert finetune(tmp_path / "list.csv", run) == 0
    assert result(run)["per_class"]["c"] is None
