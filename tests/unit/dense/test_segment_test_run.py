"""`segment --protocol test`: which images, which values and which names count."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from masks_data import save_pair, values_of
from PIL import Image

from mvmae import encoders
from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_values import Rule
from mvmae.data.annotations.masks import hash_images
from mvmae.dense.segment.model import Segmenter
from mvmae.dense.segment.predict import SavedSegmenter
from mvmae.dense.segment.test_run import open_test_data
from mvmae.errors import UserError

NAMED = ("sky", "road", "car")
FIXED = {"crop": 32, "stride": 21, "short_side": 32}


@pytest.fixture(scope="module")
def model() -> SavedSegmenter:
    """Never trained: what is tested here comes before it looks at anything."""
    opened = encoders.open_encoder("random:vit_pico", 32)
    segmenter = Segmenter(opened.encoder, 3, channels=8, auxiliary_channels=None)
    return SavedSegmenter(segmenter, opened, NAMED, Rule(None), FIXED, frozenset())


def opened(root: Path, made: SavedSegmenter, **options):
    config = SegmentConfig(encoder="run", data=str(root), protocol="test", **options)
    return open_test_data(config, made)


def plain(root: Path, *values: int, count: int = 6) -> Path:
    for index in range(count):
        stripes = values_of(*values)
        stripes[0, :] = values[index % len(values)]  # or all images would be alike
        stripes[1 + index, 0] = values[-1]
        save_pair(root, str(index), stripes, masks="masks")
    return root


def split(root: Path, *values: int) -> Path:
    for part in ("train", "val"):
        save_pair(root, "a", values_of(*values), part, masks="masks")
    return root


def test_values_mean_what_they_meant_in_training_whatever_the_layout(tmp_path, model):
    """In splits 0 would count for nothing, and every truth would be the class below."""
    for rule, seen in ((Rule(None), [0, 1, 2]), (Rule(0), [-1, 0, 1])):
        made = model._replace(rule=rule)
        for root in (plain(tmp_path / f"p{rule}", 0, 1, 2), split(tmp_path / f"s{rule}", 0, 1, 2)):
            data, said = opened(root, made)
            assert data.test.read_mask(0).unique().tolist() == seen
            assert data.classes == NAMED
            assert not any("trained with --ignore-index" in sentence for sentence in said)


def test_another_rule_that_is_asked_for_is_said(tmp_path, model):
    data, said = opened(plain(tmp_path, 0, 1, 2, 3), model, ignore_index=0)
    assert data.test.read_mask(0).unique().tolist() == [-1, 0, 1, 2]
    assert "the run was trained with --ignore-index none, and is tested with 0" in said
    assert said[-1].startswith("values in the masks: 0 is ignored (")


def test_other_names_are_refused(tmp_path, model):
    plain(tmp_path, 0, 1, 2)
    (tmp_path / "classes.csv").write_text("0,sky\n1,zzz2\n2,car\n")
    with pytest.raises(UserError, match=r"value 1 is zzz2 in .* but road in run"):
        opened(tmp_path, model)
    (tmp_path / "classes.csv").write_text("0,sky\n1,road\n2,car\n3,tree\n")
    with pytest.raises(UserError, match=r"names class tree \(value 3\), but run has 3 classes"):
        opened(tmp_path, model)
    (tmp_path / "classes.csv").write_text("0,sky\n1,road\n2,car\n")
    assert opened(tmp_path, model).data.classes == NAMED


def test_a_model_without_names_takes_those_of_the_images(tmp_path, model):
    plain(tmp_path, 0, 1, 2)
    (tmp_path / "classes.csv").write_text("0,sky\n1,road\n2,car\n")
    nameless = model._replace(classes=("0", "1", "2"))
    assert opened(tmp_path, nameless).data.classes == NAMED


def test_a_folder_that_is_new_to_the_model_is_tested_whole(tmp_path, model):
    data, said = opened(plain(tmp_path, 0, 1, 2), model)
    assert len(data.test) == 6
    assert said[0].startswith(f"6 test images of {tmp_path} (all images test); 3 classes; windows")


def test_images_that_were_learnt_from_do_not_test_wherever_they_lie(tmp_path, model):
    plain(tmp_path / "a", 0, 1, 2)
    whole = opened(tmp_path / "a", model).data.test
    learnt = frozenset(hash_images(whole.select([0, 2, 3])))
    made = model._replace(training_images=learnt)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "images" / "0.png").rename(tmp_path / "b" / "images" / "z.png")
    (tmp_path / "b" / "masks" / "0.png").rename(tmp_path / "b" / "masks" / "z.png")
    data, said = opened(tmp_path / "b", made)
    assert [Path(path).stem for path in data.test.paths] == ["1", "4", "5"]
    assert "3 of the 6 images are training images and left out" in said
    every = model._replace(training_images=frozenset(hash_images(whole)))
    data, said = opened(tmp_path / "b", every)
    assert len(data.test) == 6
    assert "6 of the 6 test images are training images: metrics are optimistic" in said


def test_a_split_is_tested_once_and_alone(tmp_path, model):
    data, said = opened(split(tmp_path, 0, 1, 2), model)
    assert (len(data.train), len(data.test), data.split) == (0, 1, "val/")
    assert not any("training images" in sentence for sentence in said)
    known = model._replace(training_images=frozenset(hash_images(data.test)))
    data, said = opened(tmp_path, known)
    assert len(data.test) == 1
    assert "1 of the 1 test images are training images: metrics are optimistic" in said


@pytest.mark.parametrize("rule", [Rule(None), Rule(None, 255), Rule(None, 65535)])
@pytest.mark.parametrize("white", [1, 255, 65535])
def test_two_classes_are_known_in_any_black_and_white(tmp_path, model, rule, white):
    made = model._replace(classes=("0", "cell"), rule=rule)
    plain(tmp_path, 0, 1)
    for file in (tmp_path / "masks").iterdir():
        values = np.array(Image.open(file)).astype(np.uint16) * white
        file.unlink()
        kind = np.uint16 if white > 255 else np.uint8
        Image.fromarray(values.astype(kind)).save(file)
    data, _ = opened(tmp_path, made)
    assert data.test.read_mask(0).unique().tolist() == [0, 1]


def test_values_that_the_model_does_not_know_stop(tmp_path, model):
    with pytest.raises(UserError) as caught:
        opened(plain(tmp_path, 0, 1, 2, 3), model)
    assert "6 masks with a value beyond the 3 classes" in str(caught.value)
    assert "(value 3)" in str(caught.value)
    assert "--num-classes" not in str(caught.value)
