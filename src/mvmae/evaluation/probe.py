"""Run `mvmae probe`: how well a linear classifier on frozen features separates classes."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mvmae.config.evaluation import ProbeConfig
from mvmae.evaluation import probe_mae, shared
from mvmae.evaluation.result_text import Row
from mvmae.evaluation.shared import Candidate, Method, Setting
from mvmae.metrics.linear import logistic_regression

PIXEL_SIDE = 16  # 768 numbers for colour, so that a fit takes seconds


def run(config: ProbeConfig) -> int:
    """Print and write the linear-probe accuracy of an encoder and its baselines.

    Returns:
        0; 130 or 143 if MAE's protocol was stopped by SIGINT or SIGTERM, with its state saved.

    Raises:
        UserError: The encoder or the labelled images cannot be read.
    """
    if config.protocol == "mae":
        return probe_mae.run(config)
    shared.evaluate(config, probe_method(config))
    return 0


def probe_method(config: ProbeConfig) -> Method:
    """Score by logistic regression on each token."""

    def score(candidate: Candidate, setting: Setting) -> Iterator[tuple[Row, Float[Tensor, "Q K"]]]:
        for token, (train, test) in shared.vectors_by_token(candidate).items():
            fit = logistic_regression(
                train.numpy(),
                candidate.train.labels.numpy(),
                test.numpy(),
                num_classes=len(setting.data.test.classes),
                costs=config.costs,
                max_iterations=config.max_iterations,
            )
            scores, labels = torch.from_numpy(fit.scores), candidate.test.labels
            notes = {"cost": fit.cost, "converged": fit.converged}
            yield shared.score_row(candidate.name, token, scores, labels, **notes), scores

    title = f"linear probe on {config.data} (logistic regression, L2 chosen on a fifth)"
    return Method("probe", title, PIXEL_SIDE, score)
