"""Lists with labels and groups, in every format, and how names are kept."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mvmae.data.reading.detect_kind import detect_kind
from mvmae.data.sources.base import Subset, labels, with_depth
from mvmae.data.sources.folders import open_images
from mvmae.data.sources.labelled import open_labelled
from mvmae.data.sources.lists import Bounds, from_list
from mvmae.data.sources.open import open_source
from mvmae.data.sources.string_table import StringTable, encode_words, label_order, store_strings
from mvmae.errors import UserError


@pytest.fixture
def four(tmp_path, monkeypatch):
    """Four images, a.png to d.png, beside which lists are written."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abcd"):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{name}.png")
    return tmp_path


def write_list(name: str, rows: list[tuple], header: tuple[str, ...] = ()) -> str:
    """A list of the format that its suffix says."""
    if name.endswith(".parquet"):
        columns = list(zip(*rows, strict=True))
        pq.write_table(pa.table(dict(zip(header, map(list, columns), strict=True))), name)
        return name
    between = "\t" if name.endswith(".tsv") else ","
    with Path(name).open("w", encoding="utf-8") as file:
        for row in [header, *rows] if header else rows:
            file.write(between.join(row) + "\n")
    return name


ROWS = [
    ("a.png", "cat", "p1"),
    ("b.png", "ape", "p1"),
    ("c.png", "cat", "p2"),
    ("d.png", "cat", ""),
]


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.parquet"])
@pytest.mark.parametrize("header", [("path", "label", "group"), ("File", "class", "Group")])
def test_every_format_gives_paths_labels_and_groups(four, name, header):
    source = open_source([write_list(name, ROWS, header)], 3)
    assert [source.path(index) for index in range(4)] == ["a.png", "b.png", "c.png", "d.png"]
    assert source.classes == ("ape", "cat")
    assert labels(source).tolist() == [1, 0, 1, 1]
    assert [source.group(index) for index in range(4)] == ["p1", "p1", "p2", None]
    assert source.read(2)[0, 0, 0] == 2


@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_without_a_header_columns_are_path_label_and_group(four, name):
    source = open_source([write_list(name, ROWS)], 3)
    assert (source.classes, source.group(2)) == (("ape", "cat"), "p2")


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.parquet"])
def test_a_header_may_have_them_in_another_order_and_with_others(four, name):
    rows = [("a.png", "7", "p1", "cat"), ("b.png", "8", "p2", "ape")]
    source = open_source([write_list(name, rows, ("path", "size", "group", "label"))], 3)
    assert source.classes == ("ape", "cat")
    assert source.group(1) == "p2"


@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_the_column_of_paths_may_stand_anywhere(four, name, capsys):
    rows = [("1", "a.png", "cat"), ("", "b.png", "ape")]
    source = open_source([write_list(name, rows, ("id", "Path", "label"))], 3)
    assert [source.path(index) for index in range(2)] == ["a.png", "b.png"]
    assert [source.classes[label] for label in labels(source)] == ["cat", "ape"]
    assert capsys.readouterr().err == f"mvmae: ignored columns of {name}: id\n"


def test_a_first_row_with_a_class_called_image_is_no_header(four):
    source = open_source([write_list("list.csv", [("a.png", "image"), ("b.png", "sound")])], 3)
    assert source.classes == ("image", "sound")


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.tsv", "list.parquet"])
def test_blanks_around_a_path_are_no_part_of_it_unless_a_file_is_called_so(four, name):
    Image.new("RGB", (4, 4)).save(four / " c.png")
    rows = [(" a.png ",), (" c.png",), ("d.png  ",)]
    source = open_source([write_list(name, rows, () if name == "list.txt" else ("path",))], 3)
    assert [source.path(index) for index in range(3)] == ["a.png", " c.png", "d.png"]


QUOTE = "the quote that opens in line 2 is not closed"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,patient\na.png,p1\n", "unknown column patient. A header may name path, file"),
        ("path;label\na.png;cat\n", "separated by ';'. A .csv needs commas"),
        ("a.png\tcat\n", "separated by tabs"),
        ("img,what\na.png,cat\n", "if this is a header, name the column of paths path"),
        ('a.png,cat\n"b.png,cat\nc.png,cat\n', QUOTE),
        ('a.png,cat\n"b.png,cat\n"c.png",cat\n', QUOTE),
        ('a.png,cat\n"b.png,' + "x" * 200_000, QUOTE),
        ('a.png,"cat\nb.png,ape"\n', "the entry in line 1 spans several lines"),
        ('"x.png\nb.png",ape\n', r"no such file x.png\.\.\.: the cell spans several lines"),
        ("a" * 5000 + ".png", "no such file a{200}"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused_in_a_short_line(four, content, message):
    (four / "list.csv").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        open_source(["list.csv"], 3)
    assert len(str(caught.value)) < 350
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["list.csv", "list.txt"])
def test_a_list_in_utf_16_is_called_so(four, name):
    (four / name).write_text("a.png\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"cannot read the list .*: it is UTF-16"):
        open_source([name], 3)


def test_groups_without_labels_are_no_labels(four):
    source = open_source([write_list("list.csv", [("a.png", "p1")], ("path", "group"))], 3)
    assert source.classes == ()
    assert (source.label(0), source.group(0)) == (-1, "p1")


def test_columns_of_a_parquet_file_may_be_numbers_and_dictionaries(four):
    table = pa.table(
        {
            "path": pa.array(["a.png", "b.png"]).dictionary_encode(),
            "label": pa.array([10, 2], pa.int16()),
            "pixels": [[1.0], [2.0]],
        }
    )
    pq.write_table(table, "list.parquet")
    source = open_source(["list.parquet"], 3)
    assert [source.classes[label] for label in labels(source)] == ["10", "2"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"where": ["a.png"]}, "no column of paths: name one path, file, filename or"),
        ({"path": [["a.png"]]}, "column path holds list"),
        ({"path": [b"a.png"]}, "column path holds binary"),
        ({"path": pa.array([b"a.png"], pa.binary(5))}, "column path holds fixed_size_binary"),
        ({"path": ["a.png"], "label": [0.5]}, "column label holds double"),
        ({"path": ["a.png", "b.png"], "label": ["x", None]}, "entry 2: no label"),
        ({"path": pa.array([None], pa.string())}, "lists no images"),
        ({"path": ["gone.png"]}, "entry 1: no such file gone.png"),
    ],
)
def test_parquet_files_of_something_else_say_what_is_wrong(four, columns, message):
    pq.write_table(pa.table(columns), "list.parquet")
    with pytest.raises(UserError, match=message):
        open_source(["list.parquet"], 3)


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.txt", "list.parquet"])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b"PAR1" + bytes(20) + b"PAR1", b"a\0b"])
def test_bytes_that_are_no_list_are_the_users_mistake(four, name, content):
    (four / name).write_bytes(content)
    with pytest.raises(UserError, match="list"):
        open_source([name], 3)


def test_no_group_is_in_both_parts_of_a_split(four):
    rows = []
    for number in range(40):
        Image.new("RGB", (4, 4)).save(four / f"{number}.png")
        rows.append((f"{number}.png", "xy"[number // 4 % 2], f"p{number // 4}"))
    both = open_labelled(write_list("list.csv", rows), 3)
    parts = [{part.group(n) for n in range(len(part))} for part in (both.train, both.test)]
    assert parts[0] & parts[1] == set()
    assert parts[0] | parts[1] == {f"p{number}" for number in range(10)}
    assert len(both.test) == 8
    assert both.split == "every fifth group of images of each class is for testing"


# Where the files may lie


@pytest.fixture
def inside_and_out(four):
    (four / "root" / "sub").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(four / "root" / "in.png")
    (four / "root" / "link.png").symlink_to(four / "a.png")
    (four / "root" / "home.png").symlink_to(four / "root" / "in.png")
    (four / "root" / "away").symlink_to(four)
    return four


@pytest.mark.parametrize("path", ["root/in.png", "root/sub/../in.png", "root/home.png"])
def test_files_below_the_root_are_read(inside_and_out, path):
    (inside_and_out / "list.txt").write_text(path)
    assert len(from_list("list.txt", 3, "root")) == 1


@pytest.mark.parametrize(
    "path", ["a.png", "root/../a.png", "root/link.png", "root/away/b.png", "{}/a.png"]
)
def test_files_that_lie_elsewhere_are_refused(inside_and_out, path):
    (inside_and_out / "list.txt").write_text(path.format(inside_and_out))
    with pytest.raises(UserError, match=r"list\.txt, entry 1: .* is outside of root"):
        from_list("list.txt", 3, "root")


def test_a_folder_whose_name_begins_like_the_root_is_outside(inside_and_out):
    (inside_and_out / "root2").mkdir()
    Image.new("RGB", (4, 4)).save(inside_and_out / "root2" / "x.png")
    assert not Bounds("root").hold("root2/x.png")
    with pytest.raises(UserError, match="--root gone is not a folder"):
        Bounds("gone")


# Names and codes


def test_names_are_a_list_of_strings_in_fewer_bytes():
    strings = [f"class {n % 7}/ü{n:05}.jpg" for n in range(1000)] + ["", "\udcff", "\0"]
    names = store_strings(iter(strings))
    assert list(names) == strings
    assert (len(names), names[-1], names[999]) == (1003, "\0", strings[999])
    assert list(pickle.loads(pickle.dumps(names))) == strings
    assert list(StringTable(names.blob, names.ends)) == strings
    assert len(pickle.dumps(names)) < len("".join(strings).encode(errors="surrogateescape")) + 9500
    for index in (1003, -1004):
        with pytest.raises(IndexError):
            names[index]
    assert list(store_strings([])) == []


def test_codes_say_which_word_is_whose():
    codes = encode_words(["b", "", "a", "b"])
    assert codes.table == ("a", "b")
    assert [codes.word(index) for index in range(4)] == ["b", None, "a", "b"]
    assert codes.words() == ["b", "", "a", "b"]
    assert encode_words(["x", "y"], ["y", "z", "x"]).codes.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("words", "order"),
    [
        (["10", "9", "9"], ["9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["9" * 5000, "8"], ["8", "9" * 5000]),  # Python refuses to convert it
        (["²", "1"], ["1", "²"]),  # a digit, but not a decimal one
    ],
)
def test_labels_that_are_numbers_are_ordered_as_numbers(words, order):
    assert label_order(words) == order


def test_files_of_a_million_names_take_their_bytes_and_little_more(tmp_path):
    """Ten million rows are 680 MB of 60 letters, and 40 MB of classes."""
    count = 20_000
    paths = [f"{tmp_path}/{number:030}.jpg" for number in range(count)]
    names = store_strings(paths)
    held = len(names.blob) + names.ends.nbytes
    assert held <= sum(map(len, paths)) + 8 * count
    assert encode_words(["x"] * count).codes.nbytes == 4 * count


def test_a_folder_without_permission_is_passed_over(tmp_path, image_folder):
    folder = image_folder()
    closed = folder / "blue"
    closed.chmod(0)
    try:
        if os.access(closed, os.R_OK):
            pytest.skip("this user may read everything")
        assert {path.split("/")[-2] for path in open_images([str(folder)], 3).names} == {"red"}
    finally:
        closed.chmod(0o755)


# Arrays


def save_array(name: str, array: np.ndarray) -> str:
    np.save(name, array)
    return name


def stack(count: int = 6, kind: str = "uint8", shape: tuple[int, ...] = (5, 7, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (count, *shape)).astype(kind)


def test_an_array_is_its_images_with_the_channels_last(four):
    array = stack()
    source = open_source([save_array("x.npy", array)], 3)
    assert len(source) == 6
    assert np.array_equal(source.read(4).permute(1, 2, 0).numpy(), array[4])
    assert (source.path(4), source.classes) == ("x.npy/4", ())


@pytest.mark.parametrize("shape", [(5, 7, 3), (40, 40, 13), (4, 4, 4), (8, 8, 12)])
def test_an_array_with_the_channels_second_is_the_same_images(four, shape):
    array = stack(shape=shape)
    last = open_source([save_array("last.npy", array)], shape[-1])
    is_last = shape[2] >= shape[0]  # nothing but the last can be meant
    moved = array if is_last else np.moveaxis(array, -1, 1)
    second = open_source([save_array("second.npy", moved.copy())], shape[-1])
    assert detect_kind(second, 0).channels == shape[2]
    assert (len(second), second.path(2)) == (6, "second.npy/2")
    assert len(pickle.dumps(second)) < 2000
    for index in range(6):
        assert np.array_equal(second.read(index), last.read(index))


def test_an_array_without_channels_is_gray(four):
    array = stack(shape=(5, 7))
    source = open_source([save_array("x.npy", array)], 1)
    assert np.array_equal(source.read(1)[0].numpy(), array[1])
    assert open_source(["x.npy"], 3).read(1).shape == (3, 5, 7)


def test_arrays_of_deeper_numbers_are_read_whole_where_that_is_asked_for(four):
    array = stack(kind="float32", shape=(5, 7, 4)) * 17.5
    source = open_source([save_array("x.npy", array)], 4, "float")
    assert np.array_equal(source.read(3).permute(1, 2, 0).numpy(), array[3])


def test_an_array_says_how_deep_it_is_and_so_does_a_part_of_it(four):
    source = open_source([save_array("x.npy", stack(kind="uint16", shape=(5, 7, 5)))], 3)
    for one in (source, Subset(source, [4, 1])):
        kind = detect_kind(one, 0)
        assert (kind.depth, kind.channels, kind.fits(3)) == ("16", 5, False)
    part = with_depth(Subset(source, [4, 1]), 5, "16")
    assert np.array_equal(65535 * part.read(0).permute(1, 2, 0).numpy(), stack(shape=(5, 7, 5))[4])


@pytest.mark.parametrize("kind", ["int16", ">i4", "uint32", "float64"])
def test_arrays_of_any_numbers_are_read_as_files_of_them_are(four, kind):
    array = stack(kind=kind, shape=(5, 7)) - (0 if "u" in kind else 99)
    source = open_source([save_array("x.npy", array)], 1, "float")
    assert detect_kind(source, 0).depth == "float"
    assert np.array_equal(source.read(2)[0].numpy(), array[2])


def test_labels_lie_beside_an_array_as_numbers_or_words(four):
    name = save_array("x.npy", stack())
    save_array("x.labels.npy", np.array([10, 2, 2, 10, 2, 10]))
    source = open_source([name], 3)
    assert source.classes == ("2", "10")
    assert labels(source).tolist() == [1, 0, 0, 1, 0, 1]
    (four / "x.labels.npy").unlink()
    for text in ("b\na\na\nb\na\nb\n", "id,label\n1,b\n2,a\n3,a\n4,b\n5,a\n6,b\n"):
        (four / "x.csv").write_text(text)
        source = open_source([name], 3)
        assert (source.classes, labels(source).tolist()) == (("a", "b"), [1, 0, 0, 1, 0, 1])


def test_an_array_is_mapped_and_not_loaded_or_copied_to_processes(four):
    source = open_source([save_array("x.npy", stack(count=4000, shape=(20, 20, 3)))], 3)
    assert len(pickle.dumps(source)) < 2000
    copy = pickle.loads(pickle.dumps(source))
    assert isinstance(copy.images, np.memmap)
    assert copy.images.flags.writeable is False
    assert np.array_equal(copy.read(3999), source.read(3999))


def object_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), np.uint8), "shape 4 x 4: images are N x H x W"),
        (np.zeros((0, 4, 4), np.uint8), "shape 0 x 4 x 4"),
        (np.zeros((), np.uint8), "shape none"),
        (np.zeros((2, 224, 300, 224), np.uint8), "shape 2 x 224 x 300 x 224: .* at most 64"),
        (np.zeros((2, 4, 4), "U3"), "holds <U3: images are integers or floats"),
        (np.zeros((2, 4, 4), np.complex64), "holds complex64"),
    ],
)
def test_arrays_that_are_no_images_are_refused(four, array, message):
    with pytest.raises(UserError, match=message):
        open_source([save_array("x.npy", array)], 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (object_file(), "it holds Python objects"),
        (b"", "not a .npy file of images"),
        (b"\x93NUMPY\x01\x00\xff\xff", "not a .npy file of images"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (9, 9, 9)}"
         + b" " * 56 + b"\n" + bytes(10), "not a .npy file of images"),
        (b"PK\x03\x04 no archive", "not a .npy file of images"),
        # Found by the fuzzer:
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, "
         + b" " * 57 + b"\n\x00\x00  \n" + bytes(99), "not a .npy file of images"),
    ],
)  # fmt: skip
def test_files_that_are_no_arrays_are_refused(four, content, message):
    (four / "x.npy").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_source(["x.npy"], 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.arange(5), "has 5 labels, and x.npy 6 images"),
        (np.arange(6) / 2, "one whole number, or one text"),
        (np.zeros((6, 2), int), "one whole number, or one text"),
        ("a\n" * 7, "x.csv has 7 labels"),
        ("a,1\n" * 6, "several columns: name one of them label"),
        ("id,label\n" + "1,a\n" * 5 + "6\n", "entry 6: the label is empty"),
    ],
)
def test_labels_that_do_not_fit_an_array_are_refused(four, given, message):
    save_array("x.npy", stack())
    if isinstance(given, str):
        (four / "x.csv").write_text(given)
    else:
        save_array("x.labels.npy", given)
    with pytest.raises(UserError, match=message):
        open_source(["x.npy"], 3)
