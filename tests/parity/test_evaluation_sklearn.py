import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mvmae.metrics.accuracy import (
    confusion_matrix,
    most_confused,
    per_class_accuracy,
    topk_accuracy,
)
from mvmae.metrics.knn import knn_predictions, knn_votes, nearest_neighbours
from mvmae.metrics.linear import logistic_regression

pytestmark = pytest.mark.parity


def clouds(seed: int, number: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes, whose edges no two classifiers draw alike by chance."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((classes, 12))
    labels = rng.integers(classes, size=number)
    return centers[labels] + 1.5 * rng.standard_normal((number, 12)), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0)])
def test_neighbours_vote_as_scikit_learns(k, temperature):
    (features, labels), (queries, _) = clouds(1, 300), clouds(2, 400)
    reference = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distances: np.exp((1 - distances) / temperature)
    ).fit(features, labels)
    ours = knn_predictions(
        *(torch.from_numpy(array) for array in (features, labels, queries)),
        k=k,
        temperature=temperature,
    )
    assert np.array_equal(ours.numpy(), reference.predict(queries))


def test_these_clouds_tell_k_and_temperature_apart():
    (features, labels), (queries, _) = clouds(1, 300), clouds(2, 400)
    arrays = [torch.from_numpy(array) for array in (features, labels, queries)]
    predictions = [
        knn_predictions(*arrays, k=k, temperature=temperature)
        for k, temperature in ((1, 0.07), (20, 0.07), (20, 1.0))
    ]
    assert not torch.equal(predictions[0], predictions[1])
    assert not torch.equal(predictions[1], predictions[2])


def test_the_linear_classifier_is_scikit_learns_pipeline():
    (features, labels), (queries, _) = clouds(1, 200), clouds(2, 300)
    costs = (0.001, 0.01, 0.1, 1.0, 10.0)
    search = GridSearchCV(
        LogisticRegression(max_iter=1000),
        {"C": costs},
        cv=StratifiedShuffleSplit(1, test_size=0.2, random_state=0),
    )
    pipeline = make_pipeline(StandardScaler(), search).fit(features, labels)
    ours = logistic_regression(
        features, labels, queries, num_classes=5, costs=costs, max_iterations=1000
    )
    assert ours.cost == search.best_params_["C"]
    assert ours.converged
    assert np.array_equal(ours.predictions, pipeline.predict(queries))
    np.testing.assert_allclose(
        ours.scores, pipeline.decision_function(queries), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("classes", [2, 12])
@pytest.mark.parametrize("top", [1, 2, 5])
def test_top_k_of_the_votes_is_scikit_learns(classes, top):
    (features, labels), (queries, truth) = (clouds(seed, 300, classes) for seed in (1, 2))
    near = nearest_neighbours(*(torch.from_numpy(array) for array in (features, queries)), k=100)
    for k in (10, 20, 100):
        reference = KNeighborsClassifier(
            k, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07)
        ).fit(features, labels)
        shares = reference.predict_proba(queries)
        votes = knn_votes(near, torch.from_numpy(labels), classes, k=k, temperature=0.07)
        given = votes.clamp_min(0).numpy()
        np.testing.assert_allclose(given / given.sum(axis=1, keepdims=True), shares, atol=1e-5)
        if top < classes:
            named = np.take_along_axis(shares, truth[:, None], axis=1)[:, 0] > 0
            places = np.argsort(-shares, axis=1, kind="stable")[:, :top]
            right = named & (places == truth[:, None]).any(axis=1)
            ours = topk_accuracy(votes, torch.from_numpy(truth), top)
            assert ours == pytest.approx(100 * right.mean())
            if k == 100:  # where every class that is right was named, scikit-learn says the same
                assert named.all()
                theirs = metrics.top_k_accuracy_score(truth, _scores(shares), k=top)
                assert ours == pytest.approx(100 * theirs)


def _scores(shares: np.ndarray) -> np.ndarray:
    """What scikit-learn's top-k takes: of two classes, those of the second."""
    return shares[:, 1] if shares.shape[1] == 2 else shares


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.standard_normal((200, 9)), rng.integers(9, size=200)
    predictions = scores.argmax(axis=1)
    for top in range(1, 9):
        ours = topk_accuracy(torch.from_numpy(scores), torch.from_numpy(labels), top)
        assert ours == pytest.approx(100 * metrics.top_k_accuracy_score(labels, scores, k=top))
    confusion = confusion_matrix(torch.from_numpy(predictions), torch.from_numpy(labels), 9)
    assert np.array_equal(confusion, metrics.confusion_matrix(labels, predictions))
    recall = metrics.recall_score(labels, predictions, average=None)
    np.testing.assert_allclose(per_class_accuracy(confusion), 100 * recall)
    a, b, images = most_confused(confusion, 1)[0]
    assert (
        images
        == ((labels == a) & (predictions == b)).sum()
        == (confusion - confusion.diag().diag()).max()
    )
