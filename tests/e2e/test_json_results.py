"""With --json every command ends with one line that says which command it was."""

import json
from pathlib import Path

import numpy as np
import pytest
from coco_data import write_both
from PIL import Image

from mvmae.cli.commands import COMMANDS
from mvmae.cli.main import main

MACHINE = "--device cpu --workers 0"
SMALL = "--model.image-size 16 --model.decoder-dim 32 --batch-size 8 --epochs 1 --warmup-epochs 0"
A_SECOND = f"--recipe demo {SMALL} {MACHINE}"
TOGETHER = " ".join(f"--set {word}" for word in SMALL.removeprefix("--").split(" --"))
SEGMENT = (
    "--recipe small --crop 16 --stride 10 --short-side 20 --channels 8 --auxiliary-channels 8 "
    "--batch-size 4 --iterations 2 --warmup-iterations 0 --eval-every 2"
)
DETECT = (
    "--recipe small --image-size 64 --batch-size 2 --epochs 1 --warmup-epochs 0 --channels 16 "
    "--hidden 16 --samples 16 --proposals 40"
)
WORDS = {
    "pretrain": f"pretrain images --out fresh {A_SECOND}",
    "knn": "knn run images --workers 0",
    "probe": "probe run images --workers 0",
    "finetune": f"finetune run images --out tuned --batch-size 8 --epochs 1 --warmup-epochs 0 "
    f"{MACHINE}",
    "segment": f"segment run masks --out segmented {SEGMENT} {MACHINE}",
    "detect": f"detect random:vit_pico coco --out detected {DETECT} {MACHINE}",
    "labels": "labels run images --shares 0.5 1.0 --draws 2 --workers 0",
    "ablate": (
        f"ablate head images --eval-data others --recipe demo {TOGETHER} --seeds 0 --probe none "
        f"--out table {MACHINE}"
    ),
    "embed": "embed run images --workers 0",
    "reconstruct": "reconstruct run images --count 1",
    "attention": "attention run images --count 1",
    "features": "features run images --draw pca --workers 0",
    "curves": "curves run",
    "report": "report run --count 1",
    "data check": "data check images --workers 1",
    "data pack": "data pack images packed --workers 1",
    "data stats": "data stats images --workers 0",
    "data show": "data show images --count 1 --recipe run/config.json",
    "show": "show run",
    "export": "export run --format safetensors",
}
SLOW = {"data pack", "labels", "ablate"}  # 5 to 35 s on a busy machine


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Images of two classes, with masks, with boxes, and a run."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for label in ("images/blue", "images/red", "others/blue", "others/red"):
        (home / label).mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 256, (24, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(home / label / f"{index}.png")
    for part in ("training", "validation"):
        for kind in ("images", "annotations"):
            (home / "masks" / kind / part).mkdir(parents=True)
        for index in range(4):
            values = np.ones((24, 30), np.uint8)
            values[5:15, 5 + index : 20] = 2
            colours = np.array([[0, 0, 0], [30, 60, 200], [200, 60, 30]], np.uint8)
            Image.fromarray(values).save(home / f"masks/annotations/{part}/{index}.png")
            Image.fromarray(colours[values]).save(home / f"masks/images/{part}/{index}.png")
    (home / "coco").mkdir()
    write_both(home / "coco")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(f"pretrain images --out run --log-every 1 {A_SECOND}".split()) == 0
    return home


def test_every_command_is_tried():
    assert WORDS.keys() == COMMANDS.keys() - {"explore"}  # which is tried in test_explore.py


@pytest.mark.parametrize(
    "command",
    [pytest.param(command, marks=[pytest.mark.slow] * (command in SLOW)) for command in WORDS],
)
def test_the_last_line_is_the_result_of_the_command(home, monkeypatch, capsys, command):
    monkeypatch.chdir(home)
    capsys.readouterr()
    assert main([*WORDS[command].split(), "--json"]) in (0, 1 if command == "data check" else 0)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (lines[-1]["event"], lines[-1]["command"]) == ("result", command)
    results = [line["command"] for line in lines if line["event"] == "result"]
    assert results.count(command) == 1
    assert set(results) == (
        {"pretrain", command} if command == "ablate" else {command}
    )  # and of its runs


def test_recipes_are_told_in_json(capsys):
    for words in (["recipes", "--json"], ["--json", "recipes"]):
        assert main(words) == 0
        (line,) = map(json.loads, capsys.readouterr().out.splitlines())
        assert (line["event"], line["command"]) == ("result", "recipes")
        assert line["recipes"]["pretrain"]["demo"].startswith("The built-in photographs")
    assert main(["recipes", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_steps_of_curves_are_whole_numbers(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    capsys.readouterr()
    assert main(["curves", "run", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert type(run["step"]) is type(run["images"]) is int
