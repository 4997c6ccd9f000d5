"""Linear classification of frozen features by logistic regression.

Shapes: M training vectors, Q test vectors, D width, K classes.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

HELD_OUT_SHARE = 0.2


class LinearResult(NamedTuple):
    """A linear classifier's scores of the test vectors, and how it was fitted."""

    scores: Float[np.ndarray, "Q K"]
    """Logits; -inf for a class without a training vector."""

    cost: float
    """Inverse strength of L2 that was best on the held-out fifth."""

    converged: bool

    @property
    def predictions(self) -> Int[np.ndarray, " Q"]:
        """The class of largest score."""
        return self.scores.argmax(axis=1)


def logistic_regression(
    features: Float[np.ndarray, "M D"],
    labels: Int[np.ndarray, " M"],
    queries: Float[np.ndarray, "Q D"],
    *,
    num_classes: int,
    costs: Sequence[float],
    max_iterations: int = 200,
) -> LinearResult:
    """Fit multinomial logistic regression with L2: scikit-learn's L-BFGS, standardised features.

    The inverse strength of L2 is the best of `costs` on a fifth of the training vectors, held out
    by class with a fixed seed; the classifier is then fitted to all of them. Test vectors take no
    part in the choice. If all training vectors have one class, it is predicted for every query.
    """
    scores = np.full((len(queries), num_classes), -np.inf, dtype=np.float32)
    if len(np.unique(labels)) == 1:
        scores[:, labels[0]] = 0
        return LinearResult(scores, costs[len(costs) // 2], True)
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    x, test = (features - mean) / deviation, (queries - mean) / deviation
    cost = costs[0] if len(costs) == 1 else _best_cost(x, labels, costs, max_iterations)
    classifier, converged = _fit(x, labels, cost, max_iterations)
    logits = classifier.decision_function(test)
    if logits.ndim == 1:  # scikit-learn gives one column for two classes
        logits = np.stack([-logits, logits], axis=1) / 2
    scores[:, classifier.classes_] = logits
    return LinearResult(scores, cost, converged)


def _best_cost(
    x: np.ndarray, labels: np.ndarray, costs: Sequence[float], max_iterations: int
) -> float:
    """Choose the inverse strength of L2 on held-out training vectors."""
    try:
        parts = train_test_split(
            x, labels, test_size=HELD_OUT_SHARE, random_state=0, stratify=labels
        )
    except ValueError:  # a class of one image, or fewer held-out images than classes
        parts = train_test_split(x, labels, test_size=HELD_OUT_SHARE, random_state=0)
    fit_x, held_x, fit_labels, held_labels = parts
    # A random fifth may hold all images of one of two classes.
    if len(np.unique(fit_labels)) < 2:
        return costs[len(costs) // 2]
    scores = []
    for cost in costs:
        classifier, _ = _fit(fit_x, fit_labels, cost, max_iterations)
        scores.append(classifier.score(held_x, held_labels))
    return costs[int(np.argmax(scores))]


def _fit(
    x: np.ndarray, labels: np.ndarray, cost: float, max_iterations: int
) -> tuple[LogisticRegression, bool]:
    """Fit a classifier, and return whether it converged."""
    classifier = LogisticRegression(C=cost, max_iter=max_iterations)
    # BLAS threads spin while they wait for each other: on two busy cores a fit took 17 s with two
    # threads and 2 s with one.
    with threadpool_limits(limits=1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier.fit(x, labels)
    return classifier, not any(issubclass(w.category, ConvergenceWarning) for w in caught)
