import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mvmae.metrics.knn import knn_predictions
from mvmae.metrics.linear import logistic_predictions

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
    ours = logistic_predictions(features, labels, queries, costs=costs, max_iterations=1000)
    assert ours.cost == search.best_params_["C"]
    assert ours.converged
    assert np.array_equal(ours.predictions, pipeline.predict(queries))
