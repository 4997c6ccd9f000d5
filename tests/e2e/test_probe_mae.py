"""`probe --protocol mae`: crops, batch norm, LARS; stopped and resumed exactly."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import Generator

from mvmae import encoders
from mvmae.cli.main import main
from mvmae.config.model import Size
from mvmae.data.sources.folders import Files
from mvmae.encoders import OpenedEncoder, Preprocessing
from mvmae.method.vit import Encoder, Variant, initialize

STEPS = 60  # of 8 of the 16 training images: two per epoch
A_MOMENT = (
    *("--protocol", "mae", "--epochs", "30", "--warmup-epochs", "3", "--step-size", "8"),
    *("--base-lr", "3", "--workers", "0"),
)


def write_encoder(folder: str, *, in_channels: int = 3, cls_token: bool = True) -> None:
    encoder = Encoder(
        Size(32, 1, 1),
        image_size=(8, 8),
        patch_size=4,
        in_channels=in_channels,
        variant=Variant(cls_token=cls_token),
    )
    initialize(encoder, Generator().manual_seed(0))
    Path(folder).mkdir()
    preprocessing = Preprocessing((0.5,) * in_channels, (0.2,) * in_channels, "bicubic")
    encoders.save_encoder(Path(folder), OpenedEncoder(encoder, preprocessing, "mean"))


@pytest.fixture
def here(image_folder, tmp_path, monkeypatch) -> Path:
    """An encoder and two classes of noisy images: 16 learn, 4 test."""
    image_folder(per_class=10)
    monkeypatch.chdir(tmp_path)
    write_encoder("enc")
    return tmp_path


def probe(encoder: str, data: str, *options: str) -> int:
    return main(["probe", encoder, data, *A_MOMENT, *options])


def result(folder: str = "runs/enc", data: str = "images") -> dict:
    return json.loads(Path(folder, "results", f"probe-mae-{data}.json").read_text())


def course(kept: dict) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in kept["loss"]]


def assert_same(kept: dict, other: dict) -> None:
    assert course(kept) == course(other)
    for part in ("rows", "headline", "confusion", "per_class", "data"):
        assert kept[part] == other[part]


def test_both_tokens_are_judged_and_the_course_is_kept(here, capsys):
    assert probe("enc", "images") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "16 images, 30 epochs of 2 steps of 8, learning rate 0.09375" in text
    assert "linear probe on images (MAE's protocol, 30 epochs)" in text
    assert "16 training and 4 test images" in text
    assert "written: runs/enc/results/probe-mae-images.json" in text
    kept = result()
    assert kept["command"] == "probe"
    assert [(row["name"], row["token"]) for row in kept["rows"]] == [
        ("enc", "mean"),
        ("enc", "cls"),
    ]
    assert kept["headline"]["token"] == "mean"
    assert [step for step, _ in course(kept)] == list(range(10, STEPS + 1, 10))
    assert course(kept)[-1][1] < course(kept)[0][1]  # it learns
    assert sorted(path.name for path in Path("runs/enc").iterdir()) == ["results"]


def test_it_is_the_same_every_time_for_any_number_of_workers_and_a_result_repeats_it(here):
    assert probe("enc", "images") == 0
    kept = result()
    assert main(["probe", "--recipe", "runs/enc/results/probe-mae-images.json"]) == 0
    assert_same(result(), kept)
    assert probe("enc", "images", "--out", "two", "--workers", "2") == 0
    assert_same(result("two"), kept)
    assert probe("enc", "images", "--seed", "1", "--out", "other") == 0
    assert course(result("other")) != course(kept)


def test_it_has_a_result_beside_that_of_the_other_protocol(here):
    assert probe("enc", "images") == 0
    assert main(["probe", "enc", "images", "--costs", "1", "--no-baselines", "--workers", "0"]) == 0
    names = sorted(path.name for path in Path("runs/enc/results").iterdir())
    assert names == ["probe-images.json", "probe-mae-images.json"]


# stopping and resuming


def wait_until_written(file_pattern: str, lines: int) -> None:
    """Wait until a file in this folder has `lines` lines."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for file in Path().glob(file_pattern):
            if len(file.read_text().splitlines()) >= lines:
                return
        time.sleep(0.005)
    raise AssertionError(f"no {file_pattern} of {lines} lines")


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_resumes_exactly(here, capsys):
    """The program is another process, as a cluster would stop it."""
    longer = ("--epochs", "60")
    assert probe("enc", "images", "--out", "whole", *longer) == 0
    command = [sys.executable, "-m", "mvmae", "probe", "enc", "images", *A_MOMENT, *longer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        wait_until_written("runs/enc/cache/*/metrics.jsonl", 2)
        it.send_signal(signal.SIGTERM)
        said, complaint = it.communicate(timeout=120)
    assert (it.returncode, complaint) == (143, "")
    last = said.splitlines()[-1]
    assert last.startswith("stopped by SIGTERM after step ")
    assert last.endswith(", saved. Continue: run the same command again")
    step = int(last.split()[5].rstrip(","))
    assert 20 <= step < 120
    assert not Path("runs/enc/results").exists()

    capsys.readouterr()
    assert probe("enc", "images", *longer) == 0
    assert f"from step {step}" in capsys.readouterr().out
    assert_same(result(), result("whole"))
    assert not Path("runs/enc/cache").exists()


@pytest.fixture
def interrupt_reading(monkeypatch):
    """Interrupts the reading of images once, at the n-th, as a power cut would."""
    read, seen = Files.read, []

    def stop(at: int) -> None:
        def read_or_stop(self: Files, index: int):
            seen.append(index)
            if len(seen) == at:
                raise KeyboardInterrupt
            return read(self, index)

        monkeypatch.setattr(Files, "read", read_or_stop)

    return stop


@pytest.mark.parametrize("at", [300, 8 * STEPS + 2], ids=["training", "judging"])
def test_ended_at_once_it_goes_on_from_the_last_checkpoint(here, capsys, interrupt_reading, at):
    assert probe("enc", "images", "--out", "whole") == 0
    interrupt_reading(at)
    often = ("--save-every-minutes", "0")
    assert probe("enc", "images", *often) == 130
    step = min(STEPS, (at - 1) // 8)
    capsys.readouterr()
    assert probe("enc", "images", *often) == 0
    assert f", from step {step}" in capsys.readouterr().out
    assert_same(result(), result("whole"))


def test_other_settings_begin_anew(here, capsys, interrupt_reading):
    interrupt_reading(300)
    assert probe("enc", "images", "--save-every-minutes", "0") == 130
    capsys.readouterr()
    assert probe("enc", "images", "--base-lr", "2") == 0
    assert "from step" not in capsys.readouterr().out
    assert probe("enc", "images", "--base-lr", "2", "--out", "whole") == 0
    assert_same(result(), result("whole"))


# encoders and images of every kind


def test_an_encoder_without_a_class_token_has_one_row(here):
    write_encoder("nocls", cls_token=False)
    assert probe("nocls", "images") == 0
    assert [row["token"] for row in result("runs/nocls")["rows"]] == ["mean"]


def test_gray_images_and_a_gray_encoder(here):
    write_encoder("gray", in_channels=1)
    few = ("--max-train", "40", "--max-test", "20")
    assert probe("gray", "digits", *few) == 0
    kept = result("runs/gray", "digits")
    assert (kept["data"]["num_train"], kept["data"]["num_test"]) == (40, 20)
    assert all(row["top1"] <= row["top5"] for row in kept["rows"])


def test_gray_images_and_an_encoder_of_colours(here):
    few = ("--max-train", "24", "--max-test", "20")
    assert probe("enc", "digits", "--in-channels", "1", *few) == 0
    assert result(data="digits")["config"]["in_channels"] == 1


def test_a_class_without_a_test_image_is_no_obstacle(here):
    assert probe("enc", "images", "--max-test", "1", "--pool", "cls") == 0
    kept = result()
    assert list(kept["per_class"].values()).count(None) == 1
    assert kept["headline"]["token"] == "cls"
    assert kept["headline"]["top1"] == kept["rows"][1]["top1"]


def test_images_that_cannot_be_read_are_passed_over(here, capsys):
    for name in ("blue/0", "red/1"):  # one learns, one tests
        Path(f"images/{name}.jpg").write_bytes(b"no image")
    assert probe("enc", "images") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "3 test" in text
    assert "could not be read, " in text
    assert [Path(skip["path"]).name for skip in result()["skipped"]] == ["0.jpg", "1.jpg"]


def test_images_that_can_never_be_read_are_refused(here, capsys):
    for file in Path("images").rglob("*.jpg"):
        file.write_bytes(b"no image")
    assert probe("enc", "images") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"mvmae: \d+ of the first \d+ attempts to read an image failed, ", line)
    assert line.endswith(": is this the right DATA?")


def test_a_rate_too_low_is_reported_with_one_that_works(here, capsys):
    assert probe("enc", "images") == 0
    said = " ".join(capsys.readouterr().out.split())
    rate = re.search(r"hardly change LARS's weights: use --base-lr ([\d.e+]+), or", said)[1]
    assert probe("enc", "images", "--base-lr", str(2 * float(rate))) == 0
    assert "hardly change" not in capsys.readouterr().out


def test_a_rate_that_is_far_too_high_is_named(here, capsys):
    assert probe("enc", "images", "--base-lr", "1e38") == 2
    assert "the loss is not finite at step 4: try a lower --base-lr" in capsys.readouterr().err


@pytest.mark.learn
def test_it_learns_what_the_other_protocol_learns(here):
    """Two colours, which any encoder tells apart."""
    assert main(["probe", "enc", "images", "--no-baselines", "--workers", "0"]) == 0
    cached = json.loads(Path("runs/enc/results/probe-images.json").read_text())
    assert probe("enc", "images", "--epochs", "60", "--base-lr", "20") == 0
    for ours, theirs in zip(result()["rows"], cached["rows"], strict=True):
        assert ours["token"] == theirs["token"]
        assert ours["top1"] >= theirs["top1"] == 100
