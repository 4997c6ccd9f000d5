"""Pictures and warnings of `detect`."""

import io

import numpy as np
import pytest
from PIL import Image

from mvmae.dense.detect.evaluate import Detections
from mvmae.dense.detect.report import select_drawn, small_box_warning
from mvmae.figures.detection import Panel, Things, draw


def detections(*scores: float) -> Detections:
    return Detections(0, [[0, 0, 9, 9]] * len(scores), [1] * len(scores), list(scores), None)


def test_sure_detections_are_drawn_if_there_are_any():
    drawn, note = select_drawn([detections(0.9, 0.5, 0.4), detections()])
    assert [one.scores for one in drawn] == [[0.9, 0.5], []]
    assert note == "score 0.5 or more"


def test_an_image_without_sure_detections_shows_its_best():
    drawn, note = select_drawn([detections(0.9, 0.5, 0.4), detections(0.3, 0.2, 0.1, 0.05)])
    assert [one.scores for one in drawn] == [[0.9, 0.5], [0.3, 0.2, 0.1]]
    assert note == "score 0.5 or more, or the best 3 of an image without any"


def test_the_note_tells_if_no_detection_is_sure():
    drawn, note = select_drawn([detections(0.19, 0.12, 0.1, 0.05), detections(), detections(0.07)])
    assert [one.scores for one in drawn] == [[0.19, 0.12, 0.1], [], [0.07]]
    assert note == "the best 3 of each image, none has a score of 0.5 (highest: 0.19)"
    assert select_drawn([detections()])[1] == "score 0.5 or more"


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
    sides = [0.01, side / 100, 0.9]
    warning = small_box_warning(sides, image_size, patch)
    if wanted is None:
        assert warning == ""
    else:
        assert f"smaller than {side / 100 * image_size:.0f} pixels" in warning
        assert f"the smallest anchor is {2 * patch}:" in warning
        assert f"Set --image-size {wanted}," in warning
        assert small_box_warning(sides, wanted, patch) == ""


@pytest.mark.parametrize("size", [(2, 900), (900, 2), (1, 1)])
def test_flat_and_narrow_images_are_drawn(size):
    image = np.full((*size, 3), 90, np.uint8)
    things = Things([[0, 0, size[1], size[0]]], [1], [0.9], None)
    png = draw([Panel("a", image, things, things)], ["a", "b"], title="t", note="n")
    with Image.open(io.BytesIO(png)) as picture:
        assert 100 < picture.height < 3000
