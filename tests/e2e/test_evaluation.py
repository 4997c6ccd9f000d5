"""`knn` and `probe` on a run of a second."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import read_output

from mvmae.cli.main import main
from mvmae.data.sources.folders import Files
from mvmae.data.sources.labelled import open_labelled
from mvmae.encoders import extract_features, pixel_extractor
from mvmae.version import __version__

UNTRAINED, PIXELS = "the same, untrained", "raw pixels"
ROWS = ["run", "run", UNTRAINED, UNTRAINED, PIXELS]
TOKENS = ["mean", "cls", "mean", "cls", "pixels"]
A_SECOND = (
    "--recipe demo --model.image-size 16 --model.decoder-dim 32 --batch-size 8 --epochs 2 "
    "--warmup-epochs 0 --device cpu --workers 0"
)
OPTIONS = {"knn": ["--k", "5"], "probe": ["--costs", "1"]}
COLOURS = {
    "blue": (20, 40, 200),
    "red": (200, 40, 20),
    "green": (20, 180, 30),
    "gray": (90, 90, 90),
    "white": (220, 220, 220),
    "yellow": (200, 200, 20),
}


def paint(folder: Path, labels: list[str]) -> None:
    for label in labels:
        (folder / label).mkdir(parents=True)
        for index in range(10):
            shade = tuple(value + 3 * index for value in COLOURS[label])
            Image.new("RGB", (20, 16), shade).save(folder / label / f"{index}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A run, and labelled images in two colours that a nearest neighbour tells apart."""
    home = tmp_path_factory.mktemp("home")
    paint(home / "images", ["blue", "red"])
    paint(home / "many", list(COLOURS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(f"pretrain images --out run {A_SECOND}".split()) == 0
    return home


def result(file: Path | str) -> dict:
    return json.loads(Path(file).read_text())


def judge(command: str, *words: str) -> int:
    return main([command, *words, *OPTIONS[command], "--workers", "0"])


both = pytest.mark.parametrize("command", ["knn", "probe"])


@both
def test_evaluation_prints_a_table_and_keeps_the_numbers(here, capsys, command):
    assert judge(command, "run", "images") == 0
    text = read_output(capsys)
    chance = "2 classes, chance level 50.0"
    for words in (*ROWS, "mean", "cls", "16 training and 4 test images", chance):
        assert words in text
    assert "every fifth image of each class is for testing" in text
    assert f"written: run/results/{command}-images.json" in text
    assert "top-5" not in text  # of two classes

    kept = result(f"run/results/{command}-images.json")
    assert kept["command"] == command
    assert kept["data"]["classes"] == ["blue", "red"]
    assert (kept["data"]["num_train"], kept["data"]["num_test"]) == (16, 4)
    assert len(kept["data"]["fingerprint"]) == 33
    assert (kept["config"]["encoder"], kept["config"]["data"]) == ("run", "images")
    assert kept["environment"]["mvmae"] == __version__
    assert [row["name"] for row in kept["rows"]] == ROWS
    assert [row["token"] for row in kept["rows"]] == TOKENS
    for row in kept["rows"]:
        assert 0 <= row["top1"] <= row["top5"] <= 100
    own = kept["rows"][0]
    assert (
        kept["headline"]
        == {"token": "mean", "top1": own["top1"], "top5": own["top5"]} | (own["notes"])
    )
    assert kept["skipped"] == []


@both
def test_the_command_of_a_result_gives_the_same_rows(here, command):
    assert judge(command, "run", "images", "--max-train", "11", "--seed", "3") == 0
    file = Path(f"run/results/{command}-images.json")
    kept = result(file)
    file.unlink()
    program, *words = shlex.split(kept["command_line"])
    assert program == "mvmae"
    assert main(words) == 0
    assert result(file)["rows"] == kept["rows"]


@both
def test_a_result_repeats_itself(here, command):
    assert judge(command, "run", "images", "--max-train", "11", "--seed", "3") == 0
    file = Path(f"run/results/{command}-images.json")
    kept = result(file)
    assert main([command, "--recipe", str(file)]) == 0
    again = result(file)
    for part in ("command_line", "config", "rows", "headline", "per_class", "confusion", "data"):
        assert again[part] == kept[part]
    assert main([command, "--recipe", str(file), "--out", "there"]) == 0
    assert result(f"there/results/{command}-images.json")["rows"] == kept["rows"]


@both
def test_two_colours_are_told_apart_by_their_pixels(here, capsys, command):
    assert judge(command, "run", "images") == 0
    assert result(f"run/results/{command}-images.json")["rows"][-1]["top1"] == 100
    assert "│ raw pixels │ │ 100.0 │" in read_output(capsys)


def test_pixels_are_compared_without_the_mean_image(here):
    rng = np.random.default_rng(0)
    common, shape = rng.uniform(-60, 60, (32, 32, 1)), rng.normal(0, 2.5, (2, 32, 32, 1))
    for label, slope in (("one", 0), ("other", 1)):
        Path(f"faint/{label}").mkdir(parents=True)
        for index in range(40):
            pixels = rng.normal(0, 40, (32, 32, 3)) + 128 + common + shape[slope]
            whole = pixels.round().clip(0, 255).astype(np.uint8)
            Image.fromarray(whole).save(f"faint/{label}/{index}.png")
    assert judge("knn", "run", "faint") == 0
    found = result("run/results/knn-faint.json")["rows"][-1]
    data = open_labelled("faint", 3)
    extractor = pixel_extractor(side=32, workers=0)
    train, test = (extract_features(extractor, part) for part in (data.train, data.test))
    mean = train.mean.mean(dim=0)
    said, other = (
        nearest_accuracy(train.mean - away, train.labels, test.mean - away, test.labels)
        for away in (mean, 0)
    )
    assert (found["name"], found["notes"]["k"]) == (PIXELS, 5)
    assert found["top1"] == pytest.approx(said)
    assert said != other


def nearest_accuracy(train, labels, test, truth) -> float:
    """Return the accuracy in percent of the 5 nearest neighbours, counted one by one."""
    one, other = (v.numpy() / np.linalg.norm(v, axis=1, keepdims=True) for v in (train, test))
    hits = 0
    for likeness, label in zip(other @ one.T, truth.tolist(), strict=True):
        votes = [0.0, 0.0]
        for place in np.argsort(-likeness)[:5]:
            votes[labels[place]] += np.exp(likeness[place] / 0.07)
        hits += int(np.argmax(votes)) == label
    return 100 * hits / len(truth)


@both
def test_of_many_classes_the_worst_and_the_mistakes_are_told(here, capsys, command):
    assert judge(command, "run", "many") == 0
    text = read_output(capsys)
    assert "top-5" in text
    kept = result(f"run/results/{command}-many.json")
    assert list(kept["per_class"]) == sorted(COLOURS)
    assert [sum(row) for row in kept["confusion"]] == [2] * 6
    for place, value in enumerate(kept["per_class"].values()):
        assert value == 50 * kept["confusion"][place][place]
    average = sum(kept["per_class"].values()) / 6
    assert kept["headline"]["top1"] == pytest.approx(average, abs=1e-3)
    assert ("worst class:" in text) == (average < 100)


def test_every_number_of_neighbours_is_a_row_and_20_is_what_counts(here, capsys):
    assert main(["knn", "run", "many", "--k", "1", "20", "7", "--workers", "0"]) == 0
    text = read_output(capsys)
    assert "k = 1 ┃ k = 20 ┃ k = 7" in text
    kept = result("run/results/knn-many.json")
    assert [row["notes"]["k"] for row in kept["rows"]] == [1, 20, 7] * 5
    assert kept["headline"]["k"] == 20
    assert main(["knn", "run", "many", "--k", "3", "7", "--workers", "0"]) == 0
    assert result("run/results/knn-many-2.json")["headline"]["k"] == 3


def test_another_question_leaves_the_first_result_alone(here):
    for k in ("1", "3", "1", "7"):
        command = ["knn", "run", "images", "--k", k, "--no-baselines", "--workers", "0"]
        assert main(command) == 0
    files = {file.stem: result(file)["headline"]["k"] for file in Path("run/results").iterdir()}
    assert files == {"knn-images": 1, "knn-images-2": 3, "knn-images-3": 7}


def test_neighbours_are_scored_alike_alone_or_with_others(here):
    assert main(["knn", "run", "many", "--k", "1", "20", "99", "--workers", "0"]) == 0
    together = result("run/results/knn-many.json")["rows"]
    for k in (1, 20, 99):
        command = ["knn", "run", "many", "--k", str(k), "--workers", "0", "--out", f"k{k}"]
        assert main(command) == 0
        alone = result(f"k{k}/results/knn-many.json")["rows"]
        assert alone == [row for row in together if row["notes"]["k"] == k]


@both
def test_the_token_that_counts_can_be_chosen(here, command):
    assert judge(command, "run", "many", "--pool", "cls") == 0
    kept = result(f"run/results/{command}-many.json")
    assert kept["headline"]["token"] == "cls"
    assert kept["headline"]["top1"] == kept["rows"][1]["top1"]


def test_evaluation_is_the_same_every_time(here):
    assert main(["knn", "run", "many", "--workers", "0"]) == 0
    first = result("run/results/knn-many.json")["rows"]
    assert main(["knn", "run", "many", "--workers", "1", "--batch-size", "3"]) == 0
    assert result("run/results/knn-many.json")["rows"] == first


def test_probe_notes_the_strength_it_chose(here):
    assert main(["probe", "run", "images", "--costs", "0.5", "--workers", "0"]) == 0
    for row in result("run/results/probe-images.json")["rows"]:
        assert row["notes"] == {"cost": 0.5, "converged": True}


@both
def test_baselines_can_be_left_out(here, capsys, command):
    assert judge(command, "run", "images", "--no-baselines") == 0
    rows = result(f"run/results/{command}-images.json")["rows"]
    assert [row["name"] for row in rows] == ["run", "run"]
    assert "untrained" not in read_output(capsys)


def test_result_goes_where_it_is_asked_to(here, capsys):
    assert judge("knn", "run", "images", "--out", "a/b") == 0
    assert "written: a/b/results/knn-images.json" in read_output(capsys)
    assert result("a/b/results/knn-images.json")["command"] == "knn"
    assert not Path("run/results").exists()


def test_each_data_has_a_result_of_its_own(here):
    for data in ("images", "many", "./images/"):
        assert judge("knn", "run", data, "--no-baselines") == 0
    names = sorted(file.name for file in Path("run/results").iterdir())
    assert names == ["knn-images.json", "knn-many.json"]


def test_fewer_images_can_be_asked_for(here, capsys):
    assert judge("knn", "run", "images", "--max-train", "6", "--max-test", "3") == 0
    assert "6 training and 3 test images" in read_output(capsys)
    kept = result("run/results/knn-images.json")["data"]
    assert (kept["num_train"], kept["num_test"]) == (6, 3)


@both
def test_a_class_without_a_test_image_has_no_accuracy(here, command):
    assert judge(command, "run", "many", "--max-test", "2", "--no-baselines") == 0
    values = list(result(f"run/results/{command}-many.json")["per_class"].values())
    assert values.count(None) >= 4


@both
def test_one_training_image_is_enough_to_say_something(here, command):
    assert judge(command, "run", "images", "--max-train", "1") == 0
    tops = [row["top1"] for row in result(f"run/results/{command}-images.json")["rows"]]
    assert tops == [50] * 5


def test_encoder_file_and_checkpoint_are_judged_like_the_run(here):
    tops = []
    for encoder in ["run", "run/encoder.safetensors", "run/checkpoints/last.pt"]:
        assert judge("knn", encoder, "many") == 0
        tops.append([row["top1"] for row in result("run/results/knn-many.json")["rows"]])
    assert tops[0] == tops[1] == tops[2]


def test_another_size_and_kind_of_input_is_judged(here):
    assert judge("knn", "run", "images", "--image-size", "24", "32", "--in-channels", "1") == 0
    config = result("run/results/knn-images.json")["config"]
    assert (config["image_size"], config["in_channels"]) == ([24, 32], 1)


@pytest.mark.parametrize("size", ["16", "32"])
def test_random_encoder_takes_any_multiple_of_its_patch(here, capsys, size):
    command = ["random:vit_pico", "images", "--image-size", size, "--no-baselines"]
    assert judge("knn", *command) == 0
    assert "random:vit_pico" in read_output(capsys)
    assert Path("runs/random-vit_pico/results/knn-images.json").exists()


def test_folders_of_both_parts_are_judged_as_they_are(here, capsys):
    for part in ("train", "val"):
        shutil.copytree("images", f"split/{part}")
    assert judge("knn", "run", "split") == 0
    assert "20 training and 20 test images (train/ and val/)" in read_output(capsys)


@both
def test_images_that_cannot_be_judged_are_mentioned(here, capsys, command):
    for name in ("blue/0", "red/1"):
        Path(f"images/{name}.png").write_bytes(b"no image")
    assert judge(command, "run", "images") == 0
    text = read_output(capsys)
    assert "15 training and 3 test images" in text
    assert "2 images could not be read" in text
    assert [
        Path(skip["path"]).name for skip in result(f"run/results/{command}-images.json")["skipped"]
    ] == ["0.png", "1.png"]


@both
@pytest.mark.parametrize("name", ["run[final]", "run $x$", "läuft"])
def test_odd_names_are_written_as_they_are(here, capsys, command, name):
    Path("run").rename(name)
    Path("images").rename("images[old]")
    assert judge(command, name, "images[old]", "--no-baselines") == 0
    text = read_output(capsys)
    assert "on images[old] (" in text
    assert f"│ {name} │" in text
    assert f"{name}/results/{command}-images-old.json" in text
    assert main([command, "--recipe", f"{name}/results/{command}-images-old.json"]) == 0


# resuming after an interruption


@pytest.fixture
def interrupt_reading(monkeypatch):
    """Interrupts the reading of images at the n-th; with None, only counts."""
    read, seen = Files.read, []

    def stop(at: int | None) -> list[str]:
        seen.clear()

        def read_or_stop(self: Files, index: int):
            seen.append(self.path(index))
            if len(seen) == at:
                raise KeyboardInterrupt
            return read(self, index)

        monkeypatch.setattr(Files, "read", read_or_stop)
        return seen

    monkeypatch.setattr(sys.modules["mvmae.encoders.features"], "MAX_IMAGES_PER_FILE", 3)
    return stop


@both
def test_an_interrupted_evaluation_goes_on_where_it_stopped(here, interrupt_reading, command):
    seen = interrupt_reading(None)
    assert judge(command, "run", "images", "--out", "whole") == 0
    (one, *_) = Path("whole").iterdir()
    assert one.name == "results"  # and nothing else is left
    needed = len(seen)
    interrupt_reading(26)
    assert judge(command, "run", "images") == 130
    assert not Path("run/results").exists()
    kept = list(Path("run/cache").rglob("*.safetensors"))
    assert len(kept) == 6 + 2 + 1  # the run's of both parts, one of the untrained
    assert (
        judge(command, "run", "images") == 0
    )  # the 26th of this command is read, and not stopped at
    assert not Path("run/cache").exists()
    rows = [result(f"{at}/results/{command}-images.json")["rows"] for at in ("run", "whole")]
    assert rows[0] == rows[1]
    assert needed > 40


def test_what_was_kept_of_images_that_changed_is_not_used(here, interrupt_reading):
    interrupt_reading(26)
    assert judge("knn", "run", "images") == 130
    Image.new("RGB", (20, 16), (200, 40, 20)).save("images/blue/0.png")
    seen = interrupt_reading(None)
    assert judge("knn", "run", "images") == 0
    assert sum(path.endswith("blue/0.png") for path in seen) == 3  # each encoder, and the pixels
