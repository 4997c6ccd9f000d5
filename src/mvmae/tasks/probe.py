"""Linear probe: how well a linear classifier on frozen features tells classes apart."""

from __future__ import annotations

from mvmae.config import ProbeConfig
from mvmae.metrics.linear import logistic_predictions
from mvmae.tasks import evaluation
from mvmae.tasks.evaluation import Judged, Score

PIXEL_SIDE = 16  # to which images shrink as raw pixels: 768 numbers, a fit of seconds


def run(config: ProbeConfig) -> None:
    """Print and keep the linear-probe accuracy of an encoder, an untrained one and raw pixels.

    Raises:
        UserError: The encoder or the labelled images cannot be read.
    """
    opened, data = evaluation.open_both(config)
    judged = list(evaluation.rows(config, opened, data, pixel_side=PIXEL_SIDE))
    scores = [score(row, config) for row in judged]
    title = f"linear probe on {config.data} (logistic regression, L2 chosen on a fifth)"
    evaluation.report(config, data, judged, scores, verb="probe", title=title, headline=opened.pool)


def score(judged: Judged, config: ProbeConfig) -> Score:
    """Accuracy of each token's features, with the strength of L2 that was chosen."""
    accuracy, notes = {}, {}
    for token in judged.tokens:
        train, test = evaluation.features_of(judged, token)
        result = logistic_predictions(
            train.numpy(),
            judged.train.labels.numpy(),
            test.numpy(),
            costs=config.costs,
            max_iterations=config.max_iterations,
        )
        right = result.predictions == judged.test.labels.numpy()
        accuracy[token] = round(100 * float(right.mean()), 4)
        notes[token] = {"cost": result.cost, "converged": result.converged}
    return Score(judged.name, accuracy, notes)
