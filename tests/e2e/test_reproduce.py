"""Each command of docs/reproduce.md, for two steps on small stand-ins.

Options that make it small are appended: sizes, epochs, the device. The recipe stays, and its
settings (the mask ratio, lambda, the decoder, the targets) are found in the run's config.
"""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from coco_data import write_split
from masks_data import make_stripes, save_pair
from PIL import Image
from run_folders import metrics

from mvmae import recipes
from mvmae.ablate.plan import make_plan
from mvmae.cli.commands import COMMANDS
from mvmae.cli.main import main
from mvmae.cli.parse import parse

PAGE = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
EVERY = [
    shlex.split(line, comments=True)
    for kind, block in FENCED
    for line in block.splitlines()
    if not kind and line.startswith("mvmae ")
]
LINES = [words for words in EVERY if words[1] != "ablate"]
TABLES = [words for words in EVERY if words[1] == "ablate"]
COMMON = "--device cpu --workers 0"
SMALL = {
    "pretrain": "--model.encoder vit_pico --model.image-size 48 --model.patch-size 8 "
    f"--model.decoder-dim 32 --batch-size 4 --epochs 1 --warmup-epochs 0 --log-every 1 {COMMON}",
    "finetune": f"--batch-size 4 --epochs 1 --warmup-epochs 0 --log-every 1 {COMMON}",
    "probe": f"--step-size 4 --batch-size 4 --epochs 1 --warmup-epochs 0 {COMMON}",
    "detect": "--image-size 64 --window 2 --channels 16 --hidden 16 --samples 16 --proposals 40 "
    f"--batch-size 2 --epochs 1 --warmup-epochs 0 --log-every 1 {COMMON}",
    "segment": "--crop 32 --short-side 32 --channels 8 --auxiliary-channels 8 --batch-size 4 "
    f"--iterations 2 --warmup-iterations 0 --eval-every 2 --log-every 1 {COMMON}",
}


def command_and_recipe(words: list[str]) -> str:
    return f"{words[1]} {words[words.index('--recipe') + 1]}"


def in_line() -> list[list[str]]:
    """Commands within sentences and tables, and behind torchrun."""
    marked = re.findall(r"`((?:torchrun .*?-m )?mvmae [^`]+)`", PAGE)
    behind = [line.split(" -m ")[1] for line in PAGE.splitlines() if line.startswith("torchrun")]
    return [shlex.split(re.sub(r"^torchrun .*? -m ", "", one)) for one in marked + behind]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with what the commands name: imagenet, coco, ade20k, and a run at runs/paper."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("n01440764", "n02102040"):
            folder = home / "imagenet" / part / label
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{part}_{number}.JPEG")
    write_split(home / "coco", "train2017", images="train2017")
    write_split(home / "coco", "val2017", images="val2017", count=2, seed=1)
    for part, count in (("training", 8), ("validation", 2)):
        for number in range(count):
            save_pair(
                home / "ade20k", f"{part}{number}", make_stripes(0, 1, 2, size=(40, 50)), part
            )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        data = "pretrain imagenet/train --recipe paper --out runs/paper"
        assert main([*data.split(), *SMALL["pretrain"].split()]) == 0
    return home


def test_the_page_has_the_commands_of_every_command():
    commands = [words[1] for words in LINES]
    assert {command: commands.count(command) for command in SMALL} == {
        "pretrain": 22,
        **dict.fromkeys(("finetune", "probe", "detect", "segment"), 1),
    }


@pytest.mark.parametrize("words", LINES, ids=command_and_recipe)
def test_each_command_is_read_and_is_its_recipe(words):
    config = parse(words[1], words[2:])
    assert isinstance(config, COMMANDS[words[1]].config)
    recipe = recipes.named(words[1], words[words.index("--recipe") + 1])
    given = {"encoder", "data", "out"} | ({"epochs", "warmup_epochs"} & as_fields(words))
    for field in recipe.__dataclass_fields__:
        if field not in given:
            assert getattr(config, field) == getattr(recipe, field), field


@pytest.mark.parametrize("words", TABLES, ids=lambda words: f"{words[2]} {words[3]}")
def test_each_table_is_a_plan_of_the_sizes_it_says(words):
    plan = make_plan(parse("ablate", words[2:]))
    settings = dict(pairwise(words))
    assert plan.recipe_config.epochs == int(settings["epochs"])
    assert plan.recipe_config.model.encoder == settings["model.encoder"]
    assert (
        plan.recipe_config.objective.contrastive_weight,
        plan.recipe_config.model.mask_ratio,
    ) == (2.0, 0.8)
    views = {row.config.epochs * row.config.views.num_views for row in plan.rows}
    assert plan.recipe_config.epochs * 2 in views


def test_the_tables_for_a_gpu_are_there():
    assert [words[2] for words in TABLES] == ["table6", "table5-lambda", "views", *["grid"] * 4]


def as_fields(words: list[str]) -> set[str]:
    return {word[2:].replace("-", "_") for word in words if word.startswith("--")}


def test_commands_within_sentences_are_read_too():
    found = [words for words in in_line() if words[1] != "recipes" and "..." not in words]
    assert {words[1] for words in found} >= {"ablate", "finetune", "pretrain"}
    for words in found:
        config = parse(words[1], words[2:])
        assert isinstance(config, COMMANDS[words[1]].config)


def run(home: Path, words: list[str], out: str) -> Path:
    """Run a command from the page, made small, with its own output folder."""
    small = [*words[1:], *SMALL[words[1]].split()]
    if "--out" in small:
        at = small.index("--out")
        del small[at : at + 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main([*small, "--out", out]) == 0
    return home / out


PRETRAINED = [words for words in LINES if words[1] == "pretrain"]


@pytest.mark.parametrize("words", PRETRAINED, ids=command_and_recipe)
def test_each_pretraining_takes_its_steps(words, home):
    out = run(home, words, f"new/{words[words.index('--recipe') + 1]}")
    lines = metrics(out)
    assert [line["step"] for line in lines] == [1, 2]
    config = json.loads((out / "config.json").read_text())
    recipe = recipes.named("pretrain", words[words.index("--recipe") + 1])
    assert config["model"]["mask_ratio"] == recipe.model.mask_ratio
    assert config["model"]["decoder_depth"] == recipe.model.decoder_depth
    assert config["objective"]["contrastive_weight"] == recipe.objective.contrastive_weight
    assert config["views"]["targets"] == recipe.views.targets
    assert ("contrastive" in lines[-1]) == (recipe.objective.contrastive_weight > 0)


def test_fine_tuning_takes_its_steps(home):
    out = run(home, only_line("finetune"), "new/finetune")
    assert [line["step"] for line in metrics(out) if "loss" in line] == [1, 2]
    result = json.loads(next((out / "results").iterdir()).read_text())
    assert result["config"]["layer_decay"] == 0.65
    assert 0 <= result["headline"]["top1"] <= 100


def test_the_probe_takes_its_steps(home):
    out = run(home, only_line("probe"), "new/probe")
    result = json.loads(next((out / "results").iterdir()).read_text())
    assert result["config"]["protocol"] == "mae"
    assert result["config"]["base_lr"] == 0.1


@pytest.mark.slow
def test_detection_takes_its_steps(home):
    out = run(home, only_line("detect"), "new/detect")
    assert [line["step"] for line in metrics(out) if "loss" in line] == [1, 2]
    result = json.loads(next((out / "results").iterdir()).read_text())
    assert {"box_ap", "mask_ap"} <= result["headline"].keys()


@pytest.mark.slow
def test_segmentation_takes_its_steps(home):
    out = run(home, only_line("segment"), "new/segment")
    assert [line["step"] for line in metrics(out) if "loss" in line] == [1, 2]
    result = json.loads(next((out / "results").iterdir()).read_text())
    assert 0 <= result["headline"]["miou"] <= 100


def only_line(command: str) -> list[str]:
    (words,) = [words for words in LINES if words[1] == command]
    return words
