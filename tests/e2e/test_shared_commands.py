"""Commands on several processes: the result is that of one, and one line says what went wrong."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import on_processes
from torch import Generator

from mvmae import encoders
from mvmae.cli.main import main
from mvmae.config.model import Size
from mvmae.encoders import OpenedEncoder, Preprocessing
from mvmae.method.vit import Encoder, Variant, initialize

QUICK = ["--device", "cpu", "--workers", "0", "--batch-size", "3"]
MAE = ["--protocol", "mae", "--epochs", "3", "--step-size", "9", "--base-lr", "3"]
MAE += ["--warmup-epochs", "1"]
COMMANDS = {  # by folder name: arguments with which several processes must give the same result
    "knn": ["knn", "enc", "images", *QUICK],
    "few": ["knn", "enc", "images", "--max-train", "4", "--max-test", "2", "--k", "1", *QUICK],
    "probe": ["probe", "enc", "images", *QUICK],
    "mae": ["probe", "enc", "images", *MAE, *QUICK],
    "labels": ["labels", "enc", "images", "--shares", "0.5", "--draws", "2", *QUICK],
    "features": ["features", "enc", "images", "--draw", "typical", "duplicates", "pca", *QUICK],
    "embed": ["embed", "enc", "images", "--part-size", "4", *QUICK],
    "patches": ["embed", "enc", "images", "--tokens", "patch", "--part-size", "20", *QUICK],
    "found": ["embed", "enc", "images", "--query", "images/red/3.png", "--k", "3", *QUICK],
    "pack": ["data", "pack", "images", "--shard-size", "0.02", "--short-side", "12"],
}
SOME = ("knn", "mae", "embed")  # of the two processes; of three, slower, all
TIMES = ("seconds", "command_line", "config", "environment", "loss")


def command_words(name: str) -> list[str]:
    words = COMMANDS[name]
    if name == "pack":
        return [*words, "pack", "--workers", "1"]
    return [*words, "--out", name]


def make(folder: Path) -> None:
    """An encoder, and 31 images of which two cannot be read: no multiple of any batch."""
    rng = np.random.default_rng(0)
    for label, count in (("blue", 17), ("red", 14)):
        (folder / "images" / label).mkdir(parents=True)
        for index in range(count):
            colour = (60, 90, 180) if label == "blue" else (170, 80, 60)
            pixels = (np.array(colour) + rng.integers(-60, 60, (18, 22, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{index}.png")
    (folder / "images/blue/2.png").write_bytes(b"no image")
    (folder / "images/red/13.png").write_bytes(b"no image")
    encoder = Encoder(
        Size(32, 1, 1),
        image_size=(8, 8),
        patch_size=4,
        in_channels=3,
        variant=Variant(cls_token=True),
    )
    initialize(encoder, Generator().manual_seed(0))
    (folder / "enc").mkdir()
    preprocessing = Preprocessing((0.5,) * 3, (0.2,) * 3, "bicubic")
    encoders.save_encoder(folder / "enc", OpenedEncoder(encoder, preprocessing, "mean"))


def run_some(_rank: int, world: int, folder: Path) -> dict:
    """Run commands in a process of several; their statuses, and what they printed."""
    os.chdir(folder)
    said = {}
    for name in SOME if world == 2 else COMMANDS:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(command_words(name))
        said[name] = status, out.getvalue(), err.getvalue()
    return said


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[str], Path]:
    """Makes what one process makes, once: the folder of a command."""
    folder = tmp_path_factory.mktemp("alone")
    make(folder)

    def run_alone(name: str) -> Path:
        if not (folder / name).exists():
            with contextlib.chdir(folder):
                assert main(command_words(name)) == 0
        return folder / name

    return run_alone


def run_together(tmp_path_factory, world: int) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp(f"on-{world}")
    make(folder)
    return folder, on_processes(run_some, world, folder)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> tuple[Path, list[dict]]:
    return run_together(tmp_path_factory, 2)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def timeless(file: Path) -> dict:
    content = json.loads(file.read_text())
    content = {name: value for name, value in content.items() if name not in TIMES}
    content.pop("settings", None)  # of pack: a hash of the times of the images
    return content


def assert_same(one: Path, other: Path) -> None:
    """The same files; the same content of each, but for times and what the command was."""
    assert files(one) == files(other)
    for name in sorted(files(one)):
        if name.endswith(".json"):
            assert timeless(one / name) == timeless(other / name), name
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("name", SOME)
def test_two_processes_make_what_one_makes(alone, two_processes, name):
    folder, said = two_processes
    assert [one[name][0] for one in said] == [0, 0]
    assert said[1][name][1:] == ("", "")  # the second one is silent
    assert said[0][name][1] != ""
    assert_same(alone(name), folder / name)


def test_what_is_made_says_on_how_many_processes(two_processes):
    folder, _ = two_processes
    for file in ("knn/results/knn-images.json", "embed/index.json"):
        assert json.loads((folder / file).read_text())["environment"]["world_size"] == 2, file


def test_the_course_of_the_probe_is_that_of_one_process(alone, two_processes):
    """9 images in a step are 5 and 4; each process has the tokens of all."""
    ours, theirs = (
        [(line["step"], line["loss"]) for line in json.loads(file.read_text())["loss"]]
        for file in (
            at / "results/probe-mae-images.json" for at in (alone("mae"), two_processes[0] / "mae")
        )
    )
    assert [step for step, _ in ours] == [step for step, _ in theirs] == [6]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-6)


@pytest.mark.slow  # each process loads torch
def test_three_processes_make_what_one_makes(alone, tmp_path_factory):
    folder, said = run_together(tmp_path_factory, 3)
    for name in COMMANDS:
        assert [one[name][0] for one in said] == [0, 0, 0], said
        assert_same(alone(name), folder / name)


# one process fails, is killed, or gets a signal


LIMITED = (  # a process for which every file ends at 512 bytes, as on a full disk
    "import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512));"
    "os.execv(sys.executable, [sys.executable, '-m', 'mvmae', *sys.argv[1:]])"
)


def start(
    words: list[str], port: int, *, world: int = 2, limited: int | None = None
) -> list[subprocess.Popen]:
    """Start a command as torchrun does, one process with a full disk."""
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *(("-c", LIMITED) if rank == limited else ("-m", "mvmae")), *words],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def collect(processes: list[subprocess.Popen]) -> tuple[list[int], list[str], list[str]]:
    """Statuses, and what each printed for people and of errors."""
    both = [process.communicate(timeout=120) for process in processes]
    return [process.returncode for process in processes], *map(list, zip(*both, strict=True))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_all_find_wrong_is_one_line(here, free_port):
    words = ["knn", "nowhere", "images", *QUICK]
    statuses, out, errors = collect(start(words, free_port))
    assert statuses == [2, 2]
    assert errors[1] == "".join(out) == ""
    assert errors[0].startswith("mvmae: no such encoder: nowhere")
    assert errors[0].count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["knn", "embed", "pack"])
def test_a_full_disk_of_one_process_ends_all_with_one_line(here, free_port, name):
    for index in range(100):  # more than a block of those that are packed
        shutil.copy("images/red/0.png", f"images/red/more-{index:03}.png")
    processes = start(command_words(name), free_port, limited=1)
    statuses, _, errors = collect(processes)
    assert statuses == [2, 2]
    (line,) = "".join(errors).splitlines()  # of the first, or where it is at something of the other
    assert line.startswith("mvmae: File too large: ")
    again = [*command_words(name), "--resume"] if name == "embed" else command_words(name)
    # One process then resumes.
    subprocess.run([sys.executable, "-m", "mvmae", *again], check=True, stdout=subprocess.DEVNULL)
    assert not list(here.rglob("*.tmp"))


def in_parts(name: str) -> list[str]:
    return ["embed", "enc", "images", *QUICK, "--part-size", "2", "--out", name]


@pytest.mark.slow
def test_embeddings_resume_with_another_number_of_processes(here, free_port):
    """Two processes are stopped, three resume, and the result equals that of one."""
    for index in range(600):  # time to be stopped
        shutil.copy("images/red/0.png", f"images/red/more-{index:03}.png")
    assert main(in_parts("whole")) == 0
    processes = start(in_parts("shared"), free_port)
    wait_until(lambda: len(list(Path("shared/parts").glob("part-*"))) > 20)
    processes[1].send_signal(signal.SIGTERM)  # one tells the other
    statuses, out, _ = collect(processes)
    assert statuses == [143, 143]
    assert "stopped by SIGTERM" in out[0]
    assert out[1] == ""
    done = json.loads(Path("shared/index.json").read_text())
    assert not done["complete"]
    statuses, out, _ = collect(start([*in_parts("shared"), "--resume"], free_port, world=3))
    assert statuses == [0, 0, 0]
    assert_same(here / "whole", here / "shared")


@pytest.mark.slow
def test_packing_that_is_stopped_resumes_in_one_process(here, free_port):
    for index in range(800):
        shutil.copy("images/red/0.png", f"images/red/more-{index:03}.png")
    pack = ["data", "pack", "images", "--shard-size", "0.02", "--short-side", "12"]
    assert main([*pack, "whole", "--workers", "1"]) == 0
    processes = start([*pack, "shared", "--workers", "1"], free_port)
    wait_until(lambda: Path(".shared.unfinished/000001.tar").exists())
    for process in processes:
        process.send_signal(signal.SIGINT)
    statuses, out, _ = collect(processes)
    assert statuses == [130, 130]
    assert "the same command resumes" in out[0]
    assert not list(Path(".shared.unfinished").glob(".block*"))
    assert main([*pack, "shared", "--workers", "1"]) == 0
    assert_same(here / "whole", here / "shared")


@pytest.mark.slow
def test_a_killed_process_ends_all_under_torchrun(here, free_port):
    for index in range(2000):
        shutil.copy("images/red/0.png", f"images/red/more-{index:04}.png")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port), "-m", "mvmae", *in_parts("shared")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as whole:
        wait_until(lambda: len(list(Path("shared/parts").glob("part-*"))) > 4)
        os.kill(find_process(whole.pid, rank=1), signal.SIGKILL)
        out, _ = whole.communicate(timeout=60)
    assert whole.returncode != 0
    assert b"continue with mvmae embed" in out
    assert main([*in_parts("shared"), "--resume"]) == 0
    assert json.loads(Path("shared/index.json").read_text())["num_embedded"] == 2029


def find_process(parent: int, *, rank: int) -> int:
    """The process of a rank that torchrun started."""
    task = Path(f"/proc/{parent}/task")
    children = [int(pid) for one in task.glob("*/children") for pid in one.read_text().split()]
    wanted = f"\0RANK={rank}\0".encode()
    return next(pid for pid in children if wanted in Path(f"/proc/{pid}/environ").read_bytes())


def wait_until(has_come) -> None:
    end = time.monotonic() + 90
    while not has_come():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "words",
    [
        "show enc",
        "reconstruct enc",
        "attention enc",
        "export enc --format timm",
        "curves run",
        "report run",
        "explore enc",
        "data check images",
        "data stats images",
        "data show images",
    ],
)
def test_a_command_that_shares_no_work_says_so(here, capsys, monkeypatch, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    before = files(here)
    assert main(words.split()) == 2
    command = " ".join(words.split()[: 2 if words.startswith("data") else 1])
    said = capsys.readouterr().err
    assert said == f"mvmae: mvmae {command} runs in one process: start it without torchrun\n"
    assert files(here) == before


def test_batches_are_the_same_to_the_bit(alone, two_processes):
    """Not only the rounded figures: the vectors that embed wrote."""
    from mvmae.embed.storage import read_embeddings

    ours, theirs = (
        list(read_embeddings(at)) for at in (alone("embed"), two_processes[0] / "embed")
    )
    assert sum(len(part.paths) for part in theirs) == 29
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one.embeddings, other.embeddings)
