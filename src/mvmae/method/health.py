"""Health of pre-training: what to measure, and what it means in plain words.

Shapes: B images, D embedding width, N and M patches, P = p * p * C numbers in a patch.
"""

from collections.abc import Mapping
from math import log
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mvmae.errors import pluralize


def chance_level(num_images: int, groups: Int[Tensor, " N"] | None = None) -> float:
    """NT-Xent of a model that cannot tell images apart: log(2N - 1), the number of candidates.

    Args:
        num_images: N.
        groups: Group of each image. Images of the same group are not candidates for each other, so
            the number of candidates varies, and the result is the mean over images. Default: each
            image is its own group.
    """
    if groups is None:
        return log(2 * num_images - 1)
    _, members, sizes = groups.unique(return_inverse=True, return_counts=True)
    return (2 * (num_images - sizes[members].double()) + 1).log().mean().item()


def effective_rank(z: Float[Tensor, "B D"]) -> float:
    """Number of dimensions that embeddings spread over: exp of their singular values' entropy.

    RankMe (Garrido et al. 2023) of the centred embeddings, so that a constant part does not count.
    1 is a collapse to a line; the maximum is the smaller of B and D.
    """
    singular = torch.linalg.svdvals((z - z.mean(dim=0)).double())
    share = singular / singular.sum().clamp_min(1e-12)
    return torch.special.entr(share).sum().exp().item()


def contrast_health(
    z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"], groups: Int[Tensor, " B"] | None = None
) -> dict[str, float]:
    """Measure how well embeddings tell images apart.

    Args:
        z1: Embeddings of the first views.
        z2: Embeddings of the second views of the same images.
        groups: Group of each image; images of the same group are not compared. Default: all are.

    Returns:
        `positive_similarity`: mean cosine similarity of the two views of an image.
        `negative_similarity`: mean cosine similarity of views of different images.
        `contrastive_top1`: how often a view's partner is its nearest candidate, in percent.
        `effective_rank`: that of all 2B embeddings.
    """
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    cosine = z @ z.T
    itself = torch.arange(len(z), device=z.device)
    partner = itself.roll(len(z1))
    group = itself % len(z1) if groups is None else groups.repeat(2)
    is_negative = group[:, None] != group
    positive = cosine[itself, partner]
    negative = cosine[is_negative].sum() / is_negative.sum().clamp_min(1)
    candidates = cosine.masked_fill(~is_negative, float("-inf"))
    candidates[itself, partner] = positive
    return {
        "positive_similarity": positive.mean().item(),
        "negative_similarity": negative.item(),
        "contrastive_top1": 100 * (candidates.argmax(dim=1) == partner).float().mean().item(),
        "effective_rank": effective_rank(torch.cat([z1, z2])),
    }


def colour_error(target: Float[Tensor, "B M P"], channels: int) -> Float[Tensor, ""]:
    """Mean squared error of filling each patch with its average colour, the best single colour.

    Args:
        target: Patches to reconstruct; channels run fastest.
        channels: C; each channel has its own average.
    """
    return target.unflatten(-1, (-1, channels)).var(dim=-2, unbiased=False).mean()


class Verdict(NamedTuple):
    """Whether a run works, in one word and one sentence."""

    status: Literal["good", "weak", "collapsed"]
    sentence: str


MIN_COMPARED = 8  # images in a batch; fewer are easy to tell apart
MIN_STEPS = 20  # of training, before anything is called good


def verdict(
    metrics: Mapping[str, float], width: int, channels: int = 3, steps: int | None = None
) -> Verdict:
    """Judge a run by the last record of its metrics.

    Args:
        metrics: `contrastive`, `chance`, all that `contrast_health` returns, `reconstruction` and
            `colour_error`. Those of a loss that the run does not have are missing.
        width: Width of the embeddings.
        channels: Channels of the images.
        steps: Steps trained; after fewer than `MIN_STEPS` nothing is called good. Default: at least
            that many.
    """
    sentences, status = [], "good"
    if "contrastive" in metrics:
        status, words = _contrast_words(metrics, width)
        sentences.append(words)
    if baseline := reconstruction_baseline(metrics, channels):
        share = reconstruction_share(metrics)
        sentences.append(f"masked patches are rebuilt with {share:.0%} of the error of {baseline}")
        if share >= 1:
            sentences[-1] += ", and no better than that yet"
            if "contrastive" not in metrics:  # nothing else shows whether it learns
                status = "weak"
    elif "reconstruction" in metrics:
        sentences.append("the patches have one colour each, so there is nothing to rebuild")
        status = status if "contrastive" in metrics else "weak"
    if steps is not None and steps < MIN_STEPS:
        sentences.append(f"but after {pluralize(steps, 'step')} of training that says little")
        status = "weak" if status == "good" else status
    return Verdict(status, "; ".join(sentences))


def reconstruction_share(metrics: Mapping[str, float]) -> float:
    """Error of the reconstruction divided by that of each patch's average colour.

    A run may stay above 1 for a while: the average colour belongs to the hidden patch itself, and
    the decoder has to guess it.
    """
    return metrics["reconstruction"] / max(metrics["colour_error"], 1e-12)


def reconstruction_baseline(metrics: Mapping[str, float], channels: int) -> str:
    """Name what `reconstruction_share` compares with; empty if nothing can be compared."""
    if "reconstruction" not in metrics or metrics.get("colour_error", 0.0) <= 0:
        return ""
    return "filling each with its mean" if channels == 1 else "filling each with its average colour"


def is_collapsed(metrics: Mapping[str, float]) -> bool:
    """Whether all images get nearly the same embedding.

    Either the embeddings vary along less than two dimensions, or views of different images are
    almost equal and the contrastive loss confirms it: it is close to its chance level.
    """
    return "contrastive" in metrics and (
        metrics["effective_rank"] < 2
        or (
            metrics["negative_similarity"] > 0.95
            and metrics["contrastive"] > 0.95 * metrics["chance"]
        )
    )


def _contrast_words(
    metrics: Mapping[str, float], width: int
) -> tuple[Literal["good", "weak", "collapsed"], str]:
    loss, chance = metrics["contrastive"], metrics["chance"]
    same, other = metrics["positive_similarity"], metrics["negative_similarity"]
    numbers = (
        f"contrast {loss:.2f} (chance {chance:.2f}), views of one image {same:.2f} alike, of "
        f"different images {other:.2f}, effective rank {metrics['effective_rank']:.0f} of {width}"
    )
    if is_collapsed(metrics):
        return "collapsed", f"{numbers}: all images look the same to the encoder"
    if chance <= 0:
        return "weak", f"{numbers}: no batch had images of two groups"
    if loss > 0.8 * chance:
        return "weak", f"{numbers}: it can hardly tell images apart yet; train longer"
    if chance < chance_level(MIN_COMPARED):
        remark = "so few images are easily told apart; a larger batch would say more"
        return "weak", f"{numbers}: {remark}"
    return "good", numbers
