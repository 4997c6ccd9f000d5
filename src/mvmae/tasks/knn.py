"""Nearest neighbours: how well an encoder's features tell classes apart without any training."""

from __future__ import annotations

from mvmae.config import KnnConfig
from mvmae.metrics.knn import knn_predictions, top1
from mvmae.tasks import evaluation
from mvmae.tasks.evaluation import Judged, Score

PIXEL_SIDE = 32  # to which images shrink as raw pixels


def run(config: KnnConfig) -> None:
    """Print and keep the kNN accuracy of an encoder, an untrained one and raw pixels.

    Raises:
        UserError: The encoder or the labelled images cannot be read.
    """
    opened, data = evaluation.open_both(config)
    judged = list(evaluation.rows(config, opened, data, pixel_side=PIXEL_SIDE))
    scores = [score(row, config) for row in judged]
    k = min(config.k, len(judged[0].train.labels))
    title = f"kNN on {config.data} (k = {k}, temperature {config.temperature:g})"
    evaluation.report(config, data, judged, scores, verb="knn", title=title, headline=opened.pool)


def score(judged: Judged, config: KnnConfig) -> Score:
    """Accuracy of each token's features."""
    accuracy = {}
    for token in judged.tokens:
        train, test = evaluation.features_of(judged, token)
        predicted = knn_predictions(
            train, judged.train.labels, test, k=config.k, temperature=config.temperature
        )
        accuracy[token] = round(top1(predicted, judged.test.labels), 4)
    return Score(judged.name, accuracy, {})
