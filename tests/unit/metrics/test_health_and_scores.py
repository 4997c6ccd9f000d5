import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from mvmae.method.health import (
    chance_level,
    colour_error,
    contrast_health,
    effective_rank,
    is_collapsed,
    verdict,
)
from mvmae.method.patches import patchify
from mvmae.metrics.linear import logistic_regression

# Linear classification


def clusters(per_class: int, classes: int = 3, spread: float = 0.3) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    centers = 3 * np.eye(classes, 6)
    labels = np.tile(np.arange(classes), per_class)
    features = centers[labels] + spread * rng.standard_normal((len(labels), 6))
    return features.astype(np.float32), labels


def test_clusters_apart_are_told_apart():
    features, labels = clusters(20)
    result = logistic_regression(
        features[:30], labels[:30], features[30:], num_classes=3, costs=(0.1, 1.0)
    )
    assert np.array_equal(result.predictions, labels[30:])
    assert result.converged
    assert result.cost in (0.1, 1.0)


def test_features_of_any_scale_and_offset_are_judged_alike():
    features, labels = clusters(20, spread=2.0)
    moved = 1000 * features.astype(np.float64) - 500
    first, second = (
        logistic_regression(x[:30], labels[:30], x[30:], num_classes=3, costs=(0.01,)).predictions
        for x in (features.astype(np.float64), moved)
    )
    assert np.array_equal(first, second)


def test_a_feature_that_never_changes_does_no_harm():
    features, labels = clusters(10)
    features[:, 5] = 4.0
    result = logistic_regression(features, labels, features, num_classes=3, costs=(1.0,))
    assert np.array_equal(result.predictions, labels)


@pytest.mark.parametrize("costs", [(1e-3, 1.0), (1.0, 1e-3)])
def test_weak_regularisation_is_chosen_where_there_is_much_to_learn(costs):
    features, labels = clusters(20)
    kept = (labels == 0) | (np.arange(60) < 20)  # uneven, so that strong L2 sees one class only
    result = logistic_regression(features[kept], labels[kept], features, num_classes=3, costs=costs)
    assert result.cost == 1.0
    assert np.array_equal(result.predictions, labels)


@pytest.mark.parametrize("costs", [(1e-3, 1e4), (1e4, 1e-3)])
def test_strong_regularisation_is_chosen_where_there_is_nothing_to_learn(costs):
    features = np.random.default_rng(0).standard_normal((150, 60))
    labels = np.array([0, 0, 0, 1] * 38)[:150]
    result = logistic_regression(features, labels, features, num_classes=2, costs=costs)
    assert result.cost == 1e-3
    assert not result.predictions.any()


def test_a_query_is_judged_alone():
    features, labels = clusters(20, spread=3.0)
    together = logistic_regression(
        features[:30], labels[:30], features[30:], num_classes=3, costs=(1.0,)
    )
    alone = logistic_regression(
        features[:30], labels[:30], features[40:41], num_classes=3, costs=(1.0,)
    )
    assert together.predictions[10] == alone.predictions[0]


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([0] * 10 + [1] * 9 + [2], id="a class of one image"),
        pytest.param(list(range(9)) * 2, id="fewer held-out images than classes"),
        pytest.param([3] * 10 + [7] * 10, id="classes that no image has"),
        pytest.param([0, 1], id="two images"),
    ],
)
def test_few_images_are_classified_too(labels):
    labels = np.array(labels)
    features = np.eye(10)[labels] + 0.01 * np.random.default_rng(0).standard_normal(
        (len(labels), 10)
    )
    result = logistic_regression(features, labels, features, num_classes=10, costs=(0.1, 1.0, 10.0))
    assert np.array_equal(result.predictions, labels)


def test_a_fit_that_ran_out_of_iterations_says_so():
    features, labels = clusters(50, spread=2.0)
    result = logistic_regression(
        features, labels, features, num_classes=3, costs=(1e4,), max_iterations=1
    )
    assert not result.converged


def test_scores_are_the_logits_of_every_class():
    features, labels = clusters(20)
    result = logistic_regression(features, labels, features[:7], num_classes=5, costs=(1.0,))
    assert result.scores.shape == (7, 5)
    assert result.scores.dtype == np.float32
    assert np.isfinite(result.scores[:, :3]).all()
    assert (result.scores[:, 3:] == -np.inf).all()
    assert np.array_equal(result.predictions, result.scores.argmax(axis=1))


def test_a_class_without_a_training_image_keeps_its_place():
    features, labels = clusters(20)
    moved = np.array([1, 4, 2])[labels]  # classes 0 and 3 have no image
    result = logistic_regression(features, moved, features, num_classes=6, costs=(1.0,))
    assert (result.scores[:, [0, 3, 5]] == -np.inf).all()
    assert np.array_equal(result.predictions, moved)


def test_scores_of_two_classes_differ_by_the_log_of_the_odds():
    features, labels = clusters(20, classes=2, spread=2.0)
    result = logistic_regression(features, 3 * labels, features, num_classes=4, costs=(0.1,))
    x = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    odds = LogisticRegression(C=0.1).fit(x, labels).predict_log_proba(x)
    assert (result.scores[:, [1, 2]] == -np.inf).all()
    difference = result.scores[:, 3] - result.scores[:, 0]
    np.testing.assert_allclose(difference, odds[:, 1] - odds[:, 0], rtol=1e-3, atol=1e-4)


def test_training_images_of_one_class_can_say_nothing_else():
    features = np.random.default_rng(0).standard_normal((6, 4))
    labels = np.full(6, 2)
    result = logistic_regression(features, labels, features, num_classes=3, costs=(0.1, 1.0))
    assert result.predictions.tolist() == [2] * 6
    assert result.scores.tolist() == [[-np.inf, -np.inf, 0]] * 6
    assert result.converged


# Health


def test_chance_is_the_log_of_the_candidates():
    assert chance_level(256) == pytest.approx(6.2364, abs=1e-4)
    assert chance_level(1) == 0


def test_effective_rank_counts_directions():
    # Three equal singular values, in a space of eight.
    z = torch.cat([torch.eye(3, 8), -torch.eye(3, 8)])
    assert effective_rank(z) == pytest.approx(3)
    assert effective_rank(z + 5) == pytest.approx(3)  # a constant adds no direction
    assert effective_rank(100 * z) == pytest.approx(3)


def test_effective_rank_of_unequal_directions_lies_between():
    z = torch.cat([torch.diag(torch.tensor([3.0, 1.0])), -torch.diag(torch.tensor([3.0, 1.0]))])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(z) == pytest.approx(math.exp(entropy))


def test_effective_rank_of_a_collapse_is_1():
    line = torch.linspace(-1, 1, 10)[:, None] * torch.ones(1, 8)
    assert effective_rank(line) == pytest.approx(1)
    assert effective_rank(torch.ones(10, 8)) == pytest.approx(1)


def test_contrast_health_of_two_images_by_hand():
    z1 = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    z2 = torch.tensor([[4.0, 0.0, 3.0], [3.0, 4.0, 0.0]])
    health = contrast_health(z1, z2)
    assert health["positive_similarity"] == pytest.approx((0.8 + 0.8) / 2)
    others = [0, 0.6, 0, 0.48]  # first with first, first with second twice, second with second
    assert health["negative_similarity"] == pytest.approx(sum(others) / 4)
    assert health["contrastive_top1"] == 100.0
    assert health["effective_rank"] == pytest.approx(effective_rank(torch.cat([z1, z2])))


def test_contrastive_top1_asks_every_view_for_its_partner():
    z1 = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    z2 = torch.tensor([[1.0, 0.0, 0.1], [1.0, 0.5, 0.0]])
    # Only the last is nearer to another image (0.89) than to its partner (0.45).
    assert contrast_health(z1, z2)["contrastive_top1"] == 75.0


def test_contrast_health_of_perfect_embeddings():
    health = contrast_health(torch.eye(4), torch.eye(4))
    assert health["positive_similarity"] == pytest.approx(1)
    assert health["negative_similarity"] == pytest.approx(0)
    assert health["contrastive_top1"] == 100.0
    assert health["effective_rank"] == pytest.approx(3)


def test_contrast_health_of_one_image_is_finite():
    assert contrast_health(torch.ones(1, 4), torch.ones(1, 4))["negative_similarity"] == 0


def test_colour_error_is_that_of_filling_each_patch_with_its_average_colour():
    images = torch.rand(3, 3, 8, 12)
    blurred = F.interpolate(F.avg_pool2d(images, 4), scale_factor=4)
    expected = F.mse_loss(blurred, images).item()
    assert colour_error(patchify(images, 4), 3).item() == pytest.approx(expected, rel=1e-5)
    gray = images[:, :1]
    blurred = F.interpolate(F.avg_pool2d(gray, 4), scale_factor=4)
    expected = F.mse_loss(blurred, gray).item()
    assert colour_error(patchify(gray, 4), 1).item() == pytest.approx(expected, rel=1e-5)


def test_patches_of_one_colour_each_have_no_colour_error_though_their_channels_differ():
    images = torch.tensor([0.9, 0.2, 0.1]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert colour_error(patchify(images, 4), 3).item() == pytest.approx(0, abs=1e-12)


GOOD = {
    "contrastive": 1.0,
    "chance": 6.2,
    "positive_similarity": 0.9,
    "negative_similarity": 0.1,
    "contrastive_top1": 95.0,
    "effective_rank": 30.0,
    "reconstruction": 0.5,
    "colour_error": 1.0,
}
BLURRED = "110% of the error of filling each with its average colour, and no better than that yet"


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({}, "good", "effective rank 30 of 64"),
        ({"contrastive": 5.5}, "weak", "it can hardly tell images apart yet"),
        ({"contrastive": 0.0, "chance": 0.0}, "weak", "no batch had images of two groups"),
        ({"reconstruction": 1.1}, "good", BLURRED),  # the contrast says that it learns
        ({"reconstruction": 1.1, "contrastive": 5.5}, "weak", BLURRED),
        ({"effective_rank": 1.2}, "collapsed", "all images look the same"),
        ({"effective_rank": 1.2, "reconstruction": 1.1}, "collapsed", BLURRED),
        ({"negative_similarity": 0.97, "contrastive": 6.1}, "collapsed", "all images look the sa"),
        ({"negative_similarity": 0.97}, "good", "of different images 0.97"),
    ],
)
def test_the_verdict_reads_the_numbers(change, status, words):
    said = verdict(GOOD | change, 64)
    assert said.status == status
    assert words in said.sentence
    assert is_collapsed(GOOD | change) == (status == "collapsed")


def test_the_verdict_of_mae_speaks_of_reconstruction_alone():
    known = {"reconstruction": 0.4, "colour_error": 0.8}
    said = "masked patches are rebuilt with 50% of the error of filling each with"
    assert verdict(known, 64) == ("good", f"{said} its average colour")
    assert verdict(known, 64, channels=1) == ("good", f"{said} its mean")
    assert not is_collapsed(known)
    assert verdict(known | {"reconstruction": 0.9}, 64).status == "weak"


def test_patches_without_structure_are_no_success_and_no_division_by_zero():
    flat = {"reconstruction": 0.1, "colour_error": 0.0}
    assert verdict(flat, 64) == (
        "weak",
        "the patches have one colour each, so there is nothing to rebuild",
    )
    assert verdict(GOOD | flat, 64).status == "good"


def test_the_verdict_of_contrast_alone_speaks_of_no_reconstruction():
    kept = {key: GOOD[key] for key in list(GOOD)[:6]}
    assert "rebuilt" not in verdict(kept, 64).sentence


def test_a_batch_of_two_images_or_a_few_steps_earn_no_praise():
    two = GOOD | {"contrastive": 0.0001, "chance": chance_level(2)}
    assert verdict(two, 64).status == "weak"
    assert "a larger batch would say more" in verdict(two, 64).sentence
    assert verdict(two | {"chance": chance_level(8)}, 64).status == "good"
    early = verdict(GOOD, 64, steps=1)
    assert early.status == "weak"
    assert early.sentence.endswith("but after 1 step of training that says little")
    assert verdict(GOOD, 64, steps=20) == verdict(GOOD, 64)
    alike = GOOD | {"effective_rank": 1.0}
    assert verdict(alike, 64, steps=2).status == "collapsed"
