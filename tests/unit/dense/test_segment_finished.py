"""`segment --protocol test`: images, values and class names that are used."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from masks_data import make_stripes, save_pair
from PIL import Image

from mvmae import encoders
from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_values import Rule
from mvmae.data.annotations.masks import hash_images
from mvmae.dense.segment.finished import SavedSegmenter, open_test_data
from mvmae.dense.segment.model import Segmenter
from mvmae.errors import UserError

NAMED = ("sky", "road", "car")
FIXED = {"crop": 32, "stride": 21, "short_side": 32}


@pytest.fixture(scope="module")
def model() -> SavedSegmenter:
    """Untrained model: the tests here are about data that it is applied to."""
    opened = encoders.open_encoder("random:vit_pico", 32)
    segmenter = Segmenter(opened.encoder, 3, channels=8, auxiliary_channels=None)
    return SavedSegmenter(segmenter, opened, NAMED, Rule(None), FIXED, frozenset())


def open_test_images(root: Path, saved: SavedSegmenter, **options):
    config = SegmentConfig(encoder="run", data=str(root), protocol="test", **options)
    return open_test_data(config, saved)


def save_plain_pairs(root: Path, *values: int, count: int = 6) -> Path:
    for index in range(count):
        stripes = make_stripes(*values)
        stripes[0, :] = values[index % len(values)]  # makes the images differ
        stripes[1 + index, 0] = values[-1]
        save_pair(root, str(index), stripes, masks="masks")
    return root


def save_split(root: Path, *values: int) -> Path:
    for part in ("train", "val"):
        save_pair(root, "a", make_stripes(*values), part, masks="masks")
    return root


def test_values_mean_the_same_as_in_training_in_any_layout(tmp_path, model):
    """By the rule for splits, 0 would be ignored and every class would move down by one."""
    for rule, seen in ((Rule(None), [0, 1, 2]), (Rule(0), [-1, 0, 1])):
        saved = model._replace(rule=rule)
        for root in (
            save_plain_pairs(tmp_path / f"p{rule}", 0, 1, 2),
            save_split(tmp_path / f"s{rule}", 0, 1, 2),
        ):
            data, remarks = open_test_images(root, saved)
            assert data.test.read_mask(0).unique().tolist() == seen
            assert data.classes == NAMED
            assert not any("trained with --ignore-index" in sentence for sentence in remarks)


def test_a_different_rule_is_reported(tmp_path, model):
    data, remarks = open_test_images(save_plain_pairs(tmp_path, 0, 1, 2, 3), model, ignore_index=0)
    assert data.test.read_mask(0).unique().tolist() == [-1, 0, 1, 2]
    assert "the run was trained with --ignore-index none, and is tested with 0" in remarks
    assert remarks[-1].startswith("values in the masks: 0 is ignored (")


def test_different_class_names_are_rejected(tmp_path, model):
    save_plain_pairs(tmp_path, 0, 1, 2)
    (tmp_path / "classes.csv").write_text("0,sky\n1,zzz2\n2,car\n")
    with pytest.raises(UserError, match=r"value 1 is zzz2 in .* but road in run"):
        open_test_images(tmp_path, model)
    (tmp_path / "classes.csv").write_text("0,sky\n1,road\n2,car\n3,tree\n")
    with pytest.raises(UserError, match=r"names class tree \(value 3\), but run has 3 classes"):
        open_test_images(tmp_path, model)
    (tmp_path / "classes.csv").write_text("0,sky\n1,road\n2,car\n")
    assert open_test_images(tmp_path, model)[0].classes == NAMED


def test_a_model_without_names_takes_those_of_the_data(tmp_path, model):
    save_plain_pairs(tmp_path, 0, 1, 2)
    (tmp_path / "classes.csv").write_text("0,sky\n1,road\n2,car\n")
    nameless = model._replace(classes=("0", "1", "2"))
    assert open_test_images(tmp_path, nameless)[0].classes == NAMED


def test_a_folder_without_training_images_is_tested_completely(tmp_path, model):
    data, remarks = open_test_images(save_plain_pairs(tmp_path, 0, 1, 2), model)
    assert len(data.test) == 6
    assert remarks[0].startswith(
        f"6 test images of {tmp_path} (all images test); 3 classes; windows"
    )


def test_training_images_are_left_out_in_any_folder(tmp_path, model):
    save_plain_pairs(tmp_path / "a", 0, 1, 2)
    whole = open_test_images(tmp_path / "a", model)[0].test
    learnt = frozenset(hash_images(whole.select([0, 2, 3])))
    saved = model._replace(training_images=learnt)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "images" / "0.png").rename(tmp_path / "b" / "images" / "z.png")
    (tmp_path / "b" / "masks" / "0.png").rename(tmp_path / "b" / "masks" / "z.png")
    data, remarks = open_test_images(tmp_path / "b", saved)
    assert [Path(path).stem for path in data.test.paths] == ["1", "4", "5"]
    assert "3 of the 6 images are training images and left out" in remarks
    every = model._replace(training_images=frozenset(hash_images(whole)))
    data, remarks = open_test_images(tmp_path / "b", every)
    assert len(data.test) == 6
    assert "6 of the 6 test images are training images: metrics are optimistic" in remarks


def test_only_the_test_split_is_tested(tmp_path, model):
    data, remarks = open_test_images(save_split(tmp_path, 0, 1, 2), model)
    assert (len(data.train), len(data.test), data.split) == (0, 1, "val/")
    assert not any("training images" in sentence for sentence in remarks)
    known = model._replace(training_images=frozenset(hash_images(data.test)))
    data, remarks = open_test_images(tmp_path, known)
    assert len(data.test) == 1
    assert "1 of the 1 test images are training images: metrics are optimistic" in remarks


@pytest.mark.parametrize("rule", [Rule(None), Rule(None, 255), Rule(None, 65535)])
@pytest.mark.parametrize("white", [1, 255, 65535])
def test_two_classes_are_recognised_in_any_black_and_white(tmp_path, model, rule, white):
    saved = model._replace(classes=("0", "cell"), rule=rule)
    save_plain_pairs(tmp_path, 0, 1)
    for file in (tmp_path / "masks").iterdir():
        values = np.array(Image.open(file)).astype(np.uint16) * white
        file.unlink()
        kind = np.uint16 if white > 255 else np.uint8
        Image.fromarray(values.astype(kind)).save(file)
    data, _ = open_test_images(tmp_path, saved)
    assert data.test.read_mask(0).unique().tolist() == [0, 1]


def test_values_unknown_to_the_model_are_rejected(tmp_path, model):
    with pytest.raises(UserError) as caught:
        open_test_images(save_plain_pairs(tmp_path, 0, 1, 2, 3), model)
    assert "6 masks with a value beyond the 3 classes" in str(caught.value)
    assert "(value 3)" in str(caught.value)
    assert "--num-classes" not in str(caught.value)
