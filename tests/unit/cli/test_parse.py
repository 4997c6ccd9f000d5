import io
import json
import re
import sys
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mvmae.cli.commands import COMMANDS
from mvmae.cli.main import main, usage
from mvmae.cli.parse import parse
from mvmae.config.evaluation import KnnConfig, LabelsConfig, ProbeConfig
from mvmae.config.files import to_json
from mvmae.config.pretrain import PretrainConfig
from mvmae.errors import UserError, suggest
from mvmae.recipes import named
from mvmae.recipes.pretrain import PRETRAIN, VARIANTS
from mvmae.version import __version__

pretraining = partial(named, "pretrain")

MINIMAL = {
    "pretrain": [],
    "knn": ["run"],
    "probe": ["run"],
    "labels": ["run"],
    "ablate": ["table6"],
    "embed": ["run"],
    "finetune": ["run"],
    "detect": ["run", "data"],
    "reconstruct": ["run"],
    "attention": ["run"],
    "report": ["run"],
    "explore": ["run"],
    "features": ["run"],
    "curves": ["run"],
    "segment": ["run", "data"],
    "show": ["run"],
    "export": ["run", "--format", "timm"],
    "data check": ["images"],
    "data pack": ["images", "shards"],
    "data stats": ["images"],
    "data show": ["images"],
}


CHOOSE = "(--warmup-epochs chooses another)\n"


def read_config(command: str, *args: str):
    return parse(command, list(args))


def complaint(command: str, *args: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(command, list(args))
    return str(caught.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses_with_the_least(command):
    assert isinstance(read_config(command, *MINIMAL[command]), COMMANDS[command].config)


@pytest.mark.parametrize("name", PRETRAIN)
def test_every_recipe_parses_to_itself(name):
    assert read_config("pretrain", "--recipe", name) == pretraining(name)


@pytest.mark.parametrize("base", sorted(PRETRAIN.keys() - {"mae", "contrast-only"}))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_every_recipe_parses_to_itself(base, variant):
    name = f"{base}+{variant}"
    if name == "no-contrast+contrast-only":
        assert "both losses have weight 0" in complaint("pretrain", "--recipe", name)
    else:
        assert read_config("pretrain", f"--recipe={name}") == pretraining(name)


# What pretrain starts from


def test_without_data_it_is_the_demo():
    assert read_config("pretrain") == pretraining("demo")
    assert read_config("pretrain", "photos", "--epochs", "3") == replace(
        pretraining("demo"), epochs=3
    )


@pytest.mark.parametrize(("cuda", "recipe"), [(False, "tiny-cpu"), (True, "vit-small-128")])
def test_own_images_get_a_recipe_for_this_machine_and_are_told_so(
    cuda, recipe, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert read_config("pretrain", "cats/") == replace(pretraining(recipe), data=("cats/",))
    assert read_config("pretrain", "cats/", "dogs/").data == ("cats/", "dogs/")
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"recipe: {recipe} ({PRETRAIN[recipe].summary} --recipe chooses another)"


def test_a_named_recipe_is_not_announced(capsys):
    assert read_config("pretrain", "cats/", "--recipe", "tiny-cpu").data == ("cats/",)
    assert capsys.readouterr().out == ""


def test_a_config_file_is_a_recipe(tmp_path):
    config = replace(pretraining("demo+mae"), seed=5)
    file = tmp_path / "config.json"
    file.write_text(to_json(config))
    assert read_config("pretrain", "--recipe", str(file)) == config
    assert read_config("pretrain", "--recipe", str(file), "--seed", "6") == replace(config, seed=6)


def test_a_resumed_run_brings_its_own_config(tmp_path):
    config = replace(pretraining("demo"), out=tmp_path, epochs=77)
    (tmp_path / "config.json").write_text(to_json(config))
    for args in (["--resume", "--out", str(tmp_path)], [f"--out={tmp_path}", "--resume"]):
        assert read_config("pretrain", *args) == replace(config, resume=True)


def test_where_there_is_no_run_nothing_is_resumed(tmp_path):
    told = complaint("pretrain", "--resume", "--out", str(tmp_path))
    assert told == f"no run in {tmp_path} to resume: leave out --resume to begin one"


# Fields by name


def test_fields_of_every_depth_can_be_set():
    config = read_config(
        *("pretrain", "a", "b", "--recipe", "demo", "--epochs", "5", "--out", "there"),
        *("--model.mask-ratio", "0.5", "--model.image-size", "32", "64", "--views.flip", "none"),
        *("--objective.temperature", "0.2", "--objective.no-normalize-targets"),
        *("--betas", "0.9", "0.99", "--clip-grad", "1", "--log", "tensorboard", "--overwrite"),
    )
    demo = pretraining("demo")
    assert config == replace(
        demo,
        data=("a", "b"),
        epochs=5,
        out=Path("there"),
        model=replace(demo.model, mask_ratio=0.5, image_size=(32, 64)),
        views=replace(demo.views, flip="none"),
        objective=replace(demo.objective, temperature=0.2, normalize_targets=False),
        betas=(0.9, 0.99),
        clip_grad=1.0,
        log=("tensorboard",),
        overwrite=True,
    )


def test_an_option_can_be_set_back_to_none():
    assert read_config("pretrain", "--workers", "None", "--clip-grad", "None") == named(
        "pretrain", "demo"
    )


def test_evaluations_take_an_encoder_and_data():
    config = read_config("knn", "runs/a", "pets/", "--k", "5", "--no-baselines", "--out", "there")
    assert config == KnnConfig(
        encoder="runs/a", data="pets/", k=(5,), baselines=False, out=Path("there")
    )
    assert read_config("probe", "runs/a").data == "photos"
    assert read_config("probe", "runs/a", "--costs", "1", "2").costs == (1.0, 2.0)
    assert read_config("reconstruct", "runs/a", "cats", "dogs").data == ("cats", "dogs")
    labels = read_config(
        "labels", "runs/a", "pets/", "--against", "timm:b", "c", "--per-class", "5"
    )
    assert (labels.against, labels.per_class) == (("timm:b", "c"), (5,))


# A result, or a config, that is asked for again


def write_result(folder: Path, command: str, config) -> str:
    """A result as the commands write it, and a file of its name."""
    file = folder / f"{command}-pets.json"
    file.write_text(
        json.dumps({"command": command, "config": json.loads(to_json(config)), "rows": []})
    )
    return str(file)


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("knn", KnnConfig(encoder="runs/a", data="pets/", k=(1, 3), out=Path("there"))),
        ("probe", ProbeConfig(encoder="timm:a", protocol="mae", epochs=30, costs=(1.0,))),
        ("labels", LabelsConfig(encoder="b.pth", against=("c", "d"), per_class=(2,), seed=4)),
    ],
)
def test_a_result_is_a_recipe_of_its_command(tmp_path, command, config):
    file = write_result(tmp_path, command, config)
    assert read_config(command, "--recipe", file) == config
    assert read_config(command, f"--recipe={file}", "--seed", "9") == replace(config, seed=9)
    assert read_config(command, "another", "--recipe", file) == replace(config, encoder="another")
    (tmp_path / "config.json").write_text(to_json(config))
    assert read_config(command, "--recipe", str(tmp_path / "config.json")) == config


def test_a_result_of_another_command_is_no_recipe(tmp_path):
    file = write_result(tmp_path, "knn", KnnConfig(encoder="run"))
    assert complaint("probe", "--recipe", file) == f"{file} is a result of mvmae knn, not of probe"


@pytest.mark.parametrize("command", ["knn", "probe", "labels"])
def test_evaluations_have_no_recipe_of_a_name(command):
    assert complaint(command, "run", "--recipe", "demo").startswith(
        f"{command} has no recipe 'demo'"
    )
    assert complaint(command, "run", "--recipe", "a.json", "--recipe", "b.json") == (
        "--recipe is given twice"
    )


# What is refused, in one line


REFUSED = [
    (["pretian"], "no command 'pretian': did you mean 'pretrain'? (`mvmae --help` lists them)"),
    (["recipe"], "no command 'recipe': did you mean 'recipes'?"),
    (["xyz"], "no command 'xyz' (`mvmae --help` lists them)"),
    (["pretrain", "--epochs", "ten"], "--epochs: 'ten' is not a whole number"),
    (["pretrain", "--epochs", "1.5"], "--epochs: '1.5' is not a whole number"),
    (["pretrain", "--base-lr", "fast"], "--base-lr: 'fast' is not a number"),
    (["pretrain", "--epochs"], "mvmae: --epochs needs a value (`mvmae"),
    (["pretrain", "--betas", "1"], "mvmae: --betas needs a value (`mvmae"),
    (["pretrain", "--betas", "1", "x"], "mvmae: --betas 1 x: give two numbers (`mvmae"),
    (["pretrain", "--clip-grad", "x"], "mvmae: --clip-grad x: give a number (`mvmae"),
    (["pretrain", "--workers", "1.5"], "mvmae: --workers 1.5: give a whole number (`mvmae"),
    (
        ["pretrain", "--model.image-size", "abc"],
        "mvmae: --model.image-size abc: give a whole number, or height and width (`mvmae",
    ),
    *(
        (
            ["knn", "run", "--image-size", *given],
            f"mvmae: {' '.join(['--image-size', *given])}: "
            "give a whole number, or height and width (`mvmae",
        )
        for given in (["abc"], ["64", "64", "64"], ["64", "x"], [])
    ),
    (["knn", "run", "--k", "nan"], "mvmae: --k nan: give whole numbers (`mvmae"),
    (["labels", "run", "--shares", "0.1", "x"], "mvmae: --shares 0.1 x: give numbers (`mvmae"),
    (["export", "run"], "mvmae: --format is missing (`mvmae"),
    (["export"], "mvmae: ENCODER and --format are missing (`mvmae"),
    (["knn", "--kk", "3"], "mvmae: ENCODER is missing (`mvmae"),
    (["pretrain", "--epoch", "3"], "unknown option --epoch: did you mean --epochs?"),
    (["pretrain", "--epoch=3"], "unknown option --epoch: did you mean --epochs?"),
    (
        ["pretrain", "--model.mask-ration", "0.3"],
        "unknown option --model.mask-ration: did you mean --model.mask-ratio?",
    ),
    (["pretrain", "--zzzz"], "unknown option --zzzz (`mvmae pretrain --help` lists the options)"),
    (["pretrain", "--model.encoder", "vit_bas"], "invalid choice 'vit_bas'"),
    (["pretrain", "--model.mask-ratio", "1.3"], "mask_ratio must be between 0 and 1, not 1.3"),
    (["pretrain", "--model.image-size", "225"], "image_size 225 is not a multiple of patch_size 4"),
    (["pretrain", "--batch-size", "1"], "contrast needs other images to compare with"),
    (["pretrain", "--recipe"], "--recipe needs a value"),
    (["pretrain", "--recipe", "--epochs", "3"], "--recipe needs a value"),
    (["pretrain", "--recipe", "papr"], "no recipe 'papr': did you mean 'paper'?"),
    (["pretrain", "--recipe", "demo+ma"], "no variant 'ma': did you mean 'mae'?"),
    (["pretrain", "--recipe", "nowhere/config.json"], "cannot read nowhere/config.json: "),
    (["pretrain", "cats/", "--epoch", "3"], "unknown option --epoch: did you mean --epochs?"),
    (["knn"], "mvmae: ENCODER is missing (`mvmae knn --help` lists the options)\n"),
    (["knn", "run", "--k", "0"], "k must be at least 1, not 0"),
    (["knn", "run", "--kk", "3"], "unknown option --kk: did you mean --k?"),
    (["probe", "run", "--costs", "0"], "costs must be finite and above 0"),
    (["recipes", "papr"], "no recipe 'papr': did you mean 'paper'?"),
]


class Pipe(io.StringIO):
    """Output of a shell script; tyro draws its boxes by the encoding that it finds here."""

    encoding = "utf-8"


@pytest.mark.parametrize(("args", "message"), REFUSED)
def test_what_cannot_be_understood_is_one_plain_line_and_status_2(
    args, message, capsys, monkeypatch
):
    out = Pipe()
    monkeypatch.setattr(sys, "stdout", out)
    assert main(args) == 2
    err = capsys.readouterr().err
    assert out.getvalue() == ""
    assert err.startswith("mvmae: ")
    assert err.count("\n") == 1
    assert message in err
    assert not set("│╭╰─") & set(err)


def test_a_damaged_config_file_is_named(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"epoch": 3}')
    assert complaint("pretrain", "--recipe", str(file)) == (
        f"unknown key 'epoch': did you mean 'epochs'? @ {file}"
    )
    file.write_bytes(b"\xff\xfe")
    assert complaint("pretrain", "--recipe", str(file)).startswith(f"cannot read {file}: ")


def test_the_nearest_name_is_meant_where_there_is_one():
    assert suggest("demi", ["demo", "paper"]) == ": did you mean 'demo'?"
    assert suggest("xyz", ["demo", "paper"]) == ""


# What is printed


def test_help_names_every_command():
    text = usage()
    assert all(f"  {name} " in text for name in (*COMMANDS, "recipes"))
    assert all(command.summary in text for command in COMMANDS.values())


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]])
def test_asking_for_help_succeeds(args, capsys):
    assert main(args) == 0
    assert capsys.readouterr().out == usage() + "\n"


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mvmae {__version__}\n"


def test_recipes_and_variants_are_listed_with_their_sentences(capsys):
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    for name, recipe in PRETRAIN.items():
        assert f"  {name} " in out
        assert recipe.summary in out
    for name in VARIANTS:
        assert f"+{name} " in out
    assert max(len(line) for line in out.splitlines()) <= 100


def options_of_pretrain() -> list[str]:
    """Every field of a pre-training as the command line spells it."""
    config, names = PretrainConfig(), []
    for field in fields(config):
        part = getattr(config, field.name)
        inner = fields(part) if is_dataclass(part) else ()
        names += [f"{field.name}.{one.name}" for one in inner] or [field.name]
    names.remove("data")
    return [f"--{name.replace('_', '-')}" for name in names]


def test_help_of_a_command_names_every_option(capsys):
    assert main(["pretrain", "--help"]) == 0
    out = capsys.readouterr().out
    assert [name for name in options_of_pretrain() if not re.search(rf"{name}[\s,]", out)] == []
    assert "DATA" in out


class Screen(io.StringIO):
    """A terminal, or a file; tyro draws its boxes by the encoding that it finds here."""

    def __init__(self, encoding: str, *, terminal: bool) -> None:
        super().__init__()
        self._encoding, self._terminal = encoding, terminal

    @property
    def encoding(self) -> str:
        return self._encoding

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "cp1252"])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pretrain", "--epoch", "3"], "unknown option --epoch: did you mean --epochs? (`mvmae"),
        (["pretrain", "--epochs", "ten"], "--epochs: 'ten' is not a whole number (`mvmae"),
        (["pretrain", "--model.mask-ratio", "1.3"], "mask_ratio must be between 0 and 1, not 1.3"),
        (["knn"], "mvmae: ENCODER is missing (`mvmae knn --help` lists the options)\n"),
    ],
)
def test_a_complaint_reads_the_same_on_every_screen(
    args, message, encoding, terminal, capsys, monkeypatch
):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", Screen(encoding, terminal=terminal))
    assert main(args) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "\x1b" not in err


@pytest.mark.parametrize("flag", ["--accumulate", "--accum-iter", "--gradient-accumulation-steps"])
def test_gradient_accumulation_that_would_shrink_the_negatives_is_not_offered(flag, capsys):
    """Item 9 of our fidelity list asks for a warning; there is nothing to warn of."""
    assert main(["pretrain", flag, "2"]) == 2
    assert f"unknown option {flag}" in capsys.readouterr().err


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_warm_up_that_would_be_all_of_few_epochs_keeps_its_share(command, named, capsys):
    recipe = {"pretrain": "tiny-cpu", "finetune": "small-finetune"}[command]
    words = ["my_images"] if command == "pretrain" else ["run", "data"]
    words += ["--recipe", recipe] if named else []
    assert read_config(command, *words, "--epochs", "1").warmup_epochs == pytest.approx(0.1)
    said = capsys.readouterr().out
    assert said.endswith("warm-up: 0.1 of 1 epoch, for the recipe's 2 would be all " + CHOOSE)
    assert read_config(command, *words, "--epochs=2").warmup_epochs == pytest.approx(0.2)
    assert read_config(command, *words, "--epochs", "1", "--epochs", "2").warmup_epochs == 0.2
    assert "warm-up: 0.2 of 2 epochs" in capsys.readouterr().out
    assert read_config(command, *words, "--epochs", "1", "--epochs", "3").warmup_epochs == 2
    assert "warm-up" not in capsys.readouterr().out


def test_a_warm_up_that_is_named_is_not_changed(capsys):
    words = ["--recipe", "tiny-cpu", "--epochs", "1"]
    for flag in ("--warmup-epochs", "--warmup_epochs"):
        assert read_config("pretrain", *words, flag, "0.5").warmup_epochs == 0.5
        assert "less than epochs 1" in complaint("pretrain", *words, flag, "2")
        assert "less than epochs 1" in complaint("pretrain", *words, f"{flag}=2")
    for wrong in ("0", "-1", "x", "1.5", "\u00b2", "9" * 5000):
        assert complaint("pretrain", "--recipe", "tiny-cpu", "--epochs", wrong)
    assert complaint("pretrain", *words, "--views.color-jitter", "7")
    assert capsys.readouterr().out == ""


def test_without_images_or_recipe_a_single_epoch_is_the_demos(capsys):
    assert read_config("pretrain", "--epochs", "1").warmup_epochs == pytest.approx(0.125)
