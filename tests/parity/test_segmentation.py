"""Metrics of segmentation compared with torchmetrics."""

import pytest
import torch

from mvmae.metrics.miou import pixel_confusion, segmentation_scores

pytestmark = pytest.mark.parity

metrics = pytest.importorskip("torchmetrics.classification")


@pytest.mark.parametrize("num_classes", [2, 7, 150])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_torchmetrics(num_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(-1, num_classes, (3, 60, 80), generator=generator)
    guess = torch.randint(0, num_classes, (3, 60, 80), generator=generator)
    right = torch.rand(3, 60, 80, generator=generator) < 0.6
    guess = torch.where(right & (truth >= 0), truth, guess)

    options = {"num_classes": num_classes, "ignore_index": -1}
    iou = metrics.MulticlassJaccardIndex(**options, average="none")(guess, truth)
    mean = metrics.MulticlassAccuracy(**options, average="macro")(guess, truth)
    overall = metrics.MulticlassAccuracy(**options, average="micro")(guess, truth)

    own = segmentation_scores(pixel_confusion(guess, truth, num_classes))
    torch.testing.assert_close(own.iou.float(), 100 * iou)
    assert own.miou == pytest.approx(100 * iou.mean().item(), rel=1e-5)
    assert own.mean_accuracy == pytest.approx(100 * mean.item(), rel=1e-5)
    assert own.pixel_accuracy == pytest.approx(100 * overall.item(), rel=1e-5)


def test_confusion_equals_torchmetrics():
    truth, guess = torch.randint(-1, 5, (40, 40)), torch.randint(0, 5, (40, 40))
    wanted = metrics.MulticlassConfusionMatrix(num_classes=5, ignore_index=-1)(guess, truth)
    assert pixel_confusion(guess, truth, 5).equal(wanted)
