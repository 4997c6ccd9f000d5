"""`knn`, `probe`, `reconstruct`, `recipes` and help on a run of a second."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mvmae.cli import VERBS, main
from mvmae.recipes import RECIPES, VARIANTS
from mvmae.version import __version__

ROWS = ["run", "the same, untrained", "raw pixels"]
A_SECOND = (
    "--recipe demo --model.image-size 16 --model.decoder-dim 32 --batch-size 8 --epochs 2 "
    "--warmup-epochs 0 --device cpu --workers 0"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A run, and labelled images in two colours that a nearest neighbour tells apart."""
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


@pytest.fixture
def here(home, tmp_path, monkeypatch, capsys) -> Path:
    """A copy of `home`, in which commands are given; nothing has been said yet."""
    shutil.copytree(home, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    capsys.readouterr()
    return tmp_path / "here"


def result(file: Path | str) -> dict:
    return json.loads(Path(file).read_text())


def said(capsys) -> str:
    """What a person reads, in one line: tables are as wide as the terminal."""
    return " ".join(capsys.readouterr().out.split())


# knn and probe


@pytest.mark.parametrize("verb", ["knn", "probe"])
def test_evaluation_prints_a_table_and_keeps_the_numbers(here, capsys, verb):
    assert main([verb, "run", "images", "--workers", "0"]) == 0
    text = said(capsys)
    for row in ROWS:
        assert row in text
    for words in ("mean token", "class token", "16 images learn, 4 test", "chance 50.0"):
        assert words in text
    assert "every fifth image of each class tests" in text
    assert f"written: run/{verb}.json" in text

    kept = result(f"run/{verb}.json")
    assert kept["verb"] == verb
    assert kept["classes"] == ["blue", "red"]
    assert (kept["num_train"], kept["num_test"]) == (16, 4)
    assert kept["config"]["encoder"] == "run"
    assert kept["config"]["data"] == "images"
    assert kept["environment"]["mvmae"] == __version__
    assert [row["name"] for row in kept["rows"]] == ROWS
    assert [set(row["top1"]) for row in kept["rows"]] == [{"mean", "cls"}] * 2 + [{"pixels"}]
    assert all(0 <= score <= 100 for row in kept["rows"] for score in row["top1"].values())
    assert kept["headline"] == {"token": "mean", f"{verb}_top1": kept["rows"][0]["top1"]["mean"]}


@pytest.mark.parametrize("verb", ["knn", "probe"])
def test_two_colours_are_told_apart_by_their_pixels(here, capsys, verb):
    assert main([verb, "run", "images", "--workers", "0"]) == 0
    pixels = result(f"run/{verb}.json")["rows"][2]["top1"]["pixels"]
    assert pixels == 100
    assert "│ raw pixels │ 100.0 │" in said(capsys)


def test_evaluation_is_the_same_every_time(here):
    assert main(["knn", "run", "images", "--workers", "0"]) == 0
    first = result("run/knn.json")["rows"]
    assert main(["knn", "run", "images", "--workers", "1", "--batch-size", "3"]) == 0
    second = result("run/knn.json")["rows"]
    assert [row["top1"] for row in first] == [row["top1"] for row in second]


def test_probe_notes_the_strength_it_chose(here):
    assert main(["probe", "run", "images", "--costs", "0.5", "--workers", "0"]) == 0
    for row in result("run/probe.json")["rows"]:
        assert all(note == {"cost": 0.5, "converged": True} for note in row["notes"].values())


def test_baselines_can_be_left_out(here, capsys):
    assert main(["knn", "run", "images", "--no-baselines", "--workers", "0"]) == 0
    assert [row["name"] for row in result("run/knn.json")["rows"]] == ["run"]
    assert "untrained" not in said(capsys)


def test_result_goes_where_it_is_asked_to(here):
    assert main(["knn", "run", "images", "--out", "results/a.json", "--workers", "0"]) == 0
    assert result("results/a.json")["verb"] == "knn"
    assert not Path("run/knn.json").exists()


def test_fewer_images_can_be_asked_for(here, capsys):
    options = ["--max-train", "6", "--max-test", "3", "--workers", "0"]
    assert main(["knn", "run", "images", *options]) == 0
    assert "6 images learn, 3 test" in said(capsys)
    kept = result("run/knn.json")
    assert (kept["num_train"], kept["num_test"]) == (6, 3)


def test_encoder_file_and_checkpoint_are_judged_like_the_run(here):
    tops = []
    for number, encoder in enumerate(["run", "run/encoder.safetensors", "run/checkpoints/last.pt"]):
        file = f"{number}.json"
        assert main(["knn", encoder, "images", "--out", file, "--workers", "0"]) == 0
        tops.append([row["top1"] for row in result(file)["rows"]])
    assert tops[0] == tops[1] == tops[2]


def test_another_size_of_input_is_judged(here):
    assert main(["knn", "run", "images", "--image-size", "24", "32", "--workers", "0"]) == 0
    assert result("run/knn.json")["config"]["image_size"] == [24, 32]


def test_random_encoder_is_judged_and_leaves_nothing(here, capsys):
    before = sorted(here.rglob("*"))
    options = ["--image-size", "64", "--workers", "0", "--no-baselines"]
    assert main(["knn", "random:vit_pico", "images", *options]) == 0
    text = said(capsys)
    assert "random:vit_pico" in text
    assert "written" not in text
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("size", ["16", "32"])
def test_random_encoder_takes_any_multiple_of_its_patch(here, size):
    command = ["knn", "random:vit_pico", "images", "--image-size", size, "--workers", "0"]
    assert main(command) == 0


def test_folders_of_both_parts_are_judged_as_they_are(here, capsys):
    for part in ("train", "val"):
        shutil.copytree("images", f"split/{part}")
    assert main(["knn", "run", "split", "--workers", "0"]) == 0
    assert "20 images learn, 20 test (train/ and val/)" in said(capsys)


@pytest.mark.parametrize("verb", ["knn", "probe"])
def test_images_that_cannot_be_judged_are_mentioned(here, capsys, verb):
    for name in ("blue/0", "red/1"):
        Path(f"images/{name}.png").write_bytes(b"no image")
    assert main([verb, "run", "images", "--workers", "0"]) == 0
    text = said(capsys)
    assert "15 images learn, 3 test" in text
    assert "could not be read" in text or "cannot be read" in text


@pytest.mark.parametrize("verb", ["knn", "probe"])
def test_brackets_in_a_name_are_no_markup(here, capsys, verb):
    Path("run").rename("run[final]")
    Path("images").rename("images[old]")
    options = ["--workers", "0", "--no-baselines"]
    assert main([verb, "run[final]", "images[old]", *options]) == 0
    text = said(capsys)
    assert "on images[old] (" in text
    assert "│ run[final] │" in text
    assert f"run[final]/{verb}.json" in text


# reconstruct


def test_reconstructions_are_a_picture_in_the_run_folder(here, capsys):
    assert main(["reconstruct", "run", "images", "--count", "3"]) == 0
    assert said(capsys) == "written: run/figures/reconstructions.png"
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
        "import sys; from mvmae.cli import main\n"
        "for args in ([], ['--help'], ['--version'], ['recipes'], ['pretian']):\n"
        "    main(args)\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(capsys, args):
    assert main(args) == 0
    text = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f"  {name} " in text
        assert verb.summary in text


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_names_its_options(capsys, verb):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"mvmae {verb}" in text
    assert "--out" in text
    assert "--device" in text


def test_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mvmae {__version__}\n"


def test_recipes_are_listed_with_a_sentence_each(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, recipe in RECIPES.items():
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
    assert done.stderr.startswith("mvmae: no verb 'pretian'")


def test_mistake_is_told_where_the_terminal_knows_no_unicode():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = program("pretrain", "--epohcs", "3", env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("mvmae: no option --epohcs: did you mean --epochs?")


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
