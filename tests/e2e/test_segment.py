"""`mvmae segment` as a user types it, on squares in two colours in runs of a second."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import assert_same_run, timeless
from torch import Generator

from mvmae import encoders
from mvmae.cli.main import main
from mvmae.config.model import Size
from mvmae.dense.saved_model import saved_predictor
from mvmae.dense.segment import run as segment
from mvmae.dense.segment.evaluate import predict_classes
from mvmae.dense.segment.finished import open_segmenter
from mvmae.encoders import OpenedEncoder, Preprocessing
from mvmae.method.vit import Encoder, initialize

PRODUCTS = ("model.safetensors", "model.json", "encoder.safetensors", "encoder.json")
SMALL = (
    "--recipe small --crop 16 --stride 10 --short-side 20 --channels 8 --auxiliary-channels 8 "
    "--batch-size 4 --iterations 6 --warmup-iterations 0 --eval-every 3 --log-every 2 "
    "--device cpu --workers 0"
)


def save_pair(root: Path, part: str, name: str, rng: np.random.Generator) -> None:
    """Save a red square (2 in the mask) on blue (1), in a frame that is ignored (0)."""
    values = np.zeros((24, 30), dtype=np.uint8)
    values[2:-2, 2:-2] = 1
    top, left = rng.integers(2, 10), rng.integers(2, 14)
    values[top : top + 10, left : left + 10] = 2
    colours = np.array([[90, 90, 90], [30, 60, 200], [200, 60, 30]])
    noise = rng.integers(-25, 26, (24, 30, 3))
    for folder, picture in (("images", colours[values] + noise), ("annotations", values)):
        file = root / folder / part / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Folder of images with masks, an encoder of random weights, and a finished run."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for part, count in (("training", 8), ("validation", 3)):
        for index in range(count):
            save_pair(home / "data", part, f"{part[0]}{index}", rng)
    (home / "data" / "classes.csv").write_text("value,name\n0,frame\n1,ground\n2,square\n")
    encoder = Encoder(Size(32, 4, 2), image_size=(16, 16), patch_size=4)
    initialize(encoder, Generator().manual_seed(0))
    preprocessing = Preprocessing((0.5,) * 3, (0.3,) * 3, "bicubic")
    (home / "enc").mkdir()
    encoders.save_encoder(home / "enc", OpenedEncoder(encoder, preprocessing, "mean"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert execute(f"segment enc data --out run {SMALL}") == 0
    return home


def execute(line: str) -> int:
    """Run a command line; returns its exit status."""
    return main(line.split())


def result(file: str) -> dict:
    return json.loads(Path(file).read_text())


def lines(run: str) -> list[dict]:
    return timeless(Path(run))


def weights(run: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(run) / "checkpoints" / "last.pt", weights_only=True)["model"]


def same_weights(run: str, other: str) -> bool:
    one, two = weights(run), weights(other)
    return one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)


def error_line(capsys, command: str) -> str:
    assert main(command.split()) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert printed.count("\n") == 1
    return printed


# Training


def test_a_run_writes_metrics_pictures_and_a_model(here):
    kept = result("run/results/segment-data.json")
    assert kept["headline"].keys() == {"miou", "mean_accuracy", "pixel_accuracy"}
    assert [row["class"] for row in kept["per_class"]] == ["ground", "square"]
    assert kept["per_class"][1]["pixels"] == 300
    assert kept["data"]["num_train"] == 8
    assert np.array(kept["confusion"]).sum() == 3 * 20 * 26
    records = lines("run")
    losses = [record for record in records if "loss" in record]
    for record in losses:
        assert record["loss"] == pytest.approx(record["main"] + 0.4 * record["auxiliary"])
    assert [record["step"] for record in records if "miou" in record] == [3, 6]
    for file in ("model.safetensors", "model.json", "encoder.safetensors", "config.json"):
        assert (Path("run") / file).exists()
    with Image.open("run/figures/segmentations.png") as picture:
        assert picture.width > 800


def test_squares_can_be_learnt(here):
    more = "--iterations 60 --eval-every 100 --lr 5e-3 --jitter 1 1 --no-distort"
    assert execute(f"segment enc data --out more {SMALL} {more}") == 0
    assert result("more/results/segment-data.json")["headline"]["miou"] > 80


def stop_at_step_2(patch: pytest.MonkeyPatch) -> None:
    """Let runs get SIGTERM in their third step."""
    own = segment.training_step

    def stopping(wrapped, batch, job, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(wrapped, batch, job, step)

    patch.setattr(segment, "training_step", stopping)


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(here):
    with pytest.MonkeyPatch.context() as patch:
        stop_at_step_2(patch)
        assert execute(f"segment enc data --out stopped {SMALL}") == 143
    assert not Path("stopped/model.safetensors").exists()
    assert execute("segment --resume --out stopped --workers 2") == 0
    assert_same_run(Path("stopped"), Path("run"), PRODUCTS)


def test_a_failed_evaluation_loses_no_steps(here, capsys):
    """The test images vanish for a while; afterwards the run is equal bit by bit."""
    own, images = segment.training_step, Path("data/images/validation")

    def losing(step: int):
        def losing_step(wrapped, batch, job, number):
            if number == step:
                images.rename("elsewhere")
            return own(wrapped, batch, job, number)

        return losing_step

    for step, out in ((1, "middle"), (5, "end")):  # tests are after steps 3 and 6
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segment, "training_step", losing(step))
            message = error_line(capsys, f"segment enc data --out {out} {SMALL}")
        assert "3 of the 3 images of data cannot be read" in message
        assert torch.load(Path(out) / "checkpoints" / "last.pt")["step"] == 3 * (1 + step // 3)
        assert (Path(out) / "model.safetensors").exists() is (out == "end")
        Path("elsewhere").rename(images)
        assert execute(f"segment --resume --out {out}") == 0
        assert lines(out) == lines("run")
        assert same_weights(out, "run")
        assert result(f"{out}/results/segment-data.json")["headline"]


def test_a_run_resumes_without_its_encoder_and_with_a_changed_one(here):
    with pytest.MonkeyPatch.context() as patch:
        stop_at_step_2(patch)
        for out in ("gone", "other"):
            assert execute(f"segment enc data --out {out} {SMALL}") == 143
    facts = result("enc/encoder.json")
    Path("enc/encoder.json").write_text(json.dumps(facts | {"mean": [0.9] * 3}))
    assert execute("segment --resume --out other") == 0
    shutil.rmtree("enc")
    assert execute("segment --resume --out gone") == 0
    for out in ("gone", "other"):
        assert same_weights(out, "run")
        assert result(f"{out}/encoder.json")["mean"] == facts["mean"]


def test_accumulation_recomputation_and_bf16_run(here):
    command = f"segment enc data --out parts {SMALL} --accumulate 2 --recompute --clip-grad 1"
    assert main(command.split()) == 0
    assert execute(f"segment enc data --out half {SMALL} --precision bf16") == 0


def test_a_batch_of_one_crop_runs(here):
    command = f"segment enc data --out one {SMALL} --batch-size 1 --auxiliary-weight 0"
    assert main(command.split()) == 0
    assert "auxiliary" not in lines("one")[0]
    assert open_segmenter("one").model.auxiliary is None


def test_tensorboard_receives_pictures(here):
    pytest.importorskip("tensorboard")
    assert execute(f"segment enc data --out board {SMALL} --log tensorboard") == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("board/tensorboard", size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("segmentations")] == [3, 6]
    assert "miou" in events.Tags()["scalars"]


@pytest.mark.slow  # each process loads torch: 10 s, more where others compute
def test_two_processes_train_and_test_every_image(here, free_port):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port), "-m", "mvmae", "segment", "enc", "data"]
    done = subprocess.run(
        [*command, "--out", "two", *SMALL.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kept = result("two/results/segment-data.json")
    assert kept["world_size"] == 2
    assert np.array(kept["confusion"]).sum() == 3 * 20 * 26
    summaries = [line for line in done.stdout.splitlines() if line.startswith("mIoU")]
    assert len(summaries) == 1


# Finished runs


def test_protocol_test_repeats_the_metrics_of_the_run(here):
    assert execute("segment run data --protocol test --device cpu --workers 0") == 0
    own, again = result("run/results/segment-data.json"), "run/results/segment-test-data.json"
    assert result(again)["headline"] == own["headline"]
    assert result(again)["confusion"] == own["confusion"]
    shutil.rmtree("data/images/training")
    assert execute("segment run data --protocol test --device cpu --workers 0") == 0
    assert result(again)["confusion"] == own["confusion"]


def test_multi_scale_writes_a_separate_result(here):
    command = "segment run data --protocol test --multi-scale --device cpu --workers 0"
    assert main(command.split()) == 0
    assert result("run/results/segment-test-multi-scale-data.json")["headline"]["miou"] >= 0


def test_predictions_are_overlays_and_masks_with_the_training_values(here, capsys):
    images = Path("data/images/validation")
    assert execute(f"segment run --predict {images} --out seen --device cpu") == 0
    assert "written: seen/masks" in capsys.readouterr().out
    predictor = saved_predictor(open_segmenter("run"), "segment", _config(), torch.device("cpu"))
    for file in sorted(images.iterdir()):
        with Image.open(f"seen/masks/{file.stem}.png") as mask:
            assert mask.mode == "P"
            values = np.array(mask)
        pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        wanted = predict_classes(predictor, pixels, (24, 30)).numpy() + 1  # 0 is ignored
        assert (values == wanted).all()
        with Image.open(f"seen/overlays/{file.stem}.jpg") as overlay:
            assert overlay.size == (30, 24)
    text = Path("seen/classes.csv").read_text()
    assert text.splitlines()[0] == "value,name,pixels,colour"
    assert text.splitlines()[1].startswith("1,ground,")
    with Image.open("seen/masks/v0.png") as mask:
        red, green, blue = mask.getpalette()[3:6]
    assert text.splitlines()[1].endswith(f",#{red:02x}{green:02x}{blue:02x}")


def _config():
    from mvmae.cli.parse import parse

    return parse("segment", ["run", "--predict", "x", "--out", "y"])


def test_predictions_skip_unreadable_images_and_keep_subfolders(here, capsys):
    shutil.copytree("data/images", "mixed")
    Path("mixed/training/t0.png").write_bytes(b"no image")
    shutil.copy("mixed/training/t1.png", "mixed/training/t1.bmp")
    assert execute("segment run --predict mixed --out seen --device cpu") == 0
    assert "1 images could not be read" in capsys.readouterr().out
    assert Path("seen/masks/validation/v0.png").exists()
    assert Path("seen/masks/training/t1.bmp.png").exists()
    assert "t0.png" in Path("seen/skipped.csv").read_text()
    again = "segment run --predict mixed --out seen --device cpu"
    assert "already holds predictions" in error_line(capsys, again)
    Path("seen/notes.txt").write_text("mine")
    assert "holds other files" in error_line(capsys, f"{again} --overwrite")
    Path("seen/notes.txt").unlink()
    inside = "segment run --predict seen/overlays --out seen --overwrite --device cpu"
    assert "the images are in seen" in error_line(capsys, inside)
    assert execute("segment run --predict mixed --out seen --overwrite --device cpu") == 0


def test_one_image_can_be_predicted_into_a_linked_folder(here, capsys):
    Path("disk").mkdir()
    Path("link").symlink_to("disk")
    command = "segment run --predict data/images/validation/v1.png --out link --device cpu"
    assert execute(command) == 0
    assert "1 images in" in capsys.readouterr().out
    assert Path("disk/masks/v1.png").exists()


def test_black_and_white_masks_stay_black_and_white(here, capsys):
    for part in ("training", "validation"):
        for file in Path("data/annotations", part).iterdir():
            white = 255 * (np.array(Image.open(file)) == 2).astype(np.uint8)
            Image.fromarray(white).save(file)
    Path("data/classes.csv").unlink()
    capsys.readouterr()
    assert execute(f"segment enc data --out white {SMALL}") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "values in the masks: 0 is a class (86.1 %), 255 is a class (13.9 %)" in text
    assert "black-and-white masks have two classes" in text
    assert [row["class"] for row in result("white/results/segment-data.json")["per_class"]] == [
        "0",
        "255",
    ]
    assert execute("segment white --predict data/images/validation --out seen --device cpu") == 0
    with Image.open("seen/masks/v0.png") as mask:
        assert mask.mode == "L"
        assert set(np.unique(mask).tolist()) <= {0, 255}
    assert execute("segment white data --protocol test --device cpu --workers 0") == 0
    own, again = (
        result(f"white/results/{n}-data.json")["confusion"] for n in ("segment", "segment-test")
    )
    assert own == again


def test_training_images_of_plain_pairs_are_left_out_of_the_test(here, capsys):
    shutil.copytree("data/images/training", "pair/images")
    shutil.copytree("data/annotations/training", "pair/masks")
    assert execute(f"segment enc pair --out plain {SMALL}") == 0
    learnt = result("plain/model.json")["learnt"]
    assert len(set(learnt)) == 6
    assert execute("segment plain pair --protocol test --device cpu --workers 0") == 0
    assert "6 of the 8 images are training images and left out" in capsys.readouterr().out
    own, again = (
        result(f"plain/results/{n}-pair.json")["confusion"] for n in ("segment", "segment-test")
    )
    assert own == again
    new = "--images data/images/validation --masks data/annotations/validation"
    assert execute(f"segment plain {new} --protocol test --device cpu --workers 0") == 0
    assert "3 test images of data/images/validation (all images test)" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_a_frozen_encoder_is_compared_with_an_untrained_one(here, capsys, protocol):
    options = "--device cpu --workers 0 --crop 16 --stride 10 --short-side 24 --batch-size 4"
    command = f"segment enc data --protocol {protocol} --out judged {options} --epochs 3"
    assert main(command.split()) == 0
    kept = result(f"judged/results/segment-{protocol}-data.json")
    assert [row["name"] for row in kept["rows"]] == ["enc", "the same, untrained"]
    assert kept["rows"][0]["miou"] == kept["headline"]["miou"]
    assert kept["rows"][0]["pixel_accuracy"] > 60  # two colours
    assert Path(f"judged/figures/segment-{protocol}.png").exists()
    assert "the same, untrained" in capsys.readouterr().out
    before = kept["rows"]
    assert main([*command.split(), "--workers", "1"]) == 0
    assert result(f"judged/results/segment-{protocol}-data.json")["rows"] == before


# Mistakes


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("segment", "no ENCODER"),
        ("segment enc", "no DATA: name a folder"),
        ("segment enc nowhere", "no such folder: nowhere"),
        ("segment nowhere data", "no such encoder: nowhere"),
        ("segment enc data --crop 18", "set --crop 16"),
        ("segment enc data --crop 4", "set --crop 8"),
        ("segment enc data --crop 16 --stride 17", "stride 17 is more than crop 16"),
        ("segment enc data --ignore-index -3", "ignore_index must be between"),
        ("segment enc data --ignore-index some", "ignore-index"),
        ("segment enc data --num-classes 1", "num_classes must be between 2"),
        ("segment enc data --ignore-index none --num-classes 2", "value beyond the 2 classes"),
        ("segment enc data --classes nowhere.csv", "cannot read class names"),
        ("segment enc data --images data/images", "--images and --masks go together"),
        ("segment enc data --images a --masks b", "but not both"),
        ("segment enc data --test-split tset", "tset"),
        ("segment enc data --batch-size 9", "set --batch-size 8 or less"),
        ("segment enc data --warmup-iterations 5000", "must be less than iterations"),
        ("segment enc data --protocol knn --overwrite", "makes no run"),
        ("segment enc data --out run", "already holds a run"),
        ("segment enc data --resume --out none", "no run in none to resume"),
        ("segment enc data --resume --out run --lr 1", "was run with lr"),
        ("segment run data --out run --overwrite", "--overwrite would delete run"),
        ("segment enc --predict data --out seen", "enc is not a finished run of mvmae segment"),
        ("segment run --predict data --out seen --stride 3", "--stride 3 has no effect"),
        ("segment run data --protocol test --crop 12", "--crop 12 has no effect"),
        ("segment enc data --ignore-index 65536", "ignore_index must be between 0 and 65535"),
        ("segment run --predict data", "--predict needs --out"),
        ("segment run --predict nowhere --out seen", "no such folder: nowhere"),
        ("segment run data --predict data --out seen", "leave out DATA"),
        ("segment run --predict data --out enc", "enc holds other files"),
        ("segment enc data --protocol test", "enc is not a finished run"),
        ("segment enc data --iteratoins 3", "did you mean --iterations?"),
    ],
)
def test_mistakes_are_reported_in_one_line(here, capsys, command, message):
    before = sorted(here.rglob("*"))
    if len(command.split()) > 1 and "--resume" not in command:
        command += " --device cpu --workers 0"
    assert message in error_line(capsys, command)
    assert sorted(here.rglob("*")) == before


def test_faulty_pairs_are_reported_and_left_out(here, capsys):
    Image.new("L", (5, 5), 1).save("data/annotations/training/t0.png")
    Image.new("RGB", (30, 24), (200, 3, 3)).save("data/annotations/training/t1.png")
    assert execute(f"segment enc data --out left {SMALL}") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "masks of a different size" in text
    assert "6 training images, 3 test images" in text
    assert "values in the masks: 0 is ignored (27.8 %), 1 is ground (" in text
    assert "--ignore-index none makes 0 a class" in text
    assert result("left/results/segment-data.json")["data"]["num_train"] == 6


def test_resuming_with_other_images_is_rejected(here, capsys):
    for folder in ("images", "annotations"):
        Path(f"data/{folder}/training/t7.png").unlink()
    assert "are not those that run began with" in error_line(capsys, "segment --resume --out run")


def test_a_damaged_model_is_reported(here, capsys):
    facts = result("run/model.json")
    Path("run/model.json").write_text(json.dumps(facts | {"channels": 9}))
    command = "segment run --predict data --out seen --device cpu"
    assert "does not fit the model" in error_line(capsys, command)
    Path("run/model.json").write_text(json.dumps({"task": "segment"}))
    assert "does not describe a segmenter" in error_line(capsys, command)
    Path("run/model.safetensors").unlink()
    assert "is not a finished run" in error_line(capsys, command)
    assert not list(Path().glob(".*"))


# On real images


@pytest.fixture
def streets(data_root, tmp_path) -> Path:
    """Eight of CamVid's photographs of streets, for training and test."""
    with tarfile.open(data_root / "camvid.tar") as archive:
        archive.extractall(tmp_path / "all", filter="data")
    every = tmp_path / "all" / "camvid"
    stems = sorted(path.stem for path in (every / "images" / "training").iterdir())[::45][:8]
    for folder, suffix in (("images", "jpg"), ("annotations", "png")):
        for part in ("training", "validation"):
            (tmp_path / "eight" / folder / part).mkdir(parents=True)
            for stem in stems:
                own = every / folder / "training" / f"{stem}.{suffix}"
                shutil.copy(own, tmp_path / "eight" / folder / part)
    shutil.copy(every / "classes.csv", tmp_path / "eight")
    return tmp_path / "eight"


@pytest.mark.slow
@pytest.mark.learn
def test_eight_photographs_are_memorised(streets, tmp_path, monkeypatch):
    """Eleven classes of streets at 96 pixels, from scratch, in about two minutes."""
    monkeypatch.chdir(tmp_path)
    encoder = Encoder(Size(96, 4, 3), image_size=(96, 96), patch_size=8)
    initialize(encoder, Generator().manual_seed(0))
    preprocessing = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
    Path("enc").mkdir()
    encoders.save_encoder(Path("enc"), OpenedEncoder(encoder, preprocessing, "mean"))
    options = (
        "--recipe small --crop 96 --stride 64 --short-side 96 --jitter 1 1 --flip none "
        "--no-distort --most-of-crop 1 --channels 48 --auxiliary-channels 32 --dropout 0 "
        "--batch-size 4 --iterations 500 --warmup-iterations 20 --lr 4e-3 --layer-decay 1 "
        "--eval-every 1000 --device cpu --workers 0"
    )
    assert execute(f"segment enc {streets} --out run {options}") == 0
    kept = result("run/results/segment-" + _slug(streets) + ".json")
    assert kept["data"]["classes"][0] == "sky"
    assert kept["headline"]["miou"] >= 60


def _slug(path: Path) -> str:
    from mvmae.storage.results import slug

    return slug(str(path))
