"""Tar files as a source: what is read, what is skipped, and what damage does."""

import io
import json
import os
import pickle
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch
from shard_files import image, tar

from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources import cache_dir, tar_index
from mvmae.data.sources.base import fingerprint, labels, stamp
from mvmae.data.sources.labelled import open_labelled
from mvmae.data.sources.open import open_source
from mvmae.data.sources.shard_names import expand_braces
from mvmae.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MVMAE_CACHE", str(tmp_path_factory.mktemp("cache")))


def members(source) -> list[str]:
    return [source.member(index) for index in range(len(source))]


def open_shards(*names) -> object:
    return open_source([str(name) for name in names], 3)


# Which files


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{a,b}{0..1}.tar", ["a0.tar", "a1.tar", "b0.tar", "b1.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces_stand_for_names_in_their_order(name, meant):
    assert expand_braces(name) == meant


@pytest.mark.parametrize("name", ["{3..1}.tar", "{0..9999999}.tar", "{0..999}{0..999}{0..9}.tar"])
def test_braces_that_count_down_or_too_far_are_refused(name):
    with pytest.raises(UserError, match=r"count upwards|more than"):
        expand_braces(name)


def test_a_file_a_pattern_a_range_and_a_folder_are_the_same_tar_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        tar(tmp_path / "shards" / f"x-{number}.tar", {f"{number}.png": image(number)})
    by_range = open_shards("shards/x-{0..2}.tar")
    for data in (
        ["shards"],
        ["shards/*.tar"],
        ["shards/x-?.tar"],
        [f"shards/x-{n}.tar" for n in range(3)],
    ):
        source = open_shards(*data)
        assert fingerprint(source) == fingerprint(by_range), data
    assert by_range.path(2) == "shards/x-2.tar/2.png"


def test_a_folder_with_images_or_folders_beside_a_tar_file_is_a_folder_of_images(tmp_path):
    tar(tmp_path / "data" / "a.tar", {"in.png": image()})
    (tmp_path / "data" / "out.png").write_bytes(image(1))
    source = open_shards(tmp_path / "data")
    assert [Path(source.path(index)).name for index in range(len(source))] == ["out.png"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("gone.tar", "no such file: gone.tar"),
        ("a-{0..2}.tar", "no such file: a-1.tar"),
        ("b-*.tar", "no file matches b-"),
        ("a-0.tar.gz", "a compressed tar.* to a plain"),
        ("a-0.tgz", "a compressed tar"),
        ("zipped.tar", r"is compressed.*gzip -d"),
        ("text.tar", "text.tar is not a tar file, or damaged from its beginning"),
        ("empty.tar", "empty.tar is not a tar file"),
        ("imageless.tar", "no images in imageless.tar: searched 1 tar"),
        ("ftp://host/a.tar", "ftp:// is not supported"),
    ],
)
def test_tar_files_that_cannot_be_read_say_why(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "a-0.tar", {"a.png": image()})
    tar(tmp_path / "imageless.tar", {"a.txt": b"text"})
    (tmp_path / "zipped.tar").write_bytes(b"\x1f\x8b\x08" + bytes(700))
    (tmp_path / "text.tar").write_text("no tar file at all" * 100)
    (tmp_path / "empty.tar").touch()
    with pytest.raises(UserError, match=message):
        open_shards(data)


# Names and labels


def test_labels_come_from_cls_and_numbers_are_in_their_order(tmp_path):
    content = {}
    for number in (10, 2, 0, 11):
        content |= {f"{number}.png": image(number), f"{number}.cls": f"{number}\n".encode()}
    source = open_shards(tar(tmp_path / "a.tar", content))
    assert source.classes == ("0", "2", "10", "11")
    assert [source.classes[label] for label in labels(source)] == ["10", "2", "0", "11"]


def test_a_list_of_classes_beside_the_tar_files_names_the_numbers(tmp_path):
    tar(tmp_path / "a.tar", {"a.png": image(), "a.cls": b"2", "b.png": image(), "b.cls": b"0"})
    (tmp_path / "classes.txt").write_text("zebra\nape\nbee\n")
    source = open_shards(tmp_path / "a.tar")
    assert source.classes == ("zebra", "ape", "bee")
    assert labels(source).tolist() == [2, 0]
    (tmp_path / "classes.txt").write_text("zebra\nape\n")
    with pytest.raises(UserError, match=r"the class 2, which classes\.txt does not name"):
        open_shards(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("words", "unknown"),
    [
        (["0", "1", "2", "0" * 5000], "0" * 40 + r"\.\.\.,"),
        (["0", "1", "2", "7"], "7,"),
        (["zebra", "ape", "cow"], "cow,"),
        (["0", "1", "cow"], "cow,"),
    ],
)
def test_the_class_that_no_line_names_is_named(tmp_path, words, unknown):
    content = {}
    for number, word in enumerate(words):
        content |= {f"{number}.png": image(), f"{number}.cls": word.encode()}
    file = tar(tmp_path / "a.tar", content)
    (tmp_path / "classes.txt").write_text("zebra\nape\nbee\n")
    with pytest.raises(UserError, match=f"has the class {unknown} which classes"):
        open_shards(file)


def test_an_empty_list_of_classes_says_that_there_are_none(tmp_path):
    file = tar(tmp_path / "a.tar", {"cat/1.png": image(), "dog/2.png": image()})
    assert open_shards(file).classes == ("cat", "dog")
    (tmp_path / "classes.txt").touch()
    source = open_shards(file)
    assert source.classes == ()
    assert labels(source).tolist() == [-1, -1]


def test_a_list_of_classes_may_hold_bytes_that_are_no_text_and_no_zeros(tmp_path):
    file = tar(tmp_path / "a.tar", {"1.png": image(), "1.cls": b"1"})
    (tmp_path / "classes.txt").write_bytes(b"ape\ncaf\xe9\n")
    assert open_shards(file).classes == ("ape", "caf\udce9")
    (tmp_path / "classes.txt").write_bytes("ape\nbee\n".encode("utf-16"))
    with pytest.raises(UserError, match="is not a list of class names"):
        open_shards(file)


def test_labels_and_groups_come_from_json(tmp_path):
    content = {
        "a.json": json.dumps({"label": "cat", "group": "p1", "more": [1]}).encode(),
        "a.png": image(),
        "b.png": image(),
        "b.json": json.dumps({"label": "ape"}).encode(),
    }
    source = open_shards(tar(tmp_path / "a.tar", content))
    assert [source.classes[label] for label in labels(source)] == ["cat", "ape"]
    assert [source.group(index) for index in range(2)] == ["p1", None]


@pytest.mark.parametrize("text", [b"{", b"[1]", b'{"label": {}}', b"\xff", b"[" * 60000, b"null"])
def test_json_that_says_nothing_is_no_label(tmp_path, text):
    source = open_shards(tar(tmp_path / "a.tar", {"a.png": image(), "a.json": text}))
    assert source.classes == ()


def test_first_folders_are_classes_below_what_all_have_in_common(tmp_path):
    names = ("./top/cat/1.png", "./top/dog/deep/2.png", "./top/cat/3.png")
    source = open_shards(tar(tmp_path / "a.tar", {name: image() for name in names}))
    assert source.classes == ("cat", "dog")
    assert labels(source).tolist() == [0, 1, 0]
    assert members(source) == ["top/cat/1.png", "top/dog/deep/2.png", "top/cat/3.png"]


def test_labels_of_some_images_only_are_none(tmp_path):
    source = open_shards(
        tar(tmp_path / "a.tar", {"a.png": image(), "a.cls": b"1", "b.png": image()})
    )
    assert source.classes == ()
    assert source.label(0) == -1


def test_images_of_one_key_share_its_label(tmp_path):
    """WebDataset's key ends at the first dot of the last part of a name, not at a folder's."""
    content = {"v1.0/7.left.png": image(), "v1.0/7.right.png": image(1), "v1.0/7.cls": b"3"}
    source = open_shards(tar(tmp_path / "a.tar", content))
    assert source.classes == ("3",)
    assert labels(source).tolist() == [0, 0]


def test_of_two_members_of_one_name_the_last_counts(tmp_path, capsys):
    file = tar(tmp_path / "a.tar", {"a.png": image(1), "b.png": image(2)})
    with tarfile.open(file, "a") as made:
        info = tarfile.TarInfo("a.png")
        info.size = len(image(3))
        made.addfile(info, io.BytesIO(image(3)))
    source = open_shards(file)
    assert members(source) == ["b.png", "a.png"]
    assert source.content(1) == image(3)
    assert "1 replaced by a later one of the same name" in capsys.readouterr().err


def test_train_and_test_parts_may_be_folders_of_tar_files(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        content = {f"{label}/{n}.png": image(n) for label in ("ape", "bee") for n in range(count)}
        tar(tmp_path / "data" / part / "0.tar", content)
    both = open_labelled(str(tmp_path / "data"), 3)
    assert (len(both.train), len(both.test), both.split) == (6, 4, "train/ and val/")
    assert both.test.classes == ("ape", "bee")


# What cannot be trusted


def test_what_is_no_plain_file_is_passed_over_and_counted(tmp_path, capsys):
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as made:
        for name, kind in {
            "link.png": tarfile.SYMTYPE,
            "hard.png": tarfile.LNKTYPE,
            "device.png": tarfile.CHRTYPE,
            "pipe.png": tarfile.FIFOTYPE,
            "folder.png": tarfile.DIRTYPE,
        }.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            made.addfile(info)
        for name in ("/abs.png", "../up.png", "a/../../b.png", ".hidden.png", "good.png"):
            info = tarfile.TarInfo(name)
            info.size = len(image())
            made.addfile(info, io.BytesIO(image()))
    source = open_shards(file)
    assert members(source) == ["good.png"]
    assert source.content(0) == image()
    said = capsys.readouterr().err
    assert "2 links" in said
    assert "2 devices and pipes" in said
    assert "3 names that lead out of the folder" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.tar.index"]


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ],
)
def test_a_sparse_file_is_passed_over_and_what_follows_it_is_read(tmp_path, options, capsys):
    """It stands for more bytes than the tar file has."""
    with (tmp_path / "a.jpg").open("wb") as hollow:
        for at in range(0, 8_000_000, 250_000):  # enough pieces for a second header of GNU's
            hollow.seek(at)
            hollow.write(b"x")
        hollow.truncate(8_000_000)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(image(number))
    names = ["0.png", "a.jpg", "1.png", "2.png"]
    subprocess.run(["tar", *options, "-S", "-cf", "a.tar", *names], cwd=tmp_path, check=True)
    assert (tmp_path / "a.tar").stat().st_size < 1_000_000
    source = open_shards(tmp_path / "a.tar")
    assert members(source) == ["0.png", "1.png", "2.png"]
    assert [source.content(number) for number in range(3)] == [image(number) for number in range(3)]
    assert capsys.readouterr().err == "mvmae: skipped in the tar files: 1 sparse files\n"
    whole = (tmp_path / "a.tar").read_bytes()
    for cut in range(whole.index(b"a.jpg"), len(whole) - 1024, 700):  # wherever it ends
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        found = members(open_shards(tmp_path / "cut.tar"))
        assert found[:1] == ["0.png"]
        assert found == ["0.png", "1.png", "2.png"][: len(found)]


def test_what_was_not_taken_is_told_where_no_image_is_left(tmp_path, capsys):
    with tarfile.open(tmp_path / "a.tar", "w") as made:
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = tarfile.SYMTYPE, "there"
        made.addfile(info)
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:512] + header("cut.png", 5000) + bytes(700))
    with pytest.raises(UserError, match="no images in"):
        open_shards(tmp_path / "a.tar")
    said = capsys.readouterr().err
    assert "a.tar is damaged after byte 512 (cut short); images read: 0 before that" in said
    assert "1 links" in said


def header(name: str, size: int | bytes, kind: bytes = b"0") -> bytes:
    """A header that says what we want."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sparse_header_of_two_blocks() -> bytes:
    """Of which the second is not there."""
    block = bytearray(header("sparse.png", 512, b"S"))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def good_member() -> bytes:
    return header("good.png", len(image())) + padded(image())


@pytest.mark.parametrize(
    "bad",
    [
        header("huge.png", 8**11 - 1),
        header("negative.png", b"\xff" * 12),
        header("back.png", b"\xff" * 10 + b"\xfa\x00"),
        header("long", 8**11 - 1, b"L") + bytes(1024),
        header("pax", 8**11 - 1, b"x") + bytes(1024),
        header("pax", 10, b"x") + padded(b"no records"),
        header("pax", 30, b"g") + padded(b"30 size=-12345\n" * 2),
        header("sparse.png", 512, b"S") + bytes(512),
        sparse_header_of_two_blocks(),
        b"\x01" * 512,
        header("wrong sum.png", 0)[:150] + b"777" + header("", 0)[153:],
        header("cut.png", 5000) + bytes(700),
        b"".join(header("L", 5, b"L") + padded(b"name\0") for _ in range(3000)),
        header("short", 3)[:200],
    ],
)
def test_a_lying_header_costs_what_lies_behind_it_and_nothing_else(tmp_path, bad, capsys):
    (tmp_path / "a.tar").write_bytes(good_member() + bad)
    source = open_shards(tmp_path / "a.tar")
    assert members(source)[0] == "good.png"
    assert source.content(0) == image()
    assert len(source) == 1
    said = capsys.readouterr().err
    assert "a.tar is" in said
    assert said.count("\n") <= 2
    (tmp_path / "b.tar").write_bytes(bad)
    with pytest.raises(UserError, match=r"not a tar file|no images"):
        open_shards(tmp_path / "b.tar")


def test_damage_in_the_middle_keeps_what_was_whole_before_and_says_so(tmp_path, capsys):
    tar(tmp_path / "s" / "0.tar", {f"{number}.png": image(number) for number in range(4)})
    content = bytearray(
        tar(tmp_path / "s" / "1.tar", {f"{n}.png": image(n) for n in range(4)}).read_bytes()
    )
    third = content.index(b"2.png")
    content[third : third + 512] = b"\x55" * 512
    (tmp_path / "s" / "1.tar").write_bytes(content)
    source = open_shards(tmp_path / "s")
    assert members(source) == ["0.png", "1.png", "2.png", "3.png", "0.png", "1.png"]
    said = capsys.readouterr().err
    assert f"1.tar is damaged at byte {third:,} (not a header)" in said
    assert "images read: 2 before that" in said


def test_a_tar_file_that_is_cut_short_says_so(tmp_path, capsys):
    file = tar(tmp_path / "a.tar", {"a.png": image(), "b.png": image(1)})
    file.write_bytes(file.read_bytes()[:1100])
    source = open_shards(file)
    assert members(source) == ["a.png"]
    assert "cut short" in capsys.readouterr().err


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_of_every_kind_of_tar_are_read(tmp_path, format):
    names = ["kätze/ü.png", "a" * 90 + "/" + "b" * 90 + ".png"]
    if format != tarfile.USTAR_FORMAT:
        names.append("/".join(["long" * 20] * 5) + "/x.PNG")
    source = open_shards(tar(tmp_path / "a.tar", {name: image(2) for name in names}, format))
    assert members(source) == names
    assert torch.equal(source.read(0), source.read(1))


def test_gnu_tar_makes_the_same_images(image_folder, tmp_path):
    folder = image_folder(classes=("ape", "bee"), per_class=3)
    for kind in ("gnu", "posix", "ustar"):
        subprocess.run(
            ["tar", f"--format={kind}", "--sort=name", "-cf", f"{tmp_path}/{kind}.tar", "."],
            cwd=folder,
            check=True,
        )
        source, plain = open_shards(tmp_path / f"{kind}.tar"), open_shards(folder)
        assert members(source) == [plain.path(n)[len(str(folder)) + 1 :] for n in range(6)]
        assert labels(source).tolist() == labels(plain).tolist()
        assert all(torch.equal(source.read(n), plain.read(n)) for n in range(6))


def test_webdatasets_own_writer_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as sink:
        for number in range(3):
            sink.write({"__key__": f"s.{number}/x", "png": image(number), "cls": b"%d" % number})
    source = open_shards(tmp_path / "a.tar")
    assert [source.content(number) for number in range(3)] == [image(number) for number in range(3)]
    assert source.classes == ("0", "1", "2")


# Indexes


def test_an_index_is_kept_beside_the_tar_file_and_used(tmp_path, monkeypatch):
    file = tar(tmp_path / "a.tar", {"a.png": image(), "b.png": image(1)})
    first = open_shards(file)
    assert (tmp_path / "a.tar.index").is_file()
    monkeypatch.setattr(tar_index, "index_tar", None)  # it would be called
    second = open_shards(file)
    assert stamp(first) == stamp(second)
    assert second.content(1) == image(1)


def test_a_changed_tar_file_is_looked_through_again(tmp_path):
    file = tar(tmp_path / "a.tar", {"a.png": image(1), "b.png": image(2)})
    before = open_shards(file)
    old = stamp(before)
    facts = file.stat()
    tar(file, {"c.png": image(3), "d.png": image(4)})
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    after = open_shards(file)
    assert members(after) == ["c.png", "d.png"]
    assert stamp(after) != old
    with pytest.raises(UnreadableImageError, match="changed after it was indexed"):
        before.read(0)


def test_where_nothing_may_be_written_the_index_goes_to_the_cache(tmp_path, monkeypatch):
    file = tar(tmp_path / "a.tar", {"a.png": image()})
    write = cache_dir.write_whole

    def refuse(path: Path, content: bytes) -> None:
        if path.parent == tmp_path:
            raise PermissionError(13, "Permission denied")
        write(path, content)

    monkeypatch.setattr(cache_dir, "write_whole", refuse)
    open_shards(file)
    assert not (tmp_path / "a.tar.index").exists()
    assert len(list((cache_dir.cache_folder() / "indexes").iterdir())) == 1
    monkeypatch.setattr(tar_index, "index_tar", None)
    assert open_shards(file).content(0) == image()


def test_a_tar_file_that_is_cut_after_it_was_opened_is_an_unreadable_image(tmp_path):
    file = tar(tmp_path / "a.tar", {"a.png": image(), "b.png": image()})
    source = open_shards(file)
    source.read(1)
    os.truncate(file, 1000)
    with pytest.raises(UnreadableImageError, match="ends before"):
        source.read(1)
    file.unlink()
    with pytest.raises(UnreadableImageError, match="No such file"):
        pickle.loads(pickle.dumps(source)).read(0)
