"""Classification by nearest neighbours (kNN).

Shapes: M labelled vectors, Q queries, D width, k neighbours, K classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

BANK, QUERIES = 65_536, 1_024  # vectors at a time: 268 MB of similarities for any M and Q


class Neighbours(NamedTuple):
    """The most similar labelled vectors of each query, nearest first."""

    similarity: Float[Tensor, "Q k"]
    """Cosine similarities."""

    indices: Int[Tensor, "Q k"]


def nearest_neighbours(
    features: Float[Tensor, "M D"],
    queries: Float[Tensor, "Q D"],
    k: int,
    *,
    device: torch.device | None = None,
) -> Neighbours:
    """Find the `k` vectors with the largest cosine similarity, or all if there are fewer.

    Both sides are processed in pieces, so that 1.28 million vectors and 50,000 queries need no
    memory beyond themselves and the result; the device holds one piece of each.

    Args:
        features: Vectors to search.
        queries: Vectors to find neighbours of.
        k: Neighbours of each query.
        device: Where to compute. Default: the device of `queries`. The result is on the CPU.
    """
    device = device or queries.device
    k = min(k, len(features))
    # The best so far of each query, merged with those of each piece.
    similarity = torch.full((len(queries), k), -torch.inf)
    indices = torch.zeros(len(queries), k, dtype=torch.int64)
    for begin in range(0, len(features), BANK):
        bank = F.normalize(features[begin : begin + BANK].to(device).float(), dim=1)
        for at in range(0, len(queries), QUERIES):
            rows = slice(at, at + QUERIES)
            chunk = F.normalize(queries[rows].to(device).float(), dim=1)
            near, places = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)
            both = torch.cat([similarity[rows], near.cpu()], dim=1)
            where = torch.cat([indices[rows], places.cpu() + begin], dim=1)
            similarity[rows], kept = both.topk(k, dim=1)
            indices[rows] = where.gather(1, kept)
    return Neighbours(similarity, indices)


def knn_votes(
    near: Neighbours,
    labels: Int[Tensor, " M"],
    num_classes: int,
    *,
    k: int,
    temperature: float,
) -> Float[Tensor, "Q K"]:
    """Sum the votes of each query's first `k` neighbours per class, scaled so the nearest's is 1.

    A vote weighs exp(similarity / temperature), as in InstDisc (Wu et al. 2018) and DINO. Classes
    without a neighbour have -inf.
    """
    similarity, indices = near.similarity[:, :k], near.indices[:, :k]
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = similarity.new_zeros(len(similarity), num_classes)
    votes.scatter_add_(1, labels[indices], weights)
    has_vote = torch.zeros_like(votes, dtype=torch.bool).scatter_(1, labels[indices], value=True)
    return votes.masked_fill(~has_vote, -torch.inf)


def knn_predictions(
    features: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    queries: Float[Tensor, "Q D"],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Int[Tensor, " Q"]:
    """Predict the class that each query's `k` nearest neighbours vote for."""
    near = nearest_neighbours(features, queries, k)
    num_classes = int(labels.max()) + 1
    return knn_votes(near, labels, num_classes, k=k, temperature=temperature).argmax(dim=1)


def top1_accuracy(predictions: Int[Tensor, " Q"], labels: Int[Tensor, " Q"]) -> float:
    """Percentage of correct predictions."""
    return 100 * (predictions == labels).float().mean().item()
