"""Nearest neighbours: how well an encoder's features tell classes apart without any training."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from mvmae.config.evaluation import KnnConfig
from mvmae.evaluation import shared
from mvmae.evaluation.shared import Candidate, Row, Setting
from mvmae.metrics.accuracy import topk_accuracy
from mvmae.metrics.knn import knn_votes, nearest_neighbours

PIXEL_SIDE = 32  # to which images shrink as raw pixels
USUAL_K = 20  # DINO's


def run(config: KnnConfig) -> None:
    """Print and keep the kNN accuracy of an encoder, an untrained one and raw pixels.

    Raises:
        UserError: The encoder or the labelled images cannot be read.
    """
    with shared.evaluation_setting(config) as setting:
        judge(config, setting)


def judge(config: KnnConfig, setting: Setting) -> None:
    """Score the encoder and its baselines; print and keep the accuracies."""
    counts = USUAL_K if USUAL_K in config.k else config.k[0]
    rows, first = [], None
    for judged in shared.candidates(config, setting, pixel_side=PIXEL_SIDE):
        for row, votes in scored(judged, config, setting):
            rows.append(row)
            if first is None and (row.token, row.notes["k"]) == (setting.pool, counts):
                first = row, votes.argmax(dim=1), (judged.train, judged.test)
    if first is None:  # in another process than the main one
        return
    headline, predictions, read = first
    title = f"kNN on {config.data} (votes weigh exp(similarity / {config.temperature:g}))"
    shared.report(config, setting, rows, headline, predictions, read, command="knn", title=title)


def scored(judged: Candidate, config: KnnConfig, setting: Setting) -> Iterator[tuple[Row, Tensor]]:
    """A row for each token and each number of neighbours, with the votes."""
    num_classes = len(setting.data.test.classes)
    for token, (train, test) in shared.vectors_by_token(judged).items():
        near = nearest_neighbours(train, test, max(config.k), device=setting.device)
        for k in config.k:
            votes = knn_votes(
                near, judged.train.labels, num_classes, k=k, temperature=config.temperature
            )
            one, five = (round(topk_accuracy(votes, judged.test.labels, n), 4) for n in (1, 5))
            yield Row(judged.name, token, one, five, {"k": k}), votes
