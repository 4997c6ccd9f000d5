"""No command replaces a file at --out that it did not write; what it wrote it writes again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvmae.cli.main import main

A_SECOND = (
    "--recipe demo --model.image-size 16 --model.decoder-dim 32 --batch-size 8 --epochs 1 "
    "--warmup-epochs 0 --log-every 1 --device cpu --workers 0"
)
COMMANDS = {
    "attention": ("attention run images --count 1 --out {}", "a.png"),
    "reconstruct": ("reconstruct run images --count 1 --out {}", "a.png"),
    "data show": ("data show images --count 1 --recipe run/config.json --out {}", "a.png"),
    "curves png": ("curves run --out {}", "a.png"),
    "curves svg": ("curves run --out {}", "a.svg"),
    "curves pdf": ("curves run --out {}", "a.pdf"),
    "data stats": ("data stats images --workers 0 --out {}", "a.json"),
    "data check csv": ("data check images --workers 1 --out {}", "a.csv"),
    "data check json": ("data check images --workers 1 --out {}", "a.json"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Images, and a run."""
    home = tmp_path_factory.mktemp("home")
    for number, label in enumerate(("blue", "red")):
        (home / "images" / label).mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng((number, index)).integers(0, 256, (24, 20, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(home / f"images/{label}/{index}.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(f"pretrain images --out run {A_SECOND}".split()) == 0
    return home


@pytest.fixture
def here(home, tmp_path, monkeypatch, capsys) -> Path:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    return tmp_path


@pytest.mark.parametrize(("command", "name"), COMMANDS.values(), ids=list(COMMANDS))
def test_a_strangers_file_stays(here, capsys, command, name):
    Path(name).write_bytes(b"a stranger's")
    assert main(command.format(name).split()) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert "has no mark of mvmae" in line
    assert "remove this one first" in line
    assert said.out == ""  # nothing was computed
    assert Path(name).read_bytes() == b"a stranger's"
    Path(name).unlink()
    for _ in range(2):
        assert main(command.format(name).split()) == 0


@pytest.mark.parametrize("command", ["attention run", "reconstruct run", "data show"])
def test_a_picture_is_not_drawn_among_the_images(here, capsys, command):
    image = Path("images/red/0.png")
    Path("images/red/0.jpg").rename(image)
    before = image.read_bytes()
    for out in (image, Path("images/new.png")):
        assert main(f"{command} images --count 1 --out {out}".split()) == 2
    refusals = capsys.readouterr().err.splitlines()
    assert "no mark of mvmae" in refusals[0]
    assert "is among the images of images" in refusals[1]
    assert image.read_bytes() == before
    assert not Path("images/new.png").exists()


def test_a_list_of_clean_images_replaces_nothing(here, capsys):
    Path("list.txt").write_text("mine\n")
    assert main(["data", "check", "images", "--workers", "1", "--quarantine", "list.txt"]) == 2
    assert "--quarantine list.txt exists" in capsys.readouterr().err
    assert Path("list.txt").read_text() == "mine\n"


def test_features_leave_files_of_their_names_alone(here, capsys):
    Path("own").mkdir()
    Path("own/features-typical.csv").write_text("mine")
    command = ["features", "run", "images", "--draw", "typical", "--workers", "0", "--out", "own"]
    assert main(command) == 2
    assert "own/features-typical.csv exists" in capsys.readouterr().err
    assert Path("own/features-typical.csv").read_text() == "mine"
    Path("own/features-typical.csv").unlink()
    for _ in range(2):
        assert main(command) == 0
    Path("own/features.json").unlink()  # as if it had been interrupted
    assert main(command) == 0
    assert json.loads(Path("own/features.json").read_text())["command"] == "features"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
@pytest.mark.parametrize("command", [command for command, _ in COMMANDS.values()] + ["report run"])
def test_a_place_that_takes_no_file_is_told_before_the_work(here, capsys, command):
    suffix = ".png" if "{}" in command else ".html"
    if command.startswith("data stats"):
        suffix = ".json"
    if command.startswith("data check"):
        suffix = ".csv"
    place = f"/proc/a{suffix}"
    words = command.format(place).split() if "{}" in command else [*command.split(), "--out", place]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "no file can be made in /proc" in said.err
    assert said.out == ""


def test_names_of_files_cannot_command_the_terminal(here, capsys):
    for file in Path("images/red").iterdir():
        file.rename(file.with_name(f"\x1b[31m{file.name}"))
    Path("images/red/\x1b[2Jbroken.jpg").write_bytes(b"no image")
    assert (
        main(["features", "run", "images", "--draw", "typical", "--workers", "0", "--out", "own"])
        == 0
    )
    assert main(["knn", "run", "images", "--no-baselines", "--workers", "0"]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert said.out.count(r"images/red/\x1b[2Jbroken.jpg") == 2
