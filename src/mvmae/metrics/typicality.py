"""Which images have many like them, which have none, and which are there twice.

All by cosines of features, a piece at a time: a million vectors need no more memory than they and
the result. Time grows with the square of their number.
Shapes: M images, D width, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mvmae.metrics.knn import nearest_neighbours

NUM_NEIGHBOURS = 20  # neighbours, as TypiClust's
PIECE = 4096  # vectors on either side of a block: 67 MB of cosines
MAX_PAIRS = 100_000
SAME = 1e-5  # of the features' length: what is left of equal ones is rounding


class Pair(NamedTuple):
    """Two images that look alike to an encoder."""

    first: int
    second: int
    """Larger than `first`."""

    cosine: float


def centre(features: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
    """Features less their mean, so that cosines of any encoder's spread about 0.

    Masked autoencoders' features share a large constant part: cosines of unlike images come to
    0.9, and no threshold tells a copy. Where nothing but rounding would be left, all images being
    one, the features stay as they are.
    """
    features = features.float()
    rest = features - features.double().mean(dim=0, keepdim=True).float()
    return features if rest.norm() <= SAME * features.norm() else rest


def typicality(
    features: Float[Tensor, "M D"], k: int = NUM_NEIGHBOURS, *, device: torch.device | None = None
) -> Float[Tensor, " M"]:
    """The mean cosine of each vector to its `k` nearest others, or to all where there are fewer.

    Hacohen, Dekel and Weinshall (2022, equation 4) call an image of self-supervised features
    typical when its mean distance to its nearest neighbours is small. On vectors of length 1 the
    squared distance is 2 - 2 cosine, so cosines rank nearly as distances do, and have a scale one
    knows. The cosine to the mean of all would call typical what lies between classes and is like
    nothing.

    Args:
        features: What is compared.
        k: Neighbours that count.
        device: Where to compute; default: where `features` are. The result is on the CPU.

    Returns:
        Values in [-1, 1]; 0 for a vector that is alone.
    """
    if len(features) < 2:
        return torch.zeros(len(features))
    near = nearest_neighbours(features, features, k + 1, device=device).similarity
    # The best is the vector itself, or one equal to it, whose cosine is the same.
    return near[:, 1:].mean(dim=1).clamp(-1, 1)


def near_duplicates(
    features: Float[Tensor, "M D"],
    threshold: float,
    *,
    most: int = MAX_PAIRS,
    device: torch.device | None = None,
) -> list[Pair]:
    """All pairs whose cosine is at least `threshold`, the most alike first.

    Args:
        features: What is compared.
        threshold: Least cosine.
        most: Pairs that are kept, the best; equal vectors would make a square of their number.
        device: Where to compute; default: where `features` are.
    """
    device = device or features.device
    best = torch.empty(0), torch.empty(0, 2, dtype=torch.int64)
    for rows, columns in _blocks(len(features)):
        left, right = (_unit(features[part], device) for part in (rows, columns))
        cosines = (left @ right.T).clamp(-1, 1)
        if rows.start == columns.start:  # each pair once, and no vector with itself
            cosines = cosines.masked_fill(_lower(len(cosines), device), -torch.inf)
        found = _at_least(cosines, threshold, most)
        places = found[1].cpu() + torch.tensor([rows.start, columns.start])
        best = _merged(best, (found[0].cpu(), places), most)
    return [
        Pair(first, second, cosine)
        for cosine, (first, second) in zip(best[0].tolist(), best[1].tolist(), strict=True)
    ]


def spanning_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that join two images not yet joined by better ones (Kruskal 1956).

    Of a group of n images that are all alike n - 1 pairs remain of its n (n - 1) / 2.
    """
    above: dict[int, int] = {}

    def group(image: int) -> int:
        while image in above:
            image = above[image]
        return image

    kept = []
    for pair in pairs:
        first, second = sorted((group(pair.first), group(pair.second)))
        if first != second:
            above[second] = first
            kept.append(pair)
    return kept


def _blocks(count: int) -> Iterator[tuple[slice, slice]]:
    """The upper half of the square of all pairs, in blocks."""
    for row in range(0, count, PIECE):
        for column in range(row, count, PIECE):
            yield slice(row, row + PIECE), slice(column, column + PIECE)


def _unit(vectors: Float[Tensor, "m D"], device: torch.device) -> Float[Tensor, "m D"]:
    return F.normalize(vectors.to(device).float(), dim=1)


def _lower(side: int, device: torch.device) -> Tensor:
    return torch.ones(side, side, dtype=torch.bool, device=device).tril()


def _at_least(
    cosines: Float[Tensor, "m n"], threshold: float, most: int
) -> tuple[Float[Tensor, " p"], Tensor]:
    """The best cosines of a block that are large enough, and their rows and columns."""
    places = (cosines >= threshold).nonzero()
    values = cosines[places[:, 0], places[:, 1]]
    if len(values) > most:
        kept = values.sort(descending=True, stable=True).indices[:most]
        return values[kept], places[kept]
    return values, places


def _merged(
    best: tuple[Tensor, Tensor], more: tuple[Tensor, Tensor], most: int
) -> tuple[Tensor, Tensor]:
    """The best of both; among equals those of the smallest places."""
    if not len(more[0]):
        return best
    values, places = (torch.cat(both) for both in zip(best, more, strict=True))
    order = places[:, 1].argsort(stable=True)
    order = order[places[order, 0].argsort(stable=True)]
    order = order[values[order].argsort(descending=True, stable=True)][:most]
    return values[order], places[order]
