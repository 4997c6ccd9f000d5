"""Problems of COCO files are found, counted, and repaired where that is harmless."""

import copy
import json
from math import inf, nan

import numpy as np
import pytest
from coco_data import GOOD, annotation, coco_content, perfect_detections
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvmae.data.annotations.coco import Instance, decode_masks
from mvmae.data.annotations.coco_check import check_coco, load_coco, read_image_sizes
from mvmae.errors import UserError
from mvmae.metrics.coco_ap import average_precision


def test_a_good_file_has_no_findings():
    found = check_coco(coco_content(GOOD))
    assert found.findings == []
    assert found.has_masks
    assert found.content["annotations"][0]["bbox"] == [5, 5, 10, 10]


def with_(**changes) -> dict:
    return GOOD | {"id": 2} | changes


def with_box(*box: float) -> dict:
    """A good annotation with its box, and its mask, elsewhere."""
    return annotation(2, 1, 3, list(box))


@pytest.mark.parametrize(
    ("second", "what", "remedy", "left"),
    [
        (with_box(50, 5, 20, 10), "boxes that stick out of their image", "clipped", 2),
        (with_(bbox=[70, 5, 20, 10]), "boxes outside their image", "left out", 1),
        (with_(bbox=[7, 5, 0, 10]), "boxes without an area", "left out", 1),
        (with_(bbox=[7, 5, -3, 10]), "boxes without an area", "left out", 1),
        (with_(bbox=[7, 5, 10]), "boxes that are not four numbers", "left out", 1),
        (with_(bbox=[7, 5, nan, 10]), "boxes that are not four numbers", "left out", 1),
        (with_(bbox=[7, 5, inf, 10]), "boxes that are not four numbers", "left out", 1),
        (with_(bbox=None), "boxes that are not four numbers", "left out", 1),
        (with_(image_id=99), "annotations of unknown images", "left out", 1),
        (with_(image_id="1"), "annotations of unknown images", "left out", 1),
        (with_(category_id=4), "annotations of unknown categories", "stop", 1),
        (with_(id=1), "annotations with the same id", "renumbered", 2),
        (
            with_(segmentation=[[1, 2, 3, 4]]),
            "polygons with fewer than three points",
            "left out",
            1,
        ),
        (
            with_(segmentation={"size": [60, 40], "counts": [2400]}),
            "masks of a different size than their image",
            "left out",
            1,
        ),
        (
            with_(segmentation={"size": [40, 60], "counts": [17]}),
            "masks that cannot be read",
            "left out",
            1,
        ),
        (
            with_(segmentation={"size": [40, 60], "counts": "~~~"}),
            "masks that cannot be read",
            "left out",
            1,
        ),
        (with_(segmentation={"size": [40, 60]}), "masks that cannot be read", "left out", 1),
        (with_(bbox=[30, 20, 10, 10]), "masks outside their box", "left out", 1),
        (
            with_(segmentation=[[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]),
            "masks of fewer than 4 pixels in larger boxes: nothing is learnt from them",
            "kept",
            2,
        ),
        (
            with_(segmentation=[GOOD["segmentation"][0], [1, 2, 3, 4]]),
            "polygons with fewer than three points beside valid ones",
            "left out",
            2,
        ),
        (with_(image_id=2**70), "annotations of unknown images", "left out", 1),
    ],
)
def test_what_is_wrong_with_an_annotation_is_found(second, what, remedy, left):
    before = copy.deepcopy(second)
    found = check_coco(coco_content(GOOD, second))
    assert [(one.what, one.count, one.remedy) for one in found.findings] == [(what, 1, remedy)]
    assert len(found.content["annotations"]) == left
    assert [one["id"] for one in found.content["annotations"]] == list(range(1, left + 1))
    assert str(second) == str(before)


def test_a_box_that_sticks_out_is_clipped_to_the_image():
    found = check_coco(coco_content(GOOD, with_box(-4, 30, 14, 20)))
    assert found.content["annotations"][1]["bbox"] == [0, 30, 10, 10]


def test_a_box_that_is_rounded_beyond_the_edge_is_left_as_it_is():
    found = check_coco(coco_content(with_box(50.5, 5, 10, 10)))
    assert found.findings == []
    assert found.content["annotations"][0]["bbox"] == [50.5, 5, 10, 10]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"categories": []}, "no categories"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "occur twice"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 4, "name": "a"}]}, "occur twice"),
        (
            {"categories": [{"id": 3}]},
            "categories without a name, or whose id is not a 64-bit integer",
        ),
        ({"images": []}, "no images are left"),
        (
            {"images": [{"id": 1, "height": 40, "width": 60}]},
            "images without file_name, or whose id is not a 64-bit integer",
        ),
        ({"images": [{"id": 1, "file_name": "a.png"}]}, "images without a size"),
        (
            {"images": 2 * [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}]},
            "images with the same id",
        ),
        (
            {
                "images": [
                    {"id": number, "file_name": name, "height": 40, "width": 60}
                    for number, name in ((1, "a.png"), (2, "./a.png"))
                ]
            },
            "images with the same file_name",
        ),
        (
            {"images": [{"id": 2**70, "file_name": "a.png", "height": 40, "width": 60}]},
            "images without file_name, or whose id is not a 64-bit integer",
        ),
        (
            {"categories": [{"id": 2**70, "name": "a"}]},
            "categories without a name, or whose id is not a 64-bit integer",
        ),
        (
            {"annotations": [with_(segmentation=[[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]])]},
            "more than half of the masks do not fit their boxes",
        ),
        ({"annotations": []}, "no annotations are left"),
        ({"annotations": [GOOD | {"iscrowd": 1}]}, "no annotations are left"),
    ],
)
def test_what_cannot_be_repaired_stops(changes, what):
    found = check_coco(coco_content(GOOD) | changes)
    assert any(what in one.what for one in found.fatal)


def test_image_files_are_looked_at(tmp_path):
    content = coco_content(GOOD, images=9)
    for n in range(1, 7):
        Image.new("RGB", (60, 40)).save(tmp_path / f"{n}.png")
    Image.new("RGB", (40, 60)).save(tmp_path / "7.png")
    (tmp_path / "8.png").write_bytes(b"no image")
    found = check_coco(content, read_image_sizes(tmp_path, content))
    said = {one.what: one for one in found.findings}
    assert said["missing image files"].examples == ("9.png",)
    assert said["files that are not images"].examples == ("8.png",)
    assert said["images of a different size than the file says"].examples == (
        "7.png is 40 x 60, not 60 x 40",
    )
    assert said["images without annotations"].count == 5
    assert said["images without annotations"].examples == ("2.png", "3.png", "4.png")
    assert not found.fatal
    assert len(found.content["images"]) == 6


def test_a_picture_that_exif_turns_has_its_size_upright(tmp_path):
    content = coco_content(GOOD)
    picture = Image.new("RGB", (40, 60))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "1.png", exif=exif)
    assert read_image_sizes(tmp_path, content) == {"1.png": (40, 60)}


def test_most_images_missing_is_the_wrong_folder(tmp_path):
    found = check_coco(
        coco_content(GOOD, images=4), read_image_sizes(tmp_path, coco_content(images=4))
    )
    assert "more than half of the images cannot be used" in {one.what for one in found.fatal}


def test_masks_are_used_where_most_things_have_one():
    bare = {k: v for k, v in GOOD.items() if k != "segmentation"}
    few = check_coco(coco_content(GOOD, with_(), bare | {"id": 3}))
    assert (few.has_masks, len(few.content["annotations"])) == (True, 2)
    assert few.findings[0].what == "annotations without a mask"
    many = check_coco(coco_content(GOOD, bare | {"id": 2}, bare | {"id": 3}))
    assert (many.has_masks, len(many.content["annotations"])) == (False, 3)


def test_a_crowd_without_a_mask_gets_its_box_where_others_have_masks():
    bare = {k: v for k, v in GOOD.items() if k != "segmentation"}
    crowd = {**bare, "id": 2, "iscrowd": 1, "bbox": [20, 5, 30, 30]}
    found = check_coco(coco_content(GOOD, crowd))
    assert [(one.what, one.remedy) for one in found.findings] == [
        ("crowds without a mask: their box is used instead", "kept")
    ]
    good, _ = perfect_detections(found.content)
    assert average_precision(found.content, [good], "segm").figures["AP"] == 100
    assert check_coco(coco_content(bare, crowd)).findings == []  # nothing else has a mask


def test_shares_in_place_of_pixels_are_no_matter_where_boxes_alone_are_learnt():
    wrong = with_(segmentation=[[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]])
    found = check_coco(coco_content(wrong), with_masks=False)
    assert (found.findings, found.has_masks) == ([], False)
    assert "segmentation" not in found.content["annotations"][0]


@pytest.mark.parametrize(
    ("value", "is_crowd"), [("0", 0), ("1", 1), ("true", 1), (0, 0), (1, 1), (True, 1), (None, 0)]
)
def test_crowds_are_marked_by_numbers_or_by_text(value, is_crowd):
    found = check_coco(coco_content(GOOD, with_(iscrowd=value)))
    assert [one["iscrowd"] for one in found.content["annotations"]] == [0, is_crowd]


def test_sizes_may_be_whole_floats():
    image = {"id": 1, "file_name": "1.png", "height": 40.0, "width": 60.0}
    found = check_coco(coco_content(GOOD, images=1) | {"images": [image]})
    assert found.findings == []
    assert [type(found.content["images"][0][side]) for side in ("height", "width")] == [int, int]
    odd = check_coco(coco_content(GOOD) | {"images": [image | {"width": 60.5}]})
    assert odd.fatal[0].what == "images without a size"


def test_names_that_no_file_can_have_are_missing_and_can_be_printed(tmp_path):
    content = coco_content(GOOD, images=9)
    for number, name in enumerate(("a" * 300 + ".jpg", "\ud800x.jpg", "a\0b\x1b[31m.jpg"), 1):
        content["images"][number]["file_name"] = name
    for number in (1, 5, 6, 7, 8, 9):
        Image.new("RGB", (60, 40)).save(tmp_path / f"{number}.png")
    found = check_coco(content, read_image_sizes(tmp_path, content))
    (missing,) = (one for one in found.findings if one.what == "missing image files")
    assert missing.count == 3
    assert missing.examples[1:] == ("\\ud800x.jpg", "a\\x00b\\x1b[31m.jpg")
    assert all(example.encode() for example in missing.examples)


def test_a_byte_order_mark_does_no_harm(tmp_path):
    file = tmp_path / "instances_train.json"
    file.write_text("\ufeff" + json.dumps(coco_content(GOOD)), encoding="utf-8")
    assert load_coco(file)["annotations"][0]["id"] == 1


def test_an_entry_that_is_no_object_is_named(tmp_path):
    file = tmp_path / "instances_train.json"
    file.write_text(json.dumps(coco_content(GOOD, 3, GOOD, "x")))
    with pytest.raises(
        UserError, match=r"entry 2 of 4 in 'annotations' is not an object but 3 \(and 1"
    ):
        load_coco(file)


@pytest.mark.parametrize(
    "text", ["[1]", "{}", "no", '{"images": {}}', '{"images": [1]}', "[" * 9000]
)
def test_what_is_no_coco_file_is_one_line(tmp_path, text):
    file = tmp_path / "instances_train.json"
    file.write_text(text)
    with pytest.raises(
        UserError, match=r"instances_train.json is (not in COCO's format|not valid JSON)"
    ):
        load_coco(file)


plain = st.none() | st.booleans() | st.integers(-5, 99) | st.floats() | st.text(max_size=5)
listed = plain | st.lists(plain, max_size=4)
json_like = (
    listed | st.lists(listed, max_size=4) | st.dictionaries(st.text(max_size=3), listed, max_size=4)
)


@given(
    key=st.sampled_from(["bbox", "segmentation", "image_id", "category_id", "area", "id"]),
    value=json_like,
)
def test_no_annotation_breaks_the_check_or_what_follows(key, value):
    found = check_coco(coco_content(GOOD, with_(**{key: value})))
    for one in found.content["annotations"]:
        thing = Instance((0, 0, 1, 1), 1, one.get("segmentation"))
        assert thing.segmentation is None or decode_masks([thing], (40, 60)).shape == (1, 40, 60)
        assert all(np.isfinite(one["bbox"]))
