"""`mvmae data show` draws what the network will see, and of any channels."""

import json

import numpy as np
import pytest
from PIL import Image

from mvmae.cli.main import main

SMALL = ["--model.image-size", "16", "--model.patch-size", "4"]


def show(*words: object) -> int:
    return main(["data", "show", *map(str, words)])


def read_picture(file) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def gray_share(pixels: np.ndarray) -> float:
    """Of what a mask hides: 127 or 128 in all channels."""
    return (np.abs(pixels - 127.5) <= 1).all(axis=-1).mean()


def test_a_sheet_has_a_row_an_image_in_its_own_colours(image_folder, tmp_path):
    folder, out = image_folder(), tmp_path / "sheets" / "sheet.png"
    assert show(folder, "--out", out, "--count", 2, *SMALL) == 0
    two = read_picture(out)
    assert show(folder, "--out", out, "--count", 6, *SMALL) == 0
    six = read_picture(out)
    assert six.shape[1] == two.shape[1]
    assert six.shape[0] > 2 * two.shape[0]
    assert 0.15 < gray_share(six) < 0.5  # two of five columns are 80 % hidden
    assert show(folder, "--out", out, "--count", 6, *SMALL, "--model.mask-ratio", 0.3) == 0
    assert gray_share(read_picture(out)) < 0.6 * gray_share(six)


def test_the_same_seed_draws_the_same_sheet_and_another_another(image_folder, tmp_path):
    folder = image_folder()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert show(folder, "--out", tmp_path / f"{name}.png", "--seed", seed, *SMALL) == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_the_views_are_those_of_the_recipe(image_folder, tmp_path):
    folder = image_folder()
    pictures = {}
    for recipe in ("demo", "demo+mae", "demo+one-target"):
        out = tmp_path / f"{recipe}.png"
        assert show(folder, "--recipe", recipe, "--out", out, "--count", 2) == 0
        pictures[recipe] = read_picture(out)
    assert pictures["demo+mae"].shape[1] < pictures["demo"].shape[1]  # one view
    assert not np.array_equal(pictures["demo"], pictures["demo+one-target"])


def test_a_runs_own_config_is_a_recipe_and_deep_channels_can_be_chosen(tmp_path, pretrain_command):
    rng = np.random.default_rng(0)
    folder, run = tmp_path / "deep", tmp_path / "run"
    folder.mkdir()
    for number in range(8):
        array = rng.normal(1000, 300, (5, 20, 20)).astype(np.float32)
        array[0] = np.linspace(-100, 9000, 400).reshape(20, 20)
        np.save(folder / f"{number}.npy", array)
    assert main(pretrain_command(folder, run, {"model.in-channels": 5})) == 0
    config = run / "config.json"
    assert json.loads(config.read_text())["views"]["depth"] == "float"
    words = (folder, "--recipe", config, "--count", 2)
    assert show(*words, "--out", tmp_path / "one.png", "--channels", 1) == 0
    assert show(*words, "--out", tmp_path / "three.png", "--channels", 3, 4, 5) == 0
    one, three = read_picture(tmp_path / "one.png"), read_picture(tmp_path / "three.png")
    assert (one.max(axis=-1) == one.min(axis=-1)).mean() > 0.95  # gray
    assert (three.max(axis=-1) != three.min(axis=-1)).mean() > 0.15


def test_without_a_recipe_images_of_many_channels_are_drawn_with_their_own(tmp_path, capsys):
    array = np.random.default_rng(0).integers(0, 60_000, (6, 20, 20, 5)).astype(np.uint16)
    np.save(tmp_path / "all.npy", array)
    out = tmp_path / "sheet.png"
    words = (tmp_path / "all.npy", "--out", out, "--count", 2, *SMALL)
    assert show(*words, "--channels", 4, 3, 2) == 0
    assert "the images have 5 channels" in capsys.readouterr().out
    assert read_picture(out).std() > 20
    out.unlink()
    assert show(*words, "--channels", 6) == 2
    assert "--channels 6 are counted from 1 to 5, the images' channels" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["gone"], "no such"),
        (["images", "--recipe", "dmeo"], "no recipe 'dmeo': did you mean 'demo'"),
        (["images", "--count", "0"], "count must be at least 1"),
        (["images", "--channels", "1", "2"], "--channels must name 1 channel"),
        (["images", "--channels", "4"], "counted from 1 to 3"),
        (["images", "--channels", "0"], "counted from 1"),
        (["images", "--out", "sheet.jpg"], "must end in .png"),
        (["images", "--out", "images"], "must end in .png"),
        (["images", "--model.in-channels", "4"], "have 3 channels, not 4"),
        (["images", "--views.flip", "vertical"], "flip"),
        (["images", "--views.mean", "0.5"], "views.mean has 1 values for 3 channels"),
    ],
)
def test_bad_input_is_one_plain_line(tmp_path, image_folder, monkeypatch, capsys, words, complaint):
    image_folder()
    monkeypatch.chdir(tmp_path)
    assert show(*words) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


def test_other_colours_are_drawn_as_the_network_gets_them(image_folder, tmp_path, capsys):
    folder, pictures = image_folder(), {}
    for name, options in {
        "plain": [],
        "gray": ["--views.grayscale", "1"],
        "jitter": ["--views.color-jitter", "1"],
    }.items():
        out = tmp_path / f"{name}.png"
        assert show(folder, "--out", out, "--count", 2, *SMALL, *options) == 0
        pictures[name] = read_picture(out)
    plain, gray, jitter = pictures.values()
    sheets = (plain, gray, jitter)
    views = [sheet[: int(0.9 * len(sheet)), sheet.shape[1] // 3 :] for sheet in sheets]
    coloured = [(np.ptp(view, axis=-1) > 40).mean() for view in views]
    assert coloured[1] == 0
    assert min(coloured[0], coloured[2]) > 0.05
    assert (views[0] != views[2]).any()
    assert show(folder, "--out", out, "--model.in-channels", 1, "--views.grayscale", "0.2") == 2
    assert "leave it at 0" in capsys.readouterr().err
