"""`mvmae features` as a user types it: what it writes, prints, finds and refuses."""

import csv
import importlib.util
import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvmae.cli.main import main
from mvmae.data.sources.open import open_source
from mvmae.inspect.features.feature_cache import find_classes

A_SECOND = (
    "--recipe demo --model.image-size 16 --model.decoder-dim 32 --batch-size 8 --epochs 2 "
    "--warmup-epochs 0 --device cpu --workers 0"
)
SMALL = ["--workers", "0", "--batch-size", "32", "--count", "2"]
NAMES = ("pca", "map", "typical", "duplicates")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A run, and images: two classes of coloured blocks, with one image in both."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for label in ("blue", "red"):
        (home / "images" / label).mkdir(parents=True)
        for index in range(10):
            blocks = rng.integers(20, 236, 3) + rng.integers(-90, 91, (4, 4, 3))
            pixels = blocks.repeat(4, axis=0).repeat(4, axis=1).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(home / "images" / label / f"{index}.png")
    shutil.copytree(home / "images", home / "plain")
    twin = Image.open(home / "images/blue/3.png").resize((32, 32), Image.Resampling.NEAREST)
    twin.save(home / "images/red/twin.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(f"pretrain plain --out run {A_SECOND}".split()) == 0
    return home


def features(*words: str) -> int:
    return main(["features", *words, *SMALL])


def rows(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="") as stream:
        return list(csv.DictReader(stream))


def height(file: str) -> int:
    with Image.open(file) as picture:
        return picture.height


def facts(folder: str) -> dict:
    return json.loads(Path(folder, "features.json").read_text())


def test_all_pictures_are_in_the_run_folder_and_described(here, capsys):
    assert features("run", "images", "--threshold", "0.95") == 0
    printed = capsys.readouterr().out.splitlines()
    tables = {"features-typical.csv", "features-duplicates.csv"}
    pictures = {f"features-{name}.png" for name in NAMES}
    assert {file.name for file in Path("run/figures").iterdir()} == {
        *pictures,
        *tables,
        "features.json",
    }
    for name in {*pictures, *tables, "features.json"}:
        assert f"written: run/figures/{name}" in printed
    for name in pictures:
        with Image.open(f"run/figures/{name}") as picture:
            picture.load()
            assert min(picture.size) > 200
            assert len(set(picture.convert("RGB").resize((60, 60)).get_flattened_data())) > 20
    described = facts("run/figures")
    assert described["command"] == "features"
    assert described["command_line"].startswith("mvmae features run images")
    assert described["map"] == {"images": 21, "method": "tsne", "classes": 2}
    assert len(described["pca"]["encoders"][0]["explained"]) == 3
    assert 0.1 < described["pca"]["encoders"][0]["explained_total"] <= 1
    assert described["duplicates"]["threshold"] == 0.95


def test_the_duplicate_is_found_and_nothing_else(here, capsys):
    assert features("run", "images", "--draw", "duplicates", "--out", "a") == 0
    (pair,) = rows("a/features-duplicates.csv")
    assert (pair["first"], pair["second"]) == ("images/blue/3.png", "images/red/twin.png")
    assert (pair["first_label"], pair["second_label"]) == ("blue", "red")
    assert float(pair["cosine"]) > 0.99
    assert "duplicates: 1 pair, 2 of 21 images in 1 group\n" in capsys.readouterr().out
    counted = facts("a")["duplicates"]
    assert (counted["pairs"], counted["groups"], counted["in_groups"]) == (1, 1, 2)


def test_no_duplicates_is_reported_and_removes_an_older_picture(here, capsys):
    assert features("run", "images", "--draw", "duplicates", "--out", "a") == 0
    assert Path("a/features-duplicates.png").exists()
    assert features("run", "plain", "--draw", "duplicates", "--out", "a") == 0
    assert "no two of 20 images have a cosine of 0.98 or more" in capsys.readouterr().out
    assert not Path("a/features-duplicates.png").exists()
    assert rows("a/features-duplicates.csv") == []
    assert facts("a")["duplicates"]["pairs"] == 0


def test_the_odd_image_is_the_least_typical(here, image_folder, capsys):
    images = image_folder(per_class=15, size=(16, 16), suffix=".png")
    stripes = np.tile([[[0, 255, 0]], [[255, 255, 255]]], (8, 16, 1)).astype(np.uint8)
    Image.fromarray(stripes).save(images / "red" / "odd.png")
    assert features("run", str(images), "--draw", "typical", "--out", "a") == 0
    listed = rows("a/features-typical.csv")
    assert listed[0]["path"] == str(images / "red" / "odd.png")
    values = [float(row["typicality"]) for row in listed]
    assert values == sorted(values)
    assert len(values) == 31
    assert f"least typical: {images}/red/odd.png" in capsys.readouterr().out
    described = facts("a")["typical"]
    assert described["least"][0]["path"] == listed[0]["path"]
    assert described["most"][0]["path"] == listed[-1]["path"]
    assert described["quantiles"]["0.0"] == pytest.approx(values[0], abs=1e-5)


def test_the_same_command_writes_the_same_bytes(here):
    for folder in ("a", "b"):
        assert features("run", "images", "--out", folder) == 0
    for name in (*(f"features-{name}.png" for name in NAMES), "features-typical.csv"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    assert features("run", "images", "--out", "c", "--seed", "1", "--draw", "pca") == 0
    assert Path("a/features-pca.png").read_bytes() != Path("c/features-pca.png").read_bytes()
    assert [file.name for file in sorted(Path("c").iterdir())] == [
        "features-pca.png",
        "features.json",
    ]


def test_other_encoders_get_a_row_and_larger_input_a_finer_grid(here):
    assert features("run", "images", "--draw", "pca", "--out", "a") == 0
    words = [
        "--draw",
        "pca",
        "--out",
        "b",
        "--against",
        "random:run",
        "random:vit_pico",
        "--image-size",
        "32",
    ]
    assert features("run", "images", *words) == 0
    assert height("b/features-pca.png") - height("a/features-pca.png") > 2 * 1.1 * 150
    grids = {one["encoder"]: one["grid"] for one in facts("b")["pca"]["encoders"]}
    own = facts("a")["pca"]["encoders"][0]["grid"]
    assert grids == {
        "run": [2 * n for n in own],
        "random:run": [2 * n for n in own],
        "random:vit_pico": [2, 2],
    }


def test_a_single_image_has_colours_and_nothing_else(here, capsys):
    assert main(["features", "run", "plain/red", "--max-images", "1", "--out", "a"]) == 0
    printed = capsys.readouterr().out
    assert "a map needs at least 5 images" in printed
    assert "typical images and outliers need at least 5 images" in printed
    assert "a single image has no duplicate" in printed
    assert [file.name for file in Path("a").glob("*.png")] == ["features-pca.png"]


def test_identical_images_are_duplicates_without_a_map(here, capsys):
    Path("same").mkdir()
    for number in range(6):
        shutil.copy("images/red/1.png", f"same/{number}.png")
    assert features("run", "same", "--out", "a") == 0
    printed = capsys.readouterr().out
    assert "no map: the features of all images are the same" in printed
    assert "15 pairs, 6 of 6 images in 1 group; this is suspiciously many" in printed


def test_gray_and_unreadable_images_do_no_harm(here, capsys):
    for file in Path("images/red").glob("[0-4].png"):
        file.write_bytes(b"no image")
    for file in Path("images/blue").glob("*.png"):
        with Image.open(file) as picture:
            gray = picture.convert("L")
        gray.save(file)
    assert features("run", "images", "--in-channels", "1", "--out", "a") == 0
    assert "5 images could not be read" in capsys.readouterr().out
    assert len(facts("a")["skipped"]) == 5
    assert len(rows("a/features-typical.csv")) == 16


def test_any_file_name_is_drawn_and_listed(here, capsys):
    names = [
        "a$x_1$ <b>.png",
        "two\nlines.png",
        "漢字.png",
        os.fsdecode(b"no\xffutf8.png"),
        "a" * 200,
    ]
    Path("odd").mkdir()
    for number, name in enumerate(names):
        shutil.copy(f"images/red/{number}.png", f"odd/{name.removesuffix('.png')}.png")
    assert features("run", "odd", "--out", "a", "--threshold", "-0.9") == 0
    assert "typical: least typical: odd/" in capsys.readouterr().out
    listed = Path("a/features-typical.csv").read_bytes()
    assert all(os.fsencode(name) in listed for name in names)


def test_a_map_holds_at_most_the_requested_images(here):
    assert features("run", "images", "--draw", "map", "--most", "9", "--out", "a") == 0
    assert facts("a")["map"]["images"] == 9


def test_parts_of_a_data_set_are_not_classes(here):
    for part in ("train", "val"):
        shutil.copytree("plain", f"parts/{part}")
        shutil.copytree("plain/red", f"flat/{part}")
    source = open_source(["parts"], 3)
    classes, labels = find_classes(source, range(len(source)))
    assert list(classes) == ["blue", "red"]
    assert np.bincount(labels).tolist() == [20, 20]
    flat = open_source(["flat"], 3)
    assert find_classes(flat, range(len(flat))) == ((), None)
    assert find_classes(open_source(["plain/red"], 3), [0]) == ((), None)


def on_disk(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): sha256(path.read_bytes()).hexdigest() for path in files}


REFUSED = [
    ("run gone", "no such folder: gone"),
    ("gone images", "no such encoder: gone"),
    ("run images --draw", "--draw"),
    ("run images --draw pac", "invalid choice 'pac'"),
    ("run images --draw pca pca", "draw lists a value twice: pca pca"),
    ("run images --against run", "is ENCODER itself"),
    ("run images --against gone", "no such encoder: gone"),
    ("run images --against random:run --draw map", "add pca to --draw"),
    ("run images --count 0", "count must be at least 1"),
    ("run images --count 5000", "count must be at most 200"),
    ("run images --most 2", "most must be at least 5"),
    ("run images --threshold 98", "threshold must be a cosine"),
    ("run images --threshold nan", "threshold must be a cosine"),
    ("run images --map pca", "invalid choice 'pca'"),
    ("run images --image-size 18", "not a multiple of the patch size"),
    ("run images --in-channels 2", "in_channels must be 3 for colour or 1"),
    ("run images --seed -1", "seed"),
    ("run images --out figure.png", "must name a folder"),
    ("run images --out run/config.json", "folder"),
    ("run images --out images/figures", "among the images"),
    ("run images --max-images 0", "max_images must be at least 1"),
    ("run broken", "cannot be read"),
    ("run broken --draw pca", "none of the 6 images of broken can be read"),
]


@pytest.mark.parametrize(("command", "says"), REFUSED, ids=[command for command, _ in REFUSED])
def test_mistakes_are_refused_in_one_line_and_nothing_is_written(here, capsys, command, says):
    Path("broken").mkdir()
    for number in range(6):
        Path(f"broken/{number}.jpg").write_bytes(b"no image")
    before = on_disk(here)
    assert main(["features", *command.split(), "--workers", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mvmae: ")
    assert says in line
    assert on_disk(here) == before


@pytest.mark.skipif(importlib.util.find_spec("umap") is not None, reason="umap is installed")
def test_missing_umap_is_reported_before_any_work(here, capsys):
    assert features("run", "images", "--map", "umap", "--out", "a") == 2
    assert "pip install 'mvmae[umap]'" in capsys.readouterr().err
    assert not Path("a").exists()
