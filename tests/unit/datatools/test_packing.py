"""The parts of `data pack`: what DST may not replace, and what a full disk is called."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from shard_files import image, tar

from mvmae.config.datatools import DataPackConfig
from mvmae.data.sources.class_list import class_list_text, parse_class_list
from mvmae.data.sources.open import open_source
from mvmae.datatools.pack.encode import ImageNames, Packed
from mvmae.datatools.pack.order import Waiting
from mvmae.datatools.pack.run import require_destination, require_source_survives
from mvmae.datatools.pack.write import State, Writer
from mvmae.errors import UserError


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVMAE_CACHE", str(tmp_path / "cache"))


def packed_folder(name: str, shards: int = 2) -> Path:
    """What `data pack` leaves, as far as it is looked at."""
    folder = Path(name)
    for number in range(shards):
        tar(folder / f"{number:06}.tar", {f"{number}.png": image(number)})
        (folder / f"{number:06}.tar.index").touch()
    (folder / "pack.json").write_text(json.dumps({"shards": shards}))
    return folder


def config(data: str, out: str = "packed") -> DataPackConfig:
    return DataPackConfig(data=data, out=Path(out), overwrite=True)


@pytest.mark.parametrize(
    "data",
    [
        "packed/000000.tar",
        "packed/*.tar",
        "packed/{000000..000001}.tar",
        "link/*.tar",
        "inside.tar",
        "list.txt",
        "packed/classes.txt",
        ".packed.unfinished/*.tar",
        ".packed.unfinished.old/000000.tar",
    ],
)
def test_no_file_of_the_source_goes_with_what_is_replaced(data):
    folder = packed_folder("packed")
    for name in (".packed.unfinished", ".packed.unfinished.old"):
        packed_folder(name)
    Path("link").symlink_to("packed")
    Path("inside.tar").symlink_to("packed/000001.tar")
    Path("a.png").write_bytes(image())
    (folder / "classes.txt").write_text("../a.png\n")
    Path("list.txt").write_text("a.png\npacked/000000.tar\n")
    require_destination(config(data))
    with pytest.raises(UserError, match="is part of SRC and lies where DST is written"):
        require_source_survives(open_source([data], 3), config(data))


@pytest.mark.parametrize("data", ["other/*.tar", "list.txt", "images", "stack.tar"])
def test_what_lies_elsewhere_may_be_packed_over_tar_files(data):
    packed_folder("packed")
    packed_folder("other")
    packed_folder("packed-too")
    Path("stack.tar").symlink_to("packed-too/000000.tar")
    Path("images").mkdir()
    Path("images/a.png").write_bytes(image())
    Path("list.txt").write_text("images/a.png\n")
    require_destination(config(data))
    require_source_survives(open_source([data], 3), config(data))


@pytest.mark.parametrize(
    ("data", "out", "message"),
    [
        ("packed", "packed/small", "packed/small lies inside packed: choose a DST outside"),
        ("packed/000000.tar", "packed/a/b", "whose tar files could not be read with a folder"),
        ("images", "images/packed", "images/packed lies inside images"),
        (".", "new", r"new lies inside \.: choose a DST outside of SRC"),
        ("images", "link/new", "link/new lies inside images"),
        ("hf:images", "images/new", "images/new lies inside images"),
    ],
)
def test_nothing_is_written_into_a_folder_that_is_read_as_a_whole(data, out, message):
    packed_folder("packed")
    Path("images").mkdir()
    Path("link").symlink_to("images")
    with pytest.raises(UserError, match=message):
        require_destination(config(data, out))


@pytest.mark.parametrize("name", ["000002.tar", "mine.tar", "000002.tar.index", "0.tar", "x.txt"])
def test_a_tar_file_that_somebody_put_beside_the_packed_ones_is_not_replaced(name):
    folder = packed_folder("packed")
    require_destination(config("images"))
    (folder / name).touch()
    with pytest.raises(UserError, match=f"holds other files \\({name}\\)"):
        require_destination(config("images"))


def test_a_folder_that_is_called_like_a_tar_file_is_not_replaced():
    folder = packed_folder("packed")
    (folder / "000001.tar").unlink()
    (folder / "000001.tar").mkdir()
    with pytest.raises(UserError, match=r"holds other files \(000001\.tar\)"):
        require_destination(config("images"))


def test_a_tar_file_beside_the_folder_that_is_new_may_be_packed():
    tar(Path("a.tar"), {"a.png": image()})
    require_destination(config("a.tar", "new"))
    require_source_survives(open_source(["a.tar"], 3), config("a.tar", "new"))


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond 6,000 bytes, as if the disk were full there.

    This is not a fixture: pytest would still be under the limit when it prints the outcome, and
    crash if its own output goes to a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [5600, 9000])  # too large when it is made whole, or before
def test_a_full_disk_names_the_tar_file_and_keeps_no_part_of_it(tmp_path, size):
    def write() -> None:
        with Writer(tmp_path, State(settings={}), 1e9) as writer:
            writer.add("0", Packed(bytes(size), ".png"), -1, None, 0)
            writer.finish(1)

    with full_disk(), pytest.raises(OSError, match="File too large") as caught:
        write()
    assert caught.value.filename == str(tmp_path / ".tar.tmp")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_folder_of_what_waits(tmp_path):
    def wait() -> None:
        with closing(Waiting(10, tmp_path)) as waiting:
            for number in range(3):
                waiting.add(number, Packed(bytes(9000), ".png"))

    with full_disk(), pytest.raises(OSError, match="File too large") as caught:
        wait()
    assert caught.value.filename == str(tmp_path)


def test_images_beside_a_folder_are_named_below_the_folder_they_share():
    for name in ("a/b/x.png", "a/y.png", "a/b/z.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(image())
    names = ImageNames(open_source(["a"], 3))
    assert sorted(names.key(index) for index in range(3)) == ["b/x", "b/z", "y"]


@pytest.mark.parametrize(
    "names", [[], ["a"], ["b", "a"], ["caf\udce9", "é", " x "], ["a\tb", "1", "0"]]
)
def test_classes_are_read_as_they_were_written(names):
    assert parse_class_list(class_list_text(names), "x") == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", ""], "''"),
        (["a\nb"], r"'a\\nb'"),
        ([" "], "' '"),
        (["a\0"], r"'a\\x00'"),
        (["\ud800"], r"'\\ud800'"),
        (["\ufeffa"], r"'\\ufeffa'"),
        (["a\u2028b"], "cannot be written to"),
        (["crane", "ape", "crane"], "two classes have the name 'crane'"),
    ],
)
def test_classes_that_could_not_be_read_again_are_refused_before(names, message):
    with pytest.raises(UserError, match=message):
        class_list_text(names)


def test_a_name_of_bytes_that_are_no_text_is_one_line_on_the_disk():
    assert class_list_text([os.fsdecode(b"caf\xe9"), "x"]) == b"caf\xe9\nx\n"
