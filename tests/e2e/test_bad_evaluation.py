"""Mistakes with `knn`, `probe` and `labels` are refused before anything is done."""

import json
import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Generator

from mvmae import encoders
from mvmae.cli.main import main
from mvmae.config.model import Size
from mvmae.encoders import OpenedEncoder, Preprocessing
from mvmae.method.vit import Encoder, Variant, initialize


def write_encoder(folder: Path, *, cls_token: bool = True) -> None:
    encoder = Encoder(
        Size(32, 1, 1),
        image_size=(8, 8),
        patch_size=4,
        in_channels=3,
        variant=Variant(cls_token=cls_token),
    )
    initialize(encoder, Generator().manual_seed(0))
    folder.mkdir()
    preprocessing = Preprocessing((0.5,) * 3, (0.2,) * 3, "bicubic")
    encoders.save_encoder(folder, OpenedEncoder(encoder, preprocessing, "mean"))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Encoders, and images of several kinds."""
    home = tmp_path_factory.mktemp("home")
    for label, colour in (("blue", (20, 40, 200)), ("red", (200, 40, 20))):
        (home / "images" / label).mkdir(parents=True)
        for index in range(8):
            shade = tuple(value + 3 * index for value in colour)
            Image.new("RGB", (20, 16), shade).save(home / "images" / label / f"{index}.png")
    shutil.copytree(home / "images" / "red", home / "flat")
    shutil.copytree(home / "images" / "red", home / "one" / "red")
    shutil.copytree(home / "images", home / "broken")
    for file in (home / "broken").rglob("*.png"):
        file.write_bytes(b"no image")
    shutil.copytree(home / "images", home / "split" / "train")
    shutil.copytree(home / "images", home / "split" / "val")
    shutil.copytree(home / "flat", home / "split" / "train" / "green")
    (home / "empty").mkdir()
    (home / "digits").mkdir()
    (home / "notes").mkdir()
    (home / "notes" / "a.txt").write_text("notes")
    (home / "few.csv").write_text("images/red/0.png,red\nimages/blue/0.png,blue\n")
    (home / "health.json").write_text('{"status": "good"}')
    knn = {"command": "knn", "config": {"encoder": "enc", "data": "images", "k": [5]}}
    (home / "knn.json").write_text(json.dumps(knn))
    old = {"command": "knn", "config": {"encoder": "enc", "data": "images", "k": 20}}
    (home / "old.json").write_text(json.dumps(old))
    write_encoder(home / "enc")
    write_encoder(home / "nocls", cls_token=False)
    return home


@pytest.fixture
def here(home, monkeypatch) -> Path:
    """Commands are given here, and none changes anything."""
    monkeypatch.chdir(home)
    return home


def on_disk(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }


def assert_refused(here: Path, capsys, words: list[str], says: str) -> None:
    """Assert that a command is refused as a user's mistake should be."""
    capsys.readouterr()
    before = on_disk(here)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mvmae: ")
    assert re.search(says, line), line
    assert "Traceback" not in line
    assert len(line) < 400
    assert on_disk(here) == before


def case(name: str, words: str, says: str):
    """A case of a table."""
    return pytest.param(words, says, id=name)


OF_ALL = [
    case("no encoder named", "", "ENCODER is missing"),
    case("one argument too many", "enc images more", "more"),
    case(
        "unknown flag",
        "enc images --max-trian 5",
        "unknown option --max-trian: did you mean",
    ),
    case("no such encoder", "gone images", "no such encoder: gone"),
    case("no encoder in the folder", "empty images", "empty holds no encoder"),
    case("unknown random encoder", "random:vit_smal images", "did you mean 'vit_small'"),
    case("not an encoder", "notes/a.txt images", "a.txt is damaged or not a checkpoint"),
    case("image as encoder", "flat/0.png images", "0.png is damaged or not a checkpoint"),
    case("nothing", "enc gone", "no such folder: gone"),
    case("an empty name", "enc=", "no such encoder: enc="),
    case("an empty folder", "enc empty", "no images below empty"),
    case("no labels", "enc flat", "flat has no labels: put each class into its own folder"),
    case("one class", "enc one", "one has one class only, 'red'"),
    case("a class that is in train alone", "enc split", "different classes: green in one of them"),
    case("unreadable images", "enc broken", "images of .* cannot be read"),
    case("one image of each class", "enc few.csv", "few.csv has too few images to test on"),
    case("built in or not", "enc digits", "write ./digits for the folder, builtin:digits"),
    case("the encoder for the data", "images enc", "images holds no encoder"),
    case("size", "enc images --image-size 17", "not a multiple of the patch size 4"),
    case("size of a random one", "random:vit_pico images --image-size 17", "patch size 16"),
    case("channels", "enc images --in-channels 2", "must be 3 for colour or 1 for gray"),
    case(
        "no channels",
        "enc images --in-channels 0",
        "in_channels must be 3 for colour or 1 for gray, not 0",
    ),
    case("token that is not there", "nocls images --pool cls", "no class token: use --pool mean"),
    case("token that no encoder has", "enc images --pool max", "'max'"),
    case("train on none", "enc images --max-train 0", "max_train must be at least 1"),
    case("test on none", "enc images --max-test 0", "max_test must be at least 1"),
    case("no batch", "enc images --batch-size 0", "batch_size must be at least 1"),
    case("workers", "enc images --workers=-1", "workers must be between 0 and 512"),
    case("seed", "enc images --seed=-1", "seed must be between 0 and"),
    case("out is a file", "enc images --out notes/a.txt", "notes/a.txt is a file: --out must"),
    case("out below a file", "enc images --out notes/a.txt/b", "notes/a.txt is a file: --out must"),
    case("endless out", f"enc images --out {'x' * 300}", "x{50}"),
    case("recipe of nothing", "enc images --recipe gone.json", "cannot read gone.json"),
    case("recipe of pretrain", "enc images --recipe demo", "has no recipe 'demo'"),
    case("no result", "--recipe health.json", "unknown key 'status'|required key is missing"),
]
OF_ONE = [
    case("no neighbours", "knn enc images --k 0", "k must be at least 1"),
    case("neighbours unnamed", "knn enc images --k", "k is empty: name a number of neighbours"),
    case("neighbours twice", "knn enc images --k 5 5", "k lists a value twice"),
    case("k before the data", "knn enc --k 5 images", "images"),
    case("temperature", "knn enc images --temperature 0", "temperature must be finite and above 0"),
    case("hot", "knn enc images --temperature inf", "temperature must be finite and above 0"),
    case("an older result", "knn --recipe old.json", "old.json.k"),
    case("knn as probe", "probe --recipe knn.json", "knn.json is a result of mvmae knn, not of"),
    case("costs", "probe enc images --costs 1 0", "costs must be finite and above 0"),
    case("no cost", "probe enc images --costs nan", "costs must be finite and above 0"),
    case("iterations", "probe enc images --max-iterations 0", "at least 1"),
    case("protocol", "probe enc images --protocol moco", "invalid choice 'moco'"),
    case("short", "probe enc images --epochs 5", "warmup_epochs 10 must be less than epochs 5"),
    case("one image", "probe enc images --protocol mae --max-train 1", "give more training images"),
    case(
        "step of one", "probe enc images --protocol mae --step-size 1", "--step-size of at least 2"
    ),
    case("rate", "probe enc images --protocol mae --base-lr 0", "base_lr must be finite and above"),
    case("crops", "probe enc images --crop-scale 0 1", "crop_scale 0.0 1.0 must be two increasing"),
    case(
        "minutes",
        "probe enc images --save-every-minutes=-1",
        "save_every_minutes must be at least 0",
    ),
    case("shares", "labels enc images --shares 10", r"shares must be in \(0, 1\]"),
    case("no shares", "labels enc images --shares", "name shares, or numbers with --per-class"),
    case("a share twice", "labels enc images --shares 0.5 0.5", "shares lists a value twice"),
    case("none a class", "labels enc images --per-class 0", "per_class must be at least 1"),
    case(
        "a part of an image",
        "labels enc images --per-class 0.5",
        "--per-class 0.5: give whole numbers",
    ),
    case("no draws", "labels enc images --draws 0", "draws must be at least 1"),
    case("against nothing", "labels enc images --against gone", "no such encoder: gone"),
    case("against itself", "labels enc images --against enc", "names enc, which is ENCODER itself"),
    case(
        "against two alike",
        "labels enc images --against nocls nocls",
        "against lists a value twice",
    ),
    case(
        "against another patch",
        "labels enc images --image-size 24 --against random:vit_pico",
        "not a multiple of the patch size 16",
    ),
]


@pytest.mark.parametrize("command", ["knn", "probe", "labels"])
@pytest.mark.parametrize(("words", "says"), OF_ALL)
def test_evaluation_is_refused(here, capsys, command, words, says):
    assert_refused(here, capsys, [command, *words.split()], says)


@pytest.mark.parametrize(("words", "says"), OF_ONE)
def test_setting_of_an_evaluation_is_refused(here, capsys, words, says):
    assert_refused(here, capsys, words.split(), says)


def test_empty_data_is_refused(here, capsys):
    assert_refused(here, capsys, ["knn", "enc", ""], "DATA is empty: name labelled images")


def test_an_empty_encoder_is_refused(here, capsys):
    assert_refused(here, capsys, ["knn", "", "images"], "ENCODER is empty")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("command", ["knn", "probe", "labels"])
def test_cuda_that_is_not_there_is_refused(here, capsys, command):
    assert_refused(
        here, capsys, [command, "enc", "images", "--device", "cuda"], "no CUDA device found"
    )


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(here, capsys):
    (here / "notes").chmod(0o500)
    words = ["knn", "enc", "images", "--out", "notes/there"]
    assert_refused(here, capsys, words, "notes is not writable: name another folder with --out")
    (here / "notes").chmod(0o700)


FULL = """
import resource, sys
from mvmae.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
for words in (
    "knn enc images",
    "labels enc images --draws 1 --costs 1",
    "probe enc images --protocol mae --epochs 30",
):
    print(main([*words.split(), "--workers", "0"]), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_full_disk_is_one_line_and_leaves_no_half_result(home, tmp_path):
    here = shutil.copytree(home, tmp_path / "here")
    done = subprocess.run(
        [sys.executable, "-c", FULL], capture_output=True, text=True, check=False, cwd=here
    )
    lines = done.stderr.splitlines()
    assert lines[1::2] == ["2"] * 3, done.stderr
    assert all(line.startswith("mvmae: File too large") for line in lines[::2]), done.stderr
    assert [path for path in (here / "runs").rglob("*") if path.suffix in (".json", ".tmp")] == []
