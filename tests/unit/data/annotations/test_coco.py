"""Images with boxes and masks: found, checked, prepared; and COCO's figures."""

import copy
import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_data import (
    GOOD,
    annotation,
    coco_content,
    perfect_detections,
    save,
    write_both,
    write_split,
)
from faster_coco_eval.core import mask as rle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mvmae.config.detect import DetectConfig
from mvmae.data.annotations.coco import (
    CocoSplit,
    Instance,
    decode_masks,
    encode_mask,
    find_split,
    find_splits,
)
from mvmae.data.annotations.coco_check import check_coco, load_coco, read_image_sizes
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.dense.batches import scaled_size, whole_images
from mvmae.dense.detect.data import (
    Target,
    drop_invisible,
    jitter_batches,
    jitter_image,
    read_annotated,
    read_fitted,
    resize_masks,
)
from mvmae.encoders import Preprocessing
from mvmae.errors import UserError
from mvmae.method.views import Box
from mvmae.metrics.coco_ap import NAMES, average_precision


def open_split(folder: Path, name: str = "train", **options) -> CocoSplit:
    place = find_split(folder, name)
    found = check_coco(load_coco(place.file), read_image_sizes(place.images, load_coco(place.file)))
    options = {"channels": 3, "with_masks": found.has_masks} | options
    return CocoSplit(place, found.content, **options)


# Where things lie


def test_splits_are_found_by_their_names(tmp_path):
    write_both(tmp_path)
    train, val = find_splits(tmp_path, None, None)
    assert (train.name, val.name) == ("train", "val")
    assert train.images == tmp_path / "images" / "train"


def test_cocos_own_names_are_known(tmp_path):
    write_split(tmp_path, "train2017", images="train2017")
    write_split(tmp_path, "val2017", images="val2017")
    train, val = find_splits(tmp_path, None, None)
    assert (train.name, train.images) == ("train2017", tmp_path / "train2017")
    assert val.file == tmp_path / "annotations" / "instances_val2017.json"


def test_without_a_validation_split_the_test_split_judges(tmp_path):
    write_split(tmp_path, "train")
    write_split(tmp_path, "test")
    assert find_splits(tmp_path, None, None)[1].name == "test"
    write_split(tmp_path, "val")
    assert find_splits(tmp_path, None, None)[1].name == "val"
    assert find_splits(tmp_path, None, "test")[1].name == "test"


@pytest.mark.parametrize(
    ("splits", "asked", "says"),
    [
        (["train"], (None, None), "no split begins with val or test .* has train"),
        (["train", "val"], (None, "vall"), "--val-split vall: unknown split .*train, val"),
        (
            ["train", "val"],
            ("val", None),
            "val is both the training and the validation",
        ),
        (
            ["train_a", "train_b", "val"],
            (None, None),
            r"could be meant \(train_a, train_b\)",
        ),
        ([], (None, None), "has no annotations/instances_SPLIT.json"),
    ],
)
def test_splits_that_are_not_to_be_told_are_refused(tmp_path, splits, asked, says):
    for name in splits:
        write_split(tmp_path, name, count=1)
    with pytest.raises(UserError, match=says):
        find_splits(tmp_path, *asked)


def test_no_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist: name a folder with annotations"):
        find_splits(tmp_path / "nowhere", None, None)
    save(tmp_path, "train", {})
    with pytest.raises(UserError, match=r"no images for .*instances_train.json"):
        find_split(tmp_path, "train")


# Masks


@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_masks_survive_their_run_lengths(mask):
    size = mask.shape
    packed = encode_mask(mask)
    assert json.loads(json.dumps(packed)) == packed
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    runs = np.diff([0, *edges, mask.size]).tolist()
    plain = {"size": list(size), "counts": runs if not flat[0] else [0, *runs]}
    for kind in (packed, plain):
        made = decode_masks([Instance((0, 0, 1, 1), 1, kind)], size)
        assert torch.equal(made[0], torch.from_numpy(mask).byte())
        image = {"id": 1, "file_name": "a", "height": size[0], "width": size[1]}
        one = annotation(1, 1, 1, [0, 0, size[1], size[0]]) | {"segmentation": kind}
        found = check_coco(
            {"images": [image], "annotations": [one], "categories": [{"id": 1, "name": "a"}]}
        )
        assert len(found.content["annotations"]) == 1
        assert mask.sum() < 4 or found.findings == []


def test_polygons_are_filled_and_joined():
    square = [2, 1, 5, 1, 5, 3, 2, 3]
    other = [6, 4, 8, 4, 8, 6, 6, 6]
    made = decode_masks([Instance((0, 0, 1, 1), 1, [square, other])], (7, 9))[0]
    assert made.sum() == 3 * 2 + 2 * 2
    assert made[1:3, 2:5].all()
    assert made[4:6, 6:8].all()
    assert decode_masks([], (7, 9)).shape == (0, 7, 9)


# What a split is


def test_classes_are_numbered_from_one_whatever_their_ids(tmp_path):
    content = write_split(tmp_path, "train", count=3)
    split = open_split(tmp_path)
    assert split.ids == [3, 7]
    assert split.classes == ["square", "bar"]
    kinds = [one["category_id"] for one in content["annotations"]]
    labels = [thing.label for picture in split.images for thing in picture.instances]
    assert labels == [{3: 1, 7: 2}[kind] for kind in kinds]
    assert [picture.image_id for picture in split.images] == [10, 20, 30]
    assert split.read(0).shape == (3, 48, 64)


def test_crowds_are_not_learnt_but_kept_for_the_figures(tmp_path):
    content = write_split(tmp_path, "train", count=1)
    crowd = annotation(99, 10, 3, [0, 0, 30, 30]) | {"iscrowd": 1}
    save(tmp_path, "train", content | {"annotations": [*content["annotations"], crowd]})
    split = open_split(tmp_path)
    assert len(split.images[0].instances) == len(content["annotations"])
    assert len(split.annotations["annotations"]) == len(content["annotations"]) + 1


def test_another_annotation_is_another_fingerprint(tmp_path):
    content = write_split(tmp_path, "train")
    before = open_split(tmp_path).fingerprint()
    assert open_split(tmp_path).fingerprint() == before
    content["annotations"][0]["bbox"][0] += 1
    save(tmp_path, "train", content)
    assert open_split(tmp_path).fingerprint() != before


def test_an_image_that_changed_its_size_is_unreadable(tmp_path):
    write_split(tmp_path, "train")
    split = open_split(tmp_path)
    Image.new("RGB", (30, 30)).save(split.path(1))
    with pytest.raises(UnreadableImageError, match="it is 30 x 30, not 64 x 48"):
        split.read(1)


# Jitter


JITTER = DetectConfig(
    encoder="e", image_size=32, batch_size=2, scale_jitter=(0.5, 2.0), flip="horizontal", workers=0
)


def jitter(image: torch.Tensor, target: Target, seed: int, config=JITTER):
    return jitter_image(image, target, config, "bilinear", np.random.default_rng(seed))


def paint_image(size=(40, 60), boxes=((10, 5, 30, 25), (40, 20, 60, 40))):
    """White things on black, with their masks and boxes."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    image[:, masks.bool().any(dim=0)] = 255
    boxes = torch.tensor(boxes, dtype=torch.float32)
    return image, Target(boxes, torch.arange(1, len(boxes) + 1), masks)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_and_masks_move_with_the_pixels(seed):
    image, moved = jitter(*paint_image(), seed)
    assert max(image.shape[1:]) <= 32
    assert moved.masks.shape[1:] == image.shape[1:]
    bright = image[0] > 127
    covered = moved.masks.bool().any(dim=0)
    assert (bright != covered).float().mean() < 0.12  # edges
    for box, mask in zip(moved.boxes.tolist(), moved.masks, strict=True):
        rows, columns = mask.nonzero().T
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("seed", range(8))
def test_boxes_without_masks_move_too(seed):
    image, target = paint_image()
    pixels, moved = jitter(image, target._replace(masks=None), seed)
    wanted, with_masks = jitter(image, target, seed)
    assert torch.equal(pixels, wanted)
    for box in with_masks.boxes:
        assert (moved.boxes - box).abs().amax(dim=1).min() <= 1.5


def test_scales_are_spread_over_their_range():
    image, target = paint_image()
    sides = [max(jitter(image, target, seed)[0].shape[1:]) for seed in range(60)]
    assert min(sides) < 20  # 0.5 of 32 and a little
    assert np.mean([side == 32 for side in sides]) == pytest.approx(2 / 3, abs=0.2)


def test_no_jitter_is_the_fitted_image():
    image, target = paint_image()
    plain = replace(JITTER, scale_jitter=(1.0, 1.0), flip="none")
    pixels, moved = jitter(image, target, 0, plain)
    assert pixels.shape == (3, *scaled_size((40, 60), 32 / 60)) == (3, 21, 32)
    torch.testing.assert_close(
        moved.boxes, target.boxes * torch.tensor([32 / 60, 21 / 40] * 2), rtol=0, atol=1
    )


@pytest.mark.parametrize("side", [12, 30, 90, 120])
def test_masks_stay_in_their_middle_when_resized(side):
    row, column = torch.meshgrid(*[torch.arange(60) + 0.5] * 2, indexing="ij")
    disk = ((row - 24) ** 2 + (column - 36) ** 2 < 15**2).byte()
    made = resize_masks(disk[None], Box(0, 0, 60, 60), (side, side))[0]
    middle = (made.nonzero() + 0.5).mean(dim=0) * 60 / side
    torch.testing.assert_close(middle, torch.tensor([24.0, 36.0]), rtol=0, atol=0.3)
    assert made.float().mean().item() == pytest.approx(disk.float().mean().item(), abs=0.02)


def test_things_that_are_no_longer_seen_are_not_learnt():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5.5, 20], [5, 5, 5, 5]])
    labels = torch.tensor([1, 2, 3])
    assert drop_invisible(Target(boxes, labels, None)).labels.tolist() == [1]
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[0, 2:4, 2:4] = 1
    masks[1, 0, 0] = 1
    seen = drop_invisible(Target(boxes[:2], labels[:2], masks))
    assert (seen.labels.tolist(), seen.boxes.tolist()) == ([1], [[2, 2, 4, 4]])
    nothing = drop_invisible(Target(boxes[:1], labels[:1], masks[:1] * 0))
    assert nothing.boxes.shape == (0, 4)


def test_an_image_without_things_is_jittered_too():
    image, _ = paint_image()
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None)
    for target in (empty, empty._replace(masks=torch.zeros(0, 40, 60, dtype=torch.uint8))):
        assert jitter(image, target, 3)[1].boxes.shape == (0, 4)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (700, 3)])
def test_odd_sizes_fit(size):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None)
    for seed in range(5):
        sides = jitter(image, empty, seed)[0].shape[1:]
        assert 1 <= min(sides) <= max(sides) <= 32


def read_batches(split, steps, workers=0, rank=0, world_size=1):
    config, options = replace(JITTER, workers=workers), {"rank": rank, "world_size": world_size}
    preprocessing = Preprocessing((0.5,) * 3, (0.3,) * 3, "bilinear")
    return list(jitter_batches(split, config, preprocessing, steps, **options, cuda=False))


def test_batches_are_a_function_of_seed_epoch_and_index_alone(tmp_path):
    write_split(tmp_path, "train", count=5)
    split = open_split(tmp_path)
    whole = read_batches(split, range(4))
    torch.manual_seed(77)
    random.seed(77)
    later = read_batches(split, range(2, 4), workers=1)
    halves = [read_batches(split, range(4), rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(4):
        shared = [image for half in halves for image in half[step].images]
        assert len(shared) == 2
        assert all(map(torch.equal, whole[step].images, shared))
    for one, other in zip(whole[2:], later, strict=True):
        assert all(map(torch.equal, one.images, other.images))
        for target, same in zip(one.targets, other.targets, strict=True):
            assert all(map(torch.equal, target, same))


def test_an_unreadable_image_gives_way_to_another(tmp_path):
    write_split(tmp_path, "train", count=4)
    split = open_split(tmp_path)
    Path(split.path(2)).write_bytes(b"broken")
    batches = read_batches(split, range(2))
    assert all(batch.is_whole and len(batch.images) == 2 for batch in batches)
    assert {skip.path for batch in batches for skip in batch.skipped} == {split.path(2)}


def test_test_images_are_fitted_and_remember_their_size(tmp_path):
    write_split(tmp_path, "val", count=5)
    split = open_split(tmp_path, "val")
    Path(split.path(3)).write_bytes(b"broken")
    read = partial(read_fitted, split, 32, "bicubic")
    for batch_size in (1, 2):
        images = whole_images(
            split, read, [0, 1, 3, 4], workers=0, cuda=False, batch_size=batch_size
        )
        first, second, broken, last = images
        assert [one.index for one in (first, second, broken, last)] == [0, 1, 3, 4]
        for one in (first, second, last):
            pixels, size = one.content
            assert (pixels.shape, size) == ((3, 24, 32), (48, 64))
        assert broken.content is None
        assert [skip.path for skip in broken.skipped] == [split.path(3)]


def test_a_target_has_what_the_file_says(tmp_path):
    content = write_split(tmp_path, "train", count=1)
    _, target = read_annotated(open_split(tmp_path), 0)
    x, y, w, h = content["annotations"][0]["bbox"]
    assert target.boxes[0].tolist() == [x, y, x + w, y + h]
    assert target.masks[0].sum() == w * h
    assert read_annotated(open_split(tmp_path, with_masks=False), 0)[1].masks is None


# Figures


def true_boxes(folder: Path) -> dict:
    write_split(folder, "val", count=4)
    return open_split(folder, "val").annotations


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_truth_is_perfect_and_nothing_is_worthless(tmp_path, kind):
    truth = true_boxes(tmp_path)
    before = copy.deepcopy(truth)
    best = average_precision(truth, perfect_detections(truth), kind)
    assert tuple(best.figures) == NAMES
    assert best.figures["AP"] == best.figures["AR_100"] == 100
    assert best.by_class == {"square": 100, "bar": 100}
    assert best.figures["AP_large"] is None
    none = average_precision(truth, [], kind)
    assert none.figures["AP"] == none.by_class["bar"] == 0
    assert none.figures["AP_large"] is None
    assert truth == before


def test_half_of_one_class_found_is_half_of_its_ap(tmp_path):
    truth = coco_content(*[annotation(n, 1, 3, [12 * n - 10, 5, 9, 9]) for n in range(1, 5)])
    found = perfect_detections(check_coco(truth).content)[:2]
    judged = average_precision(check_coco(truth).content, found, "bbox")
    assert judged.figures["AP"] == pytest.approx(100 * 51 / 101, abs=1e-4)  # recall up to 0.5
    assert judged.by_class["bar"] is None


def test_a_crowd_that_is_found_is_no_mistake():
    crowd = annotation(2, 1, 3, [20, 5, 30, 30]) | {"iscrowd": 1}
    packed = rle.frPyObjects([[20, 5, 50, 5, 50, 35, 20, 35]], 40, 60)[0]
    crowd["segmentation"] = {"size": [40, 60], "counts": packed["counts"].decode()}
    truth = check_coco(coco_content(GOOD, crowd)).content
    good, inside = perfect_detections(truth)
    inside = inside | {"bbox": [22, 8, 10, 10], "score": 0.99}
    assert average_precision(truth, [good, inside], "bbox").figures["AP"] == 100
    truth["annotations"] = truth["annotations"][:1]
    assert average_precision(truth, [good, inside], "bbox").figures["AP"] < 60
