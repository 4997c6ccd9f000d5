"""Pictures and warnings of `detect`."""

import io
from pathlib import Path

import numpy as np
import pytest
from coco_data import annotation
from PIL import Image

from mvmae.data.annotations.coco import CocoSplit, SplitFiles
from mvmae.dense.detect.evaluate import Detections
from mvmae.dense.detect.report import small_box_warning, sure_or_best
from mvmae.figures.detection import Panel, Things, draw


def detections(*scores: float) -> Detections:
    return Detections(0, [[0, 0, 9, 9]] * len(scores), [1] * len(scores), list(scores), None)


def test_only_sure_detections_are_drawn_if_there_are_any():
    assert sure_or_best(detections(0.9, 0.5, 0.4)).scores == [0.9, 0.5]
    assert sure_or_best(detections()).scores == []


def test_an_image_without_sure_detections_shows_its_best():
    assert sure_or_best(detections(0.3, 0.2, 0.1, 0.05)).scores == [0.3, 0.2, 0.1]
    assert sure_or_best(detections(0.07)).scores == [0.07]


def split_with_boxes(*sides: float) -> CocoSplit:
    """One image of 1000 x 1000 pixels with square boxes of these relative sides."""
    image = {"id": 1, "file_name": "a.png", "height": 1000, "width": 1000}
    boxes = [
        annotation(number, 1, 1, [0, 0, 1000 * side, 1000 * side])
        for number, side in enumerate(sides)
    ]
    content = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    files = SplitFiles("train", Path("f"), Path())
    return CocoSplit(files, content, channels=3, with_masks=False)


@pytest.mark.parametrize(
    ("side", "image_size", "patch", "wanted"),
    [
        (5, 64, 16, 512),  # 3.2 pixels, anchor of 32; at 512 they are 25.6
        (5, 512, 16, None),
        (5, 448, 16, 512),  # 22.4 is just below 22.6
        (5, 64, 4, 128),  # anchor of 8
        (50, 64, 16, None),
    ],
)
def test_warning_of_small_boxes_names_a_sufficient_image_size(side, image_size, patch, wanted):
    split = split_with_boxes(0.01, side / 100, 0.9)
    warning = small_box_warning(split, image_size, patch)
    if wanted is None:
        assert warning == ""
    else:
        assert f"smaller than {side / 100 * image_size:.0f} pixels" in warning
        assert f"the smallest anchor is {2 * patch}:" in warning
        assert f"Set --image-size {wanted}," in warning
        assert small_box_warning(split, wanted, patch) == ""


@pytest.mark.parametrize("size", [(2, 900), (900, 2), (1, 1)])
def test_flat_and_narrow_images_are_drawn(size):
    image = np.full((*size, 3), 90, np.uint8)
    things = Things([[0, 0, size[1], size[0]]], [1], [0.9], None)
    png = draw([Panel("a", image, things, things)], ["a", "b"], title="t", note="n")
    with Image.open(io.BytesIO(png)) as picture:
        assert 100 < picture.height < 3000
