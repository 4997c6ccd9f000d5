"""Is the pre-training working: what to watch, and what it means in plain words.

Shapes: B images, D embedding width, N and M patches, P = p * p * C numbers in a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mvmae.errors import counted


def chance_level(num_images: int, groups: Int[Tensor, " N"] | None = None) -> float:
    """NT-Xent of a model that cannot tell images apart: log(2N - 1) candidates.

    Args:
        num_images: N.
        groups: Images with the same number are no candidates for each other. The mean then.
    """
    if groups is None:
        return log(2 * num_images - 1)
    _, of, sizes = groups.unique(return_inverse=True, return_counts=True)
    return (2 * (num_images - sizes[of].double()) + 1).log().mean().item()


def effective_rank(z: Float[Tensor, "B D"]) -> float:
    """Directions that the embeddings use: the exponential of the entropy of singular values.

    RankMe (Garrido et al. 2023), of the centred embeddings, so that a constant counts for none.
    1 is a collapse to a line; the most is the smaller of B and D.
    """
    singular = torch.linalg.svdvals((z - z.mean(dim=0)).double())
    share = singular / singular.sum().clamp_min(1e-12)
    return torch.special.entr(share).sum().exp().item()


def contrast_health(
    z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"], groups: Int[Tensor, " B"] | None = None
) -> dict[str, float]:
    """How alike two views of one image are, and views of different images (mean cosines).

    Also how often a view's partner is the nearest of all 2B - 1 others (percent), and the
    effective rank.

    Args:
        z1: Embeddings of the first views.
        z2: Embeddings of the second views, row by row of the same images.
        groups: Images with the same number are not compared. Default: all are.
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
    """Squared error of filling each patch with its average colour: the best that a blur could do.

    Args:
        target: Patches to be rebuilt; channels run fastest.
        channels: C. Each has a mean of its own.
    """
    return target.unflatten(-1, (-1, channels)).var(dim=-2, unbiased=False).mean()


class Verdict(NamedTuple):
    """What the numbers mean."""

    status: Literal["good", "weak", "collapsed"]
    sentence: str


FEW_IMAGES = 8  # that are compared: each of so few is easily told from the others
FEW_STEPS = 20  # of the optimiser


def verdict(
    metrics: Mapping[str, float], width: int, channels: int = 3, steps: int | None = None
) -> Verdict:
    """Read the last line of metrics as a person would.

    Args:
        metrics: `contrastive`, `chance`, the four of `contrast_health`, `reconstruction` and
            `colour_error`, as far as the run has them.
        width: Width of the embeddings.
        channels: Of the images.
        steps: That were trained; of fewer than `FEW_STEPS` nothing good is said. Default: enough.
    """
    said, status = [], "good"
    if "contrastive" in metrics:
        status, words = _contrast_words(metrics, width)
        said.append(words)
    if filled := filled_with(metrics, channels):
        share = rebuilt_share(metrics)
        said.append(f"masked patches are rebuilt with {share:.0%} of the error of {filled}")
        if share >= 1:
            said[-1] += ", and no better than that yet"
            if "contrastive" not in metrics:  # which is there to say whether it learns
                status = "weak"
    elif "reconstruction" in metrics:
        said.append("the patches have one colour each, so there is nothing to rebuild")
        status = status if "contrastive" in metrics else "weak"
    if steps is not None and steps < FEW_STEPS:
        said.append(f"but after {counted(steps, 'step')} of training that says little")
        status = "weak" if status == "good" else status
    return Verdict(status, "; ".join(said))


BLURS = ("colour_error", "mean_error")  # the latter of runs before there was the former


def rebuilt_share(metrics: Mapping[str, float]) -> float:
    """The reconstruction's error as a share of what needs no structure.

    That is each patch's average colour. It is not much to stay above it for a while: the average
    colour is the hidden patch's own, which the decoder has to guess.
    """
    return metrics["reconstruction"] / max(_blur(metrics), 1e-12)


def filled_with(metrics: Mapping[str, float], channels: int) -> str:
    """What `rebuilt_share` compares with, in words; empty where there is nothing to compare."""
    if "reconstruction" not in metrics or _blur(metrics) <= 0:
        return ""
    if channels == 1:
        return "filling each with its mean"
    if "colour_error" not in metrics:  # the variance over all pixels and channels of a patch
        return "filling each with one gray value"
    return "filling each with its average colour"


def _blur(metrics: Mapping[str, float]) -> float:
    return next((metrics[name] for name in BLURS if name in metrics), 0.0)


def is_collapsed(metrics: Mapping[str, float]) -> bool:
    """Whether different images are embedded alike, and the loss says so too."""
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
        return "weak", f"{numbers}: no other image of the batch was of another group"
    if loss > 0.8 * chance:
        return "weak", f"{numbers}: it hardly tells images apart yet; train longer"
    if chance < chance_level(FEW_IMAGES):
        return "weak", f"{numbers}: so few images are easily told apart; a larger batch says more"
    return "good", numbers
