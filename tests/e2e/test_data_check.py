"""`data check` as a user meets it: what it says, writes, and survives."""

import csv
import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from shard_files import tar

from mvmae.cli.main import main
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources.open import open_source


def picture(seed: int, side: int = 96) -> Image.Image:
    """Coarse blocks of colour, no two alike."""
    blocks = np.random.default_rng(seed).integers(20, 236, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two classes of four images each, nothing wrong; commands are given beside it."""
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        label = ("blue", "red")[number % 2]
        (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / "images" / label / f"{number}.png")
    return tmp_path / "images"


def check(capsys, *words: str) -> tuple[int, str]:
    """Exit status and what a person reads, in one line."""
    capsys.readouterr()
    status = main(["data", "check", *words, "--workers", "2"])
    streams = capsys.readouterr()
    return status, " ".join((streams.out + streams.err).split())


def everything(capsys, *words: str, status: int = 1) -> dict:
    assert check(capsys, *words, "--out", "all.json")[0] == status
    return json.loads(Path("all.json").read_text())


def files_by_finding(report: dict) -> dict[str, list[str]]:
    """Names of the files of each finding, or its examples."""
    return {
        one["finding"]: [Path(file["path"]).name for file in one["files"]] or one["examples"]
        for one in report["findings"]
    }


def test_good_images_are_fine(folder, capsys):
    status, said = check(capsys, "images")
    assert status == 0
    assert said.endswith("nothing is wrong")
    assert "8 can be read" in said
    assert "96 pixels" in said


def spoil(folder: Path) -> dict[str, str]:
    """Write one file for each fault; return the finding that must name it."""
    red = folder / "red"
    good = (red / "1.png").read_bytes()
    (red / "cut.png").write_bytes(good[: len(good) // 2])
    (red / "empty.jpg").touch()
    (red / "text.jpg").write_text("<html>not found</html>")
    (red / "header.png").write_bytes(good[:8] + b"\0" * 40)
    Image.new("F", (32, 32)).save(red / "float.tif")
    bomb = io.BytesIO()
    Image.new("1", (8, 8)).save(bomb, "BMP")
    content = bytearray(bomb.getvalue())
    content[18:26] = (60_000).to_bytes(4, "little") * 2
    (red / "bomb.bmp").write_bytes(content)
    os.mkfifo(red / "pipe.jpg")
    (red / "gone.png").symlink_to("nowhere.png")
    (red / "dir.png").mkdir()
    picture(50, 9).save(red / "small.png")
    shutil.copy(folder / "blue" / "0.png", red / "same.png")
    picture(2).save(red / "like.jpg", quality=50)
    Image.new("RGB", (40, 40), (9, 9, 9)).save(red / "black.png")
    picture(51).save(red / "wrong.jpg", "PNG")
    picture(52).save(red / "photo.tmp", "PNG")
    (red / "notes.md").write_text("notes")
    return {
        "cut.png": "images that are cut short",
        "empty.jpg": "empty files",
        "text.jpg": "files that are not images, despite their suffix",
        "header.png": "damaged images",
        "float.tif": "images with other channels or deeper values than most",
        "bomb.bmp": "images of more pixels than are read (179 million)",
        "pipe.jpg": "pipes, devices or folders with an image's name",
        "gone.png": "files that cannot be opened",
        "small.png": "images with a side under 16 pixels",
        "same.png": "exact duplicates",
        "like.jpg": "near duplicates",
        "black.png": "images of nearly one colour",
        "wrong.jpg": "files whose suffix says another format",
    }


SKIPPED = ("cut", "empty", "text", "header", "float", "bomb", "pipe", "gone")


def test_each_fault_is_named_and_training_reads_what_is_said_to_be_readable(folder, capsys):
    expected = spoil(folder)
    report = everything(capsys, "images")
    by_finding = files_by_finding(report)
    for name, finding in expected.items():
        assert by_finding[finding] == [name], finding
    assert by_finding["exact duplicates in two classes"] == ["same.png"]
    assert by_finding["images passed over for their suffix"] == ["images/red/photo.tmp (PNG)"]
    severity = {Path(row["path"]).name: row["severity"] for row in report["files"]}
    skipped = {name for name, what in severity.items() if what in ("fatal", "skipped")}
    assert skipped == {name for name in expected if name.split(".")[0] in SKIPPED}
    source = open_source(["images"], 3)
    for index in range(len(source)):
        name = Path(source.path(index)).name
        if name in skipped:
            with pytest.raises(UnreadableImageError):
                source.read(index)
        else:
            source.read(index)
    assert report["facts"]["readable"] == len(source) - len(skipped)


def test_output_is_the_same_for_any_number_of_workers(folder, capsys):
    spoil(folder)
    texts = []
    for workers in ("1", "3"):
        status = main(f"data check images --workers {workers} --out all.csv".split())
        texts.append((status, Path("all.csv").read_bytes(), capsys.readouterr().out))
    assert texts[0] == texts[1]


def test_clean_list_is_what_pretrain_reads(folder, capsys):
    spoil(folder)
    (folder / "red" / " spaces .png").write_bytes((folder / "red" / "1.png").read_bytes() + b"\0")
    check(capsys, "images", "--quarantine", "clean.csv")
    clean = open_source(["clean.csv"], 3)
    names = [Path(clean.path(index)).name for index in range(len(clean))]
    for index in range(len(clean)):
        clean.read(index)
    good = {f"{number}.png" for number in range(8)}
    more = {"small.png", "like.jpg", "black.png", "wrong.jpg", " spaces .png"}
    assert sorted(names) == sorted(good | more)
    assert clean.classes == ("blue", "red")
    assert [clean.label(at) for at in range(4)] == [0, 0, 0, 0]

    said = check(capsys, "images", "--quarantine", "clean.txt")[1]
    assert "13 clean images" in said
    assert len(open_source(["clean.txt"], 3)) == 13
    assert check(capsys, "clean.txt", "--fail-on", "skipped")[0] == 0


def test_leaks_are_found_against_other_images_and_between_splits(folder, capsys):
    (folder.parent / "val").mkdir()
    shutil.copy(folder / "red" / "1.png", "val/a.png")
    picture(2).save("val/b.jpg", quality=50)
    picture(99).save("val/c.png")
    names = files_by_finding(everything(capsys, "images", "--against", "val"))
    assert names == {
        "images that are the same in two parts": ["a.png"],
        "images that are nearly the same in two parts": ["b.jpg"],
    }
    shutil.copytree("images", "both/train")
    shutil.copytree("val", "both/val/red")
    assert files_by_finding(everything(capsys, "both")).keys() >= names.keys()


def test_fail_on_decides_the_status(folder, capsys):
    picture(2).save(folder / "red" / "like.jpg", quality=50)
    assert check(capsys, "images")[0] == 1
    assert check(capsys, "images", "--no-near")[0] == 0
    assert check(capsys, "images", "--fail-on", "skipped")[0] == 0
    (folder / "red" / "empty.png").touch()
    assert check(capsys, "images", "--fail-on", "skipped")[0] == 1
    assert check(capsys, "images", "--fail-on", "fatal")[0] == 0


def test_a_file_that_takes_too_long_is_named_and_the_rest_goes_on(folder, capsys):
    Image.new("RGB", (12_000, 12_000)).save(folder / "red" / "slow.png", compress_level=1)
    report = everything(capsys, "images", "--timeout", "0.5")
    assert files_by_finding(report)["files that are not read in --timeout seconds"] == ["slow.png"]
    assert report["facts"]["readable"] == 8


def test_a_file_that_needs_too_much_memory_is_named(folder, capsys):
    Image.new("RGB", (13_000, 13_000)).save(folder / "red" / "large.png", compress_level=1)
    report = everything(capsys, "images", "--memory", "0.3")
    assert files_by_finding(report)["files that need more than --memory"] == ["large.png"]
    assert report["facts"]["readable"] == 8


def test_names_cannot_do_anything_to_the_screen(folder, capsys):
    names = ["[red]x[bold].png", "a\nb.png", "\x1b[31mred.png", "\u202egnp.exe.png"]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"\xff\xfe.png"))
    for name in names:
        (folder / "red" / name).touch()
    capsys.readouterr()
    assert main(["data", "check", "images", "--out", "all.csv"]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "and 2 more" in out
    out.encode()
    with Path("all.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert set(names) <= set(rows)
    said = check(capsys, "images", "--quarantine", "clean.txt")[1]
    assert "8 clean images" in said


def test_loops_of_links_end(folder, capsys):
    (folder / "red" / "loop").symlink_to(folder)
    assert check(capsys, "images")[0] == 0


def save_bands(file: Path, count: int, seed: int) -> None:
    """Write a TIFF of floats with `count` bands."""
    values = np.random.default_rng(seed).random((count, 8, 8)).repeat(4, 1).repeat(4, 2)
    tifffile.imwrite(file, (3 * values).astype(np.float32), photometric="minisblack")


def test_images_of_many_deep_channels_are_what_training_reads(folder, capsys):
    for file in folder.rglob("*.png"):
        save_bands(file.with_suffix(".tif"), 12, int(file.stem))
        file.unlink()
    report = everything(capsys, "images", status=0)
    assert report["facts"]["modes"] == {"float32, 12 channels": 8}
    assert report["facts"]["bits"] == {"32": 8}
    assert report["facts"]["readable"] == 8
    assert "to be read with --model.in-channels 12" in check(capsys, "images")[1]
    source = open_source(["images"], 12, "float")
    assert all(source.read(at).shape == (12, 32, 32) for at in range(8))
    save_bands(folder / "red" / "four.tif", 4, 9)
    picture(9).save(folder / "red" / "photo.png")
    shutil.copy(folder / "red" / "1.tif", folder / "red" / "again.tif")
    assert files_by_finding(everything(capsys, "images")) == {
        "images with other channels or deeper values than most": ["four.tif", "photo.png"],
        "exact duplicates": ["again.tif"],
    }


def test_deep_numbers_are_named(folder, capsys):
    rng = np.random.default_rng(0)
    for number in range(3):
        values = rng.integers(0, 60_000, (8, 8), dtype=np.uint16).repeat(8, 0).repeat(8, 1)
        Image.fromarray(values).save(folder / "red" / f"deep{number}.png")
        np.save(folder / "red" / f"plain{number}.npy", values.astype(np.uint8))
    report = everything(capsys, "images", status=0)
    assert report["facts"]["modes"] == {"RGB": 8, "16-bit": 3, "uint8": 3}
    assert report["facts"]["bits"] == {"8": 11, "16": 3}
    for number in range(12):
        colours = rng.integers(0, 60_000, (5, 32, 32), dtype=np.uint16)
        np.save(folder / "red" / f"five{number}.npy", colours)
    for file in folder.rglob("?.png"):
        file.unlink()
    report = everything(capsys, "images")
    assert report["facts"]["modes"] == {"16-bit, 5 channels": 12}


def test_images_in_tar_files_are_looked_at_one_by_one(folder, capsys):
    members = {f"{at}.png": (folder / f"{('blue', 'red')[at % 2]}/{at}.png").read_bytes() for at in
               range(8)}  # fmt: skip
    members |= {"again.png": members["3.png"], "cut.png": members["4.png"][:99], "no.jpg": b"text"}
    tar(Path("a.tar"), members)
    report = everything(capsys, "a.tar")
    assert files_by_finding(report) == {
        "images that are cut short": ["cut.png"],
        "files that are not images, despite their suffix": ["no.jpg"],
        "exact duplicates": ["again.png"],
    }
    assert (report["facts"]["files"], report["facts"]["readable"]) == (11, 9)
    assert report["files"][0]["path"] == "a.tar/0.png"
    leak = "images that are the same in two parts"
    assert files_by_finding(everything(capsys, "a.tar", "--against", "images"))[leak] == [
        f"{at}.png" for at in (0, 2, 4, 6, 1, 3, 5, 7)
    ]


def test_a_damaged_tar_file_is_a_finding(folder, capsys):
    whole = tar(Path("a.tar"), {f"{at}.png": b"x" * 2000 for at in range(4)}).read_bytes()
    Path("b.tar").write_bytes(whole[:6000])
    report = everything(capsys, "b.tar")
    assert files_by_finding(report)["damaged tar files"][0].startswith("b.tar (damaged after byte ")


def test_images_of_an_array_are_looked_at_one_by_one(folder, capsys):
    blocks = np.random.default_rng(0).integers(20, 60_000, (12, 5, 4)).astype(np.uint16)
    array = blocks.repeat(8, 1).repeat(8, 2)
    array[3], array[5] = 777, array[1]
    np.save("all.npy", array)
    report = everything(capsys, "all.npy")
    assert files_by_finding(report) == {
        "images of nearly one colour": ["3"],
        "exact duplicates": ["5"],
    }
    assert report["facts"]["modes"] == {"16-bit": 12}
    assert report["facts"]["bytes"] == array.nbytes
    assert report["facts"]["largest"] == {"path": "all.npy/0", "width": 32, "height": 40}
    floats = array.astype(np.float32)
    floats[7] = np.nan
    np.save("all.npy", floats)
    assert files_by_finding(everything(capsys, "all.npy", "--no-near")) == {
        "images in an unsupported format": ["7"], "exact duplicates": ["5"],
    }  # fmt: skip
    assert "channel 1 has no finite values" in Path("all.json").read_text()


def test_deep_images_are_none_for_masks(tmp_path, monkeypatch, capsys):
    """As `segment` passes them over."""
    monkeypatch.chdir(tmp_path)
    for kind in ("images", "masks"):
        Path("data", kind).mkdir(parents=True)
    for at in range(6):
        picture(at, 32).save(f"data/images/{at}.png")
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(f"data/masks/{at}.png")
    save_bands(Path("data/images/5.tif"), 12, 0)
    Path("data/images/5.png").unlink()
    names = files_by_finding(everything(capsys, "data"))
    assert names["images in an unsupported format"] == ["5.tif"]


def coco(root: Path, name: str, boxes: list[list[float]], first: int) -> None:
    """A split with one image for each box."""
    (root / "images" / name).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    content = {"categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "[dog]"}]}
    content["images"] = [
        {"id": at, "file_name": f"{at}.png", "width": 96, "height": 96} for at in range(len(boxes))
    ]
    content["annotations"] = [
        {"id": at, "image_id": at, "category_id": (3, 7)[at % 2], "bbox": box}
        for at, box in enumerate(boxes)
    ]
    for at in range(len(boxes)):
        picture(first + at).save(root / "images" / name / f"{at}.png")
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def test_boxes_of_all_splits_are_checked_as_detect_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = [2, 2, 20, 20]
    coco(Path("data"), "train", [good, good, [160, 60, 5, 5], [1, 1, 0, 4], good, good], 0)
    coco(Path("data"), "val", [good, good, [30, 30, 80, 10]], 20)
    coco(Path("data"), "test", [good, good], 40)
    Path("data/images/train/4.png").unlink()
    Path("data/images/test/0.png").write_bytes(b"nothing")
    shutil.copy("data/images/train/0.png", "data/images/val/0.png")
    report = everything(capsys, "data")
    names = files_by_finding(report)
    assert report["kind"] == "coco"
    assert names["train: boxes outside their image"][0].startswith("annotation 2 in 2.png")
    assert names["train: boxes without an area"][0].startswith("annotation 3 in 3.png")
    assert names["train: missing image files"] == ["4.png"]
    assert names["val: boxes that stick out of their image"][0].startswith("annotation 2")
    assert names["test: files that are not images"] == ["0.png"]
    assert names["images that are the same in two parts"] == ["0.png"]
    assert report["labels"]["counts"] == {"train": [1, 2], "val": [2, 1], "test": [0, 1]}
    assert report["labels"]["facts"]["category ids"].startswith("3 to 7 with 3 gaps")
    assert "[dog]" in check(capsys, "data")[1]


def test_a_broken_annotation_file_is_a_finding_and_the_others_are_checked(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    coco(Path("data"), "train", [[2, 2, 20, 20]] * 3, 0)
    Path("data/annotations/instances_val.json").write_text("{")
    (Path("data") / "images" / "val").mkdir()
    report = everything(capsys, "data")
    (said,) = files_by_finding(report)["splits that cannot be used"]
    assert "instances_val.json is not valid JSON" in said
    assert report["facts"]["readable"] == 3


def test_masks_of_all_splits_are_checked_as_segment_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for part, first in (("training", 0), ("validation", 10), ("test", 20)):
        for kind in ("images", "annotations"):
            Path("data", kind, part).mkdir(parents=True)
        for at in range(3):
            picture(first + at).save(f"data/images/{part}/{at}.png")
            mask = np.full((96, 96), 1 + at % 2, np.uint8)
            mask[:8] = 0
            Image.fromarray(mask).save(f"data/annotations/{part}/{at}.png")
    Image.fromarray(np.ones((20, 20), np.uint8)).save("data/annotations/test/1.png")
    Path("data/annotations/training/2.png").unlink()
    Path("data/classes.csv").write_text("1,cat\n2,dog\n")
    report = everything(capsys, "data")
    names = files_by_finding(report)
    assert report["kind"] == "masks"
    assert (
        "20 x 20, the image 96 x 96" in names["test: masks of a different size than their image"][0]
    )
    assert names["training and validation: images without a mask"] == ["data/images/training/2.png"]
    pixels = 88 * 96
    assert report["labels"]["counts"] == {
        "training": [pixels, pixels],
        "validation": [2 * pixels, pixels],
        "test": [2 * pixels, 0],
    }
    Path("data/classes.csv").write_text("1,cat\n")
    assert "training and validation: masks with a value beyond the 1 classes" in files_by_finding(
        everything(capsys, "data")
    )


def test_black_and_white_masks_are_taken_as_segment_takes_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for part, first in (("train", 0), ("val", 10), ("test", 20)):
        for kind in ("images", "masks"):
            Path("data", kind, part).mkdir(parents=True)
        for at in range(3):
            picture(first + at).save(f"data/images/{part}/{at}.png")
            mask = np.zeros((96, 96), np.uint8)
            mask[:24] = 255
            Image.fromarray(mask).save(f"data/masks/{part}/{at}.png")
    report = everything(capsys, "data", status=0)
    pixels = [3 * 72 * 96, 3 * 24 * 96]
    assert report["labels"]["counts"] == dict.fromkeys(("train", "val", "test"), pixels)
    assert report["labels"]["classes"] == ["0", "255"]
    for where in ("train and val", "test"):
        said = report["labels"]["facts"][f"values in {where}"]
        assert said.startswith("0 is a class (75.0 %), 255 is a class (25.0 %)"), said


def test_a_class_that_only_test_images_show_is_reported_without_splits_too(
    tmp_path, monkeypatch, capsys
):
    """`segment` tests on every fifth pair of a plain pair of folders, starting with the second."""
    monkeypatch.chdir(tmp_path)
    for kind in ("images", "masks"):
        Path("data", kind).mkdir(parents=True)
    for at in range(10):
        picture(at).save(f"data/images/{at}.png")
        mask = np.zeros((96, 96), np.uint8)
        mask[:24] = 1
        if at in (1, 6):
            mask[:8] = 2
        Image.fromarray(mask).save(f"data/masks/{at}.png")
    report = everything(capsys, "data")
    assert report["labels"]["counts"]["train"] == [8 * 72 * 96, 8 * 24 * 96, 0]
    assert files_by_finding(report) == {
        "classes without pixels in train, but with some in other splits": ["2"]
    }


BAD = {
    "no images": ("empty", "no images below empty"),
    "no such folder": ("nowhere", "no such folder: nowhere"),
    "built in": ("photos", "built in: there is nothing to check"),
    "array in a list": ("all.npy --quarantine a.txt", "--quarantine lists files, and the images"),
    "itself": ("images --against images", "--against images is DATA itself"),
    "out of another kind": ("images --out a.txt", "must end in .csv or .json"),
    "list of another kind": ("images --quarantine a.json", "must end in .txt or .csv"),
    "no folder for out": ("images --out no/a.csv", "there is no folder no"),
    "over the list": ("list.txt --quarantine list.txt", "would overwrite what is checked"),
    "one file twice": ("images --out a.csv --quarantine a.csv", "name two files"),
    "no workers": ("images --workers 0", "workers must be at least 1"),
    "no time": ("images --timeout 0", "timeout must be a number of seconds"),
    "no memory": ("images --memory 0.001", "memory must be between 0.25 and 4096 GiB"),
    "not coco": ("images --kind coco", "has no annotations/"),
    "not masks": ("images --kind masks", "has no images/ and annotations/"),
    "kinds of several": ("images images --kind coco", "takes one folder, not 2"),
    "similar to all": ("images --similarity 0.1", "similarity must be between"),
    "misspelt": ("images --agianst val", "did you mean --against"),
}


@pytest.mark.parametrize("mistake", BAD)
def test_mistakes_get_one_line_and_status_2(folder, capsys, mistake):
    command, says = BAD[mistake]
    Path("empty").mkdir()
    Path("list.txt").write_text("images/red/1.png\n")
    np.save("all.npy", np.zeros((3, 32, 32), np.uint8))
    capsys.readouterr()
    assert main(["data", "check", *command.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_commands_of_two_words_are_listed_and_misspelt_ones_corrected(capsys):
    for words in (["data"], ["data", "--help"]):
        assert main(words) == 0
        assert "  data check " in capsys.readouterr().out
    assert main(["data", "checq"]) == 2
    assert "no command 'data checq': did you mean 'data check'?" in capsys.readouterr().err
    assert main(["data", "check", "--help"]) == 0
    assert "mvmae data check" in capsys.readouterr().out


@pytest.mark.slow
def test_odd_and_hostile_files_are_judged_as_training_does(
    data_root, tmp_path, monkeypatch, capsys
):
    """All 1,363 files, in processes that may take 1 GiB each."""
    import resource

    monkeypatch.chdir(tmp_path)
    with tarfile.open(data_root / "weird.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    report = everything(capsys, "weird", "--memory", "1")
    rows = {str(Path(row["path"]).relative_to("weird")): row for row in report["files"]}
    with Path("weird/index.csv").open(newline="", encoding="utf-8") as file:
        index = {row["file"]: row for row in csv.DictReader(file)}
    assert len(index) == 1363
    assert index.keys() <= rows.keys()
    source = open_source(["weird"], 3)
    for at in range(len(source)):
        name = str(Path(source.path(at)).relative_to("weird"))
        readable = rows[name]["severity"] not in ("fatal", "skipped")
        try:
            source.read(at)
        except UnreadableImageError:
            assert not readable, name
        else:
            assert readable, name
            assert index[name]["decodes_13.0.0"] == "yes", name
    assert not [one for one in report["findings"] if one["severity"] == "fatal"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert peak < 3
