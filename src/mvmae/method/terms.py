"""A batch to what the model takes, and what it makes of it to the losses (equation 7).

Shapes: B images, R rows of all views, M rebuilt patches, P numbers in a patch, E width of the
embedding.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.data.reading.loader import Batch
from mvmae.method import health
from mvmae.method.augmentations import in_other_colours
from mvmae.method.losses import normalize_patches, nt_xent, reconstruction_loss
from mvmae.method.model import Rebuild, View
from mvmae.method.views import normalized
from mvmae.training import distributed


def on_device(
    batch: Batch, config: PretrainConfig, device: torch.device, part: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Normalised views and their noise, first views first, of a part of the images."""
    mean, std = config.pixel_statistics
    images = moved(batch.views, part, device)
    if batch.colours is not None:
        colours = moved(batch.colours, part, device)
        images = in_other_colours(images, colours, config.views, config.model.in_channels)
    return normalized(images, mean, std, device), moved(batch.noise, part, device)


def moved(
    rows: Shaped[Tensor, "V B ..."], part: slice, device: torch.device
) -> Shaped[Tensor, "R ..."]:
    """Rows of a part of the images, first views first, on the device.

    To a GPU they are copied in a stream of their own, while the step before is still computed.
    Each view alone, since that is one stretch of pinned memory: from any other the copy would wait.
    """
    if device.type == "cpu" or rows.device.type == device.type:
        return rows[:, part].flatten(0, 1)
    copying, computing = _copying(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        copied = torch.cat([view[part].to(device, non_blocking=True) for view in rows])
    computing.wait_stream(copying)
    copied.record_stream(computing)  # or its memory could be given away before it is read
    return copied


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def rebuilt(objective: ObjectiveConfig) -> Rebuild:
    """The patches that the decoder is asked for."""
    return objective.reconstruct if objective.reconstruction_weight > 0 else "none"


def losses_of(
    view: View, objective: ObjectiveConfig, groups: Tensor | None = None, num_views: int = 2
) -> dict[str, Tensor]:
    """Equation 7 and its two terms, in fp32; a term of weight 0 is left out.

    The rows of `view` are the first views of all images, then the second views, and so on; `groups`
    has a number for each image, where some are no negatives of each other.
    """
    terms: dict[str, Tensor] = {}
    if objective.reconstruction_weight > 0:
        terms["reconstruction"] = reconstruction_term(view, objective)
    if objective.contrastive_weight > 0:
        embedding = view.embedding.float()
        terms["contrastive"] = contrastive_term(embedding, objective, groups, num_views)
    return with_sum(terms, objective)


def with_sum(terms: dict[str, Tensor], objective: ObjectiveConfig) -> dict[str, Tensor]:
    """The terms, and first their weighted sum."""
    weights = {
        "reconstruction": objective.reconstruction_weight,
        "contrastive": objective.contrastive_weight,
    }
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return {"loss": loss, **terms}


def reconstruction_term(view: View, objective: ObjectiveConfig) -> Float[Tensor, ""]:
    """Equation 3 over the patches that were rebuilt."""
    assert view.prediction is not None
    return reconstruction_loss(view.prediction.float(), target_of(view, objective))


def target_of(view: View, objective: ObjectiveConfig) -> Float[Tensor, "R M P"]:
    """What the rebuilt patches should be."""
    assert view.target is not None
    return normalize_patches(view.target) if objective.normalize_targets else view.target


@torch.no_grad()
def blur_of(view: View, config: PretrainConfig) -> dict[str, Tensor]:
    """What `health` compares the reconstruction with, where there is one."""
    if config.objective.reconstruction_weight == 0:
        return {}
    target = target_of(view, config.objective)
    return {"colour_error": health.colour_error(target, config.model.in_channels)}


def contrastive_term(
    embedding: Float[Tensor, "R E"],
    objective: ObjectiveConfig,
    groups: Int[Tensor, " B"] | None,
    num_views: int = 2,
) -> Float[Tensor, ""]:
    """Equation 6, over the images of all processes.

    Of more than two views the mean over all pairs of them (Tian et al. 2020, Contrastive multiview
    coding, "full graph"), each with the images of its two views alone: chance stays the same.
    """
    views = embedding.chunk(num_views)
    everywhere = [distributed.gather_rows(view) for view in views]
    all_groups = None if groups is None else distributed.gather_rows(groups.to(embedding.device))
    losses = [
        nt_xent(
            views[one],
            views[other],
            temperature=objective.temperature,
            gathered=(everywhere[one], everywhere[other]),
            offset=distributed.rank() * len(views[one]),
            groups=all_groups,
        )
        for one, other in combinations(range(num_views), 2)
    ]
    return torch.stack(losses).mean()
