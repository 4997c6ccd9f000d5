"""`mvmae ablate`, on runs of a second."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvmae.cli.main import main
from mvmae.encoders import load_encoder

SMALL = {
    "model.image-size": 16,
    "model.decoder-dim": 32,
    "batch-size": 8,
    "epochs": 2,
    "warmup-epochs": 0,
    "log-every": 1,
}
MACHINE = "--device cpu --workers 0"
COMMON = (
    "images --eval-data labelled --recipe demo "
    + " ".join(f"--set {name} {value}" for name, value in SMALL.items())
    + f" {MACHINE}"
)
BY_HAND = f"--recipe demo {' '.join(f'--{name} {v}' for name, v in SMALL.items())} {MACHINE}"
HEAD = f"ablate head {COMMON} --seeds 0 1 --out table"


def draw_images(folder: Path, per_class: int, seed: int) -> None:
    """Noisy images in three colours, hard to tell apart."""
    rng = np.random.default_rng(seed)
    for number, label in enumerate("abc"):
        (folder / label).mkdir(parents=True)
        for index in range(per_class):
            pixels = rng.integers(0, 200, (20, 20, 3)) + np.eye(3)[number] * 25
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{index}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Images, labelled images, and a table of two rows and two seeds."""
    home = tmp_path_factory.mktemp("home")
    draw_images(home / "images", 6, seed=0)
    draw_images(home / "labelled", 20, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(HEAD.split()) == 0
    return home


def table(file: str = "table/head.json") -> dict:
    return json.loads(Path(file).read_text())


def rows(file: str = "table/head.json") -> dict[str, dict]:
    return {row["key"]: row for row in table(file)["rows"]}


def top1(file: Path, name: str | None = None) -> float:
    """The headline, or the figure of a row that counts like it."""
    result = json.loads(file.read_text())
    if name is None:
        return result["headline"]["top1"]
    like = result["headline"]
    token = "pixels" if name == "raw pixels" else like["token"]
    return next(
        row["top1"]
        for row in result["rows"]
        if (row["name"], row["token"], row["notes"].get("k")) == (name, token, like.get("k"))
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }


# What is in the table


def test_figures_are_those_of_the_commands_by_hand(here):
    assert main(f"pretrain images --out hand --seed 1 --model.head mlp {BY_HAND}".split()) == 0
    ours, theirs = (Path(f"{name}/encoder.safetensors") for name in ("table/head-mlp-1", "hand"))
    assert ours.read_bytes() == theirs.read_bytes()
    for command in ("knn", "probe"):
        assert main(f"{command} hand labelled --seed 1 {MACHINE}".split()) == 0
        result = Path(f"hand/results/{command}-labelled.json")
        found = {key: row[command]["per_seed"] for key, row in rows().items()}
        assert found["head-mlp"]["1"] == top1(result)
        assert found["untrained"]["1"] == top1(result, "the same, untrained")
        assert found["raw-pixels"] == {"0": top1(result, "raw pixels")}


def test_means_deviations_and_differences_are_numpys(here):
    found = rows()
    for command in ("knn", "probe"):
        per_seed = {
            key: np.array(
                [top1(Path(f"table/{key}-{s}/results/{command}-labelled.json")) for s in (0, 1)]
            )
            for key in ("base", "head-mlp", "untrained")
        }
        for key in ("raw-pixels", "pca-pixels"):
            pixels = top1(Path(f"table/{key}/results/{command}-labelled.json"))
            per_seed[key] = np.array([pixels, pixels])
        for key, values in per_seed.items():
            said = found[key][command]
            assert said["mean"] == pytest.approx(values.mean())
            if not key.endswith("-pixels"):
                assert said["sd"] == pytest.approx(values.std(ddof=1))
            apart = values - per_seed["base"]
            if key == "base":
                assert said["difference"] is None
            else:
                error = apart.std(ddof=1) / np.sqrt(2)
                expected = {"mean": apart.mean(), "error": error, "count": 2}
                assert said["difference"] == pytest.approx(expected)


def test_the_files_say_what_was_done(here):
    found = table()
    assert found["missing"] == []
    assert (found["recipe"], found["baseline"], found["seeds"]) == ("demo", "base", [0, 1])
    assert found["data"]["num_test"] == 12
    base, mlp = (rows()[key] for key in ("base", "head-mlp"))
    # 18 images are 2 batches of 8; 2 epochs, 2 views
    assert (base["steps"], base["views"]) == (mlp["steps"], mlp["views"]) == (4, 64)
    assert (base["settings"], mlp["settings"]) == ({}, {"model.head": "mlp"})
    for key, row in rows().items():
        folders = [Path(f"table/{key}-{seed}") for seed in row["seconds"]]
        last = [(run / "metrics.jsonl").read_text().splitlines()[-1] for run in folders]
        assert list(row["seconds"].values()) == [json.loads(line)["seconds"] for line in last]
    assert list(base["seconds"]) == list(mlp["seconds"]) == ["0", "1"]
    assert rows()["raw-pixels"]["seconds"] == {}
    text = Path("table/head.md").read_text()
    assert "Training took 0:" in text
    line = next(line for line in text.splitlines() if line.startswith("| mlp"))
    for command in ("knn", "probe"):
        assert f"{mlp[command]['mean']:.1f} ±{mlp[command]['sd']:.1f}" in line
        apart = mlp[command]["difference"]
        assert f"{apart['mean']:+.1f} ±{apart['error']:.1f}" in line
    assert found["command_line"] in text
    assert "over 2 seeds, one beyond 12.7 standard errors is significant" in text
    for kind in ("png", "svg"):
        assert Path(f"table/head.{kind}").stat().st_size > 10_000


# Asked again


def test_what_is_done_is_not_done_again(here, capsys):
    before = digests(here / "table")
    assert main(HEAD.split()) == 0
    said = capsys.readouterr().out
    assert "8 of 8 are done" in said
    assert "step" not in said
    assert digests(here / "table") == before


def without_times(file: Path) -> str:
    """The text of a file without the times that training took."""
    return re.sub(r"\b\d+:\d\d\b", "TIME", file.read_text())


def test_what_is_gone_is_done_again(here, capsys):
    before, text = digests(here / "table"), without_times(Path("table/head.md"))
    Path("table/base-0/results/knn-labelled.json").unlink()
    Path("table/head-mlp-1/results/probe-labelled.json").write_text("{")
    shutil.rmtree("table/head-mlp-0")
    assert main(f"{HEAD} --only-table".split()) == 0
    assert table()["missing"] == ["base-0", "head-mlp-0", "head-mlp-1"]
    assert rows()["head-mlp"]["knn"]["count"] == 1
    assert "Not finished: base-0, head-mlp-0, head-mlp-1." in capsys.readouterr().out
    assert main(HEAD.split()) == 0
    assert "5 of 8 are done" in capsys.readouterr().out
    after = digests(here / "table")
    for name, digest in before.items():
        if name.endswith(("encoder.safetensors", "head.svg")):
            assert after[name] == digest, name
    assert without_times(Path("table/head.md")) == text


def test_figures_made_on_other_images_are_made_anew(here, capsys):
    shutil.copy("labelled/a/0.png", "labelled/a/new.png")
    assert main(HEAD.split()) == 0
    said = capsys.readouterr().out
    assert "0 of 8 are done" in said
    assert "step" not in said  # nothing is trained again
    assert main(f"{HEAD} --only-table".split()) == 0
    assert table()["data"]["num_train"] == 49


def test_another_row_to_compare_with_needs_no_run(here):
    found = rows()
    assert main(f"{HEAD} --only-table --baseline mlp".split()) == 0
    for command in ("knn", "probe"):
        there, back = (
            part[key][command]["difference"]
            for part, key in ((found, "head-mlp"), (rows(), "base"))
        )
        assert back["mean"] == pytest.approx(-there["mean"])
        assert back["error"] == pytest.approx(there["error"])
        assert rows()["untrained"][command]["mean"] == found["untrained"][command]["mean"]


# Stopped


def stop_when_written(file: Path, lines: int, number: int) -> threading.Thread:
    """Send this process a signal as soon as a file has so many lines."""

    def wait() -> None:
        for _ in range(20_000):
            if file.exists() and file.read_text().count("\n") >= lines:
                os.kill(os.getpid(), number)
                return
            threading.Event().wait(0.005)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_stopped_and_gone_on_with_is_never_stopped(here, capsys, number):
    command = HEAD.replace("--out table", "--out other --probe none")
    thread = stop_when_written(Path("other/head-mlp-0/metrics.jsonl"), 2, number)
    assert main(command.split()) == 128 + number
    thread.join()
    said = capsys.readouterr().out
    assert "To resume: mvmae ablate head images" in said
    so_far = said[said.index("The table so far: ") :].splitlines()[0].split()[4:]
    assert main(so_far[1:]) == 0
    assert "head-mlp-1" in table("other/head.json")["missing"]
    assert not Path("other/base-1").exists()
    assert main(command.split()) == 0
    for cell in ("base-0", "base-1", "head-mlp-0", "head-mlp-1"):
        ours, theirs = (Path(out, cell, "encoder.safetensors") for out in ("other", "table"))
        assert ours.read_bytes() == theirs.read_bytes(), cell
    ours, theirs = rows("other/head.json"), rows()
    for key, row in ours.items():
        assert row["knn"] == theirs[key]["knn"]
        assert "probe" not in row


def test_a_cell_killed_before_its_first_checkpoint_begins_again(here):
    before = Path("table/base-0/encoder.safetensors").read_bytes()
    for name in ("encoder.safetensors", "health.json", "metrics.jsonl"):
        Path(f"table/base-0/{name}").unlink()
    shutil.rmtree("table/base-0/checkpoints")
    assert main(HEAD.split()) == 0
    assert Path("table/base-0/encoder.safetensors").read_bytes() == before


# Shared

HOLD = (
    "import sys, time; from pathlib import Path; from mvmae.storage.lock import try_lock\n"
    "with try_lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); time.sleep(600)\n"
)


def test_a_cell_that_another_process_runs_is_left_to_it_until_it_dies(here, capsys):
    shutil.rmtree("table/base-0")
    command = [sys.executable, "-c", HOLD, "table/.locks/base-0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert main(HEAD.split()) == 0
        assert not Path("table/base-0").exists()
        assert table()["missing"] == ["base-0"]
        assert (
            f"base-0 is run by process {other.pid} on {socket.gethostname()}"
            in capsys.readouterr().out
        )
        other.kill()
    assert main(HEAD.split()) == 0
    assert table()["missing"] == []


@pytest.mark.slow
def test_shared_by_two_processes_is_the_same_table(here):
    before, text = digests(here / "table"), without_times(Path("table/head.md"))
    shutil.rmtree("table")
    assert main(f"{HEAD} --jobs 2".split()) == 0
    assert without_times(Path("table/head.md")) == text
    after = digests(here / "table")
    names = [n for n in before if n.endswith(("encoder.safetensors", "head.svg"))]
    assert len(names) == 7
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


# Other tables


def test_a_row_that_fails_does_not_end_the_others(here, capsys):
    command = f"ablate grid {COMMON} --out grid --seeds 0 --probe none --set base-lr 1e30 1e-3"
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mvmae: base-lr-1e30-0 failed: ")
    found = rows("grid/grid-base-lr-1e30-1e-3.json")
    assert found["base-lr-1e-3"]["knn"]["count"] == found["base"]["knn"]["count"] == 1
    assert table("grid/grid-base-lr-1e30-1e-3.json")["missing"] == ["base-lr-1e30-0"]
    assert found["base-lr-1e-3"]["settings"] == {"base_lr": 0.001}


def test_deep_images_are_as_deep_for_the_untrained_encoder(here, capsys):
    rng = np.random.default_rng(0)
    for number, label in enumerate("ab"):
        for part in ("deep", "judged"):
            Path(part, label).mkdir(parents=True)
            for index in range(8):
                pixels = rng.integers(0, 2000, (16, 16)) + 900 * number
                Image.fromarray(pixels.astype(np.uint16)).save(f"{part}/{label}/{index}.png")
    command = COMMON.replace("images --eval-data labelled", "deep --eval-data judged")
    command += " --set model.in-channels 1 --seeds 0 --probe none --out table16"
    assert main(f"ablate norm-pix {command}".split()) == 0
    facts = [
        json.loads(Path(f"table16/{cell}/encoder.json").read_text())
        for cell in ("base-0", "untrained-0")
    ]
    for name in ("pixel_depth", "mean", "std", "in_channels"):
        assert facts[0][name] == facts[1][name]
    assert facts[0]["pixel_depth"] == "16"
    assert facts[0]["mean"][0] < 0.05
    assert load_encoder("table16/untrained-0").in_channels == 1
    capsys.readouterr()
    assert main(f"ablate norm-pix {command}".split()) == 0
    assert "5 of 5 are done" in capsys.readouterr().out


def test_a_program_gets_json_alone(here, capsys):
    shutil.rmtree("table/head-mlp-1/results")
    assert main([*HEAD.split(), "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (cell,) = [event for event in events if event["event"] == "cell"]
    per_seed = rows()["head-mlp"]["knn"]["per_seed"]
    assert (cell["cell"], cell["seed"], cell["knn_top1"]) == ("head-mlp", 1, per_seed["1"])
    assert events[-1]["event"] == "result"
    assert events[-1]["rows"] == table()["rows"]


# Refused


def assert_refused(here: Path, capsys, command: str, says: str) -> None:
    before = digests(here)
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mvmae: ")
    assert says in line
    assert len(line) < 400
    assert digests(here) == before


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("ablate", "no TABLE: name one such as table6"),
        ("ablate tabel6", "unknown table 'tabel6': did you mean 'table6'"),
        ("ablate head images", "no labelled images to judge on: name them with --eval-data"),
        ("ablate head gone --eval-data labelled", "no such folder: gone"),
        (HEAD.replace("labelled", "gone"), "no such folder: gone"),
        (HEAD.replace("labelled", "images"), "are also trained on"),
        (HEAD.replace("--out table", "--out labelled/x"), "among the images of labelled"),
        (HEAD.replace("--out table", "--out table/base-0"), "is itself a run"),
        (HEAD.replace("--out table", "--out images/a/0.png"), "is a file"),
        (HEAD.replace("--out table", "--out new --only-table"), "nothing of head is finished"),
        (
            HEAD.replace("epochs 2", "epochs 3"),
            "was run with epochs 2, not 3: repeat those settings",
        ),
        (HEAD.replace("batch-size 8", "batch-size 19"), "18 images are fewer than its batch of 19"),
        (f"{HEAD} --baseline mpl", "--baseline: unknown row 'mpl': did you mean 'mlp'"),
        (f"{HEAD} --set betas 0.9 0.99", "2 values, which only grid takes"),
        (f"{HEAD} --set model.in-channels 5", "have 3 channels, not 5"),
        (f"{HEAD} --set group-regex zzz", "matches none of the 18 paths"),
        (f"{HEAD} --jobs 2 --only-table", "--only-table needs no --jobs"),
        (HEAD.replace("--seeds 0 1", "--seeds 1 1"), "seeds lists a value twice"),
        (HEAD.replace("--recipe demo", "--recipe dmo"), "no recipe 'dmo': did you mean 'demo'"),
        (HEAD.replace("--recipe demo", "--recipe table/head.json"), "is not a config of"),
        (HEAD.replace("ablate head", "ablate grid"), "a grid needs a field with two"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(here, capsys, command, says):
    assert_refused(here, capsys, command, says)


def test_other_images_of_training_are_refused(here, capsys):
    shutil.copy("images/a/0.png", "images/a/new.png")
    assert_refused(here, capsys, HEAD, "the images in images are not those that table/base-0")


def test_several_processes_of_one_run_are_refused(here, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(here, capsys, HEAD, "leave out torchrun")
