"""`labels` on an encoder that was never trained, and images whose colour is their class."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Generator

from mvmae import encoders
from mvmae.cli.main import main
from mvmae.config.model import Size
from mvmae.data.sources.folders import Files
from mvmae.encoders import OpenedEncoder, Preprocessing
from mvmae.method.vit import Encoder, Variant, initialize
from mvmae.version import __version__

RESULT = "runs/enc/results/labels-images.json"
NAMES = ["enc", "the same, untrained", "raw pixels"]
QUICK = ("--costs", "1", "--workers", "0")


def write_encoder(folder: str, *, seed: int, in_channels: int = 3, cls_token: bool = True) -> None:
    encoder = Encoder(
        Size(32, 1, 1),
        image_size=(8, 8),
        patch_size=4,
        in_channels=in_channels,
        variant=Variant(cls_token=cls_token),
    )
    initialize(encoder, Generator().manual_seed(seed))
    Path(folder).mkdir()
    preprocessing = Preprocessing((0.5,) * in_channels, (0.2,) * in_channels, "bicubic")
    encoders.save_encoder(Path(folder), OpenedEncoder(encoder, preprocessing, "mean"))


@pytest.fixture
def here(image_folder, tmp_path, monkeypatch) -> Path:
    """An encoder and three classes of noisy images: 48 learn, 12 test."""
    image_folder(classes=("blue", "green", "red"), per_class=20)
    monkeypatch.chdir(tmp_path)
    write_encoder("enc", seed=5)
    return tmp_path


def result(file: str = RESULT) -> dict:
    return json.loads(Path(file).read_text())


def accuracies(kept: dict) -> list[tuple]:
    return [(c["name"], c["amount"], c["draw"], c["count"], c["top1"]) for c in kept["cells"]]


def test_labels_prints_a_table_and_a_verdict_and_draws(here, capsys):
    shares = ("--shares", "0.1", "0.5", "1", "--draws", "3")
    assert main(["labels", "enc", "images", *shares, *QUICK]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "accuracy with few labels on images" in text
    assert "6 labels ┃ 24 labels ┃ 48 labels" in text
    assert all(f"│ {name} │" in text for name in NAMES)
    assert f"written: {RESULT} and runs/enc/figures/labels-images.png" in text

    kept = result()
    assert kept["command"] == "labels"
    assert kept["command_line"].startswith(
        "mvmae labels enc images --workers 0 --costs 1.0 --shares 0.1 0.5 1.0"
    )
    assert kept["verdict"] in text
    assert "pre-training was" in kept["verdict"]
    assert len(kept["data"]["fingerprint"]) == 33
    assert kept["environment"]["mvmae"] == __version__
    counts = [(c["amount"], c["count"]) for c in kept["cells"] if c["name"] == "enc"]
    assert counts == [(0.1, 6)] * 3 + [(0.5, 24)] * 3 + [(1.0, 48)]  # of all there is one draw
    assert list(dict.fromkeys(c["name"] for c in kept["cells"])) == NAMES
    with Image.open("runs/enc/figures/labels-images.png") as picture:
        assert picture.size == (1200, 750)
        assert np.ptp(np.asarray(picture.convert("L"))) > 200
    assert sorted(path.name for path in Path("runs/enc").iterdir()) == ["figures", "results"]


def test_a_result_repeats_itself(here):
    words = ("--shares", "0.1", "0.5", "--draws", "2", "--seed", "4", "--max-train", "30")
    assert main(["labels", "enc", "images", *words, *QUICK]) == 0
    kept = result()
    picture = Path("runs/enc/figures/labels-images.png").read_bytes()
    assert main(["labels", "--recipe", RESULT, "--out", "there"]) == 0
    again = result("there/results/labels-images.json")
    assert accuracies(again) == accuracies(kept)
    assert again["verdict"] == kept["verdict"]
    assert Path("there/figures/labels-images.png").read_bytes() == picture


def test_images_are_counted_by_class_where_that_is_asked_for(here):
    words = ("--per-class", "1", "3", "99", "--draws", "2", "--no-baselines")
    assert main(["labels", "enc", "images", *words, *QUICK]) == 0
    kept = result()
    counts = dict.fromkeys((c["amount"], c["count"]) for c in kept["cells"])
    assert list(counts) == [(1, 3), (3, 9), (99, 48)]
    assert kept["verdict"] == "enc has no baseline beside it: leave out --no-baselines to compare"


def test_what_is_not_drawn_as_asked_for_is_said(here, capsys):
    words = ("--per-class", "2", "17", "30", "--shares", "0.5", "--no-baselines", "--draws", "2")
    assert main(["labels", "enc", "images", *words, *QUICK]) == 0
    text = capsys.readouterr().out
    assert "--shares is not used, because --per-class replaces it\n" in text
    assert "3 of 3 classes have fewer than 30 images: all of theirs were used\n" in text
    assert (
        "left out of --per-class, because another value draws as many images of every class: 30"
        in text
    )
    counts = [cell["count"] for cell in result()["cells"]]
    assert counts == [6, 6, 48]


def test_every_encoder_gets_the_same_draws(here):
    shutil.copytree("enc", "copy")
    write_encoder("other", seed=9)
    words = ("--against", "copy", "other", "--shares", "0.1", "0.3", "--no-baselines")
    assert main(["labels", "enc", "images", *words, *QUICK]) == 0
    rows = {
        name: [row[1:] for row in accuracies(result()) if row[0] == name]
        for name in ("enc", "copy", "other")
    }
    assert rows["copy"] == rows["enc"]
    assert [row[:-1] for row in rows["other"]] == [row[:-1] for row in rows["enc"]]


def test_two_images_of_a_class_apart_give_the_same_for_another_number_of_shares(here):
    words = ("--draws", "2", "--no-baselines")
    assert main(["labels", "enc", "images", "--shares", "0.1", "0.3", *words, *QUICK]) == 0
    both = [row for row in accuracies(result()) if row[1] == 0.3]
    there = ("--out", "there")
    assert main(["labels", "enc", "images", "--shares", "0.3", *words, *QUICK, *there]) == 0
    assert accuracies(result("there/results/labels-images.json")) == both


def test_another_encoder_reads_what_the_first_one_reads(here):
    write_encoder("gray", seed=1, in_channels=1)
    write_encoder("nocls", seed=2, cls_token=False)
    words = ("--max-train", "60", "--max-test", "30", "--per-class", "2", "--draws", "1", *QUICK)
    against = ("--against", "enc", "nocls", "--no-baselines")
    assert main(["labels", "gray", "digits", *words, *against]) == 0
    kept = result("runs/gray/results/labels-digits.json")
    assert [cell["name"] for cell in kept["cells"]] == ["gray", "enc", "nocls"]


def test_pre_training_that_knows_the_classes_was_worth_it(here, capsys):
    """The encoder's patches are blind; one that sees is put against it."""
    assert main(["labels", "enc", "images", "--shares", "0.1", "1", *QUICK]) == 0
    kept = result()
    pixels = [cell["top1"] for cell in kept["cells"] if cell["name"] == "raw pixels"]
    assert pixels[-1] > 80  # the colours are told apart


def test_unreadable_images_are_left_out(here):
    Path("images/red/0.jpg").write_bytes(b"no image")
    assert main(["labels", "enc", "images", "--shares", "1", "--no-baselines", *QUICK]) == 0
    assert {cell["count"] for cell in result()["cells"]} == {47}


# resuming after an interruption


@pytest.fixture
def interrupt_reading(monkeypatch):
    """Interrupts the reading of images once, at the n-th."""
    read, seen = Files.read, []

    def stop(at: int) -> None:
        def read_or_stop(self: Files, index: int):
            seen.append(index)
            if len(seen) == at:
                raise KeyboardInterrupt
            return read(self, index)

        monkeypatch.setattr(Files, "read", read_or_stop)

    monkeypatch.setattr(sys.modules["mvmae.encoders.features"], "MAX_IMAGES_PER_FILE", 20)
    return stop


def test_an_interrupted_command_goes_on_with_the_cells_it_has(here, interrupt_reading):
    command = ["labels", "enc", "images", "--shares", "0.1", "0.5", "--draws", "3", *QUICK]
    assert main([*command, "--out", "whole"]) == 0
    whole = result("whole/results/labels-images.json")

    interrupt_reading(100)  # in the images of the untrained one
    assert main(command) == 130
    assert not Path(RESULT).exists()
    (file,) = Path("runs/enc/cache").glob("labels-*.jsonl")
    cells = [json.loads(line) for line in file.read_text().splitlines() if line]
    assert cells == whole["cells"][:6]

    file.write_text("".join(f"\n{json.dumps(cell | {'top1': 12.5})}" for cell in cells[:3]))
    assert main(command) == 0
    kept = accuracies(result())
    assert [row[-1] for row in kept[:3]] == [12.5] * 3  # read, not computed
    assert kept[3:] == accuracies(whole)[3:]
    assert not Path("runs/enc/cache").exists()

    assert main(command) == 0  # nothing of it is left
    assert accuracies(result()) == accuracies(whole)


@pytest.mark.parametrize(
    "change", [("--seed", "1"), ("--costs", "2"), ("--pool", "cls"), ("--max-train", "20")]
)
def test_cells_of_other_settings_are_not_used(here, interrupt_reading, change):
    command = ["labels", "enc", "images", "--shares", "0.5", "--draws", "1", *QUICK, *change]
    interrupt_reading(100)
    assert main(command[: -len(change)]) == 130
    (file,) = Path("runs/enc/cache").glob("labels-*.jsonl")
    cells = [json.loads(line) for line in file.read_text().splitlines() if line]
    file.write_text("".join(f"\n{json.dumps(cell | {'top1': 12.5})}" for cell in cells))
    assert main(command) == 0
    assert all(cell["top1"] != 12.5 for cell in result()["cells"])
