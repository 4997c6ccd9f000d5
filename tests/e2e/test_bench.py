"""`mvmae bench`: what it prints and leaves; how fast anything is, is not tested."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mvmae.cli import main

TINY_STEP = (
    *("--model.encoder", "vit_pico", "--model.image-size", "20", "--model.patch-size", "4"),
    *("--model.decoder-dim", "32", "--model.decoder-depth", "1"),
    *("--batch-size", "2", "--rounds", "1", "--device", "cpu"),
)
TINY_INPUT = ("--model.image-size", "64", "--rounds", "2", "--images", "3")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """One step a timing, and a small product to compare with."""
    from mvmae.tasks.benching import input as bench_input
    from mvmae.tasks.benching import step as bench_step

    monkeypatch.setattr(bench_step, "MIN_SECONDS", 1e-9)
    monkeypatch.setattr(bench_step, "MATMUL_SIDE", {"cpu": 64})
    monkeypatch.setattr(bench_input, "PARITY_CROPS", 20)


def bench(*args: str, out: Path) -> dict:
    assert main(["bench", *args, "--out", str(out)]) == 0
    return json.loads(out.read_text())


def assert_ratio_is_the_quotient_of_the_rates(result: dict) -> None:
    quotient = result["ours"]["images_per_second"] / result["plain"]["images_per_second"]
    assert result["ratio"] == pytest.approx(quotient, abs=1e-4)


def error_of(capfd, *args: str) -> str:
    """The one line on stderr of a command that the user got wrong."""
    assert main(["bench", *args]) == 2
    said = capfd.readouterr().err
    assert said.startswith("mvmae: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_step_times_both_sides_from_the_same_loss(tmp_path, capfd, precision, attention):
    pytest.importorskip("transformers")
    words = (*TINY_STEP, "--precision", precision, "--attention", attention)
    result = bench("step", *words, out=tmp_path / "new" / "step.json")
    assert_ratio_is_the_quotient_of_the_rates(result)
    assert result["dtype"] == {"fp32": "float32", "bf16": "bfloat16"}[precision]
    # 25 patches at 0.8 leave 5 visible; transformers alone would round to 4.
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    losses = (result[side]["first_loss"] for side in ("ours", "plain"))
    assert next(losses) == pytest.approx(next(losses), rel=tolerance)
    assert len(result["ours"]["seconds_per_step"]) == 1
    printed = capfd.readouterr().out
    assert "mvmae" in printed
    assert "transformers" in printed


def test_step_embeds_only_visible_patches_and_counts_that(tmp_path):
    pytest.importorskip("transformers")
    result = bench("step", *TINY_STEP, out=tmp_path / "step.json")
    saved = result["plain"]["gflop_per_step"] - result["ours"]["gflop_per_step"]
    # Of 25 patches 20 are not embedded: 48 x 64 products each, in 2 x 2 views, forward and for
    # the weight's gradient.
    assert saved == pytest.approx(2 * 4 * 20 * 48 * 64 * 2 / 1e9, abs=0.01)


def test_step_without_transformers_says_what_to_install(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'mvmae[bench]'" in error_of(capfd, "step", *TINY_STEP)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.image-size", "32", "64"), "square"),
        (("--model.latent", "cls"), "--model.latent"),
        (("--model.head", "mlp"), "--model.head"),
        (("--quick", "--model.encoder", "vit_tiny"), "--quick"),
        (("--batch-size", "1"), "batch_size must be at least 2"),
        (("--rounds", "0"), "rounds must be at least 1"),
        (("--images", "0"), "images must be at least 1"),
    ],
)
def test_step_refuses_what_cannot_be_compared(capfd, words, said):
    assert said in error_of(capfd, "step", *words)


def test_input_times_the_built_in_photographs(tmp_path, capfd):
    threads = torch.get_num_threads()
    result = bench("input", *TINY_INPUT, out=tmp_path / "input.json")
    assert_ratio_is_the_quotient_of_the_rates(result)
    assert result["difference_to_pillow"]["mean"] < 0.1
    assert result["files"]["count"] == 18
    assert result["environment"]["threads"] == 1
    assert torch.get_num_threads() == threads
    assert "images/s a core" in capfd.readouterr().out


def test_input_reads_the_jpeg_files_of_a_folder(tmp_path, image_folder):
    folder = image_folder(per_class=2, size=(48, 40))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (folder / "other.png").write_bytes(b"")
    result = bench(
        "input", *TINY_INPUT, "--images", "9", "--data", str(folder), out=tmp_path / "input.json"
    )
    assert result["files"]["count"] == 4
    assert result["difference_to_pillow"]["mean"] < 0.1
    assert_ratio_is_the_quotient_of_the_rates(result)


def test_input_refuses_a_folder_without_jpeg_files(tmp_path, capfd, image_folder):
    assert "no such folder" in error_of(capfd, "input", "--data", str(tmp_path / "missing"))
    assert "no images below" in error_of(capfd, "input", "--data", str(tmp_path))
    folder = image_folder(suffix=".png")
    assert "no JPEG images below" in error_of(capfd, "input", "--data", str(folder))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    assert "can be read" in error_of(capfd, "input", "--data", str(folder))


def test_the_result_cannot_go_into_a_folder(tmp_path, capfd):
    assert "is a folder" in error_of(capfd, "input", "--out", str(tmp_path))


def test_scale_measures_each_size_and_draws(tmp_path, capfd, monkeypatch):
    from mvmae.config import ModelConfig
    from mvmae.tasks.benching import scale

    sizes = {"batch": ((), (2, 4)), "image": ((), (16, 32)), "encoder": ((), ("vit_pico",))}
    monkeypatch.setattr(scale, "AXES", sizes)
    monkeypatch.setattr(scale, "WORKERS", ((), (0,)))
    tiny = ModelConfig(encoder="vit_pico", image_size=16, patch_size=4, decoder_dim=32)
    monkeypatch.setattr(scale, "QUICK", tiny)
    out = tmp_path / "new" / "scale.json"
    words = ("scale", "--quick", "--rounds", "1", "--batch-size", "2", "--device", "cpu")
    result = bench(*words, "--images", "4", out=out)
    points = result["points"]
    assert [point["value"] for point in points["batch"]] == [2, 4]
    assert [point["value"] for point in points["image"]] == [16, 32]
    # Products of an image do not depend on the batch, but for the contrast; four times as many
    # patches are more than four times as many products.
    small, large = (point["gflop_per_image"] for point in points["batch"])
    assert large == pytest.approx(small, rel=0.05)
    assert points["image"][1]["gflop_per_image"] > 4 * points["image"][0]["gflop_per_image"]
    for axis in ("batch", "image", "encoder"):
        for point in points[axis]:
            assert point["gflop_per_second"] > 0
    (read,) = points["workers"]
    assert read["images_per_second"] > 0
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > picture.height
    assert "how cost grows from vit_pico/4 at 16" in capfd.readouterr().out
    assert main(["bench", *words, "--images", "4", "--out", str(out)]) == 0  # its own files


def test_scale_needs_a_file_beside_which_a_picture_fits(tmp_path, capfd):
    said = error_of(capfd, "scale", "--quick", "--out", str(tmp_path / "x.png"))
    assert "must name a JSON file" in said
