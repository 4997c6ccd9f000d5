"""Mask R-CNN on a small encoder: model, masks, training step and settings."""

import numpy as np
import pytest
import torch
from coco_data import write_both
from faster_coco_eval.core import mask as rle
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from mvmae.config.detect import DetectConfig
from mvmae.config.model import Size
from mvmae.data.augment import seeded
from mvmae.dense.detect.data import jitter_batches
from mvmae.dense.detect.evaluate import Detections, paste_mask
from mvmae.dense.detect.model import (
    Anchors,
    DetectorShape,
    PadToSquare,
    build_detector,
    roi_align,
    spread_blocks,
)
from mvmae.dense.detect.run import open_job, training_step
from mvmae.errors import UserError
from mvmae.figures.detection import Panel, Things, draw, draw_objects, object_colour
from mvmae.method.views import normalize
from mvmae.method.vit import Encoder, initialize
from mvmae.recipes.supervised import DETECT
from mvmae.training.plan import warmup_drops

SMALL = DetectorShape(
    num_classes=2, side=64, channels=16, hidden=16, samples=16, proposals=40, window=4
)


def make_encoder(patch_size=8, side=64, depth=4) -> Encoder:
    encoder = Encoder(Size(32, depth, 2), image_size=(side, side), patch_size=patch_size)
    initialize(encoder, torch.Generator().manual_seed(0))
    return encoder


def make_target(*boxes, size=(64, 48), masks=True) -> dict[str, torch.Tensor]:
    made = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
    }
    return made | ({"masks": torch.ones(len(boxes), *size, dtype=torch.uint8)} if masks else {})


SHAPES = {
    "li2021": SMALL,
    "vitdet": SMALL._replace(pyramid="simple", norm="layer"),
    "boxes": SMALL._replace(with_masks=False, norm="layer"),
    "plain": SMALL._replace(window=None, relative_positions=False),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_part_gets_a_gradient(name):
    shape = SHAPES[name]
    model = build_detector(make_encoder(), shape).train()
    images = [torch.randn(3, 64, 48), torch.randn(3, 40, 64)]
    targets = [
        make_target([4, 4, 40, 30], [10, 30, 40, 60], masks=shape.with_masks),
        make_target(size=(40, 64), masks=shape.with_masks),
    ]
    losses = model(images, targets)
    assert len(losses) == 4 + shape.with_masks
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
    asleep = {key for key, one in model.named_parameters() if not one.requires_grad}
    windowed = {"backbone.body.encoder.cls_token"} if shape.window else set()
    assert asleep == windowed
    with torch.inference_mode():
        found = model.eval()(images)
    assert {*found[0]} == {"boxes", "labels", "scores"} | ({"masks"} if shape.with_masks else set())
    assert (found[1]["boxes"].amax(dim=0) <= torch.tensor([64.0, 40, 64, 40])).all()


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_batch_without_objects_gives_finite_gradients(norm):
    model = build_detector(make_encoder(), SMALL._replace(norm=norm)).train()
    losses = model([torch.randn(3, 64, 48)] * 2, [make_target(), make_target()])
    sum(losses.values()).backward()
    assert losses["loss_mask"] == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_boxes_and_losses_stay_fp32_in_a_bf16_network():
    seen = {}
    model = build_detector(make_encoder(), SMALL).train()
    for name, module in (
        ("rpn", model.rpn.head),
        ("boxes", model.roi_heads.box_predictor),
        ("masks", model.roi_heads.mask_predictor),
        ("anchors", model.rpn.anchor_generator),
        ("hidden", model.roi_heads.box_head),
        ("maps", model.backbone),
    ):
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([torch.randn(3, 64, 48)], [make_target([4, 4, 40, 30])])
    assert seen["hidden"].dtype == torch.bfloat16
    flat = [*seen["rpn"][0], *seen["rpn"][1], *seen["boxes"], seen["masks"], *seen["anchors"]]
    flat += [*seen["maps"].values(), *losses.values()]
    assert {one.dtype for one in flat} == {torch.float32}


def test_weights_depend_on_the_seed_alone():
    encoder = make_encoder()
    before = torch.get_rng_state()
    one = build_detector(encoder, SMALL, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    same = build_detector(encoder, SMALL, seed=1).state_dict()
    other = build_detector(encoder, SMALL, seed=2).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    key = "roi_heads.box_head.0.0.weight"
    assert not torch.equal(one[key], other[key])
    key = "backbone.body.encoder.blocks.0.attn.qkv.weight"
    assert torch.equal(one[key], encoder.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    ("count", "depth", "blocks"),
    [
        (4, 12, (2, 5, 8, 11)),  # ViTDet's, and Li et al.'s third, sixth, ninth and twelfth
        (4, 24, (5, 11, 17, 23)),
        (4, 4, (0, 1, 2, 3)),
        (4, 3, (0, 1, 2)),
        (2, 12, (5, 11)),
    ],
)
def test_blocks_are_evenly_spread(count, depth, blocks):
    assert spread_blocks(count, depth) == blocks


def test_blocks_get_windows_and_drop_path_rates():
    model = build_detector(make_encoder(depth=8), SMALL._replace(global_blocks=2), drop_path=0.7)
    body = model.backbone.body
    assert body.windows == [4, 4, 4, None, 4, 4, 4, None]
    assert body.out_blocks == (1, 3, 5, 7)
    rates = [block.drop_path for block in body.encoder.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.7, 8))
    assert len(body.relative) == 8


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_anchors_are_centred_on_the_positions_of_their_level(patch):
    strides = [patch * 2.0**level / 4 for level in range(5)]
    side = 8 * patch
    grids = [int(side / stride) for stride in strides]
    maps = [torch.zeros(1, 4, grid, grid) for grid in grids]
    images = ImageList(torch.zeros(1, 3, side, side), [(side, side)])
    (anchors,) = Anchors(strides)(images, maps)
    assert len(anchors) == 3 * sum(grid * grid for grid in grids)
    begin = 0
    for stride, grid in zip(strides, grids, strict=True):
        level = anchors[begin : begin + 3 * grid * grid].view(grid, grid, 3, 4)
        begin += 3 * grid * grid
        last = level[-1, -1].view(3, 2, 2).mean(dim=1)
        torch.testing.assert_close(last, torch.full((3, 2), (grid - 1) * stride))
        width, height = (level[0, 0, 1, 2:] - level[0, 0, 1, :2]).tolist()
        assert width == height == pytest.approx(8 * stride, abs=1)  # torchvision rounds halves


def test_regions_are_pooled_from_their_position_even_after_a_batch_of_small_images():
    """Where a map holds coordinates, the mean of a pooled region is the centre of its box."""
    strides = [4.0, 8.0, 16.0, 32.0, 64.0]
    pool = roi_align(7, strides)
    maps = {}
    for level, stride in enumerate(strides[:4]):
        centres = (torch.arange(int(256 / stride)) + 0.5) * stride
        row, column = torch.meshgrid(centres, centres, indexing="ij")
        maps[str(level)] = torch.stack([column, row])[None]
    for box in ([40.0, 60, 80, 100], [16.0, 32, 240, 200]):
        made = pool(maps, [torch.tensor([box])], [(30, 40)])  # the image's own size is small
        centre = made[0].mean(dim=(1, 2))
        wanted = torch.tensor([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
        assert (centre - wanted).abs().max() <= 16  # RoIAlign's half pixel, of the coarsest level


def test_images_are_padded_on_the_right_and_the_bottom():
    made, targets = PadToSquare(8)([torch.ones(3, 8, 5), torch.ones(3, 2, 8)], None)
    assert made.tensors.shape == (2, 3, 8, 8)
    assert made.image_sizes == [(8, 5), (2, 8)]
    assert made.tensors[0, :, :, :5].min() == 1
    assert made.tensors[0, :, :, 5:].max() == made.tensors[1, :, 2:].max() == 0
    assert targets is None


def test_batch_norms_can_be_synchronised():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(build_detector(make_encoder(), SMALL))
    kinds = {type(one) for one in model.modules()}
    assert nn.SyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds


def test_drops_divide_the_learning_rate_by_ten():
    def lr(step):
        return warmup_drops(step, peak=1.0, warmup_steps=10, total_steps=100, drops=(0.89, 0.96))

    assert [lr(0), lr(5), lr(10), lr(88)] == [0, 0.5, 1, 1]
    assert [lr(89), lr(95)] == pytest.approx([0.1, 0.1])
    assert [lr(96), lr(99)] == pytest.approx([0.01, 0.01])


# Detections


def test_a_mask_is_pasted_into_its_box():
    packed = paste_mask(torch.ones(1, 28, 28), torch.tensor([10.0, 5, 20, 25]), (40, 60))
    wanted = np.zeros((40, 60))
    wanted[5:25, 10:20] = 1
    assert (rle.decode(packed) == wanted).all()
    for box in (torch.zeros(4), torch.tensor([70.0, 50, 80, 60]), torch.tensor([-9.0, -9, -1, -1])):
        assert rle.decode(paste_mask(torch.ones(1, 28, 28), box, (40, 60))).sum() == 0


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_pasting_inverts_the_cropping_of_masks_in_training(scale):
    """For a disk 12 pixels wide in the image that the model sees."""

    def disk(factor):
        row, column = torch.meshgrid(*[torch.arange(40 * factor) + 0.5] * 2, indexing="ij")
        middle, radius = 17 * factor, 6 * factor
        return (row - middle) ** 2 + (column - middle) ** 2 < radius**2

    box = torch.tensor([[10.6, 11, 23, 23.3]])
    learnt = project_masks_on_boxes(disk(1)[None].float(), box, torch.zeros(1, dtype=int), 28)
    side = int(40 * scale)
    packed = paste_mask(learnt, box[0] * scale, (side, side), (scale, scale))
    made, true = rle.decode(packed).astype(bool), disk(scale).numpy()
    assert (made & true).sum() / (made | true).sum() > 0.85
    shift = np.argwhere(made).mean(axis=0) - np.argwhere(true).mean(axis=0)
    assert np.abs(shift).max() <= 0.2 * scale


def test_detections_convert_to_the_coco_format():
    found = Detections(3, [[1, 2, 4, 8], [0, 0, 1, 1]], [2, 1], [0.9, 0.3], None)
    assert found.as_coco(70, [3, 7]) == [
        {"image_id": 70, "category_id": 7, "bbox": [1, 2, 3, 6], "score": 0.9},
        {"image_id": 70, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 0.3},
    ]
    assert found.above(0.5) == Detections(3, [[1, 2, 4, 8]], [2], [0.9], None)


def test_masks_and_boxes_are_drawn_in_their_colours():
    image = np.zeros((480, 480, 3), np.uint8)
    mask = np.zeros((480, 480), bool)
    mask[100:200, 50:150] = True
    things = Things([[50, 100, 150, 200]], [1], masks=[mask])
    made = draw_objects(image, things, ["nucleus"])
    assert tuple(made[100, 100]) == object_colour(0)  # the outline
    assert 0 < made[150, 100].sum() < sum(object_colour(0))  # the area
    assert made[300, 300].sum() == 0
    boxed = draw_objects(image, things._replace(masks=None), ["nucleus"])
    assert tuple(boxed[150, 50]) == object_colour(0)
    assert boxed[150, 100].sum() == 0


def test_small_gray_images_are_enlarged():
    made = draw_objects(np.zeros((30, 60, 1), np.uint8), Things([], []), ["a"])
    assert made.shape == (240, 480, 3)
    png = draw(
        [Panel("a $name_", np.zeros((30, 60, 1), np.uint8), Things([], []), Things([], []))],
        ["a", "b"],
        title="a $title_",
        note="",
    )
    assert png.startswith(b"\x89PNG")


def test_there_are_twenty_colours():
    assert len({object_colour(number) for number in range(20)}) == 20


def test_accumulated_gradient_is_the_mean_over_the_parts(tmp_path):
    config = DetectConfig(
        encoder="random:vit_pico",
        data=str(write_both(tmp_path)),
        out=tmp_path / "run",
        **{name: getattr(SHAPES["plain"], name) for name in ("channels", "hidden", "samples")},
        proposals=40,
        image_size=64,
        window=None,
        relative_positions=False,
        norm="layer",
        batch_size=2,
        accumulate=2,
        workers=0,
        drop_path=0.5,
        device="cpu",
    )
    job, same = (open_job(config, torch.device("cpu")) for _ in range(2))
    preprocessing = job.opened.preprocessing
    (batch,) = jitter_batches(job.data.train, config, preprocessing, range(1), cuda=False)
    row = training_step(job.model.train(), batch, job, 7)

    mean, std, _ = preprocessing
    losses = []
    with seeded(int(np.random.default_rng((0, 7, 0)).integers(2**63))):
        for image, target in zip(batch.images, batch.targets, strict=True):
            pixels = normalize(image[None], mean, std, job.device)
            terms = same.model.train()([pixels[0]], [target._asdict()])
            losses.append(sum(terms.values()))
    (sum(losses) / 2).backward()
    loss = row.pop("loss")
    torch.testing.assert_close(loss, sum(losses).detach() / 2)
    torch.testing.assert_close(loss, sum(row.values()))
    theirs = dict(same.model.named_parameters())
    for name, parameter in job.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-6)


# Settings


def test_recipes_have_the_settings_of_the_papers():
    li2021, vitdet = DETECT["li2021"].config, DETECT["vitdet"].config
    assert DETECT["paper-coco"].config == li2021 == DetectConfig(encoder="runs/pretrain")
    assert (li2021.lr, li2021.weight_decay, li2021.drop_path) == (8e-5, 0.1, 0.1)
    assert (li2021.batch_size, li2021.epochs, li2021.warmup_epochs) == (64, 100, 0.25)
    assert (li2021.image_size, li2021.window, li2021.scale_jitter) == (1024, 16, (0.1, 2.0))
    assert (vitdet.lr, vitdet.layer_decay, vitdet.window) == (1e-4, 0.7, 14)
    assert (vitdet.drops, vitdet.warmup_steps, vitdet.pyramid) == ((0.89, 0.96), 250, "simple")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": None}, "relative positions need windows"),
        ({"window": 0}, "window must be at least 1"),
        ({"scale_jitter": (2.0, 0.1)}, "two increasing numbers"),
        ({"drops": (1.5,)}, "drops must be between 0 and 1, not 1.5"),
        ({"score": 1.0}, r"score must be in \[0, 1\)"),
        ({"proposals": 1}, "proposals must be at least 2"),
        ({"lr": 0.0}, "lr must be finite and above 0"),
        ({"warmup_epochs": 100.0}, "must be less than epochs"),
        ({"predict": "images", "data": "coco"}, "no DATA: leave out coco"),
    ],
)
def test_impossible_settings_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        DetectConfig(encoder="run", **changes)
