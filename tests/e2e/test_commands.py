"""`reconstruct`, `recipes` and help on a run of a second."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image
from run_folders import read_output

from mvmae.cli.commands import COMMANDS
from mvmae.cli.main import main
from mvmae.recipes.pretrain import PRETRAIN, VARIANTS
from mvmae.version import __version__

A_SECOND = (
    "--recipe demo --model.image-size 16 --model.decoder-dim 32 --batch-size 8 --epochs 2 "
    "--warmup-epochs 0 --device cpu --workers 0"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A run, and images in two colours."""
    home = tmp_path_factory.mktemp("home")
    for label, colour in (("blue", (20, 40, 200)), ("red", (200, 40, 20))):
        (home / "images" / label).mkdir(parents=True)
        for index in range(10):
            shade = tuple(value + 3 * index for value in colour)
            Image.new("RGB", (20, 16), shade).save(home / "images" / label / f"{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(f"pretrain images --out run {A_SECOND}".split()) == 0
    return home


# reconstruct


def test_reconstructions_are_a_picture_in_the_run_folder(here, capsys):
    assert main(["reconstruct", "run", "images", "--count", "3"]) == 0
    assert read_output(capsys) == "written: run/figures/reconstructions.png"
    with Image.open("run/figures/reconstructions.png") as picture:
        assert picture.format == "PNG"
        width, height = picture.size
    assert main(["reconstruct", "run", "images", "--count", "1", "--out", "a/one.png"]) == 0
    with Image.open("a/one.png") as picture:
        assert picture.width == width
        assert picture.height < height


def test_reconstructions_are_the_same_for_a_seed(here):
    for name, options in {
        "a": [],
        "b": [],
        "seed": ["--seed", "1"],
        "ratio": ["--mask-ratio", "0.5"],
        "leak": ["--statistics", "target"],
    }.items():
        command = ["reconstruct", "run", "images", "--count", "2", "--out", f"{name}.png"]
        assert main([*command, *options]) == 0
    pictures = {file.stem: file.read_bytes() for file in here.glob("*.png")}
    assert pictures["a"] == pictures["b"]
    assert len(set(pictures.values())) == 4


def test_more_pictures_than_images_are_all_images(here):
    assert main(["reconstruct", "run", "images/red", "--count", "50", "--out", "a.png"]) == 0
    with Image.open("a.png") as picture:
        assert picture.height > picture.width


def test_images_that_cannot_be_read_are_passed_over(here):
    for index in range(9):
        Path(f"images/red/{index}.png").write_bytes(b"no image")
    assert main(["reconstruct", "run", "images/red", "--count", "2"]) == 0
    assert Path("run/figures/reconstructions.png").exists()


def test_dollars_in_a_file_name_do_not_stop_the_picture(here):
    Path("images/red/0.png").rename(r"images/red/a$\frac$.png")
    assert main(["reconstruct", "run", "images/red", "--count", "10"]) == 0


# help


def program(*args: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mvmae", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_help_and_recipes_do_without_torch():
    code = (
        "import sys; from mvmae.cli.main import main\n"
        "for args in ([], ['--help'], ['--version'], ['recipes'], ['pretian']):\n"
        "    main(args)\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(capsys, args):
    assert main(args) == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in text
        assert command.summary in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_names_its_options(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"mvmae {command}" in text
    own = {field.name for field in fields(COMMANDS[command].config)}
    for name in {"out", "device", "data"} & own:
        assert f"--{name}" in text or name.upper() in text or (name == "out" and "DST" in text)


def test_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mvmae {__version__}\n"


def test_recipes_are_listed_with_a_sentence_each(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, recipe in PRETRAIN.items():
        assert any(line.split()[:1] == [name] and recipe.summary in line for line in lines)
    for name in VARIANTS:
        assert any(line.split()[:1] == [f"+{name}"] for line in lines)
    assert max(map(len, lines)) <= 100


def test_program_is_a_module_too():
    done = program("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"mvmae {__version__}\n", "")


def test_mistake_is_the_programs_exit_status():
    done = program("pretian")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("mvmae: no command 'pretian'")


def test_mistake_is_told_where_the_terminal_knows_no_unicode():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = program("pretrain", "--epohcs", "3", env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("mvmae: unknown option --epohcs: did you mean --epochs?")


def test_reader_that_went_away_is_no_error():
    """As in `mvmae recipes | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mvmae", "recipes"]
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    try:
        done = subprocess.run(
            command, env=buffered, stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 0
