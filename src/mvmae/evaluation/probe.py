"""Linear probe: how well a linear classifier on frozen features tells classes apart."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mvmae.config.evaluation import ProbeConfig
from mvmae.evaluation import probe_mae, shared
from mvmae.evaluation.shared import Candidate, Row, Setting
from mvmae.metrics.accuracy import topk_accuracy
from mvmae.metrics.linear import logistic_regression

PIXEL_SIDE = 16  # to which images shrink as raw pixels: 768 numbers, a fit of seconds


def run(config: ProbeConfig) -> int:
    """Print and keep the linear-probe accuracy of an encoder, an untrained one and raw pixels.

    Returns:
        0; 130 or 143 when the protocol of MAE was stopped by SIGINT or SIGTERM, its state saved.

    Raises:
        UserError: The encoder or the labelled images cannot be read.
    """
    if config.protocol == "mae":
        return probe_mae.run(config)
    with shared.evaluation_setting(config) as setting:
        judge(config, setting)
    return 0


def judge(config: ProbeConfig, setting: Setting) -> None:
    """Score the encoder and its baselines; print and keep the accuracies."""
    rows, first = [], None
    for judged in shared.candidates(config, setting, pixel_side=PIXEL_SIDE):
        for row, scores in scored(judged, config, setting):
            rows.append(row)
            if first is None and row.token == setting.pool:
                first = row, scores.argmax(dim=1), (judged.train, judged.test)
    if first is None:  # in another process than the main one
        return
    headline, predictions, read = first
    title = f"linear probe on {config.data} (logistic regression, L2 chosen on a fifth)"
    shared.report(config, setting, rows, headline, predictions, read, command="probe", title=title)


def scored(
    judged: Candidate, config: ProbeConfig, setting: Setting
) -> Iterator[tuple[Row, Tensor]]:
    """A row for each token, with the strength of L2 that was chosen, and the scores."""
    for token, (train, test) in shared.vectors_by_token(judged).items():
        result = logistic_regression(
            train.numpy(),
            judged.train.labels.numpy(),
            test.numpy(),
            num_classes=len(setting.data.test.classes),
            costs=config.costs,
            max_iterations=config.max_iterations,
        )
        scores = torch.from_numpy(result.scores)
        one, five = (round(topk_accuracy(scores, judged.test.labels, n), 4) for n in (1, 5))
        notes = {"cost": result.cost, "converged": result.converged}
        yield Row(judged.name, token, one, five, notes), scores
