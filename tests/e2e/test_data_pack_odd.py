"""`data pack` on what once ended in lost images or in the last second."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mvmae.cli.main import main
from mvmae.data.sources.base import labels
from mvmae.data.sources.open import open_source


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVMAE_CACHE", str(tmp_path / "cache"))


def pack(*words: object, status: int = 0) -> None:
    assert main(["data", "pack", *map(str, words), "--workers", "1"]) == status


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def test_tar_files_are_not_packed_over_themselves(image_folder, capsys):
    image_folder(per_class=2)
    pack("images", "packed")
    before = contents()
    capsys.readouterr()
    for words in (
        ("packed/000000.tar", "packed", "--overwrite"),
        ("packed/*.tar", "packed", "--overwrite", "--short-side", 16),
        ("packed/{000000..000000}.tar", "packed", "--overwrite"),
        ("packed", "packed/small"),
        ("images", "images/packed"),
    ):
        pack(*words, status=2)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "choose a" in said
    assert contents() == before


def test_a_list_without_labels_is_packed_without_labels(image_folder, pretrain_command):
    """Its images are in folders, which would be classes in tar files without labels."""
    image_folder(per_class=10, size=(24, 30))
    names = [f"images/{label}/{n}.jpg" for n in range(10) for label in ("red", "blue")]
    Path("clean.txt").write_text("\n".join(names))
    pack("clean.txt", "packed", "--shard-size", 0.01)
    assert Path("packed/classes.txt").read_bytes() == b""
    found = []
    for data in ("clean.txt", "packed"):
        source = open_source([data], 3)
        assert tuple(source.classes) == ()
        assert set(labels(source).tolist()) == {-1}
        assert main(pretrain_command(data, f"run-{data}")) == 0
        lines = Path(f"run-{data}/metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line).get("loss") for line in lines])
    assert found[0] == found[1]
    assert any(found[0])


def test_classes_that_are_no_text_are_kept_in_tar_files_and_tar_files_of_those(image_folder):
    folder = image_folder(classes=("blue", "red"), per_class=2)
    shutil.move(folder / "red", os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))
    pack("images", "packed")
    pack("packed", "again")
    assert Path("packed/classes.txt").read_bytes() == b"blue\ncaf\xe9\n"
    for data in ("packed", "again"):
        source = open_source([data], 3)
        assert tuple(source.classes) == ("blue", "caf\udce9")
        assert labels(source).tolist() == [0, 0, 1, 1]


def test_a_file_written_into_dst_while_packing_is_kept(image_folder, capsys):
    image_folder(per_class=2)

    def write_foreign_file() -> None:
        while not Path(".packed.unfinished").exists():
            time.sleep(0.002)
        Path("packed").mkdir()
        Path("packed/mine.txt").write_text("mine")

    other = threading.Thread(target=write_foreign_file)
    other.start()
    pack("images", "packed", status=2)
    other.join()
    assert "packed holds other files (mine.txt)" in capsys.readouterr().err
    assert Path("packed/mine.txt").read_text() == "mine"
    Path("packed/mine.txt").unlink()
    pack("images", "packed")
    assert "resuming after image 4 of 4" in capsys.readouterr().out
    assert len(open_source(["packed"], 3)) == 4


def test_a_dst_that_leads_over_a_folder_that_is_not_there_is_written(image_folder):
    image_folder(per_class=2)
    pack("images", "images/../gone/../packed")
    assert len(open_source(["packed"], 3)) == 4
    assert not Path("packed/unfinished.json").exists()


def test_more_channels_than_rows_are_refused_where_a_file_could_not_tell_them(capsys):
    wide = np.arange(4 * 8 * 8 * 12, dtype=np.uint16).reshape(4, 8, 8, 12)
    np.save("wide.npy", wide)
    pack("wide.npy", "packed", status=2)
    assert "12 channels of 8 rows, which a .npy file cannot tell" in capsys.readouterr().err
    np.save("tall.npy", wide.reshape(4, 16, 16, 3))
    pack("tall.npy", "packed")
    packed, stack = (open_source([name], 3, "16") for name in ("packed", "tall.npy"))
    shares = wide.reshape(4, 16, 16, 3)[1].transpose(2, 0, 1) / 65535
    for source in (packed, stack):
        np.testing.assert_allclose(source.read(1).numpy(), shares, rtol=1e-6)
