"""`mvmae pretrain --decode`: what it changes, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image
from run_folders import metrics, skipped_paths, timeless

from mvmae.cli.main import main


def complaint(capfd, *words: str) -> str:
    """The one line on stderr of a refused command."""
    assert main(["pretrain", *words]) == 2
    said = capfd.readouterr().err
    assert said.startswith("mvmae: ")
    assert said.count("\n") == 1
    return said


def test_fast_decoding_gives_the_same_run_on_small_images(image_folder, pretrain, tmp_path):
    folder = image_folder(per_class=8)
    (folder / "red" / "0.jpg").write_bytes(b"\xff\xd8\xff and no more")
    for way in ("exact", "fast"):
        assert pretrain(folder, tmp_path / way, {"decode": way}) == 0
    exact, fast = tmp_path / "exact", tmp_path / "fast"
    assert timeless(fast) == timeless(exact)
    assert skipped_paths(fast) == skipped_paths(exact) != []
    assert (fast / "encoder.safetensors").read_bytes() == (
        exact / "encoder.safetensors"
    ).read_bytes()


def test_fast_decoding_changes_the_pixels_of_large_images(image_folder, pretrain, tmp_path):
    folder = image_folder(per_class=4, size=(300, 300))
    for way in ("exact", "fast"):
        assert pretrain(folder, tmp_path / way, {"decode": way}) == 0
    losses = [metrics(tmp_path / way)[0]["loss"] for way in ("exact", "fast")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_resumed_run_keeps_its_way_of_decoding(image_folder, pretrain, tmp_path, capfd):
    run = tmp_path / "run"
    assert pretrain(image_folder(), run, {"decode": "fast"}) == 0
    assert json.loads((run / "config.json").read_text())["decode"] == "fast"
    capfd.readouterr()
    said = complaint(capfd, "--resume", "--out", str(run), "--decode", "exact")
    assert "was run with decode fast, not exact" in said


def test_an_unknown_way_is_refused_before_anything_is_written(image_folder, tmp_path, capfd):
    run = tmp_path / "run"
    words = [str(image_folder()), "--out", str(run), "--device", "cpu", "--decode", "quick"]
    assert "exact" in complaint(capfd, *words)
    assert not run.exists()


def test_fast_decoding_says_that_it_has_no_effect_on_deep_images(tmp_path, pretrain, capfd):
    folder = tmp_path / "deep"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 65536, (20, 24), dtype=np.uint16)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    options = {"decode": "fast", "model.in-channels": 1, "views.depth": "16"}
    assert pretrain(folder, tmp_path / "run", options) == 0
    assert "--decode fast has no effect" in capfd.readouterr().out
