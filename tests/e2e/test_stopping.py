"""Stopping a run and going on with it changes nothing, on one process or two."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_folders import (
    PRODUCTS,
    RUN,
    assert_same_run,
    metrics,
    names,
    skipped_paths,
    state,
    timeless,
    wait_for_lines,
)
from safetensors.torch import load_file

from mvmae import load_encoder
from mvmae.cli.main import main

SOME_STEPS, MANY_STEPS = {"epochs": 15}, {"epochs": 30}  # of 3 steps: time to be stopped


@pytest.fixture(scope="module")
def common() -> dict[str | int, Path]:
    """The images of all tests, and runs on them by their number of epochs."""
    return {}


@pytest.fixture
def images(common, image_folder, tmp_path_factory) -> Path:
    """Images at one place for all tests, because a run's checkpoint depends on their paths."""
    if "images" not in common:
        folder = tmp_path_factory.mktemp("shared")
        common["images"] = Path(shutil.move(image_folder(per_class=12), folder))
    return common["images"]


@pytest.fixture
def whole(common, tmp_path_factory, images, pretrain, capsys) -> Callable[[dict], Path]:
    """Makes a run that is never stopped, once for each number of epochs."""

    def make(options: dict) -> Path:
        epochs = options["epochs"]
        if epochs not in common:
            run = tmp_path_factory.mktemp("whole") / "run"
            assert pretrain(images, run, options) == 0
            common[epochs] = run
            capsys.readouterr()
        return common[epochs]

    return make


# stopping and going on


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed_is_never_stopped(
    tmp_path, images, pretrain, send_after, whole, capsys, number, workers
):
    stopped = tmp_path / "stopped"
    send_after(number, stopped, 3)
    assert pretrain(images, stopped, SOME_STEPS | {"workers": workers}) == 128 + number
    said = capsys.readouterr().out.splitlines()[-1]
    step = state(stopped)["step"]
    assert 6 <= step < 45
    assert said == (
        f"stopped by {number.name} after step {step}, saved. Continue: "
        f"mvmae pretrain --resume --out {stopped}"
    )
    assert names(stopped) == RUN - PRODUCTS

    assert main(["pretrain", "--resume", "--out", str(stopped)]) == 0
    assert f"from step {step} ->" in capsys.readouterr().out
    assert_same_run(stopped, whole(SOME_STEPS))


def test_sigterm_to_the_program_saves_and_exits_with_143(tmp_path, images, whole, pretrain_command):
    stopped = tmp_path / "stopped"
    command = pretrain_command(images, stopped, MANY_STEPS | {"workers": 2})
    with subprocess.Popen(
        [sys.executable, "-m", "mvmae", *command], stdout=subprocess.PIPE, text=True
    ) as process:
        wait_for_lines(stopped, 2)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[0].splitlines()
    assert process.returncode == 143
    assert said[-1].startswith("stopped by SIGTERM after step ")
    assert main(["pretrain", "--resume", "--out", str(stopped)]) == 0
    assert_same_run(stopped, whole(MANY_STEPS))


@pytest.mark.slow
def test_killed_and_resumed_is_never_stopped(tmp_path, images, whole, pretrain_command):
    killed = tmp_path / "killed"
    command = pretrain_command(images, killed, MANY_STEPS | {"save-every-minutes": 0})
    with subprocess.Popen([sys.executable, "-m", "mvmae", *command]) as process:
        wait_for_lines(killed, 4)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert main(["pretrain", "--resume", "--out", str(killed)]) == 0
    expected = whole(MANY_STEPS)
    assert timeless(killed) == timeless(expected)
    ours, theirs = (run / "encoder.safetensors" for run in (killed, expected))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_sigterm_to_every_process_of_the_run_saves_too(tmp_path, images, pretrain_command):
    """As Slurm and systemd send it: workers get the signal as well."""
    run = tmp_path / "run"
    command = pretrain_command(images, run, {"epochs": 300, "workers": 2})
    with subprocess.Popen(
        [sys.executable, "-m", "mvmae", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        wait_for_lines(run, 2)
        os.killpg(process.pid, signal.SIGTERM)
        said, complaint = process.communicate(timeout=120)
    assert complaint == ""
    assert process.returncode == 143
    assert said.splitlines()[-1].startswith("stopped by SIGTERM after step ")


def test_finished_run_that_is_resumed_stays_as_it_is(tmp_path, images, pretrain, capsys):
    run = tmp_path / "run"
    pretrain(images, run)
    before = (run / "encoder.safetensors").read_bytes(), timeless(run)
    assert main(["pretrain", "--resume", "--out", str(run)]) == 0
    assert ((run / "encoder.safetensors").read_bytes(), timeless(run)) == before
    assert "from step 12" in capsys.readouterr().out


def test_run_goes_on_in_another_folder_with_other_workers(
    tmp_path, images, pretrain, send_after, whole
):
    stopped, moved = tmp_path / "stopped", tmp_path / "moved"
    send_after(signal.SIGTERM, stopped, 2)
    assert pretrain(images, stopped, SOME_STEPS) == 143
    stopped.rename(moved)
    assert main(["pretrain", "--resume", f"--out={moved}", "--workers", "1"]) == 0
    assert_same_run(moved, whole(SOME_STEPS))


def test_checkpoints_are_saved_on_the_way(tmp_path, images, pretrain):
    run = tmp_path / "run"
    pretrain(images, run, {"save-every-minutes": 0})
    assert names(run / "checkpoints") == {"last.pt", "previous.pt"}
    previous = torch.load(run / "checkpoints" / "previous.pt", weights_only=True)
    assert (previous["step"], state(run)["step"]) == (10, 12)


def test_overwriting_removes_only_what_a_run_leaves(tmp_path, images, pretrain):
    run = tmp_path / "run"
    pretrain(images, run, {"epochs": 8, "save-every-minutes": 0})
    (run / "notes.md").write_text("mine")
    (run / "results").mkdir()
    (run / "results" / "knn-photos.json").write_text("{}")  # of the encoder that goes
    assert pretrain(images, run, None, "--overwrite") == 0
    assert names(run) == {*RUN, "notes.md"}
    assert names(run / "checkpoints") == {"last.pt"}
    assert (run / "notes.md").read_text() == "mine"
    assert metrics(run)[-1]["step"] == 12
    assert '"overwrite": false' in (run / "config.json").read_text()


# several processes


def on_two_processes(arguments: list[str], port: int) -> list[subprocess.Popen]:
    """Start a command as torchrun does."""
    announced = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "mvmae", *arguments],
            env=os.environ | announced | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.slow
def test_two_processes_leave_one_run_like_that_of_one(
    tmp_path, images, pretrain, pretrain_command, free_port
):
    images = shutil.copytree(images, tmp_path / "images")
    (images / "blue" / "3.jpg").write_bytes(b"no image")
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert pretrain(images, alone) == 0
    processes = on_two_processes(pretrain_command(images, together), free_port)
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said[1] == ""  # the second process is silent
    assert "4 epochs of 3 steps" in said[0]

    assert names(together) == names(alone)
    assert json.loads((together / "environment.json").read_text())["world_size"] == 2
    assert skipped_paths(together) == skipped_paths(alone) == [str(images / "blue" / "3.jpg")]
    assert len(metrics(together)) == len(metrics(alone))
    for ours, theirs in zip(timeless(together), timeless(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    weights, expected = (load_file(run / "encoder.safetensors") for run in (together, alone))
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-3)
    assert main(["pretrain", "--resume", "--out", str(together)]) == 0


@pytest.mark.slow
def test_run_begun_on_two_processes_goes_on_alone(
    tmp_path, images, whole, pretrain_command, free_port
):
    """The images come in the same order; only sums are rounded differently."""
    begun, expected = tmp_path / "begun", whole(SOME_STEPS)
    processes = on_two_processes(pretrain_command(images, begun, SOME_STEPS), free_port)
    wait_for_lines(begun, 3)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.communicate(timeout=300)
    assert [process.returncode for process in processes] == [143, 143]
    step = state(begun)["step"]
    assert 0 < step < 45
    assert main(["pretrain", "--resume", "--out", str(begun)]) == 0
    assert [line["step"] for line in metrics(begun)] == [line["step"] for line in metrics(expected)]
    for ours, theirs in zip(timeless(begun), timeless(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)


# checkpoints


def test_kept_checkpoints_are_there_at_the_end_and_are_encoders(tmp_path, images, pretrain, capsys):
    run = tmp_path / "run"
    pretrain(images, run, {"keep-every": 2})
    assert names(run / "checkpoints") == {"last.pt", "epoch-2.pt", "epoch-4.pt", "previous.pt"}
    kept = torch.load(run / "checkpoints" / "epoch-2.pt", weights_only=True)
    assert kept["step"] == 6
    encoder = load_encoder(str(run / "checkpoints" / "epoch-2.pt"))
    assert torch.equal(encoder.norm.weight, kept["model"]["norm.weight"])


def test_saving_in_the_background_leaves_the_same_run(tmp_path, images, pretrain):
    plain, background = tmp_path / "plain", tmp_path / "background"
    pretrain(images, plain)
    pretrain(images, background, {"save-in-background": True, "save-every-minutes": 0})
    assert_same_run(background, plain)
    assert torch.load(background / "checkpoints" / "previous.pt", weights_only=True)["step"] == 10


def test_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(
    tmp_path, images, pretrain, send_after, whole, capsys
):
    run = tmp_path / "run"
    send_after(signal.SIGTERM, run, 4)
    assert pretrain(images, run, SOME_STEPS | {"save-every-minutes": 0}) == 143
    last = run / "checkpoints" / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert main(["pretrain", "--resume", "--out", str(run)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"mvmae: {last} is damaged or missing: resuming from {run}/checkpoints/previous.pt"
    ]
    assert_same_run(run, whole(SOME_STEPS))
    assert "damaged.pt" in names(run / "checkpoints")
