"""`mvmae detect` on small images: outputs, interruption and resumption, bad input."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from statistics import median

import pytest
import torch
from coco_data import annotation, save, write_both, write_split
from PIL import Image
from run_folders import assert_same_run, metrics, names

from mvmae import encoders
from mvmae.cli.main import main
from mvmae.config.model import ModelConfig
from mvmae.config.views import ViewsConfig
from mvmae.encoders import OpenedEncoder, Preprocessing

PRODUCTS = ("model.safetensors", "model.json", "predictions.json")
LEFT = {
    *("config.json", "environment.json", "metrics.jsonl", "checkpoints", "results", "figures"),
    *("model.safetensors", "model.json", "predictions.json"),
}
QUICK = {  # 2 steps an epoch
    "recipe": "small",
    "image-size": 64,
    "batch-size": 2,
    "epochs": 3,
    "warmup-epochs": 0,
    "channels": 16,
    "hidden": 16,
    "samples": 16,
    "proposals": 40,
    "eval-every": 2,
    "log-every": 2,
    "device": "cpu",
    "workers": 0,
}
LI2021 = {"recipe": "li2021", "window": 2, "drop-path": 0.3}
NAMES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")


def command(data: Path | str, out: Path | str, options: dict | None = None) -> list[str]:
    words = ["detect", "random:vit_pico", str(data), "--out", str(out)]
    for name, value in (QUICK | (options or {})).items():
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        words += [f"--{name}", *map(str, values)]
    return words


def detect(data: Path | str, out: Path, options: dict | None = None) -> int:
    return main(command(data, out, options))


def result(run: Path) -> dict:
    (file,) = (run / "results").iterdir()
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_both(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained_run(data, tmp_path_factory) -> Path:
    """Folder of a finished run."""
    run = tmp_path_factory.mktemp("runs") / "run"
    assert detect(data, run) == 0
    return run


# Outputs


def test_a_run_writes_its_folder(trained_run, data):
    assert names(trained_run) == LEFT
    kept = result(trained_run)
    assert kept["command"] == "detect"
    assert {*kept["headline"]} == {"box_ap", "box_ap50", "mask_ap", "mask_ap50"}
    assert len(kept["box"]["figures"]) == len(kept["mask"]["figures"]) == 12
    assert {*kept["mask"]["by_class"]} == {"square", "bar"}
    assert kept["data"]["split"] == "train and val"
    assert kept["data"]["classes"] == ["square", "bar"]
    lines = metrics(trained_run)
    assert {*NAMES, "loss", "lr"} <= lines[0].keys()
    assert lines[0]["loss"] == pytest.approx(sum(lines[0][name] for name in NAMES), abs=1e-5)
    assert [line["step"] for line in lines if "box_ap" in line] == [4, 6]
    with Image.open(trained_run / "figures" / "detections.png") as picture:
        assert min(picture.size) > 200
    ids = {
        one["id"]
        for one in json.loads((data / "annotations/instances_val.json").read_text())["images"]
    }
    for one in json.loads((trained_run / "predictions.json").read_text()):
        assert one["image_id"] in ids
        assert one["category_id"] in (3, 7)
        assert one["segmentation"]["size"] == [48, 64]


def test_a_run_prints_its_data_model_and_metrics(data, tmp_path, capsys):
    assert detect(data, tmp_path / "run", {"epochs": 1}) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "4 training images (train) with",
        "boxes and masks of 2 classes, 4 validation images (val)",
        "Mask R-CNN on random:vit_pico",
        "1 epoch of 2 steps of 2 images",
        "│ square │ 4 │ 4 │ 0.0 │",  # training, validation, AP
        "│ bar │ 6 │ 4 │",
        "half of the boxes are smaller than 14 pixels at --image-size 64",
        "Set --image-size 128,",
        "AP50",
        "COCO's metrics on the 4 images of val",
        f"mvmae detect {tmp_path / 'run'} --predict IMAGES --out FOLDER",
    ):
        assert words in said


def test_the_command_line_in_the_result_repeats_the_run(trained_run, tmp_path):
    words = shlex.split(result(trained_run)["command_line"])
    assert words[:2] == ["mvmae", "detect"]
    again = tmp_path / "again"
    words[words.index("--out") + 1] = str(again)
    assert main(words[1:]) == 0
    assert_same_run(trained_run, again, PRODUCTS)


@pytest.mark.parametrize("how", ["no masks", "boxes only"])
def test_without_masks_it_is_faster_rcnn(how, data, tmp_path, capsys):
    if how == "no masks":
        data = write_both(tmp_path / "data", masks=False)
    options = {"epochs": 1} | ({"boxes-only": True} if how == "boxes only" else {})
    assert detect(data, tmp_path / "run", options) == 0
    assert "Faster R-CNN" in capsys.readouterr().out
    assert result(tmp_path / "run")["mask"] is None
    assert "loss_mask" not in metrics(tmp_path / "run")[0]
    rows = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert all("segmentation" not in row for row in rows)


def test_tensorboard_receives_pictures_of_predictions(data, tmp_path):
    options = {"epochs": 1, "log": "tensorboard"}
    assert detect(data, tmp_path / "run", options) == 0
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    written = file.read_bytes()
    assert b"detections" in written
    assert b"\x89PNG" in written
    assert b"loss_objectness" in written


def test_vitdet_and_gray_images_work(tmp_path):
    folder = write_both(tmp_path / "data")
    for file in folder.glob("images/*/*.png"):
        Image.open(file).convert("L").save(file)
    options = {"recipe": "vitdet", "window": 2, "epochs": 1, "accumulate": 2, "recompute": True}
    assert detect(folder, tmp_path / "run", options) == 0
    assert json.loads((tmp_path / "run" / "model.json").read_text())["detector"]["window"] == 2


def test_faulty_annotations_are_reported_and_left_out(data, tmp_path, capsys):
    folder = shutil.copytree(data, tmp_path / "data")
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    content["annotations"] += [
        annotation(901, 10, 3, [60, 40, 30, 30]),
        annotation(902, 10, 3, [5, 5, 0, 9]),
        annotation(903, 10, 3, [10, 10, 20, 20]) | {"iscrowd": 1},
    ]
    content["images"].append({"id": 999, "file_name": "gone.png", "height": 9, "width": 9})
    save(folder, "train", content)
    assert detect(folder, tmp_path / "run", {"epochs": 1}) == 0
    said = capsys.readouterr().out
    for words in ("stick out", "without an", "missing", "gone.png", "clipped", "left out"):
        assert words in said


# Interruption and resumption


@pytest.mark.parametrize(
    ("number", "options"), [(signal.SIGINT, LI2021), (signal.SIGTERM, {"accumulate": 2})]
)
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    number, options, data, tmp_path, send_after, capsys
):
    options = options | {"log-every": 1, "epochs": 4}
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert detect(data, whole, options) == 0
    send_after(number, run, 2)
    assert detect(data, run, options) == 128 + number
    done = metrics(run)[-1]["step"]
    assert done < 8
    assert f"mvmae detect --resume --out {run}" in capsys.readouterr().out
    assert main(["detect", "--resume", "--out", str(run)]) == 0
    assert_same_run(run, whole, PRODUCTS)


def test_resuming_with_other_settings_or_annotations_is_rejected(
    trained_run, data, tmp_path, capsys
):
    run = shutil.copytree(trained_run, tmp_path / "run")
    assert main(["detect", "--resume", "--out", str(run), "--lr", "0.1"]) == 2
    assert "was run with lr 0.001, not 0.1" in capsys.readouterr().err
    folder = shutil.copytree(data, tmp_path / "data")
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    content["annotations"][0]["bbox"][0] += 0.5
    file = data / "annotations" / "instances_train.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(content))
        assert main(["detect", "--resume", "--out", str(run)]) == 2
    finally:
        file.write_text(before)
    assert "are not those that" in capsys.readouterr().err


def test_a_failed_evaluation_loses_no_steps(data, trained_run, tmp_path, monkeypatch, capsys):
    """The validation images vanish for a while; afterwards the run is equal bit by bit."""
    from mvmae.dense.detect import run as command

    folder, run = shutil.copytree(data, tmp_path / "data"), tmp_path / "run"
    images, own = folder / "images" / "val", command.training_step

    def losing(wrapped, batch, job, step):
        if step == 5:
            images.rename(tmp_path / "elsewhere")
        return own(wrapped, batch, job, step)

    monkeypatch.setattr(command, "training_step", losing)
    assert detect(folder, run) == 2
    assert "4 of the 4 images" in capsys.readouterr().err
    assert torch.load(run / "checkpoints" / "last.pt", weights_only=True)["step"] == 6
    monkeypatch.setattr(command, "training_step", own)
    assert main(["detect", "--resume", "--out", str(run)]) == 2  # still no images, and no harm
    (tmp_path / "elsewhere").rename(images)
    assert main(["detect", "--resume", "--out", str(run)]) == 0
    assert [line["step"] for line in metrics(run) if "box_ap" in line] == [4, 6]
    for name in ("model.safetensors", "predictions.json"):
        assert (run / name).read_bytes() == (trained_run / name).read_bytes()


@pytest.mark.slow
def test_two_processes_train_and_evaluate_together(data, tmp_path, free_port):
    run = tmp_path / "run"
    options = {"epochs": 2, "log-every": 1} | LI2021
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-port", str(free_port), "-m", "mvmae"),
    ]
    done = subprocess.run(
        [*launch, *command(data, run, options)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert names(run) == LEFT
    assert json.loads((run / "environment.json").read_text())["world_size"] == 2
    lines = metrics(run)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    found = {row["image_id"] for row in json.loads((run / "predictions.json").read_text())}
    assert found <= {10, 20, 30, 40}
    assert done.stdout.count("Written:") == 1


# Predictions


def test_a_finished_run_detects_objects_in_other_images(trained_run, data, tmp_path, capsys):
    out = tmp_path / "found"
    words = [
        "detect",
        str(trained_run),
        "--predict",
        str(data / "images" / "val"),
        "--device",
        "cpu",
    ]
    words += ["--workers", "0"]
    assert main([*words, "--out", str(out), "--score", "0"]) == 0
    assert names(out) == {"predictions.json", "pictures"}
    assert names(out / "pictures") == {f"000{n}.png" for n in range(1, 5)}
    rows = json.loads((out / "predictions.json").read_text())
    judged = json.loads((trained_run / "predictions.json").read_text())
    assert len(rows) == len(judged)
    first = rows[0]
    assert first["file_name"] == str(data / "images" / "val" / "0001.png")
    assert first["category"] == {3: "square", 7: "bar"}[first["category_id"]]
    assert {k: first[k] for k in ("bbox", "score", "segmentation")} == {
        k: judged[0][k] for k in ("bbox", "score", "segmentation")
    }
    assert "4 images in" in capsys.readouterr().out

    assert main([*words, "--out", str(out)]) == 2
    assert "already holds predictions" in capsys.readouterr().err
    assert main([*words, "--out", str(out), "--overwrite", "--no-draw", "--score", "0.99"]) == 0
    assert names(out) == {"predictions.json"}
    assert json.loads((out / "predictions.json").read_text()) == []
    best = max(row["score"] for row in rows)
    assert f"nothing; the best score is {best:.2f}, so --score" in capsys.readouterr().out


def test_foreign_files_are_kept(trained_run, data, tmp_path, capsys):
    out = tmp_path / "found"
    words = ["detect", str(trained_run), "--predict", str(data / "images" / "val" / "0001.png")]
    words += ["--out", str(out), "--device", "cpu", "--workers", "0"]
    assert main(words) == 0
    assert names(out / "pictures") == {"0001.png"}
    (out / "my_thesis.txt").write_text("years of work")
    assert main([*words, "--overwrite"]) == 2
    assert "holds other files (my_thesis.txt)" in capsys.readouterr().err
    assert (out / "my_thesis.txt").read_text() == "years of work"


def test_unreadable_images_are_listed(trained_run, data, tmp_path):
    images = shutil.copytree(data / "images" / "val", tmp_path / "images")
    (images / "0002.png").write_bytes(b"broken")
    out = tmp_path / "found"
    words = ["detect", str(trained_run), "--predict", str(images), "--out", str(out)]
    assert main([*words, "--device", "cpu", "--workers", "0"]) == 0
    assert "0002.png" in (out / "skipped.csv").read_text()
    assert len(names(out / "pictures")) == 3


# Bad input


def remove_images(folder: Path) -> None:
    shutil.rmtree(folder / "images" / "train")
    (folder / "images" / "train").mkdir()


def add_unknown_category(folder: Path) -> None:
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 55
    file.write_text(json.dumps(content))


def rename_class(folder: Path) -> None:
    file = folder / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace('"bar"', '"rod"'))


def break_json(folder: Path) -> None:
    (folder / "annotations" / "instances_val.json").write_text("{")


def change_training(folder: Path, key: str, change) -> None:
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for one in content[key]:
        change(one)
    file.write_text(json.dumps(content))


def break_polygons(folder: Path) -> None:
    shares = [[0.1, 0.1, 0.3, 0.1, 0.3, 0.3]]
    change_training(folder, "annotations", lambda one: one.update(segmentation=shares))


def repeat_file_name(folder: Path) -> None:
    change_training(folder, "images", lambda one: one.update(file_name="0001.png"))


def enlarge_ids(folder: Path) -> None:
    change_training(folder, "images", lambda one: one.update(id=2**70 + one["id"]))


def no_change(folder: Path) -> None:
    pass


FINISHED = "a finished run"
BAD = {
    "no data": (
        no_change,
        ["detect", "random:vit_pico"],
        "no DATA: name a folder in COCO's layout",
    ),
    "no encoder": (no_change, ["detect"], "no ENCODER"),
    "no such folder": (no_change, "elsewhere", "elsewhere does not exist"),
    "no annotations": (no_change, "data/images", "has no annotations/instances_SPLIT.json"),
    "missing images": (remove_images, {}, "more than half of the images cannot be used"),
    "unknown category": (add_unknown_category, {}, "unknown categories .*category 55"),
    "other classes": (rename_class, {}, "different categories: 7 is bar and rod"),
    "no json": (break_json, {}, "instances_val.json is not valid JSON"),
    "no such split": (no_change, {"val-split": "tset"}, "--val-split tset: unknown split"),
    "size": (no_change, {"image-size": 72}, "not a multiple of 64, .*set --image-size 64"),
    "batch": (no_change, {"batch-size": 99}, "4 training images are fewer than a batch of 99"),
    "parts": (no_change, {"accumulate": 3}, "accumulate 3 is more than the 2 images"),
    "window": (no_change, {"relative-positions": True}, "relative positions need windows"),
    "jitter": (no_change, {"scale-jitter": (2, 1)}, "two increasing numbers above 0"),
    "no detector": (
        no_change,
        ["detect", "data", "--predict", "data/images/val"],
        "data is not a finished run of mvmae detect",
    ),
    "shares": (
        break_polygons,
        {},
        "more than half of the masks do not fit .*points must be in pixels, "
        "not in fractions of the image",
    ),
    "one file twice": (
        repeat_file_name,
        {},
        "images with the same file_name .*0001.png: 10 and 20",
    ),
    "large id": (
        enlarge_ids,
        {},
        "images without file_name, or whose id is not a 64-bit integer",
    ),
    "another image size": (
        no_change,
        ["detect", FINISHED, "--predict", "data/images/val", "--image-size", "96"],
        "--image-size 96 has no effect on a trained model, which uses 64",
    ),
    "predict and data": (
        no_change,
        ["detect", "run", "data", "--predict", "data/images/val"],
        "--predict takes a detector's run folder and no DATA",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_reported_in_one_line(name, data, trained_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(data, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    spoil, what, message = BAD[name]
    spoil(tmp_path / "data")
    if isinstance(what, list):
        words = [str(trained_run) if word == FINISHED else word for word in what]
    elif isinstance(what, str):
        words = command(what, "out")
    else:
        words = command("data", "out", what)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mvmae: ")
    assert re.search(message, line), line
    assert len(line) < 400
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


def test_a_run_of_another_command_is_rejected(trained_run, tmp_path, capsys):
    run = shutil.copytree(trained_run, tmp_path / "run")
    facts = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(facts | {"task": "segment"}))
    assert main(["detect", str(run), "--predict", str(tmp_path)]) == 2
    assert "is not a detector" in capsys.readouterr().err
    (run / "model.json").write_text(json.dumps(facts | {"detector": {"side": 9}}))
    assert main(["detect", str(run), "--predict", str(tmp_path)]) == 2
    assert "does not describe a detector" in capsys.readouterr().err


# Learning


def eight_nuclei_images(archive: Path, folder: Path) -> Path:
    """Take the eight images of largest nuclei among those with 3 to 15, for both splits."""
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (root,) = {path.parents[1] for path in folder.rglob("instances_train.json")}
    content = json.loads((root / "annotations" / "instances_train.json").read_text())
    sides: dict[int, list[float]] = {}
    for one in content["annotations"]:
        sides.setdefault(one["image_id"], []).append((one["bbox"][2] * one["bbox"][3]) ** 0.5)
    few = [one for one in content["images"] if 3 <= len(sides.get(one["id"], [])) <= 15]
    few.sort(key=lambda one: median(sides[one["id"]]) / max(one["width"], one["height"]))
    ids = {one["id"] for one in few[-8:]}
    content["images"] = few[-8:]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
    eight = folder / "eight"
    shutil.copytree(root / "images" / "train", eight / "images")
    for name in ("train", "val"):
        save(eight, name, content)
    return eight


@pytest.mark.slow
def test_eight_images_of_nuclei_are_memorised(data_root, tmp_path):
    """Takes about two minutes on an idle core."""
    eight = eight_nuclei_images(data_root / "nuclei.tar", tmp_path)
    model = ModelConfig(encoder="vit_pico", image_size=96, patch_size=8, decoder_dim=32)
    opened = OpenedEncoder(
        encoders.random_encoder(model, 0),
        Preprocessing(*ViewsConfig().pixel_statistics(3), "bicubic"),
        "mean",
    )
    (tmp_path / "encoder").mkdir()
    encoders.save_encoder(tmp_path / "encoder", opened)
    options = QUICK | {
        "image-size": 96,
        "epochs": 100,
        "lr": 2e-3,
        "clip-grad": 1,
        "layer-decay": 1,
        "channels": 64,
        "hidden": 256,
        "samples": 64,
        "proposals": 300,
        "scale-jitter": (1, 1),
        "flip": "none",
        "eval-every": 1000,
        "log-every": 40,
    }
    words = command(eight, tmp_path / "run", options)
    words[1] = str(tmp_path / "encoder")
    assert main(words) == 0
    figures = result(tmp_path / "run")["headline"]
    assert figures["box_ap50"] >= 80
    assert figures["mask_ap50"] >= 80


def test_both_splits_may_share_a_folder_of_images(tmp_path):
    write_split(tmp_path, "train", images="images")
    write_split(tmp_path, "val", images="images")
    assert detect(tmp_path, tmp_path / "run", {"epochs": 1}) == 0
