"""A run folder has one command at a time, and outlives images that go and come back."""

import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from run_folders import assert_same_run, metrics, state, wait_for_lines

from mvmae.cli.main import main

HOLD = (
    "import sys; from pathlib import Path; from mvmae.storage.lock import try_lock\n"
    "with try_lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)
HOST = socket.gethostname()
COMMANDS = {
    "pretrain": "--recipe demo --model.image-size 16 --model.decoder-dim 32 --warmup-epochs 0",
    "finetune": "--recipe small-finetune --image-size 32 --warmup-epochs 0",
}


@contextmanager
def hold(folder: Path):
    """The folder, as long as another process holds it; its id."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other.pid
        other.communicate("")


@pytest.mark.parametrize("command", COMMANDS)
def test_two_runs_do_not_write_into_one_folder(
    tmp_path, image_folder, monkeypatch, capsys, command
):
    image_folder(per_class=12)
    monkeypatch.chdir(tmp_path)
    encoder = ["random:vit_pico"] if command == "finetune" else []
    small = "--epochs 1 --batch-size 8 --device cpu --workers 0 --out run"
    command = [command, *encoder, "images", *COMMANDS[command].split(), *small.split()]
    with hold(Path("run")) as other:
        assert main(command) == 2
        assert capsys.readouterr().err == (
            f"mvmae: another command (process {other} on {HOST}) is writing into run: wait for it, "
            "or choose another --out\n"
        )
        assert {path.name for path in Path("run").iterdir()} == {".lock", ".lock.holder"}
    assert main(command) == 0  # a lock that nobody holds says nothing
    assert not list(Path("run").glob(".lock*"))
    kept = Path("run/config.json").read_bytes()
    with hold(Path("run")):
        for words in (["--resume"], ["--overwrite"]):
            assert main([*command, *words]) == 2
            assert "another command" in capsys.readouterr().err
    assert Path("run/config.json").read_bytes() == kept


def test_what_cannot_begin_leaves_no_folder(tmp_path, image_folder, pretrain):
    images = image_folder(per_class=12)
    assert pretrain(images, tmp_path / "run", {"batch-size": 64}) == 2
    assert not (tmp_path / "run").exists()


def test_images_that_go_and_come_back_cost_no_steps(tmp_path, image_folder, pretrain, capsys):
    images, whole, run = image_folder(per_class=12), tmp_path / "whole", tmp_path / "run"
    many = {"epochs": 15}  # 45 steps: enough for the images to go in between
    assert pretrain(images, whole, many) == 0

    def take_away() -> None:
        wait_for_lines(run, 4)
        images.rename(tmp_path / "gone")

    taker = threading.Thread(target=take_away)
    taker.start()
    assert pretrain(images, run, many) == 2
    taker.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert "attempts to read an image failed" in line
    step = state(run)["step"]
    assert 8 <= step < 45
    assert metrics(run)[-1]["step"] in (step, step - 1)  # a line is written every second step

    (tmp_path / "gone").rename(images)
    (run / "skipped.csv").unlink()  # which names the images that were gone
    assert main(["pretrain", "--resume", "--out", str(run)]) == 0
    assert_same_run(run, whole)


def test_one_group_of_all_images_is_nothing_to_contrast(tmp_path, image_folder, pretrain, capsys):
    images, run = image_folder(per_class=12), tmp_path / "run"
    assert pretrain(images, run, {"group-regex": "images"}) == 2
    assert "all 24 images are in one group" in capsys.readouterr().err
    assert not run.exists()
    mae = {"recipe": "demo+mae", "epochs": 1}
    assert pretrain(images, run, {"group-regex": "images"} | mae) == 0
