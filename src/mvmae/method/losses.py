"""Equation 7 of the paper: its two losses (section 3.2), their weights and their sum.

To add a term, add its weight to `ObjectiveConfig` and a line to `patch_terms` or `embedding_terms`:
whole batches and micro-batches both take their losses from here.

Shapes: B images, V views, R = V * B rows (all first views, then all second views), N patches, M
reconstructed patches, P numbers in a patch, D embedding width, G rows over all processes.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mvmae.config.pretrain import ObjectiveConfig
from mvmae.method import health
from mvmae.method.model import View
from mvmae.training import distributed


class Term(NamedTuple):
    """One term of equation 7."""

    weight: float
    """Factor in the sum. 0: measured and logged, but not trained."""

    value: Float[Tensor, ""]
    """In fp32."""


def equation_7(terms: Mapping[str, Term]) -> Float[Tensor, ""]:
    """Return the weighted sum of the terms, in the order given. No other code adds losses."""
    # One stacked sum in a fixed order: adding term by term would round differently, and a run must
    # give the same bits for whole batches and micro-batches, and after a resume.
    return torch.stack([weight * value for weight, value in terms.values() if weight]).sum()


def patch_terms(view: View, objective: ObjectiveConfig, channels: int) -> dict[str, Term]:
    """Compute the terms that are means over rows; micro-batches average them by their sizes.

    Args:
        view: The model's output, with predictions unless the reconstruction has weight 0.
        objective: Weights, and whether target patches are normalised.
        channels: Channels of the images.

    Returns:
        Terms by name; none if the reconstruction has weight 0.
    """
    if objective.reconstruction_weight == 0:
        return {}
    assert view.prediction is not None
    assert view.target is not None
    target = normalize_patches(view.target) if objective.normalize_targets else view.target
    error = reconstruction_loss(view.prediction.float(), target)
    with torch.no_grad():
        colour_error = health.colour_error(target, channels)
    return {
        "reconstruction": Term(objective.reconstruction_weight, error),
        # A baseline: the error of predicting each patch's average colour.
        "colour_error": Term(0.0, colour_error),
    }


def compares_images(objective: ObjectiveConfig) -> bool:
    """Whether `embedding_terms` returns a term."""
    return objective.contrastive_weight > 0


def embedding_terms(
    embedding: Float[Tensor, "R D"],
    objective: ObjectiveConfig,
    num_views: int,
    groups: Int[Tensor, " B"] | None = None,
) -> dict[str, Term]:
    """Compute the terms that compare images, over the images of all processes.

    With more than two views, NT-Xent is the mean over all pairs of views (Tian et al. 2020,
    Contrastive multiview coding, "full graph"), so that its chance level stays the same.

    Args:
        embedding: Embeddings of this process's rows, in fp32.
        objective: Weights and temperature.
        num_views: Number of views V.
        groups: Group number of each image; images of one group are not negatives of each other.

    Returns:
        Terms by name; none if the contrast has weight 0.
    """
    terms: dict[str, Term] = {}
    if objective.contrastive_weight > 0:
        views = embedding.chunk(num_views)
        gathered = [distributed.gather_rows(view) for view in views]
        if groups is not None:
            groups = distributed.gather_rows(groups.to(embedding.device))
        losses = [
            nt_xent(
                views[i],
                views[j],
                temperature=objective.temperature,
                gathered=(gathered[i], gathered[j]),
                offset=distributed.rank() * len(views[i]),
                groups=groups,
            )
            for i, j in combinations(range(num_views), 2)
        ]
        terms["contrastive"] = Term(objective.contrastive_weight, torch.stack(losses).mean())
    # With micro-batches, the whole batch is embedded first only if `compares_images` is true. A new
    # term that it does not know of would silently get no gradient.
    assert bool(terms) == compares_images(objective)
    return terms


def normalize_patches(patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
    """Give each patch mean 0 and variance 1.

    The targets of MAE's released weights (`norm_pix_loss` in facebookresearch/mae): unbiased
    variance, with 1e-6 added under the root. The paper's equation 3 uses the pixels themselves.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def reconstruction_loss(
    prediction: Float[Tensor, "B N P"],
    target: Float[Tensor, "B N P"],
    mask: Float[Tensor, "B N"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error over patches (equation 3).

    The equation as printed sums over pixels. Such a sum is so large that the contrast would have no
    effect with the paper's lambda, 0.1 to 2. As in MAE this is the mean over pixels, then patches.

    Args:
        prediction: Decoder output.
        target: Patches of the view before masking.
        mask: 1 where a patch was hidden from the encoder. With a mask only hidden patches
            count, as in MAE; without one every patch counts, as in equation 3.
    """
    error_BN = (prediction - target).square().mean(dim=-1)
    if mask is None:
        return error_BN.mean()
    return (error_BN * mask).sum() / mask.sum()


def nt_xent(
    z1: Float[Tensor, "B D"],
    z2: Float[Tensor, "B D"],
    *,
    temperature: float = 0.07,
    gathered: tuple[Float[Tensor, "G D"], Float[Tensor, "G D"]] | None = None,
    offset: int = 0,
    groups: Int[Tensor, " G"] | None = None,
) -> Float[Tensor, ""]:
    """Normalised temperature-scaled cross-entropy between two views.

    Row i of `z1` and row i of `z2` are two views of one image, contrasted with the 2(G-1) views of
    other images (equations 4 to 6). Equation 4 as printed leaves the exponential out of the
    denominator; this follows SimCLR (Chen et al. 2020), which the paper cites.

    Args:
        z1: Embeddings of the first views; any norm, as they are normalised here.
        z2: Embeddings of the second views.
        temperature: Divides the cosine similarities.
        gathered: Both views' embeddings of all processes, this one included. Default: this
            process only.
        offset: Row of `gathered` where this process's embeddings start.
        groups: Group number of each row of all processes. Images of one group, such as those of one
            patient, are left out of each other's denominator: they are neither negatives nor
            positives, and only images of other groups are negatives. Default: each image is its own
            group.
    """
    all1, all2 = gathered if gathered is not None else (z1, z2)
    z1, z2, all1, all2 = (F.normalize(z, dim=-1) for z in (z1, z2, all1, all2))
    positive = torch.arange(len(z1), device=z1.device) + offset
    is_own = F.one_hot(positive, len(all1)).bool()  # an embedding is not its own negative
    same_group = is_own if groups is None else groups[positive, None] == groups  # B x G

    def one_direction(query: Tensor, same_view: Tensor, other_view: Tensor) -> Tensor:
        # The logarithm of the softmax's denominator runs over the other view of the image (the
        # positive), the other view of other images, and the same view of other images.
        same = (query @ same_view.T).masked_fill(same_group, float("-inf"))  # B x G
        other = query @ other_view.T  # B x G, the positive in column i + offset
        if groups is not None:
            other = other.masked_fill(same_group & ~is_own, float("-inf"))
        logits = torch.cat([other, same], dim=1) / temperature
        return F.cross_entropy(logits, positive)  # equation 4, averaged over images

    return (one_direction(z1, all1, all2) + one_direction(z2, all2, all1)) / 2  # equation 6
