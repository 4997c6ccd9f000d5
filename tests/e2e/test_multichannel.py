"""Sixteen bits, floats and five channels from the folder to the figures, as a user types it."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tifffile
import torch
from PIL import Image

from mvmae.cli.main import main
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.sources.open import open_source
from mvmae.method.preflight.resolve_config import resolve_config
from mvmae.method.views import normalize

CHANNELS = 5


def write(file, kind: str, label: int, seed: int) -> None:
    """Spots on a ramp; the classes differ in the channel that is bright."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[0:20, 0:24] / 24
    image = np.stack([row + column * at for at in range(CHANNELS)]) / 6
    image[label] += 0.3
    image += rng.normal(0, 0.05, image.shape)
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "16":  # twelve bits in sixteen, as cameras have them
        whole = (image.clip(0, 1) * 4095).round().astype(np.uint16)
        tifffile.imwrite(file.with_suffix(".tif"), whole, photometric="minisblack")
    elif kind == "8":
        whole = (image.clip(0, 1) * 255).round().astype(np.uint8)
        tifffile.imwrite(file.with_suffix(".tif"), whole, photometric="minisblack")
    else:  # elevations, some below the sea
        np.save(file.with_suffix(".npy"), (image * 3000 - 500).astype(np.float32))


@pytest.fixture(params=["16", "float", "8"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def images(tmp_path, kind):
    for label, name in enumerate(("field", "wood")):
        for number in range(10):
            write(tmp_path / "images" / name / str(number), kind, label, 100 * label + number)
    return tmp_path / "images"


def config_in(run) -> dict:
    return json.loads((run / "config.json").read_text())


def tensors_in(run) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(run / "encoder.safetensors")


def test_a_run_on_five_channels_serves_every_command(
    tmp_path, images, kind, pretrain_command, capsys
):
    run = tmp_path / "run"
    words = pretrain_command(images, run, {"model.in-channels": CHANNELS})
    assert main(words) == 0
    said = capsys.readouterr().out
    facts = json.loads((run / "encoder.json").read_text())
    views = config_in(run)["views"]
    assert views["depth"] == facts.get("pixel_depth", "8") == kind
    assert f"--model.in-channels {CHANNELS}" not in said
    assert "over 20 images mean" in said
    every = [
        tifffile.imread(file) if kind != "float" else np.load(file)
        for file in sorted(images.rglob("*.*"))
    ]
    full = {"8": 255, "16": 65535, "float": 1}[kind]
    pixels = np.stack(every).astype(np.float64) / full
    np.testing.assert_allclose(views["mean"], pixels.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(views["std"], pixels.std(axis=(0, 2, 3)), rtol=1e-5)
    assert facts["mean"] == views["mean"]

    assert main(["knn", str(run), str(images), "--device", "cpu", "--workers", "0"]) == 0
    judged = json.loads(next((run / "results").glob("knn*.json")).read_text())
    assert not judged["skipped"]
    embedded = tmp_path / "embedded"
    query = str(next(images.rglob("3.*")))
    words = ["embed", str(run), str(images), "--out", str(embedded), "--query", query]
    assert main([*words, "--device", "cpu", "--workers", "0"]) == 0
    picture = tmp_path / "reconstructed.png"
    words = ["reconstruct", str(run), str(images), "--channels", "1", "3", "5", "--count", "2"]
    assert main([*words, "--out", str(picture), "--device", "cpu"]) == 0
    with Image.open(picture) as drawn:
        assert np.asarray(drawn.convert("L")).std() > 20
    words = ["attention", str(run), str(images), "--count", "2", "--out", str(picture)]
    assert main([*words, "--device", "cpu"]) == 0
    words = ["export", str(run), "--format", "timm", "--data", str(images)]
    assert main([*words, "--out", str(tmp_path / "export")]) == 0


def test_a_resumed_run_is_the_same_bit_for_bit_and_measures_nothing_anew(
    tmp_path, images, kind, pretrain_command
):
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    options = {"model.in-channels": CHANNELS, "keep-every": 2}
    assert main(pretrain_command(images, whole, options)) == 0
    shutil.copytree(whole, halved)
    checkpoints = halved / "checkpoints"
    (checkpoints / "epoch-2.pt").replace(checkpoints / "last.pt")
    (checkpoints / "previous.pt").unlink(missing_ok=True)
    (halved / "encoder.safetensors").unlink()
    assert main(["pretrain", "--resume", "--out", str(halved)]) == 0
    assert config_in(halved)["views"] == config_in(whole)["views"]
    ours, theirs = tensors_in(halved), tensors_in(whole)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    words = pretrain_command(images, halved, options | {"resume": True})
    assert main(words) == 0  # what is not given is what the run inferred


def test_a_run_repeats_from_its_config_without_looking_again(tmp_path, pretrain_command):
    for number in range(10):
        write(tmp_path / "images" / str(number), "16", number % 2, number)
    first, again = tmp_path / "first", tmp_path / "again"
    options = {"model.in-channels": CHANNELS}
    assert main(pretrain_command(tmp_path / "images", first, options)) == 0
    words = ["pretrain", "--recipe", str(first / "config.json"), "--out", str(again)]
    assert main(words) == 0
    assert config_in(again)["views"] == config_in(first)["views"]
    for name, value in tensors_in(first).items():
        np.testing.assert_array_equal(tensors_in(again)[name], value)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "have 5 channels, not 3: set --model.in-channels 5"),
        ({"model.in-channels": 4}, "have 5 channels, not 4: set --model.in-channels 5"),
        ({"model.in-channels": 65}, "in_channels must be at most 64, not 65"),
        ({"model.in-channels": 5, "views.depth": "16"}, "float32 are not supported at depth 16"),
        ({"model.in-channels": 5, "views.mean": (0.5, 0.5)}, "views.mean has 2 values for 5"),
    ],
)
def test_what_cannot_work_is_said_at_once(tmp_path, pretrain_command, capsys, options, complaint):
    for number in range(10):
        write(tmp_path / "images" / str(number), "float", 0, number)
    assert main(pretrain_command(tmp_path / "images", tmp_path / "run", options)) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run" / "config.json").exists()


def test_numbers_of_two_kinds_need_a_word(tmp_path, pretrain_command, capsys):
    for number in range(8):
        write(tmp_path / "images" / str(number), "float" if number % 2 else "16", 0, number)
    options = {"model.in-channels": 5}
    assert main(pretrain_command(tmp_path / "images", tmp_path / "run", options)) == 2
    assert "--views.depth float takes all as they are" in capsys.readouterr().err


def test_finetuning_deep_pixels_asks_for_augmentation_that_knows_them(
    tmp_path, pretrain_command, capsys
):
    for label, name in enumerate(("field", "wood")):
        for number in range(10):
            write(tmp_path / "images" / name / str(number), "16", label, 10 * label + number)
    images, run = tmp_path / "images", tmp_path / "run"
    assert main(pretrain_command(images, run, {"model.in-channels": CHANNELS})) == 0
    words = ["finetune", str(run), str(images), "--out", str(tmp_path / "tuned"), "--epochs", "1"]
    words += ["--batch-size", "8", "--warmup-epochs", "0", "--device", "cpu", "--workers", "0"]
    assert main([*words, "--rand-augment", "5"]) == 2
    assert "set --rand-augment 0" in capsys.readouterr().err
    assert main([*words, "--rand-augment", "0", "--flip", "both"]) == 0
    facts = json.loads((tmp_path / "tuned" / "encoder.json").read_text())
    assert facts["pixel_depth"] == "16"


# An array of all images in one file


def losses_in(run) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: one[name] for name in ("step", "loss")} for one in lines if "loss" in one]


@pytest.mark.parametrize(
    ("dtype", "channels", "depth"), [("uint16", 1, "16"), ("float32", 5, "float")]
)
def test_an_array_trains_at_its_own_depth_as_the_tar_file_packed_of_it(
    tmp_path, pretrain_command, dtype, channels, depth
):
    rng = np.random.default_rng(0)
    array = rng.integers(3000, 4000, (12, 20, 24, channels)).astype(dtype)  # 8 bit: 5 values
    np.save(tmp_path / "all.npy", array[..., 0] if channels == 1 else array)
    assert main(["data", "pack", str(tmp_path / "all.npy"), str(tmp_path / "tar")]) == 0
    runs = []
    for data in ("all.npy", "tar"):
        runs.append(tmp_path / f"run of {data}")
        words = pretrain_command(tmp_path / data, runs[-1], {"model.in-channels": channels})
        assert main(words) == 0
    plain, packed = (config_in(run)["views"] for run in runs)
    assert plain["depth"] == depth
    assert plain == packed
    assert losses_in(runs[0]) == losses_in(runs[1]) != []
    plain, packed = (tensors_in(run) for run in runs)
    assert all(np.array_equal(plain[name], packed[name]) for name in plain)


def test_an_array_of_other_channels_is_refused_before_anything_is_written(
    tmp_path, pretrain_command, capsys
):
    np.save(tmp_path / "all.npy", np.ones((8, 20, 24, 5), np.uint16))
    assert main(pretrain_command(tmp_path / "all.npy", tmp_path / "run")) == 2
    assert "have 5 channels, not 3: set --model.in-channels 5" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_statistics_say_what_an_array_holds(tmp_path, capsys):
    array = np.random.default_rng(0).normal(-300, 50, (6, 20, 24)).astype(np.float32)
    np.save(tmp_path / "all.npy", array)
    out = tmp_path / "stats.json"
    assert main(["data", "stats", str(tmp_path / "all.npy"), "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert (told["depth"], told["in_channels"]) == ("float", 1)
    assert told["mean"] == pytest.approx([array.mean()], rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "scale"), [("uint32", 1e8), ("float32", 1e37), ("float32", 1e-20), ("int32", 1e8)]
)
def test_values_of_any_size_are_normalised_by_what_was_measured(tmp_path, dtype, scale):
    rng = np.random.default_rng(0)
    for number in range(6):
        values = rng.uniform(0, 4, (3, 20, 24)) * scale
        np.save(tmp_path / f"{number}.npy", values.astype(dtype))
    asked = PretrainConfig(data=(str(tmp_path),), workers=0)
    trained, source, _ = resolve_config(asked, open_source(asked.data, 3))
    assert trained.views.depth == "float"
    images = torch.stack([source.read(index) for index in range(6)])
    out = normalize(images, *trained.pixel_statistics, torch.device("cpu"))
    assert out.mean((0, 2, 3)).abs().max() < 1e-3
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
