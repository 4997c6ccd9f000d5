"""Folders, lists and built-in images: what is found, in which order, and what is refused."""

import os
import pickle
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources.base import Subset, fingerprint, labels
from mvmae.data.sources.builtin import PHOTOGRAPHS, SETS, _windows, digits, photos
from mvmae.data.sources.labelled import open_labelled
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError


def picture(file: Path, colour=(200, 30, 60)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(file)
    return file


def names_in(source, root: Path) -> list[str]:
    return [str(Path(source.path(index)).relative_to(root)) for index in range(len(source))]


# folders


def test_flat_folder_is_read_in_the_order_of_its_names(tmp_path):
    for name in ("b.png", "a.jpg", "c.webp"):
        picture(tmp_path / name)
    source = open_source([str(tmp_path)], 3)
    assert names_in(source, tmp_path) == ["a.jpg", "b.png", "c.webp"]
    assert source.classes == ()
    assert source.label(0) == -1
    assert source.read(1).shape == (3, 4, 6)


def test_nested_folders_are_searched_to_the_bottom(tmp_path):
    deep = ["x/y/z/1.png", "x/2.png", "w/3.png"]
    for name in deep:
        picture(tmp_path / name)
    assert names_in(open_source([str(tmp_path)], 3), tmp_path) == sorted(deep)


def test_first_level_folders_are_classes(image_folder):
    folder = image_folder(classes=("dog", "cat"), per_class=3)
    source = open_source([str(folder)], 3)
    assert source.classes == ("cat", "dog")
    assert labels(source).tolist() == [0, 0, 0, 1, 1, 1]


def test_deeper_folders_belong_to_the_class_above_them(tmp_path):
    for name in ("cat/indoors/1.png", "cat/2.png", "dog/3.png"):
        picture(tmp_path / name)
    source = open_source([str(tmp_path)], 3)
    assert source.classes == ("cat", "dog")
    assert labels(source).tolist() == [0, 0, 1]


def test_one_image_beside_the_class_folders_means_no_classes(image_folder):
    folder = image_folder()
    picture(folder / "stray.png")
    assert open_source([str(folder)], 3).classes == ()


def test_extension_may_be_in_capitals(tmp_path):
    picture(tmp_path / "A.JPG")
    picture(tmp_path / "b.Png")
    assert len(open_source([str(tmp_path)], 3)) == 2


def test_hidden_files_and_folders_and_other_files_are_passed_over(tmp_path):
    picture(tmp_path / "seen.png")
    picture(tmp_path / ".hidden.png")
    picture(tmp_path / ".thumbnails" / "small.png")
    (tmp_path / "notes.txt").write_text("not an image")
    assert names_in(open_source([str(tmp_path)], 3), tmp_path) == ["seen.png"]


def test_links_to_folders_are_followed(tmp_path):
    picture(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    source = open_source([str(tmp_path / "images")], 3)
    assert names_in(source, tmp_path / "images") == ["linked/a.png"]


def test_link_loops_end(tmp_path):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "again").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "up").symlink_to(tmp_path)
    source = open_source([str(tmp_path / "images")], 3)
    assert [Path(source.path(index)).name for index in range(len(source))] == ["a.png"]


def test_link_to_nothing_is_an_unreadable_image(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    source = open_source([str(tmp_path)], 3)
    assert len(source) == 2
    with pytest.raises(UnreadableImageError, match="No such file"):
        source.read(1)


def test_several_folders_are_one_source_in_the_order_given(tmp_path):
    for name in ("one/a.png", "two/b.png"):
        picture(tmp_path / name)
    source = open_source([str(tmp_path / "two"), str(tmp_path / "one")], 3)
    assert names_in(source, tmp_path) == ["two/b.png", "one/a.png"]


def test_several_folders_share_the_classes_of_equal_name(image_folder):
    first = image_folder("first", classes=("cat", "dog"), per_class=1)
    second = image_folder("second", classes=("dog", "owl"), per_class=1)
    source = open_source([str(first), str(second)], 3)
    assert source.classes == ("cat", "dog", "owl")
    assert labels(source).tolist() == [0, 1, 1, 2]


def test_folder_given_twice_is_read_once(image_folder):
    folder = str(image_folder())
    assert len(open_source([folder, folder], 3)) == len(open_source([folder], 3))


def test_relative_folder_and_the_folder_we_are_in_have_the_same_classes(image_folder, monkeypatch):
    folder = image_folder(classes=("cat", "dog"))
    monkeypatch.chdir(folder)
    assert open_source(["."], 3).classes == ("cat", "dog")
    monkeypatch.chdir(folder / "cat")
    assert open_source([".."], 3).classes == ("cat", "dog")


def test_name_that_is_no_utf8_is_read(tmp_path):
    picture(tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    source = open_source([str(tmp_path)], 3)
    assert source.read(0).shape == (3, 4, 6)
    assert fingerprint(source)


def test_gray_is_read_where_one_channel_is_asked_for(tmp_path):
    picture(tmp_path / "a.png")
    assert open_source([str(tmp_path)], 1).read(0).shape == (1, 4, 6)


def test_source_can_go_to_another_process(image_folder):
    source = open_source([str(image_folder())], 3)
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.read(2), source.read(2))
    assert copy.path(2) == source.path(2)


# lists


def test_text_list_has_paths_relative_to_itself(tmp_path):
    picture(tmp_path / "lists" / "in" / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "lists" / "all.txt").write_text(f"in/a.png\n\n{tmp_path}/b.png\n  \n")
    source = open_source([str(tmp_path / "lists" / "all.txt")], 3)
    assert [Path(source.path(index)).name for index in range(len(source))] == ["a.png", "b.png"]
    assert source.read(0).shape == source.read(1).shape == (3, 4, 6)


@pytest.mark.parametrize("header", ["", "path,label\n", "Image,Class\n", "filename,label,note\n"])
def test_csv_gives_paths_and_labels_with_and_without_a_header(tmp_path, header):
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    (tmp_path / "all.csv").write_text(f"{header}a.png, dog \nb.png,cat\n")
    source = open_source([str(tmp_path / "all.csv")], 3)
    assert source.classes == ("cat", "dog")
    assert labels(source).tolist() == [1, 0]


def test_csv_without_labels_has_no_classes(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "all.csv").write_text("a.png\n")
    assert open_source([str(tmp_path / "all.csv")], 3).classes == ()


def test_csv_keeps_commas_in_quoted_names(tmp_path):
    picture(tmp_path / "a,b.png")
    (tmp_path / "all.csv").write_text('"a,b.png",cat\n')
    assert Path(open_source([str(tmp_path / "all.csv")], 3).path(0)).name == "a,b.png"


@pytest.mark.parametrize("name", ["all.txt", "all.csv", "ALL.CSV"])
def test_byte_order_mark_and_windows_line_ends_are_no_part_of_a_name(tmp_path, name):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbfa.png\r\nb.png\r\n")
    assert len(open_source([str(tmp_path / name)], 3)) == 2


def test_byte_order_mark_does_not_hide_a_header(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "all.csv").write_bytes(b"\xef\xbb\xbfpath,label\r\na.png,cat\r\n")
    assert open_source([str(tmp_path / "all.csv")], 3).classes == ("cat",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("all.txt", b"", "lists no images"),
        ("all.csv", b"path,label\n", "lists no images"),
        ("all.txt", b"a.png\ngone.png\n", "entry 2: no such file .*gone.png"),
        ("all.csv", b"path,label\ngone.png,cat\n", "entry 1: no such file .*gone.png"),
        ("all.csv", b"a.png,cat\na.png\n", "entry 2: no label"),
        ("all.csv", b"a.png,cat\na.png, \n", "entry 2: no label"),
        ("all.txt", b"\xff\xfe\x00", "cannot read the list"),
    ],
)
def test_list_that_cannot_be_used_says_where(tmp_path, name, content, message):
    picture(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_source([str(tmp_path / name)], 3)


def test_list_with_an_endless_field_is_the_users_mistake(tmp_path):
    (tmp_path / "all.csv").write_text('"' + "x" * 200_000)
    with pytest.raises(UserError):
        open_source([str(tmp_path / "all.csv")], 3)


# mistakes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no DATA"),
        (["gone"], "no such folder: gone"),
        (["gone.txt"], "no such folder: gone.txt"),
        (["notes.md"], "neither a folder nor a list"),
        (["empty"], "no images below empty: looked for .*jpg"),
        (["full", "gone"], "and gone is not a folder"),
        (["full", "photos"], "and photos is not a folder"),
        (["full", "empty"], "no images below empty"),
        (["photo"], "no such folder: photo"),
    ],
)
def test_data_that_cannot_be_opened_says_why(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "full" / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("text")
    with pytest.raises(UserError, match=message):
        open_source(data, 3)


@pytest.mark.parametrize("channels", [0, -1, 65])
def test_other_numbers_of_channels_are_refused(image_folder, channels):
    with pytest.raises(UserError, match="1 to 64 channels"):
        open_source([str(image_folder())], channels)


@pytest.mark.parametrize("name", sorted(SETS))
def test_folder_called_like_a_built_in_source_must_be_told_from_it(tmp_path, monkeypatch, name):
    picture(tmp_path / name / "a.png")
    monkeypatch.chdir(tmp_path)
    for opened in (lambda: open_source([name], 3), lambda: open_labelled(name, 3)):
        with pytest.raises(UserError, match=rf"\./{name} for the folder, builtin:{name}"):
            opened()
    assert len(open_source([f"./{name}"], 3)) == 1
    assert len(open_source([f"builtin:{name}"], 3)) > 1000


# built in


def test_photos_are_the_same_every_time():
    first, second = photos("val", 3), photos("val", 3)
    assert torch.equal(first.images, second.images)
    assert fingerprint(first) == fingerprint(second)


def test_photos_are_so_many_windows_of_each_photograph():
    for split, count in (("train", 200), ("val", 60)):
        source = photos(split, 3)
        assert source.classes == tuple(PHOTOGRAPHS)
        assert np.bincount(labels(source)).tolist() == [count] * 18
        assert source.images.shape == (18 * count, 3, 64, 64)
        assert source.images.dtype == torch.uint8


def test_photos_are_gray_where_one_channel_is_asked_for():
    assert photos("val", 1).read(0).shape == (1, 64, 64)


def test_training_and_validation_windows_share_no_pixel():
    """Of pictures painted black, gray, white where the parts end, windows show one colour."""
    for label, (package, file) in enumerate(PHOTOGRAPHS.values()):
        with Image.open(files(package).joinpath(file)) as photograph:
            width, height = photograph.size
        painted = np.full((height, width, 3), 128, dtype=np.uint8)
        painted[:, : round(0.6 * width)] = 0
        painted[:, round(0.62 * width) :] = 255
        for split, colour in (("train", 0), ("val", 255)):
            assert np.unique(_windows(painted, split, label)).tolist() == [colour], file


def test_digits_are_split_and_labelled():
    train, val = digits("train", 1), digits("val", 1)
    assert len(train) + len(val) == 1797
    assert len(val) == 359
    assert train.classes == tuple("0123456789")
    assert set(labels(train)) == set(labels(val)) == set(range(10))
    assert train.read(0).shape == (1, 8, 8)
    assert train.images.max() == 255
    assert train.images.min() == 0


def test_digits_are_gray_in_three_channels_where_asked():
    image = digits("train", 3).read(0)
    assert image.shape == (3, 8, 8)
    assert torch.equal(image[0], image[2])


@pytest.mark.parametrize("name", sorted(SETS))
def test_no_two_built_in_images_have_one_path(name):
    train, val = (SETS[name](split, 3) for split in ("train", "val"))
    paths = [part.path(index) for part in (train, val) for index in range(len(part))]
    assert len(set(paths)) == len(paths)


def test_built_in_source_trains_on_its_training_part():
    assert open_source(["digits"], 1).name == "digits:train"
    assert open_source(["builtin:digits"], 1).name == "digits:train"


# splits


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "val"), ("train", "test"), ("training", "validation"), ("train", "valid")],
)
def test_folders_of_both_parts_are_taken_as_they_are(image_folder, train, test):
    image_folder(f"data/{train}", per_class=3)
    root = image_folder(f"data/{test}", per_class=2).parent
    opened = open_labelled(str(root), 3)
    assert len(opened.train) == 6
    assert len(opened.test) == 4
    assert opened.train.classes == opened.test.classes == ("blue", "red")
    assert opened.split == f"{train}/ and {test}/"


def test_validation_is_preferred_to_test(image_folder):
    image_folder("data/train", per_class=3)
    image_folder("data/test", per_class=1)
    root = image_folder("data/val", per_class=2).parent
    assert open_labelled(str(root), 3).split == "train/ and val/"


def test_every_fifth_image_of_each_class_tests_where_there_is_no_split(image_folder):
    folder = image_folder(classes=("a", "b"), per_class=10)
    opened = open_labelled(str(folder), 3)
    assert names_in(opened.test, folder) == ["a/1.jpg", "a/6.jpg", "b/1.jpg", "b/6.jpg"]
    assert len(opened.train) == 16
    both = set(names_in(opened.train, folder)) & set(names_in(opened.test, folder))
    assert not both


def test_two_images_of_a_class_are_split(image_folder):
    opened = open_labelled(str(image_folder(per_class=2)), 3)
    assert labels(opened.train).tolist() == labels(opened.test).tolist() == [0, 1]


def test_built_in_source_brings_its_split():
    opened = open_labelled("digits", 1)
    assert (opened.train.name, opened.test.name) == ("digits:train", "digits:val")
    assert opened.split == "built in"


def test_labelled_list_is_split_too(image_folder, tmp_path):
    folder = image_folder(per_class=5)
    rows = [f"{path},{path.parent.name}" for path in sorted(folder.rglob("*.jpg"))]
    (tmp_path / "all.csv").write_text("\n".join(rows))
    opened = open_labelled(str(tmp_path / "all.csv"), 3)
    assert (len(opened.train), len(opened.test)) == (8, 2)
    assert opened.test.classes == ("blue", "red")


def test_parts_with_different_classes_are_refused_by_name(image_folder):
    image_folder("data/train", classes=("cat", "dog", "owl"))
    root = image_folder("data/val", classes=("cat", "dog", "ox")).parent
    with pytest.raises(UserError, match="different classes: owl, ox in one of them only"):
        open_labelled(str(root), 3)


def test_many_different_classes_are_cut_short(image_folder):
    image_folder("data/train", classes=tuple("abcdefgh"), per_class=1)
    root = image_folder("data/val", classes=("y", "z"), per_class=1).parent
    with pytest.raises(UserError, match=r"a, b, c, d, e \.\.\. in one"):
        open_labelled(str(root), 3)


def test_unlabelled_images_are_refused_with_what_would_be_right(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="has no labels: put each class into its own folder"):
        open_labelled(str(tmp_path), 3)


def test_one_class_is_refused(image_folder):
    with pytest.raises(UserError, match="has one class only, 'cat'"):
        open_labelled(str(image_folder(classes=("cat",))), 3)


def test_one_image_a_class_is_refused(image_folder):
    with pytest.raises(UserError, match="too few images to test on"):
        open_labelled(str(image_folder(per_class=1)), 3)


def test_missing_labelled_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_labelled(str(tmp_path / "gone"), 3)


# parts and fingerprints


def test_subset_is_its_images_of_the_whole(image_folder):
    whole = open_source([str(image_folder(per_class=3))], 3)
    part = Subset(whole, [4, 1])
    assert len(part) == 2
    assert part.classes == whole.classes
    assert [part.label(0), part.label(1)] == [1, 0]
    assert part.path(0) == whole.path(4)
    assert torch.equal(part.read(1), whole.read(1))


def test_fingerprint_notices_an_image_added_removed_or_renamed(image_folder):
    folder = image_folder()
    prints = [fingerprint(open_source([str(folder)], 3))]
    picture(folder / "red" / "extra.jpg")
    prints.append(fingerprint(open_source([str(folder)], 3)))
    (folder / "red" / "extra.jpg").rename(folder / "red" / "other.jpg")
    prints.append(fingerprint(open_source([str(folder)], 3)))
    (folder / "red" / "other.jpg").unlink()
    assert len(set(prints)) == 3
    assert fingerprint(open_source([str(folder)], 3)) == prints[0]
