"""Run `mvmae knn`: how well an encoder's features separate classes, without any training.

Shapes: Q test images, K classes.
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from mvmae.config.evaluation import KnnConfig
from mvmae.evaluation import shared
from mvmae.evaluation.result_text import Row
from mvmae.evaluation.shared import Candidate, Method, Setting
from mvmae.metrics.knn import knn_votes, nearest_neighbours

PIXEL_SIDE = 32  # images shrunk to this side are the raw-pixel baseline
USUAL_K = 20  # as in DINO


def run(config: KnnConfig) -> None:
    """Print and write the kNN accuracy of an encoder, the same one untrained, and raw pixels.

    Raises:
        UserError: The encoder or the labelled images cannot be read.
    """
    shared.evaluate(config, knn_method(config))


def knn_method(config: KnnConfig) -> Method:
    """Return a method that scores by votes of the nearest training images, for each of `config.k`.

    The headline is the score with `USUAL_K` neighbours, or with the first of `config.k`.
    """

    def score(candidate: Candidate, setting: Setting) -> Iterator[tuple[Row, Float[Tensor, "Q K"]]]:
        num_classes = len(setting.data.test.classes)
        train_labels, labels = candidate.train.labels, candidate.test.labels
        for token, (train, test) in shared.vectors_by_token(candidate).items():
            near = nearest_neighbours(train, test, max(config.k), device=setting.device)
            for k in config.k:
                votes = knn_votes(
                    near, train_labels, num_classes, k=k, temperature=config.temperature
                )
                yield shared.score_row(candidate.name, token, votes, labels, k=k), votes

    return Method(
        "knn",
        f"kNN on {config.data} (votes weigh exp(similarity / {config.temperature:g}))",
        PIXEL_SIDE,
        score,
        headline_notes={"k": USUAL_K if USUAL_K in config.k else config.k[0]},
    )
