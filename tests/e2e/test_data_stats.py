"""`mvmae data stats` says what images hold, and `pretrain` takes what it says."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from mvmae.cli.main import main


@pytest.fixture
def deep(tmp_path):
    """Twelve bits in sixteen, five channels, one of which is dead."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "deep"
    folder.mkdir()
    arrays = rng.integers(0, 4095, (12, 5, 20, 24), dtype=np.uint16, endpoint=True)
    arrays[:, 4] = 100
    for number, array in enumerate(arrays):
        np.save(folder / f"{number:02}.npy", array)
    return folder, arrays


def stats(*words: object) -> int:
    return main(["data", "stats", *map(str, words), "--workers", "0"])


def test_the_table_and_the_file_say_what_numpy_says(deep, tmp_path, capsys):
    folder, arrays = deep
    out = tmp_path / "stats.json"
    assert stats(folder, "--out", out) == 0
    told = json.loads(out.read_text())
    shares = arrays.astype(np.float64) / 65535
    np.testing.assert_allclose(told["mean"], shares.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(told["std"][:4], shares.std(axis=(0, 2, 3))[:4], rtol=1e-5)
    assert told["std"][4] == 1  # or nothing could be divided by it
    assert (told["depth"], told["in_channels"], told["measured"]) == ("16", 5, 12)
    assert told["channels"][0]["bits"] == 12
    said = capsys.readouterr().out
    assert "12 of 12 images, 5 channels, 16 bit; height 20 to 20" in said
    assert "one value only: channel 5" in said
    assert "only 12 of the 16 bits are in use" in said
    rows = [line.split() for line in said.splitlines() if line.strip()[:1] in "12345"]
    row = next(row for row in rows if row[0] == "1" and len(row) == 11)
    assert float(row[1]) == pytest.approx(shares[:, 0].mean(), rel=1e-3)


def test_pretrain_takes_the_words_that_are_printed(deep, tmp_path, pretrain_command, capsys):
    folder, _ = deep
    assert stats(folder) == 0
    printed = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("mvmae pretrain")
    )
    own = shlex.split(printed)[2:]
    words = pretrain_command(folder, tmp_path / "run")
    assert main([words[0], *own, *words[2:]]) == 0
    assert "images mean" not in capsys.readouterr().out  # nothing had to be measured
    views = json.loads((tmp_path / "run" / "config.json").read_text())["views"]
    assert [f"{value:g}" for value in views["mean"]] == own[own.index("--views.mean") + 1 :][:5]


def test_gray_and_colour_are_measured_as_training_reads_them(tmp_path, capsys):
    Image.new("L", (8, 8), 51).save(tmp_path / "gray.png")
    Image.new("RGB", (8, 8), (255, 0, 102)).save(tmp_path / "colour.png")
    assert stats(tmp_path, "--out", tmp_path / "s.json") == 0
    told = json.loads((tmp_path / "s.json").read_text())
    assert told["in_channels"] == 3
    assert told["mean"] == pytest.approx([0.6, 0.1, 0.3])
    assert stats(tmp_path, "--channels", 1, "--out", tmp_path / "s.json") == 0
    assert json.loads((tmp_path / "s.json").read_text())["in_channels"] == 1


def test_what_cannot_be_read_is_counted_and_transparency_said_once(tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert stats(tmp_path, "--out", tmp_path / "s.json") == 0
    said = capsys.readouterr().out
    assert "1 images cannot be read" in said
    assert said.count("transparent") == 1
    assert json.loads((tmp_path / "s.json").read_text())["mean"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["gone"], "no such"),
        (["images", "--channels", "7"], "have 3 channels, not 7: set --channels 3"),
        (["images", "--channels", "0"], "channels must be between 1 and 64"),
        (["images", "--max-images", "0"], "max_images must be at least 1"),
        (["images", "--out", "stats.csv"], "must end in .json"),
        (["images", "--out", "images/blue/0.jpg/s.json"], "is a file, not a folder"),
        (["images", "--depth", "12"], "--depth"),
        (["broken"], "none of the 1 images can be read"),
        ([""], "DATA is empty"),
    ],
)
def test_bad_input_is_one_plain_line(tmp_path, image_folder, monkeypatch, capsys, words, complaint):
    image_folder()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    monkeypatch.chdir(tmp_path)
    assert stats(*words) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("stats*"))
