"""`data pack` as a user meets it: what it writes, how commands read it, and what it survives."""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from named_sets import cifar10
from PIL import Image

from mvmae.cli.main import main
from mvmae.config.datatools import DataPackConfig
from mvmae.data.reading.decode import decode
from mvmae.data.sources.base import labels
from mvmae.data.sources.open import open_source
from mvmae.datatools.pack import order
from mvmae.datatools.pack.encode import Packed, Packer, Refused


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVMAE_CACHE", str(tmp_path / "cache"))


def pack(*words: object, status: int = 0) -> None:
    assert main(["data", "pack", *map(str, words), "--workers", "1"]) == status


def digests(folder: str | Path) -> dict[str, str]:
    """Of all files, by name."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(Path(folder).iterdir())
    }


def tars(folder: str) -> dict[str, list[str]]:
    """What each tar file holds, for another reader than ours."""
    found = {}
    for file in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(file) as opened:
            found[file.name] = opened.getnames()
    return found


def same_images(one: str, other: str) -> None:
    a, b = open_source([one], 3), open_source([other], 3)
    assert len(a) == len(b)
    assert tuple(a.classes) == tuple(b.classes)
    assert labels(a).tolist() == labels(b).tolist()
    for index in range(len(a)):
        assert torch.equal(a.read(index), b.read(index)), a.path(index)
        assert a.group(index) == b.group(index)


def test_a_folder_becomes_the_same_images_in_tar_files(image_folder, capsys):
    image_folder(classes=("cat", "ape"), per_class=5, size=(40, 50))
    pack("images", "packed", "--shard-size", 0.02)
    said = capsys.readouterr().out
    assert "written: packed, 10 images in " in said
    assert "2 classes" in said
    assert [sum(name.endswith(".jpg") for name in names) for names in tars("packed").values()] == [
        *(6, 4)
    ]
    assert tars("packed")["000000.tar"][:2] == ["ape/0.cls", "ape/0.jpg"]
    assert all(file.stat().st_size <= 20_000 for file in Path("packed").glob("*.tar"))
    assert Path("packed/classes.txt").read_text() == "ape\ncat\n"
    same_images("images", "packed")
    folder, shards = open_source(["images"], 3), open_source(["packed"], 3)
    assert [folder.content(n) for n in range(10)] == [shards.content(n) for n in range(10)]
    facts = json.loads(Path("packed/pack.json").read_text())
    assert (facts["images"], facts["skipped"], facts["classes"]) == (10, 0, 2)
    assert not list(Path().glob(".*"))


def test_classes_that_are_numbers_keep_their_own(image_folder):
    """A .cls file holds an index in classes.txt, and these names look like other indices."""
    image_folder(classes=("1", "10", "2", "3"), per_class=2)
    pack("images", "packed")
    same_images("images", "packed")


def test_a_copy_of_the_tar_files_is_read_by_the_index_that_was_copied(image_folder):
    image_folder()
    pack("images", "packed")
    shutil.copytree("packed", "copy", copy_function=shutil.copyfile)
    before = digests("copy")
    same_images("images", "copy")
    assert digests("copy") == before


def test_the_bytes_do_not_depend_on_the_number_of_processes(image_folder):
    image_folder(per_class=20, size=(40, 50))
    words = ["data", "pack", "images", "--shard-size", "0.03", "--short-side", "20"]
    assert main([*words, "one", "--workers", "1"]) == 0
    assert main([*words, "three", "--workers", "3"]) == 0
    assert len(tars("one")) > 1
    assert digests("one") == digests("three")


def test_tar_files_packed_again_are_the_same_bytes(image_folder):
    image_folder()
    pack("images", "one")
    pack("one", "two")
    assert digests("one")["000000.tar"] == digests("two")["000000.tar"]


def test_several_tar_files_become_one_without_their_names(image_folder):
    image_folder(per_class=4, size=(40, 50))
    pack("images", "many", "--shard-size", 0.02)
    assert len(tars("many")) > 1
    pack("many", "one")
    assert tars("one")["000000.tar"][:2] == ["blue/0.cls", "blue/0.jpg"]
    same_images("many", "one")


def test_groups_and_labels_of_a_list_are_kept(image_folder):
    image_folder()
    rows = [f"images/{c}/{n}.jpg,{c},p{n // 2}" for c in ("blue", "red") for n in range(4)]
    Path("list.csv").write_text("\n".join(rows))
    pack("list.csv", "packed")
    same_images("list.csv", "packed")
    assert open_source(["packed"], 3).group(5) == "p0"


def test_names_with_dots_spaces_and_of_two_suffixes_stay_apart(tmp_path):
    folder = tmp_path / "images" / "v1.0"
    folder.mkdir(parents=True)
    names = ["a.b.png", "a.b.c.png", "a.png", "a.bmp", "é x.png", "n" * 240 + ".png", "a_b.png"]
    for number, name in enumerate(sorted(names)):
        Image.new("RGB", (3, 3), (number, 0, 0)).save(folder / name)
    pack("images", "packed")
    source = open_source(["packed"], 3)
    assert [int(source.read(index)[0, 0, 0]) for index in range(7)] == list(range(7))
    same_images("images", "packed")
    keys = [name.rpartition(".")[0] for name in tars("packed")["000000.tar"] if "cls" not in name]
    assert len(set(keys)) == 7
    assert all(len(part.encode()) < 256 for key in keys for part in key.split("/"))
    assert all("." not in key.rpartition("/")[2] for key in keys)


@pytest.mark.parametrize("data", ["stack.npy", "torchvision:CIFAR10"])
def test_what_is_no_files_is_packed_without_loss(data, monkeypatch, tmp_path):
    cifar10(tmp_path / "sets", monkeypatch)
    np.save("stack.npy", np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3)).astype(np.uint8))
    np.save("stack.labels.npy", np.array([3, 12, 3, 12, 12]))
    pack(data, "packed")
    same_images(data, "packed")


def test_digits_are_gray_in_the_tar_files():
    pack("digits", "packed")
    for channels in (1, 3):
        packed, digits = open_source(["packed"], channels), open_source(["digits"], channels)
        assert all(torch.equal(packed.read(index), digits.read(index)) for index in (0, 7, 1436))
    assert labels(packed).tolist() == labels(digits).tolist()


def test_arrays_of_deep_numbers_stay_deep(capsys):
    array = np.random.default_rng(0).normal(size=(3, 9, 8, 5)).astype(np.float32)
    np.save("deep.npy", array)
    pack("deep.npy", "packed", "--format", "jpeg")
    assert "3 images stay as they were" in capsys.readouterr().out
    source = open_source(["packed"], 5, "float")
    assert np.array_equal(source.read(2).permute(1, 2, 0).numpy(), array[2])


@pytest.mark.parametrize(
    ("options", "suffix", "sides"),
    [
        (("--short-side", 10), ".jpg", (10, 15)),
        (("--short-side", 99), ".jpg", (40, 60)),
        (("--format", "webp"), ".webp", (40, 60)),
        (("--format", "png", "--short-side", 20), ".png", (20, 30)),
    ],
)
def test_images_are_shrunken_and_written_anew_as_asked(image_folder, options, suffix, sides):
    image_folder(size=(40, 60))
    pack("images", "packed", *options)
    source = open_source(["packed"], 3)
    assert source.path(3).endswith(suffix)
    assert tuple(source.read(3).shape[1:]) == sides
    mean = open_source(["images"], 3).read(3).float().mean((1, 2))
    assert (source.read(3).float().mean((1, 2)) - mean).abs().max() < 3


def test_quality_says_how_large_a_jpeg_is(image_folder):
    image_folder(size=(60, 60))
    sizes = []
    for quality in (30, 90):
        pack("images", f"q{quality}", "--format", "jpeg", "--quality", quality)
        sizes.append(sum(len(open_source([f"q{quality}"], 3).content(n)) for n in range(8)))
    assert sizes[0] < 0.6 * sizes[1]


def png(mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (30, 20, 4)).astype(np.uint8)
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(stream, "PNG")
    else:
        Image.fromarray(pixels, "RGBA").convert(mode).save(stream, "PNG", **options)
    return stream.getvalue()


def test_what_stands_upright_by_exif_stands_upright_when_it_is_written_anew(tmp_path):
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), (200, 10, 10)).save("images/a.jpg", exif=exif)
    pack("images", "packed", "--short-side", 20)
    assert tuple(open_source(["packed"], 3).read(0).shape) == (3, 30, 20)


def test_sixteen_bits_are_not_cut_and_gray_stays_gray(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Path("images/deep.png").write_bytes(png("I;16"))
    Path("images/gray.png").write_bytes(png("L"))
    pack("images", "packed", "--short-side", 5, "--format", "png")
    assert "1 images stay as they were" in capsys.readouterr().out
    source = open_source(["packed"], 3)
    assert source.content(0) == png("I;16")
    assert Image.open(io.BytesIO(source.content(1))).mode == "L"


def test_files_that_cannot_be_read_are_listed_and_left_out(image_folder, capsys):
    folder = image_folder()
    content = (folder / "blue" / "1.jpg").read_bytes()
    (folder / "blue" / "1.jpg").write_bytes(content[:300])
    (folder / "red" / "text.png").write_text("no image")
    os.mkfifo(folder / "red" / "pipe.png")
    pack("images", "packed")
    assert "3 of 10 images cannot be read" in capsys.readouterr().out
    with Path("packed/skipped.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == [
        "path",
        *("images/blue/1.jpg", "images/red/pipe.png", "images/red/text.png"),
    ]
    assert "not a regular file" in rows[2][1]
    assert len(open_source(["packed"], 3)) == 7


def test_where_nothing_can_be_read_nothing_is_left(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Path("images/a.png").write_text("no image")
    pack("images", "packed", status=2)
    assert "none of the 1 images of images can be read" in capsys.readouterr().err
    assert list(Path().iterdir()) == [Path("images")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gone", "x"), "no such folder: gone"),
        (("images", "images"), "holds other files (blue)"),
        (("images", "full"), "full holds other files (mine.txt)"),
        (("images", "full/mine.txt"), "is a file: DST must be a folder"),
        (("images", "packed"), "already holds tar files"),
        (("packed", "packed", "--overwrite"), "SRC and DST are both packed"),
        (("images", "x", "--root", "images"), "--root is for lists of paths"),
        (("list.txt", "x", "--root", "full"), "is outside of full"),
        (("images", "x", "--shard-size", "nan"), "shard_size must be between 0.001"),
        (("images", "x", "--short-side", "0"), "short_side must be between"),
        (("images", "x", "--quality", "101"), "quality must be between"),
        (("images", "."), "DST is the current folder"),
        (("torchvision:MNISTT", "x"), "did you mean"),
        (("torchvision:MNIST", "x"), "Set MVMAE_TORCHVISION to the folder"),
        (("x.tar.gz", "x"), "is a compressed tar"),
    ],
)
def test_mistakes_cost_one_line_and_change_nothing(image_folder, capsys, words, message):
    image_folder(per_class=1)
    pack("images", "packed")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("list.txt").write_text("images/blue/0.jpg")
    before = sorted(str(path) for path in Path().rglob("*"))
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        pack(*words, status=2)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(str(path) for path in Path().rglob("*")) == before


def test_overwrite_replaces_what_this_command_wrote(image_folder):
    image_folder()
    pack("images", "packed", "--shard-size", 0.002)
    pack("images", "packed", "--overwrite")
    assert len(tars("packed")) == 1
    same_images("images", "packed")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mvmae", "data", "pack", *words]


OPTIONS = ("images", "packed", "--shard-size", "0.06", "--workers", "1")


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_pack_goes_on_and_ends_with_the_same_bytes(image_folder, end):
    image_folder(per_class=60, size=(80, 80))
    Path("images/blue/7.jpg").write_bytes(b"\xff\xd8\xff broken")
    Path("images/red/3.jpg").write_bytes(b"\xff\xd8\xff broken")
    pack("images", "whole", "--shard-size", 0.06, "--format", "png")
    unfinished = Path(".packed.unfinished")
    words = command(*OPTIONS, "--format", "png")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (unfinished / "000002.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(end)
    out, _ = process.communicate(timeout=180)
    status = -9 if end == signal.SIGKILL else 128 + end
    assert process.returncode == status
    assert not Path("packed").exists()
    if end != signal.SIGKILL:
        assert "the same command resumes" in out
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "resuming after image" in done.stdout
    assert digests("whole") == digests("packed")
    assert not list(Path().glob(".packed*"))


@pytest.mark.slow
def test_two_at_once_into_one_folder_are_refused_and_other_settings_too(image_folder):
    image_folder(per_class=60, size=(80, 80))
    words = command(*OPTIONS, "--format", "png")
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not Path(".packed.unfinished/000001.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    second = subprocess.run(words, capture_output=True, text=True)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert f"another command (process {first.pid} on " in second.stderr
    other = subprocess.run([*words, "--quality", "50"], capture_output=True, text=True)
    assert other.returncode == 2
    assert "a stopped run with other --quality" in other.stderr
    pack(*OPTIONS, "--quality", "50", "--format", "png", "--overwrite")
    assert json.loads(Path("packed/pack.json").read_text())["settings"]["--quality"] == 50


def test_pretraining_on_tar_files_is_pretraining_on_the_folder(image_folder, pretrain_command):
    """The same batches in the same order: after some steps every weight is bit for bit the same."""
    image_folder(per_class=10, size=(24, 30))
    pack("images", "packed", "--shard-size", 0.01)
    found = []
    for data in ("images", "packed"):
        assert main(pretrain_command(data, f"run-{data}")) == 0
        rows = [
            json.loads(line) for line in Path(f"run-{data}/metrics.jsonl").read_text().splitlines()
        ]
        found.append([row.get("loss") for row in rows])
        assert main(["knn", f"run-{data}", data, "--device", "cpu", "--workers", "0"]) == 0
    assert found[0] == found[1]
    weights = [
        Path(f"run-{data}/encoder.safetensors").read_bytes() for data in ("images", "packed")
    ]
    assert weights[0] == weights[1]


# The parts


def test_what_waits_beyond_the_limit_lies_on_the_disk_and_comes_back(tmp_path):
    contents = [bytes([number]) * 100 for number in range(20)]
    with contextlib.closing(order.Waiting(250, tmp_path)) as held:
        for number in range(19, 0, -1):
            held.add(number, Packed(contents[number], ".png", stays=number == 3))
        held.add(0, Refused("why"))
        assert held.held == 200
        assert held.pop(0) == Refused("why")
        for number in range(1, 20):
            assert number in held.images
            assert held.pop(number) == Packed(contents[number], ".png", stays=number == 3)
            assert number not in held.images
        assert held.held == 0
        held.add(20, Packed(b"x", ".png"))
        assert held.pop(20).content == b"x"
    assert list(tmp_path.glob("[!c]*")) == []


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA"])
def test_every_way_to_keep_pixels_is_written_anew_as_it_is_read(tmp_path, mode):
    (tmp_path / "a.png").write_bytes(png(mode))
    config = DataPackConfig(data="a.txt", out=Path("x"), format="png")
    (tmp_path / "a.txt").write_text("a.png")
    packed = Packer(open_source(["a.txt"], 3), config)(0)
    assert isinstance(packed, Packed)
    assert torch.equal(decode(packed.content, 3), decode(png(mode), 3))


def test_a_jpeg_that_is_too_long_to_be_written_is_refused_and_not_fatal(tmp_path):
    Image.new("L", (1, 65501)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a.png")
    config = DataPackConfig(data="a.txt", out=Path("x"), format="jpeg")
    packed = Packer(open_source(["a.txt"], 3), config)(0)
    assert isinstance(packed, Refused)
    assert "cannot be written as jpeg" in packed.reason
