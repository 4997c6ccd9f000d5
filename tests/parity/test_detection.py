"""Detection compared with torchvision's Mask R-CNN, pycocotools and timm."""

import contextlib
import copy
import io
import tarfile
import warnings

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2, maskrcnn_resnet50_fpn_v2

from mvmae import load_encoder
from mvmae.config.model import ENCODERS
from mvmae.data.annotations.coco import compress_mask, encode_mask
from mvmae.data.annotations.coco_check import check_coco, load_coco
from mvmae.dense.backbone import Backbone
from mvmae.dense.detect.model import DetectorShape, build_detector
from mvmae.encoders.open import finetuning_copy
from mvmae.method.vit import Encoder
from mvmae.metrics.coco_ap import NAMES, average_precision

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("with_masks", [True, False])
def test_heads_have_the_shapes_of_torchvisions(with_masks):
    build = maskrcnn_resnet50_fpn_v2 if with_masks else fasterrcnn_resnet50_fpn_v2
    theirs = build(weights=None, weights_backbone=None, num_classes=81)
    encoder = Encoder(ENCODERS["vit_pico"], image_size=(224, 224), patch_size=16)
    ours = build_detector(encoder, DetectorShape(80, 256, with_masks=with_masks, window=4))

    def heads(model):
        state = model.state_dict()
        return {k: tuple(v.shape) for k, v in state.items() if not k.startswith("backbone.")}

    assert heads(ours) == heads(theirs)
    assert ours.roi_heads.detections_per_img == theirs.roi_heads.detections_per_img
    assert ours.roi_heads.score_thresh == theirs.roi_heads.score_thresh
    for name in ("_pre_nms_top_n", "_post_nms_top_n"):
        training = {"training": 2000, "testing": 1000}
        assert getattr(ours.rpn, name) == getattr(theirs.rpn, name) == training


def test_region_pooling_equals_torchvisions_at_its_strides():
    from torchvision.ops import MultiScaleRoIAlign

    from mvmae.dense.detect.model import roi_align

    maps = {str(i): torch.randn(1, 4, 256 // s, 256 // s) for i, s in enumerate((4, 8, 16, 32))}
    boxes = [torch.tensor([[3.0, 5, 60, 40], [10, 20, 250, 200], [100, 100, 110, 130]])]
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=2)
    ours = roi_align(7, [4.0, 8.0, 16.0, 32.0, 64.0])
    torch.testing.assert_close(ours(maps, boxes, [(9, 9)]), theirs(maps, boxes, [(256, 256)]))


def perturb(truth: dict, rng: np.random.Generator) -> list[dict]:
    """Return four in five ground-truth objects as detections, moved and sometimes misclassified."""
    sizes = {one["id"]: (one["height"], one["width"]) for one in truth["images"]}
    ids = [one["id"] for one in truth["categories"]]
    found = []
    for one in truth["annotations"]:
        if rng.random() < 0.2:
            continue
        x, y, w, h = one["bbox"]
        dx, dy, dw, dh = rng.normal(scale=0.1, size=4)
        packed = compress_mask(one["segmentation"], sizes[one["image_id"]])
        mask = np.roll(rle.decode(packed), rng.integers(-3, 4, 2), (0, 1))
        found.append(
            {
                "image_id": one["image_id"],
                "category_id": one["category_id"] if rng.random() < 0.9 else int(rng.choice(ids)),
                "bbox": [x + w * dx, y + h * dy, w * np.exp(dw), h * np.exp(dh)],
                "segmentation": encode_mask(mask),
                "score": round(float(rng.random()), 6),
            }
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco", "nuclei"])
def test_average_precision_equals_pycocotools(name, data_root, tmp_path):
    """Use real annotations: COCO has crowds and 80 classes, nuclei up to hundreds per image."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with tarfile.open(data_root / f"{name}.tar") as archive:
        member = next(m for m in archive if m.name.endswith("annotations/instances_val.json"))
        member.name = "val.json"
        archive.extract(member, tmp_path, filter="data")
    truth = check_coco(load_coco(tmp_path / "val.json")).content
    found = perturb(truth, np.random.default_rng(0))
    for kind in ("bbox", "segm"):
        ours = average_precision(truth, found, kind)
        with contextlib.redirect_stdout(io.StringIO()):
            known = COCO()
            known.dataset = copy.deepcopy(truth)
            known.createIndex()
            judged = COCOeval(known, known.loadRes(copy.deepcopy(found)), kind)
            judged.evaluate()
            judged.accumulate()
            judged.summarize()
        theirs = dict(zip(NAMES, judged.stats, strict=True))
        assert 5 < ours.figures["AP"] < 60
        for figure, value in ours.figures.items():
            known_value = -1 if value is None else value / 100
            assert known_value == pytest.approx(theirs[figure], abs=1e-6), figure
        for place, one in enumerate(truth["categories"]):
            values = judged.eval["precision"][:, :, place, 0, 2]
            values = values[values > -1]
            value = ours.by_class[one["name"]]
            if values.size:
                assert value / 100 == pytest.approx(values.mean(), abs=1e-6)
            else:
                assert value is None


def test_maps_of_a_timm_checkpoint_equal_timms(tmp_path):
    timm = pytest.importorskip("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own deprecations
        theirs = timm.create_model(
            "vit_tiny_patch16_224", pretrained=False, img_size=64, num_classes=0
        ).eval()
    torch.nn.init.normal_(theirs.pos_embed, std=0.1)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    encoder = load_encoder(tmp_path / "timm.pth")
    backbone = Backbone(finetuning_copy(encoder), out_blocks=[3, 11]).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        wanted = theirs.forward_intermediates(images, indices=[3, 11], intermediates_only=True)
        for one, other in zip(backbone(images), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
