"""Sliding windows, scales, metrics and pictures of segmentation."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mvmae.config.model import Size
from mvmae.config.segment import SegmentConfig
from mvmae.dense.saved_model import Predictor
from mvmae.dense.segment.evaluate import (
    label_pixels,
    predict_classes,
    score_image,
    sliding_scores,
    window_offsets,
)
from mvmae.dense.segment.frozen import sample_patches
from mvmae.dense.segment.model import Scores, pixel_loss, resize
from mvmae.encoders import OpenedEncoder, Preprocessing
from mvmae.figures.segmentation import Shown, colour_classes, draw, overlay_classes, palette
from mvmae.method.vit import Encoder
from mvmae.metrics.miou import pixel_confusion, segmentation_scores
from mvmae.training.plan import warmup_poly


class Blur(nn.Module):
    """Scores at a quarter of the size, each from the pixels around its position."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, num_classes, 5, stride=4, padding=2)

    def forward(self, images: torch.Tensor) -> Scores:
        assert images.shape[2] % 4 == images.shape[3] % 4 == 0
        return Scores(self.layer(images), None)


def predictor(**options) -> Predictor:
    preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3, "bilinear")
    encoder = Encoder(Size(8, 1, 1), image_size=(32, 32), patch_size=4)
    config = {"crop": 32, "stride": 20, "short_side": None, "precision": "fp32", "batch_size": 3}
    config = SegmentConfig(encoder="e", data="d", **config | options)
    opened = OpenedEncoder(encoder, preprocessing, "mean")
    return Predictor(Blur(), opened, config, torch.device("cpu"))


# Windows


@pytest.mark.parametrize("side", [32, 33, 50, 52, 53, 99, 300])
def test_windows_cover_a_side_and_overlap(side):
    begins = window_offsets(side, 32, 20)
    covered = {at for begin in begins for at in range(begin, begin + 32)}
    assert covered == set(range(side))
    assert begins == sorted(set(begins))
    assert max(np.diff(begins), default=0) <= 20


def test_an_image_of_one_window_is_scored_once():
    image = torch.randn(3, 32, 32)
    test = predictor()
    wanted = resize(test.model(image[None]).main, (32, 32))[0]
    torch.testing.assert_close(sliding_scores(test, image), wanted)
    small = image[:, :24, :20]
    wanted = resize(test.model(small[None]).main, (24, 20))[0]
    torch.testing.assert_close(sliding_scores(test, small), wanted)


def test_image_smaller_than_a_patch_is_padded():
    assert sliding_scores(predictor(), torch.randn(3, 3, 50)).shape == (5, 3, 50)


def test_windows_are_averaged():
    """Compare with a loop over all windows, one at a time."""
    test, image = predictor(), torch.randn(3, 70, 45)
    total, count = torch.zeros(5, 70, 45), torch.zeros(70, 45)
    for top in (0, 20, 38):
        for left in (0, 13):
            cut = image[None, :, top : top + 32, left : left + 32]
            total[:, top : top + 32, left : left + 32] += resize(test.model(cut).main, (32, 32))[0]
            count[top : top + 32, left : left + 32] += 1
    for batch_size in (1, 4, 100):
        other = test._replace(config=replace(test.config, batch_size=batch_size))
        torch.testing.assert_close(sliding_scores(other, image), total / count)


def test_multi_scale_gives_probabilities_that_ignore_mirroring():
    image = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8)
    test = predictor(multi_scale=True)
    with torch.no_grad():
        scores, mirrored = score_image(test, image), score_image(test, image.flip(-1)).flip(-1)
    torch.testing.assert_close(scores.sum(dim=0), torch.ones(40, 48))
    torch.testing.assert_close(scores, mirrored, atol=0.02, rtol=0)


def test_labels_are_the_classes_of_highest_score_across_chunks():
    scores = torch.randn(50, 6, 8)
    wanted = resize(scores[None], (13, 17))[0].argmax(dim=0)
    assert label_pixels(scores, (13, 17)).long().equal(wanted)


def test_prediction_has_the_size_of_the_image():
    image = torch.randint(0, 256, (3, 61, 83), dtype=torch.uint8)
    assert predict_classes(predictor(short_side=40), image, (61, 83)).shape == (61, 83)


# Metrics


def test_metrics_equal_a_direct_count():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(-1, 6, (3, 40, 50)), rng.integers(0, 6, (3, 40, 50))
    ious, accuracies = [], []
    counts = truth >= 0
    for number in range(6):
        true, taken = (truth == number) & counts, (guess == number) & counts
        ious.append(100 * (true & taken).sum() / (true | taken).sum())
        accuracies.append(100 * (true & taken).sum() / true.sum())
    scores = segmentation_scores(
        pixel_confusion(torch.from_numpy(guess), torch.from_numpy(truth), 6)
    )
    assert scores.miou == pytest.approx(np.mean(ious), abs=1e-9)
    assert scores.mean_accuracy == pytest.approx(np.mean(accuracies), abs=1e-9)
    assert scores.pixel_accuracy == pytest.approx(100 * (truth == guess)[counts].mean(), abs=1e-9)
    assert scores.iou.tolist() == pytest.approx(ious)


def test_absent_classes_are_left_out_of_the_mean_but_wrongly_predicted_ones_count():
    truth, guess = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 1])
    scores = segmentation_scores(pixel_confusion(guess, truth, 4))
    assert scores.iou[:3].tolist() == pytest.approx([50, 100, 0])
    assert scores.iou[3].isnan()
    assert scores.miou == pytest.approx(50)
    assert scores.mean_accuracy == pytest.approx(75)


def test_loss_is_divided_by_the_number_of_all_pixels():
    scores = torch.randn(2, 3, 4, 4)
    classes = torch.randint(0, 3, (2, 4, 4))
    whole = pixel_loss(scores, classes)
    torch.testing.assert_close(whole, nn.functional.cross_entropy(scores, classes))
    half = classes.clone()
    half[:, :, 2:] = -1
    wanted = nn.functional.cross_entropy(scores[..., :2], classes[..., :2]) / 2
    torch.testing.assert_close(pixel_loss(scores, half), wanted)
    assert pixel_loss(scores, torch.full_like(classes, -1)) == 0
    assert pixel_loss(scores.bfloat16(), classes).dtype == torch.float32


def test_learning_rate_equals_mmcvs_schedule():
    """Compare with mmcv's poly schedule with linear warm-up, at BEiT's 160,000 steps."""

    def mmcv(step):
        regular = 1e-4 * (1 - step / 160_000)
        return regular * (1 - (1 - step / 1500) * (1 - 1e-6)) if step < 1500 else regular

    for step in (0, 1, 750, 1499, 1500, 80_000, 159_999):
        rate = warmup_poly(step, peak=1e-4, warmup_steps=1500, total_steps=160_000)
        assert rate == pytest.approx(mmcv(step))
    assert warmup_poly(0, peak=1e-4, warmup_steps=1500, total_steps=160_000) == pytest.approx(1e-10)


# Pictures


def test_150_classes_have_different_colours():
    colours = palette(150)
    assert len({tuple(colour) for colour in colours.tolist()}) == 150
    assert palette(5).tolist() == colours[:5].tolist()


def test_ignored_pixels_are_nearly_white_and_borders_are_drawn():
    classes = torch.tensor([[0, 0, 1], [0, 0, 1], [-1, -1, -1]], dtype=torch.int16)
    picture = colour_classes(classes, palette(2))
    assert picture[2].min() > 230
    assert picture[0, 0].tolist() == palette(2)[0].tolist()
    image = torch.zeros(3, 3, 3, dtype=torch.uint8)
    laid = overlay_classes(image, classes, palette(2))
    assert (laid[0, 1] == 255).all()
    assert (laid[0, 0] < 255).any()


# Patches for nearest neighbours


def test_patches_are_sampled_evenly_over_images():
    """A hundred images have 30 patches each: the last are sampled as often as the first."""
    images = torch.arange(100).repeat_interleave(30)
    tokens = images[:, None].float()
    kept, classes = sample_patches(tokens, images, 1000, seed=0)
    assert len(kept) == 1000
    assert classes.equal(kept[:, 0].long())
    assert classes.equal(classes.sort().values)
    halves = (classes < 50).float().mean().item()
    assert halves == pytest.approx(0.5, abs=0.05)
    assert len(classes.unique()) == 100
    assert sample_patches(tokens, images, 1000, seed=0)[1].equal(classes)
    assert not sample_patches(tokens, images, 1000, seed=1)[1].equal(classes)
    assert sample_patches(tokens, images, 3000, seed=0)[1].equal(images)


# Pictures


@pytest.mark.parametrize("size", [(2, 900), (900, 2), (1, 1)])
def test_flat_and_narrow_images_are_drawn(size):
    image = torch.full((3, *size), 90, dtype=torch.uint8)
    classes = torch.zeros(size, dtype=torch.int16)
    png = draw([Shown("a", image, classes, classes)], ["0"], title="t", note="n")
    with Image.open(io.BytesIO(png)) as picture:
        assert 100 < picture.height < 3000
