"""Problems of images and masks are found, counted, left out or refused; what values become."""

from pathlib import Path

import numpy as np
import pytest
from masks_data import check_test_pairs, complaint, find_test_pairs, make_stripes, save_pair
from PIL import Image

from mvmae.data.annotations.mask_check import check_pairs, usable_data
from mvmae.data.annotations.masks import fingerprint


@pytest.fixture
def ade(tmp_path) -> Path:
    for part, count in (("training", 6), ("validation", 3)):
        for index in range(count):
            save_pair(tmp_path, str(index), make_stripes(0, 1, 2, 3), part)
    return tmp_path


def spoilt(ade: Path) -> Path:
    """One of each kind among six pairs that are left, so that most can be used."""
    for index in range(10, 20):
        save_pair(ade, str(index), make_stripes(0, 1, 2, 3), "training")
    masks, images = ade / "annotations" / "training", ade / "images" / "training"
    (masks / "10.png").unlink()
    (images / "11.png").unlink()
    Image.fromarray(make_stripes(1, 2, size=(10, 10)).astype(np.uint8)).save(masks / "12.png")
    Image.new("RGB", (30, 20), (200, 10, 10)).save(masks / "13.png")
    Image.new("L", (30, 20), 0).save(masks / "14.png")
    (masks / "15.png").write_bytes(b"no image")
    (images / "16.png").write_bytes(b"no image")
    return ade


def test_everything_wrong_is_counted_and_named_and_left_out(ade):
    look = check_test_pairs(spoilt(ade))
    told = {finding.what: finding for finding in look.findings}
    assert {what: finding.count for what, finding in told.items()} == dict.fromkeys(
        (
            "images without a mask",
            "masks without an image",
            "masks of a different size than their image",
            "masks that are colour pictures, not class numbers",
            "masks in which every pixel is ignored",
            "masks that cannot be read",
            "images that cannot be read",
        ),
        1,
    )
    sizes = told["masks of a different size than their image"].examples[0]
    assert sizes.endswith("12.png (10 x 10, the image 30 x 20)")
    assert {finding.remedy for finding in look.findings} == {"left out"}
    assert len(look.usable[0]) == 9  # 16 less one of each kind
    here = find_test_pairs(ade)
    names = [Path(path).stem for path in usable_data(here, look).train.paths]
    assert not {"10", "11", "12", "13", "14", "15", "16"} & set(names)
    assert look.pixels[1] == (420, 480, 420)


def test_at_most_three_examples_are_named(ade):
    for index in range(5):
        (ade / "annotations" / "training" / f"{index}.png").unlink()
    assert [(f.count, len(f.examples)) for f in check_test_pairs(ade).findings] == [(5, 3)]


def test_values_beyond_the_classes_stop(ade):
    told = complaint(ade, num_classes=2)
    assert "9 masks with a value beyond the 2 classes" in told
    assert "(value 3)" in told
    assert "--num-classes" in told


def test_mostly_unusable_pairs_stop_with_the_commonest_reason(ade):
    for index in range(4):
        Image.new("RGB", (30, 20), (200, 10, 10)).save(
            ade / "annotations" / "training" / f"{index}.png"
        )
    told = complaint(ade)
    assert "4 of the 6 training pairs cannot be used" in told
    assert "colour pictures" in told


def test_one_class_is_nothing_to_tell(tmp_path):
    for index in range(4):
        save_pair(tmp_path, f"{index}", make_stripes(0), masks="masks")
    assert "have only 1 class, of values 0: classes are 0, 1, 2" in complaint(tmp_path)


def test_turned_photographs_are_as_large_as_they_look(ade):
    masks, images = ade / "annotations" / "training", ade / "images" / "training"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 30)).save(images / "0.png", exif=exif)  # upright: 30 x 20
    assert not check_test_pairs(ade).findings
    (masks / "0.png").unlink()


# What values become


def plain(root: Path, *numbers: int, count: int = 5, kind: type = np.uint8) -> Path:
    """A plain pair of folders whose masks are stripes of these values, of any depth."""
    for index in range(count):
        save_pair(root, str(index), make_stripes(*(abs(n) % 25 for n in numbers)), masks="masks")
        mask = Image.fromarray(make_stripes(*numbers).astype(kind))
        (root / "masks" / f"{index}.png").unlink()
        mask.save(root / "masks" / f"{index}.tif")
    return root


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        ((0, 255), np.uint8, ("0", "255")),
        ((0, 65535), np.uint16, ("0", "65535")),
        ((0, 1), np.uint8, ("0", "1")),
        ((0, 1, 255), np.uint8, ("0", "1")),
        ((0, 1, 65535), np.uint16, None),
    ],
)
def test_black_and_white_masks_are_known(tmp_path, values, kind, classes):
    here = find_test_pairs(plain(tmp_path, *values, kind=kind))
    look = check_pairs(here)
    if classes is None:
        assert look.findings[0].what.startswith("values, so far apart that 32768 classes")
        return
    data = usable_data(here, look)
    assert data.classes == classes
    assert data.train.read_mask(0).unique().tolist() == (
        [-1, 0, 1] if 255 in values[2:] else [0, 1]
    )
    assert look.values == {value: 600 * 5 // len(values) for value in values}


def test_black_and_white_masks_in_splits_are_known_and_named(tmp_path):
    for part in ("train", "val"):
        save_pair(tmp_path, "a", make_stripes(0, 1), part)
        white = 255 * make_stripes(0, 1).astype(np.uint8)
        Image.fromarray(white).save(tmp_path / "annotations" / part / "a.png")
    (tmp_path / "classes.csv").write_text("0,background\n255,nucleus\n")
    here = find_test_pairs(tmp_path)
    data = usable_data(here, check_pairs(here))
    assert data.classes == ("background", "nucleus")
    assert data.test.rule.foreground == 255


def test_rows_of_value_and_name_are_believed_where_a_class_is_missing(tmp_path):
    for part in ("train", "val"):
        save_pair(tmp_path, "a", make_stripes(0, 1), part)
    (tmp_path / "classes.csv").write_text("1,cat\n2,dog\n")
    here = find_test_pairs(tmp_path)
    assert usable_data(here, check_pairs(here)).classes == ("cat", "dog")
    (tmp_path / "classes.csv").write_text("0,ground\n1,cat\n")
    here = find_test_pairs(tmp_path)
    data = usable_data(here, check_pairs(here))
    assert data.classes == ("ground", "cat")
    assert data.train.read_mask(0).unique().tolist() == [0, 1]


def test_a_part_alone_is_no_reason_to_guess(ade):
    here = find_test_pairs(ade)
    for file in (ade / "annotations" / "validation").iterdir():
        Image.fromarray(make_stripes(0, 1).astype(np.uint8)).save(file)
    alone = here._replace(train=here.train._replace(pairs=here.train.pairs.select([])))
    assert check_pairs(alone).rule == here.rule


def test_who_says_otherwise_is_told_what_would_do(tmp_path):
    plain(tmp_path, 0, 255)
    told = complaint(tmp_path, ignore_index="none")
    assert "have only 1 class" in told
    assert "without --ignore-index, masks of only 0 and 255 have two classes" in told


def test_in_splits_0_is_a_class_where_one_would_be_left(tmp_path):
    for part in ("train", "val"):
        save_pair(tmp_path, "a", make_stripes(0, 1), part)
    here = find_test_pairs(tmp_path)
    assert usable_data(here, check_pairs(here)).classes == ("0", "1")
    told = complaint(tmp_path, ignore_index=0)
    assert "0 is ignored here, and --ignore-index none makes it a class" in told


def test_negative_values_count_for_nothing(tmp_path):
    here = find_test_pairs(plain(tmp_path, -5, 0, 1, kind=np.int32))
    look = check_pairs(here)
    assert not look.findings
    assert look.pixels == ((0 + 800, 800), (200, 200))
    assert look.values[-5] == 1000


def test_a_void_of_16_bit_is_ignored_where_it_is_named(tmp_path):
    plain(tmp_path, 0, 1, 65535, kind=np.uint16)
    told = complaint(tmp_path)
    assert "3 values, so far apart that 32768 classes would be counted" in told
    assert "65535 in " in told
    assert "--ignore-index" in told
    here = find_test_pairs(tmp_path, ignore_index=65535)
    assert usable_data(here, check_pairs(here)).classes == ("0", "1")


def test_a_row_of_a_large_value_makes_no_classes_for_nothing(tmp_path):
    plain(tmp_path, 0, 1, 2)
    (tmp_path / "classes.csv").write_text("0,a\n1,b\n2,c\n30000,d\n")
    told = complaint(tmp_path)
    assert "4 values, so far apart that 30001 classes would be counted" in told
    assert "30000 in " in told
    assert "classes.csv" in told
    here = find_test_pairs(tmp_path)
    data = usable_data(here, check_pairs(here, num_classes=3))
    assert data.classes == ("a", "b", "c")


def test_many_classes_that_occur_are_no_gap(tmp_path):
    for index in range(5):
        values = np.arange(300).reshape(20, 15).repeat(2, axis=1)
        save_pair(tmp_path, str(index), values % 25, masks="masks")
        (tmp_path / "masks" / f"{index}.png").unlink()
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / "masks" / f"{index}.tif")
    here = find_test_pairs(tmp_path)
    assert len(usable_data(here, check_pairs(here)).classes) == 300


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (Image.new("RGB", (30, 20), (200, 10, 10)), "5 masks that are colour pictures"),
        (Image.new("L", (9, 9)), "5 masks of a different size"),
        (Image.new("F", (30, 20)), "5 masks that cannot be read"),
        (Image.new("L", (30, 20), 255), "5 masks in which every pixel is ignored"),
    ],
)
def test_where_no_mask_is_left_the_reason_is_told(tmp_path, spoilt, reason):
    plain(tmp_path, 0, 1)
    for file in (tmp_path / "masks").iterdir():
        spoilt.save(file)
    told = complaint(tmp_path)
    assert "4 of the 4 training pairs cannot be used" in told
    assert reason in told


def test_names_that_two_files_have_are_left_out_and_told(ade):
    images, masks = ade / "images" / "training", ade / "annotations" / "training"
    Image.open(images / "0.png").save(images / "0.jpg")
    Image.open(masks / "1.png").save(masks / "1.bmp")
    here = find_test_pairs(ade)
    look = check_pairs(here)
    assert [(one.what, one.count) for one in look.findings] == [
        ("names of two images or two masks", 2)
    ]
    assert look.findings[0].examples[0] == f"{images / '0.jpg'}, {images / '0.png'}"
    kept = [Path(path).stem for path in usable_data(here, look).train.paths]
    assert kept == ["2", "3", "4", "5"]


def test_where_most_names_are_of_two_files_it_stops(ade):
    images = ade / "images" / "training"
    for index in range(4):
        Image.open(images / f"{index}.png").save(images / f"{index}.bmp")
    assert "4 names of two images or two masks" in complaint(ade)


def test_names_that_do_not_fit_are_shown(tmp_path):
    save_pair(tmp_path, "a", make_stripes(0, 1), masks="masks")
    (tmp_path / "masks" / "a.png").rename(tmp_path / "masks" / "a_mask.png")
    told = complaint(tmp_path)
    assert "(1 found, such as a)" in told
    assert "(1 found, such as a_mask;" in told


def test_a_test_looks_at_each_pair_once(ade):
    here = find_test_pairs(ade, with_training=False)
    assert (len(here.train.pairs), len(here.test.pairs)) == (0, 3)
    told = complaint(ade, num_classes=2, with_training=False)
    assert "3 masks with a value beyond the 2 classes" in told
    assert "--num-classes" not in told


def test_a_plain_folder_is_tested_whole(tmp_path):
    here = find_test_pairs(plain(tmp_path, 0, 1), with_training=False)
    assert (len(here.train.pairs), len(here.test.pairs)) == (0, 5)


def test_another_mask_is_another_fingerprint(ade):
    here = find_test_pairs(ade)
    before = fingerprint(usable_data(here, check_pairs(here)))
    mask = ade / "annotations" / "training" / "0.png"
    Image.fromarray(make_stripes(0, 3, 1, 2, 3, 1, 2).astype(np.uint8)).save(mask)
    assert fingerprint(usable_data(here, check_pairs(here))) != before
