"""`python -m benchmarks`: what it prints and leaves; how fast anything is, is not tested."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.__main__ import main
from mvmae.config.model import ModelConfig

TINY_STEP = (
    *("--model.encoder", "vit_pico", "--model.image-size", "20", "--model.patch-size", "4"),
    *("--model.decoder-dim", "32", "--model.decoder-depth", "1"),
    *("--batch-size", "2", "--rounds", "1", "--device", "cpu"),
)
TINY_INPUT = ("--model.image-size", "64", "--rounds", "2", "--images", "3")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """One step a timing, and a small product to compare with."""
    from benchmarks import input as bench_input
    from benchmarks import photographs
    from benchmarks import step as bench_step

    monkeypatch.setattr(bench_step, "MIN_SECONDS", 1e-9)
    monkeypatch.setattr(bench_step, "MATMUL_SIDE", {"cpu": 64})
    monkeypatch.setattr(bench_input, "PARITY_IMAGES", 10)
    monkeypatch.setattr(photographs, "LARGE_SIZE", (640, 480))


def bench(*args: str, out: Path) -> dict:
    assert main([*args, "--out", str(out)]) == 0
    return json.loads(out.read_text())


def assert_ratio_is_the_quotient_of_the_rates(result: dict) -> None:
    quotient = result["ours"]["images_per_second"] / result["plain"]["images_per_second"]
    assert result["ratio"] == pytest.approx(quotient, abs=1e-4)


def error_line(capfd, *args: str) -> str:
    """Return the line on stderr of a command with a mistake."""
    assert main([*args]) == 2
    said = capfd.readouterr().err
    assert said.startswith("mvmae: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("peer", ["transformers", "lightly", "timm"])
@pytest.mark.parametrize(
    ("precision", "attention"), [("fp32", "sdpa"), ("fp32", "eager"), ("bf16", "sdpa")]
)
def test_step_times_a_peer_from_the_same_loss(tmp_path, capfd, peer, precision, attention):
    pytest.importorskip(peer)
    words = (*TINY_STEP, "--peers", peer, "--precision", precision, "--attention", attention)
    result = bench("step", *words, out=tmp_path / "new" / "step.json")
    ours, theirs = result["ours"], result["peers"][peer]
    quotient = ours["images_per_second"] / theirs["images_per_second"]
    assert theirs["ratio"] == pytest.approx(quotient, abs=1e-4)
    assert result["dtype"] == {"fp32": "float32", "bf16": "bfloat16"}[precision]
    # 25 patches at 0.8 leave 5 visible; transformers alone would round to 4.
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    assert ours["first_loss"] == pytest.approx(theirs["first_loss"], rel=tolerance)
    assert ours["step_memory_gib"] <= theirs["step_memory_gib"]
    assert len(ours["seconds_per_step"]) == 1
    printed, said = capfd.readouterr()
    assert "mvmae" in printed
    assert f"{peer} {theirs['version']}: " in printed
    assert said == ""


@pytest.mark.parametrize("peer", ["transformers", "lightly", "timm"])
def test_a_peer_follows_the_same_course(peer):
    """Not the first loss alone: gradients and updates are the same, but for the optimiser's."""
    pytest.importorskip(peer)
    from benchmarks import step
    from benchmarks.config import BenchConfig
    from mvmae.config.model import ModelConfig

    model = ModelConfig(encoder="vit_pico", image_size=32, patch_size=8, decoder_dim=32)
    config = BenchConfig(part="step", model=model, batch_size=4, peers=(peer,), device="cpu")
    sides = step.make_sides(config, step.training_config(config), torch.device("cpu"))
    courses = [[float(one()) for _ in range(6)] for one in sides.steps.values()]
    assert courses[0] == pytest.approx(courses[1], rel=2e-4)
    assert courses[0][5] < 0.999 * courses[0][0]


def test_step_embeds_and_predicts_only_what_is_needed_and_counts_that(tmp_path):
    pytest.importorskip("timm")
    result = bench("step", *TINY_STEP, "--peers", "timm", out=tmp_path / "step.json")
    saved = result["peers"]["timm"]["gflop_per_step"] - result["ours"]["gflop_per_step"]
    # Of 25 patches 20 are not embedded: 48 x 64 products each, in 2 x 2 views, forward and for
    # the weight's gradient. The class token and 5 visible ones are not predicted: 32 x 48 each,
    # forward and for both gradients (the class token is dropped behind the head).
    embedded, predicted = 4 * 20 * 48 * 64 * 2 * 2, 4 * 6 * 32 * 48 * 2 * 3
    assert saved == pytest.approx((embedded + predicted) / 1e9, abs=1e-4)


def test_step_is_told_by_part(tmp_path, capfd):
    result = bench("step", *TINY_STEP, "--peers", out=tmp_path / "step.json")
    profile = result["profile"]
    parts = [spent["forward"] + spent["backward"] for spent in profile["parts"].values()]
    assert sum(parts) == pytest.approx(profile["total"], abs=0.1)
    assert min(parts) >= 0
    assert sum(profile["gflop"].values()) == pytest.approx(
        result["ours"]["gflop_per_step"], abs=1e-3
    )
    assert sum(profile["operators"].values()) < profile["total"]
    printed = capfd.readouterr().out
    for name in (*profile["parts"], "our step by part", "100.0%"):
        assert name in printed


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_step_is_timed_compiled_too(tmp_path):
    # In a separate process, because tests check shapes, which torch cannot compile.
    words = ["step", *TINY_STEP, "--peers", "--compile", "on", "--out", str(tmp_path / "step.json")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "step.json").read_text())
    ours, faster = result["ours"], result["ours_compiled"]
    assert faster["first_loss"] == pytest.approx(ours["first_loss"], rel=1e-5)
    assert faster["gflop_per_step"] == ours["gflop_per_step"]
    quotient = faster["images_per_second"] / ours["images_per_second"]
    assert faster["ratio"] == pytest.approx(quotient, abs=2e-4)
    assert "mvmae, compiled" in done.stdout
    assert "times as fast as without" in done.stdout


def test_step_leaves_out_who_is_not_installed_and_says_so(tmp_path, monkeypatch, capfd):
    for name in ("transformers", "timm", "timm.models.vision_transformer"):
        monkeypatch.setitem(sys.modules, name, None)
    result = bench("step", *TINY_STEP, "--peers", "transformers", "timm", out=tmp_path / "a.json")
    assert result["peers"] == {}
    assert set(result["peers_left_out"]) == {"transformers", "timm"}
    printed = capfd.readouterr().out
    assert "left out: " in printed
    assert "pip install transformers" in printed
    assert result["ours"]["images_per_second"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.image-size", "32", "64"), "square"),
        (("--model.latent", "cls"), "--model.latent"),
        (("--model.head", "mlp"), "--model.head"),
        (("--quick", "--model.encoder", "vit_tiny"), "--quick"),
        (("--batch-size", "1"), "batch_size must be at least 2"),
        (("--rounds", "0"), "rounds must be at least 1"),
        (("--peers", "timm", "timm"), "peers lists a value twice"),
        (("--peers", "fairseq"), "fairseq"),
        (("--images", "0"), "images must be at least 1"),
    ],
)
def test_step_refuses_what_cannot_be_compared(capfd, words, said):
    assert said in error_line(capfd, "step", *words)


def assert_input_is_told(part: dict, ways: set[str]) -> None:
    assert part["ratios"].keys() == ways
    for way, ratios in part["ratios"].items():
        rates = [part[name]["images_per_second"] for name in (way, "plain", "plain_decoded_once")]
        assert ratios["read_twice"] == pytest.approx(rates[0] / rates[1], abs=1e-4)
        assert ratios["read_once"] == pytest.approx(rates[0] / rates[2], abs=1e-4)
    assert part["differences"]["exact_to_pillow"]["mean"] < 0.1


def test_input_times_the_built_in_photographs(tmp_path, capfd):
    threads = torch.get_num_threads()
    result = bench("input", *TINY_INPUT, out=tmp_path / "input.json")
    usual, large = result["photographs"], result["large_photographs"]
    for part in (usual, large):
        assert_input_is_told(part, {"exact", "fast"})
        assert part["differences"]["fast_to_pillow"]["mean"] < 2
    assert (usual["files"]["count"], usual["images"]) == (18, 3)
    assert large["files"]["mean_megapixels"] == pytest.approx(640 * 480 / 1e6, abs=1e-3)
    assert large["differences"]["fast_to_exact"]["mean"] > 0
    assert result["environment"]["threads"] == 1
    assert torch.get_num_threads() == threads
    said = capfd.readouterr().out
    assert "images/s per core" in said
    assert "mvmae --decode fast: " in said


def test_input_reads_the_jpeg_files_of_a_folder(tmp_path, image_folder):
    folder = image_folder(per_class=2, size=(48, 40))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (folder / "other.png").write_bytes(b"")
    result = bench(
        "input", *TINY_INPUT, "--images", "9", "--data", str(folder), out=tmp_path / "input.json"
    )
    assert result.keys() == {"config", "environment", "photographs"}
    assert result["photographs"]["files"]["count"] == 4
    assert_input_is_told(result["photographs"], {"exact", "fast"})


def test_input_refuses_a_folder_without_jpeg_files(tmp_path, capfd, image_folder):
    assert "no such folder" in error_line(capfd, "input", "--data", str(tmp_path / "missing"))
    assert "no images below" in error_line(capfd, "input", "--data", str(tmp_path))
    folder = image_folder(suffix=".png")
    assert "no JPEG images below" in error_line(capfd, "input", "--data", str(folder))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    assert "can be read" in error_line(capfd, "input", "--data", str(folder))


def test_the_result_cannot_go_into_a_folder(tmp_path, capfd):
    assert "is a folder" in error_line(capfd, "input", "--out", str(tmp_path))


def test_scale_measures_each_size_and_draws(tmp_path, capfd, monkeypatch):
    from benchmarks import scale

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
    # Weights and averages, and then what grows with the batch and with the patches.
    state = 12 * scale.num_weights(tiny) / 2**30
    batches, sizes = (
        [point["memory_gib"] - state for point in points[axis]] for axis in ("batch", "image")
    )
    assert batches[1] == pytest.approx(2 * batches[0], rel=0.25)
    assert sizes[1] > 2.5 * sizes[0]
    (read,) = points["workers"]
    assert read["images_per_second"] > 0
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > picture.height
    assert "how cost grows from vit_pico/4 at 16" in capfd.readouterr().out
    assert main([*words, "--images", "4", "--out", str(out)]) == 0  # its own files


def test_scale_needs_a_file_beside_which_a_picture_fits(tmp_path, capfd):
    said = error_line(capfd, "scale", "--quick", "--out", str(tmp_path / "x.png"))
    assert "must name a JSON file" in said
