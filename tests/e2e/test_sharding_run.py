"""`mvmae pretrain --sharding full`: its checkpoints are folders, and as safe as files."""

import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_folders import PRODUCTS, metrics, names, timeless, wait_for_lines
from safetensors.torch import load_file

from mvmae import load_autoencoder, load_encoder
from mvmae.cli.main import main

SHARED = {"sharding": "full"}
EPOCHS = {"keep-every": 1}


@pytest.fixture
def images(image_folder) -> Path:
    return image_folder(per_class=12)


@pytest.fixture(scope="module")
def finished_runs() -> list[Path]:
    return []


@pytest.fixture
def run(finished_runs, tmp_path, tmp_path_factory, images, pretrain, capsys) -> Path:
    """A copy of a finished run of 12 steps with its checkpoints after steps 9 and 12."""
    if not finished_runs:
        run = tmp_path_factory.mktemp("finished") / "run"
        assert pretrain(images, run, SHARED | EPOCHS) == 0
        finished_runs.append(run)
    shutil.copytree(finished_runs[0], tmp_path / "run")
    capsys.readouterr()
    return tmp_path / "run"


def resume_run(run: Path) -> int:
    return main(["pretrain", "--resume", "--out", str(run)])


def shard(path: Path) -> Path:
    (file,) = path.glob("*.safetensors")
    return file


def flip(file: Path, at: float = 0.7) -> None:
    """Change a bit of a file."""
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1
    file.unlink()  # which has other names
    file.write_bytes(content)


def test_run_is_the_same_but_for_its_checkpoints(tmp_path, images, pretrain, run):
    plain = tmp_path / "plain"
    assert pretrain(images, plain, EPOCHS) == 0
    assert timeless(run) == timeless(plain)
    for name in PRODUCTS:
        assert (run / name).read_bytes() == (plain / name).read_bytes(), name
    kept = {f"epoch-{epoch}" for epoch in (1, 2, 3, 4)}
    assert names(run / "checkpoints") == {"last", "previous", *kept}
    assert names(plain / "checkpoints") == {"last.pt", "previous.pt", *(f"{k}.pt" for k in kept)}


def test_its_checkpoints_are_opened_as_encoders_and_whole(run):
    shown = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        tokens = load_encoder(run)(shown)
        assert torch.equal(load_autoencoder(run).encoder(shown), tokens)
        assert torch.equal(load_encoder(run / "checkpoints" / "last")(shown), tokens)
        before = load_autoencoder(run / "checkpoints" / "epoch-1").encoder(shown)
        assert not torch.equal(before, tokens)
        (run / "encoder.safetensors").unlink()
        assert torch.equal(load_encoder(run)(shown), tokens)


def test_stopped_and_resumed_is_never_stopped(tmp_path, images, pretrain, send_after, run, capsys):
    stopped = tmp_path / "stopped"
    send_after(signal.SIGTERM, stopped, 2)
    assert pretrain(images, stopped, SHARED | EPOCHS) == 143
    assert len(metrics(stopped)) < len(metrics(run))
    assert resume_run(stopped) == 0
    assert timeless(stopped) == timeless(run)
    for name in PRODUCTS:
        assert (stopped / name).read_bytes() == (run / name).read_bytes(), name
    ours, theirs = (load_file(shard(path / "checkpoints" / "last")) for path in (stopped, run))
    assert len(ours) > 100
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "damaged" not in capsys.readouterr().err


def truncate(file: Path) -> None:
    """Leave half of a file."""
    content = file.read_bytes()
    file.unlink()  # which has other names
    file.write_bytes(content[: len(content) // 2])


class Runs:
    """A pickle that leaves a file behind where it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def hostile(last: Path) -> None:
    (last / "state.pt").unlink()  # which has other names
    with (last / "state.pt").open("wb") as stream:
        pickle.dump(Runs(last.parent / "ran"), stream)


DAMAGES = {
    "a flipped bit": lambda last: flip(shard(last)),
    "a flipped bit in the header": lambda last: flip(shard(last), 0.001),
    "half a file": lambda last: truncate(shard(last)),
    "half a state": lambda last: truncate(last / "state.pt"),
    "no file": lambda last: shard(last).unlink(),
    "no state": lambda last: (last / "state.pt").unlink(),
    "another's file": lambda last: shutil.copy(shard(last), last / "shard-9.safetensors"),
    "a pickle": hostile,
    "nothing": shutil.rmtree,
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damaged_last_falls_back_and_both_are_refused(run, capsys, name):
    checkpoints = run / "checkpoints"
    product = (run / "encoder.safetensors").read_bytes()
    DAMAGES[name](checkpoints / "last")
    assert resume_run(run) == 0
    said = capsys.readouterr()
    assert f"{checkpoints / 'last'} is damaged or missing: resuming from" in said.err
    assert ", from step 9" in said.out
    assert (run / "encoder.safetensors").read_bytes() == product
    assert ("damaged" in names(checkpoints)) == (name != "nothing")

    for place in ("last", "previous"):
        DAMAGES[name](checkpoints / place)
    assert resume_run(run) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(run.rglob("ran"))


def test_fresh_folder_of_a_killed_run_is_no_checkpoint(run, capsys):
    shutil.copytree(run / "checkpoints" / "last", run / "checkpoints" / "fresh")
    flip(shard(run / "checkpoints" / "fresh"))
    assert resume_run(run) == 0
    assert "fresh" not in names(run / "checkpoints")
    assert "damaged" not in capsys.readouterr().err


def test_what_cannot_be_resumed_is_said(tmp_path, images, pretrain, run, capsys):
    assert main(["pretrain", "--resume", "--out", str(run), "--sharding", "none"]) == 2
    assert "was run with another --sharding" in capsys.readouterr().err
    plain = tmp_path / "plain"
    assert pretrain(images, plain) == 0
    assert main(["pretrain", "--resume", "--out", str(plain), "--sharding", "full"]) == 2
    assert "was run with another --sharding" in capsys.readouterr().err
    for words in (["--seed", "1"], ["--model.mask-ratio", "0.5"], ["--reduce-dtype", "bf16"]):
        assert main(["pretrain", "--resume", "--out", str(run), *words]) == 2
        assert ", not " in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    assert resume_run(run) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_saving_in_the_background_is_refused(tmp_path, images, pretrain, capsys):
    assert pretrain(images, tmp_path / "run", SHARED, "--save-in-background") == 2
    assert "--save-in-background copies all weights" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_full_disk_stops_the_run_with_one_line(tmp_path, images, pretrain_command):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    words = pretrain_command(images, tmp_path / "run", SHARED)
    done = subprocess.run(
        [sys.executable, "-m", "mvmae", *words], capture_output=True, text=True, preexec_fn=limit
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "File too large" in done.stderr
    assert names(tmp_path / "run" / "checkpoints") == set()


# by two processes


def torchrun(world: int, words: list[str], port: int) -> list[subprocess.Popen]:
    """Start a command on processes that find each other as torchrun's do."""
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "mvmae", *words],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]


def statuses(processes: list[subprocess.Popen]) -> list[int]:
    for process in processes:
        process.communicate(timeout=300)
    return [process.returncode for process in processes]


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_as_if_never_stopped_and_one_does(
    tmp_path, images, pretrain_command, free_port
):
    whole, killed, elastic = (tmp_path / name for name in ("whole", "killed", "elastic"))
    more = SHARED | {"epochs": 5, "save-every-minutes": 0}
    assert statuses(torchrun(2, pretrain_command(images, whole, more), free_port)) == [0, 0]
    processes = torchrun(2, pretrain_command(images, killed, more), free_port)
    wait_for_lines(killed, 3)
    for process in processes:
        process.kill()
    assert statuses(processes) == [-signal.SIGKILL] * 2
    shutil.copytree(killed, elastic)

    go_on = ["pretrain", "--resume", "--out"]
    assert statuses(torchrun(2, [*go_on, str(killed)], free_port)) == [0, 0]
    assert timeless(killed) == timeless(whole)
    for name in PRODUCTS:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name

    shutil.move(killed, tmp_path / "done")
    shutil.move(elastic, killed)
    assert main([*go_on, str(killed)]) == 0
    ours, theirs = metrics(killed), metrics(whole)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    losses = [[line["loss"] for line in lines] for lines in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_knn_while_training_and_the_product_are_those_of_one_process(
    tmp_path, image_folder, images, pretrain_command, pretrain, free_port
):
    judged = image_folder("judged", per_class=10, seed=1)
    more = SHARED | {"eval-data": str(judged), "eval-every": 2}
    assert pretrain(images, tmp_path / "one", more) == 0
    words = pretrain_command(images, tmp_path / "two", more)
    assert statuses(torchrun(2, words, free_port)) == [0, 0]
    ours, theirs = (
        [line["knn_top1"] for line in metrics(tmp_path / name) if "knn_top1" in line]
        for name in ("one", "two")
    )
    assert len(ours) == 2
    assert ours == theirs
    one, two = (load_encoder(tmp_path / name).state_dict() for name in ("one", "two"))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
