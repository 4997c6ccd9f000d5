"""Classification by nearest neighbours.

Shapes: M labelled vectors, Q queries, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 1024  # queries at a time: with 1.28 M labelled vectors, 5 GB of similarities


def knn_predictions(
    features: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    queries: Float[Tensor, "Q D"],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Int[Tensor, " Q"]:
    """The class that each query's `k` most similar labelled vectors vote for.

    Similarity is the cosine; a vote weighs exp(similarity / temperature), as in InstDisc (Wu et al.
    2018) and DINO. With fewer than `k` vectors all of them vote.
    """
    features, queries = F.normalize(features, dim=1), F.normalize(queries, dim=1)
    num_classes = int(labels.max()) + 1
    predictions = []
    for chunk in queries.split(CHUNK):
        similarity, neighbours = (chunk @ features.T).topk(min(k, len(features)), dim=1)
        votes = similarity.new_zeros(len(chunk), num_classes)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # the nearest weighs 1
        votes.scatter_add_(1, labels[neighbours], weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def top1(predictions: Int[Tensor, " Q"], labels: Int[Tensor, " Q"]) -> float:
    """Share of right predictions, in percent."""
    return 100 * (predictions == labels).float().mean().item()
