"""Find typical images, outliers and near-duplicates by the cosine similarity of features.

Vectors are compared in pieces, so that a million of them need no memory beyond themselves and the
result. Time grows with the square of their number.

Shapes: M images, D width, k neighbours.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor

from mvmae.metrics.knn import nearest_neighbours

NUM_NEIGHBOURS = 20  # as in TypiClust
PIECE = 4096  # vectors on each side of a block: 67 MB of cosines
MAX_PAIRS = 100_000
ROUNDING = 1e-5  # share of the features' norm that rounding leaves of equal vectors


class Pair(NamedTuple):
    """Two images with similar features."""

    first: int
    second: int
    """Larger than `first`."""

    cosine: float


def centre(features: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
    """Subtract the mean feature, so that cosines of any encoder are spread around 0.

    Features of masked autoencoders share a large constant part: cosines of different images reach
    0.9, so that no threshold separates copies. Features of equal images are returned unchanged,
    since only rounding would be left of them.
    """
    features = features.float()
    rest = features - features.double().mean(dim=0, keepdim=True).float()
    return features if rest.norm() <= ROUNDING * features.norm() else rest


def typicality(
    features: Float[Tensor, "M D"], k: int = NUM_NEIGHBOURS, *, device: torch.device | None = None
) -> Float[Tensor, " M"]:
    """Mean cosine of each vector to its `k` nearest others, or to all if there are fewer.

    Hacohen, Dekel and Weinshall (2022, equation 4) call an image typical if the mean distance of
    its self-supervised features to their nearest neighbours is small. For vectors of length 1 the
    squared distance is 2 - 2 cosine, so cosines give nearly the same ranking on a familiar scale.
    The cosine to the mean of all would favour images between classes that resemble nothing.

    Args:
        features: Vectors to compare.
        k: Number of neighbours.
        device: Where to compute. Default: the device of `features`. The result is on the CPU.

    Returns:
        Values in [-1, 1]; 0 for a vector that is alone.
    """
    if len(features) < 2:
        return torch.zeros(len(features))
    near = nearest_neighbours(features, features, k + 1, device=device).similarity
    # The nearest is the vector itself or an equal one, whose cosine is the same.
    return near[:, 1:].mean(dim=1).clamp(-1, 1)


def near_duplicates(
    features: Float[Tensor, "M D"],
    threshold: float,
    *,
    limit: int = MAX_PAIRS,
    device: torch.device | None = None,
) -> list[Pair]:
    """Find all pairs whose cosine is at least `threshold`, most similar first.

    Args:
        features: Vectors to compare.
        threshold: Smallest cosine of a pair.
        limit: Number of pairs to keep, the most similar ones. Without a limit, n equal vectors
            would give n (n - 1) / 2 pairs.
        device: Where to compute. Default: the device of `features`.
    """
    device = device or features.device
    best, count = (torch.empty(0), torch.empty(0, 2, dtype=torch.int64)), len(features)
    # The upper triangle of the matrix of all pairs, in blocks.
    for row, column in combinations_with_replacement(range(0, count, PIECE), 2):
        left, right = (
            F.normalize(features[at : at + PIECE].to(device).float(), dim=1) for at in (row, column)
        )
        cosines = (left @ right.T).clamp(-1, 1)
        if row == column:  # each pair once, and no vector paired with itself
            cosines = cosines.masked_fill(
                torch.ones_like(cosines, dtype=torch.bool).tril(), -torch.inf
            )
        places = (cosines >= threshold).nonzero()
        values = cosines[places[:, 0], places[:, 1]]
        kept = values.sort(descending=True, stable=True).indices[:limit]
        found = values[kept].cpu(), places[kept].cpu() + torch.tensor([row, column])
        best = _merge(best, found, limit)
    return [
        Pair(first, second, cosine)
        for cosine, (first, second) in zip(best[0].tolist(), best[1].tolist(), strict=True)
    ]


def spanning_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """Keep the pairs that connect images not yet connected by more similar pairs (Kruskal 1956).

    Of the n (n - 1) / 2 pairs of a group of n similar images, n - 1 remain.
    """
    groups = DisjointSet(image for pair in pairs for image in (pair.first, pair.second))
    return [pair for pair in pairs if groups.merge(pair.first, pair.second)]


def _merge(
    best: tuple[Tensor, Tensor], more: tuple[Tensor, Tensor], limit: int
) -> tuple[Tensor, Tensor]:
    """Keep the largest cosines of both; of equal ones, those with the smallest indices."""
    if not len(more[0]):
        return best
    values, places = (torch.cat(both) for both in zip(best, more, strict=True))
    order = places[:, 1].argsort(stable=True)
    order = order[places[order, 0].argsort(stable=True)]
    order = order[values[order].argsort(descending=True, stable=True)][:limit]
    return values[order], places[order]
