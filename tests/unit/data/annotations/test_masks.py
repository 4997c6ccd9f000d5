"""Images with masks: what is found, what values mean, what is wrong, what is trained on."""

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from masks_data import complaint, find_test_pairs, make_stripes, save_pair
from PIL import Image

from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_check import check_pairs, usable_data
from mvmae.data.annotations.mask_values import (
    IGNORED,
    Rule,
    count_values,
    read_class_names,
    read_values,
)
from mvmae.data.annotations.masks import ImageMaskPairs, class_names, fingerprint
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.dense.segment.data import (
    base_scale,
    crop_batches,
    distort_colours,
    largest_share,
    random_crop,
    resize_classes,
    training_crop,
)
from mvmae.dense.segment.frozen import patch_classes
from mvmae.encoders import Preprocessing
from mvmae.errors import UserError

TRAINING = SegmentConfig(
    encoder="e",
    data="d",
    batch_size=2,
    crop=16,
    short_side=20,
    jitter=(0.5, 2.0),
    most_of_crop=0.75,
    flip="horizontal",
    distort=True,
    workers=0,
)
PREPROCESSING = Preprocessing((10 / 255, 20 / 255, 30 / 255), (0.3,) * 3, "bilinear")


@pytest.fixture
def ade(tmp_path) -> Path:
    for part, count in (("training", 6), ("validation", 3)):
        for index in range(count):
            save_pair(tmp_path, str(index), make_stripes(0, 1, 2, 3), part)
    return tmp_path


# What values mean


@pytest.mark.parametrize(
    ("ignored", "classes"),
    [
        (0, [IGNORED, 0, 1, 253, IGNORED, 299]),  # ADE20K's rule
        (None, [0, 1, 2, 254, IGNORED, 300]),
        (1, [0, IGNORED, 1, 253, IGNORED, 299]),  # a hole in the middle closes
    ],
)
def test_values_become_classes_without_a_gap(ignored, classes):
    values = np.array([0, 1, 2, 254, 255, 300])
    rule = Rule(ignored)
    assert rule.to_classes(values).tolist() == classes
    known = rule.to_classes(values) >= 0
    assert (
        rule.to_values(rule.to_classes(values)[known].astype(int)).tolist()
        == values[known].tolist()
    )


def test_a_void_of_16_bit_is_ignored_before_anything_is_clipped():
    values = np.array([0, 1, 65534, 65535])
    assert Rule(65535).to_classes(values).tolist() == [0, 1, 2**15 - 1, IGNORED]


def test_negative_values_count_for_nothing():
    for rule in (Rule(0), Rule(None), Rule(None, 255)):
        assert rule.to_classes(np.array([-5, -1])).tolist() == [IGNORED, IGNORED]


def test_black_and_white_masks_have_two_classes():
    rule = Rule(None, 255)
    assert rule.to_classes(np.array([0, 255, 1, 128])).tolist() == [0, 1, 1, 2**15 - 1]
    assert rule.to_values(np.array([0, 1])).tolist() == [0, 255]


def test_values_are_counted_whatever_they_are():
    for values in (np.array([[3, 0], [3, 7]]), np.array([[3, -2], [3, 70_000]])):
        numbers, counts = np.unique(values, return_counts=True)
        assert count_values(values) == dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def test_values_beyond_16_bit_are_no_small_classes():
    assert Rule(0).to_classes(np.array([70_000, 32_768])).tolist() == [2**15 - 1] * 2


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1", "RGB", "RGBA", "LA"])
def test_masks_of_every_kind_give_their_numbers(tmp_path, mode):
    values = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette([200, 10, 10, 10, 200, 10])
    elif mode == "I;16":
        picture = Image.fromarray(values.astype(np.uint16))
    elif mode == "1":
        picture = Image.fromarray(values * 255).convert("1")
    elif mode != "L":
        picture = picture.convert(mode)
    picture.save(tmp_path / "mask.png")
    assert read_values(str(tmp_path / "mask.png")).tolist() == values.tolist()


def test_colours_are_no_numbers(tmp_path):
    Image.new("RGB", (4, 4), (200, 10, 10)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match="colours"):
        read_values(str(tmp_path / "a.png"))


def test_names_are_read_from_every_usual_file(tmp_path):
    (tmp_path / "a.csv").write_text("value,name,share\n0,unlabelled,0.1\n1,sky,0.5\n3,road,0.4\n")
    table = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t1\t1\twall\n2\t0.1\t1\t1\tbuilding, edifice\n"
    (tmp_path / "objectInfo150.txt").write_text(table)
    (tmp_path / "b.txt").write_text("sky\nroad\n")
    assert read_class_names(tmp_path / "a.csv", Rule(0)) == {0: "sky", 2: "road"}
    assert read_class_names(tmp_path / "a.csv", Rule(None)) == {
        0: "unlabelled",
        1: "sky",
        3: "road",
    }
    assert read_class_names(tmp_path / "objectInfo150.txt", Rule(0)) == {0: "wall", 1: "building"}
    assert read_class_names(tmp_path / "b.txt", Rule(0)) == {0: "sky", 1: "road"}
    assert class_names({0: "sky", 2: "road"}, 4) == ("sky", "1", "road", "3")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "0,a\n99999999999999999999999,b\n",
            "999999999999: masks have values 0 to 65535",
        ),
        ("0,a\n65536,b\n", "names value 65536"),
        ('0,"' + "a" * 200_000 + "\n1,b", "cannot read class names"),
        ("value;name\n0;a\n", "names no classes"),
    ],
)
def test_names_that_cannot_be_are_told(tmp_path, text, told):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=told):
        read_class_names(tmp_path / "a.csv", Rule(None))


def test_names_have_nothing_that_a_screen_would_obey(tmp_path):
    (tmp_path / "a.csv").write_text("0,[red]c\x1b[31m\n")
    assert read_class_names(tmp_path / "a.csv", Rule(None)) == {0: "[red]c[31m"}


# What is found


def test_ades_layout_has_its_parts_and_ignores_0(ade):
    here = find_test_pairs(ade)
    data = usable_data(here, check_pairs(here))
    assert (len(data.train), len(data.test), data.split) == (6, 3, "training/ and validation/")
    assert data.classes == ("1", "2", "3")  # as the masks have them
    assert data.train.read_mask(0).unique().tolist() == [IGNORED, 0, 1, 2]


def test_other_names_of_parts_and_masks_are_known(tmp_path):
    for part in ("train", "val", "test"):
        save_pair(tmp_path, part, make_stripes(0, 1, 2), part, masks="masks")
    assert find_test_pairs(tmp_path).test.pairs.path(0).endswith("val.png")
    assert find_test_pairs(tmp_path, test_split="test").test.pairs.path(0).endswith("test.png")


def test_plain_pair_of_folders_is_split_and_keeps_0(tmp_path):
    for index in range(10):
        save_pair(tmp_path, f"{index}", make_stripes(0, 1, 255), masks="masks")
    for where in (
        find_test_pairs(tmp_path),
        find_test_pairs("", folders=(tmp_path / "images", tmp_path / "masks")),
    ):
        data = usable_data(where, check_pairs(where))
        tests = [Path(data.test.path(i)).stem for i in range(len(data.test))]
        assert tests == ["1", "6"]
        assert len(data.train) == 8
        assert data.classes == ("0", "1")
        assert data.train.read_mask(0).unique().tolist() == [IGNORED, 0, 1]


def test_names_in_the_folder_say_how_many_classes_there_are(ade):
    (ade / "classes.csv").write_text("value,name\n0,nothing\n1,sky\n5,road\n")
    here = find_test_pairs(ade)
    data = usable_data(here, check_pairs(here))
    assert data.classes == ("sky", "2", "3", "4", "road")
    assert fingerprint(data) != fingerprint(data._replace(classes=data.classes[:4]))


def test_where_there_is_nothing_the_layout_is_told(tmp_path, ade):
    assert "name a folder with images/" in complaint("")
    assert "no such folder" in complaint(tmp_path / "nowhere")
    assert "has no images/ and annotations/" in complaint(ade / "images")
    assert "and tset" in complaint(ade, test_split="tset")
    assert "is the training split" in complaint(ade, test_split="training")
    (ade / "annotations" / "validation").rename(ade / "elsewhere")
    assert "no folder" in complaint(ade)


def test_no_image_with_a_mask_is_told(tmp_path):
    save_pair(tmp_path, "a", make_stripes(0, 1))
    (tmp_path / "annotations" / "a.png").rename(tmp_path / "annotations" / "b.png")
    assert "no image of" in complaint(tmp_path)


# What is trained on


def test_classes_are_those_at_the_middle_of_each_new_pixel():
    classes = torch.arange(12, dtype=torch.int16).view(3, 4)
    assert resize_classes(classes, (3, 4)).equal(classes)
    assert resize_classes(classes, (6, 8)).equal(
        classes.repeat_interleave(2, 0).repeat_interleave(2, 1)
    )
    assert resize_classes(classes, (1, 2)).tolist() == [[5, 7]]


def test_base_scale_fits_the_short_side_and_limits_the_long():
    assert base_scale((100, 300), 50) == 0.5
    assert base_scale((100, 1000), 50) == 0.2
    assert base_scale((100, 1000), None) == 1


def test_image_and_mask_are_cut_alike(tmp_path):
    """The image's red is ten times the mask's value, wherever it is cut, turned or padded."""
    rng = np.random.default_rng(0)
    plain = replace(TRAINING, distort=False)
    preprocessing = PREPROCESSING._replace(mean=(0.0, 0.0, 100 / 255))
    classes = torch.from_numpy(make_stripes(0, 3, 6, 9).astype(np.int16))
    red = (classes * 10).to(torch.uint8)
    image = torch.stack([red, red * 0, red * 0 + 100])
    mirrored = 0
    for _ in range(50):
        cut, own = training_crop(image, classes, plain, preprocessing, rng)
        assert cut.shape == (3, 16, 16)
        assert own.shape == (16, 16)
        counted = own >= 0
        inside = (cut[0].float() / 10 - own).abs()[counted]
        assert (inside < 0.6).float().mean() > 0.75  # pixels of the borders are blended
        assert (cut[0][~counted] == 0).all()
        row = own[0][own[0] >= 0]
        mirrored += bool((row.diff() < 0).any())
    assert 10 < mirrored < 40


def test_one_class_fills_no_more_than_its_share_of_most_crops():
    classes = torch.zeros(64, 64, dtype=torch.int16)
    classes[:, 48:] = 1
    large = replace(TRAINING, jitter=(1.0, 1.0), short_side=64)
    free = copy(large)
    object.__setattr__(free, "most_of_crop", 1.1)  # the first crop, whatever its share
    shares = []
    for training in (large, free):
        rng = np.random.default_rng(0)
        boxes = [random_crop(rng, classes, training)[0] for _ in range(100)]
        parts = [classes[b.top : b.top + b.height, b.left : b.left + b.width] for b in boxes]
        shares.append(np.mean([largest_share(part) >= 0.75 for part in parts]))
    assert shares[0] < 0.3 < 0.6 < shares[1]
    assert largest_share(torch.full((4, 4), IGNORED, dtype=torch.int16)) == 1


def test_distortion_changes_pixels_by_the_generator_alone():
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    made = [distort_colours(image, np.random.default_rng(seed)) for seed in range(8)]
    assert len({one.numpy().tobytes() for one in made}) >= 6
    assert made[3].equal(distort_colours(image, np.random.default_rng(3)))
    gray = image[:1]
    assert distort_colours(gray, np.random.default_rng(0)).shape == gray.shape


def test_batches_are_a_function_of_seed_and_step_for_any_workers_and_processes(ade):
    pairs = find_test_pairs(ade).train.pairs

    def steps(start, rank, world_size, workers):
        config, options = (
            replace(TRAINING, workers=workers),
            {"rank": rank, "world_size": world_size},
        )
        batches = crop_batches(pairs, config, PREPROCESSING, range(start, 6), **options, cuda=False)
        return list(batches)

    whole, later, spread = steps(0, 0, 1, 0), steps(4, 0, 1, 0), steps(0, 0, 1, 2)
    first, second = (steps(0, rank, 2, 0) for rank in (0, 1))
    for batches in (spread, later):
        for one, other in zip(whole[-len(batches) :], batches, strict=True):
            assert one.images.equal(other.images)
            assert one.targets.equal(other.targets)
    for batch, one, other in zip(whole, first, second, strict=True):
        assert batch.images.equal(torch.cat([one.images, other.images]))


def test_unreadable_pair_is_replaced_and_told(ade):
    pairs = find_test_pairs(ade).train.pairs
    Path(pairs.paths[2]).write_bytes(b"no image")
    options = {"rank": 0, "world_size": 1, "cuda": False}
    batches = list(crop_batches(pairs, TRAINING, PREPROCESSING, range(3), **options))
    skipped = [skip for batch in batches for skip in batch.skipped]
    assert {Path(skip.path).stem for skip in skipped} == {"2"}
    assert all(batch.is_whole for batch in batches)
    broken = ImageMaskPairs("x", [pairs.paths[2]], [pairs.masks[2]], 3, Rule(0))
    config = replace(TRAINING, batch_size=1)
    (batch,) = crop_batches(broken, config, PREPROCESSING, range(1), **options)
    assert not batch.is_whole


def test_patches_have_the_class_of_most_of_their_pixels():
    classes = torch.tensor(
        [[0, 0, 2, IGNORED], [0, 1, IGNORED, IGNORED], [1, 1, -1, -1], [2, 2, -1, -1]],
        dtype=torch.int16,
    )
    assert patch_classes(classes, 2, 3).tolist() == [0, 2, 1, IGNORED]
