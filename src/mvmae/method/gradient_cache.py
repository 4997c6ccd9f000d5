"""The gradient of a batch that is larger than memory, from its parts, exactly.

The contrast compares every image with every other, so its gradient is no sum of the parts'
gradients. But it reaches the weights through the embeddings alone (GradCache, Gao et al. 2021,
arXiv 2101.06983): embed all parts without keeping anything, find the gradient of each embedding,
then pass each part again and send that gradient backward. Costs the encoder's forward pass twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.loader import Batch
from mvmae.method.model import View
from mvmae.method.terms import (
    blur_of,
    contrastive_term,
    on_device,
    rebuilt,
    reconstruction_term,
    with_sum,
)
from mvmae.training import distributed, precision


def parts_of(batch: Batch, config: PretrainConfig) -> list[slice]:
    """This process's images in parts of at most `micro_batch_size`."""
    count = batch.noise.shape[1]
    size = config.micro_batch_size or count
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def gradient_of_parts(
    model: nn.Module,
    batch: Batch,
    parts: list[slice],
    config: PretrainConfig,
    device: torch.device,
) -> tuple[View, dict[str, Tensor]]:
    """Add the gradient of the whole batch to the model's, part by part.

    Returns:
        All embeddings, with the predictions of the last part; of the whole batch the losses, and
        what the reconstruction is compared with.
    """
    objective = config.objective
    terms: dict[str, Tensor] = {}
    embedding = gradient = None
    if objective.contrastive_weight > 0:
        embedding = embedded(model, batch, parts, config, device)
        embedding.requires_grad_()
        terms["contrastive"] = contrastive_term(
            embedding, objective, batch.groups, config.views.num_views
        )
        (objective.contrastive_weight * terms["contrastive"]).backward()
        gradient = embedding.grad

    count = batch.noise.shape[1]
    errors, blurs = [], []
    for part in parts:
        images, noise = on_device(batch, config, device, part)
        with distributed.without_averaging(model, unless=part is parts[-1]):
            with precision.autocast(device, config.precision):
                view = model(images, noise, rebuild=rebuilt(objective))
            loss = view.embedding.new_zeros((), dtype=torch.float32)
            if objective.reconstruction_weight > 0:
                share = (part.stop - part.start) / count
                errors.append(share * reconstruction_term(view, objective))
                loss = loss + objective.reconstruction_weight * errors[-1]
                errors[-1] = errors[-1].detach()
                blurs.append(share * blur_of(view, config)["colour_error"])
            if gradient is not None:
                loss = (
                    loss
                    + (
                        view.embedding.float() * rows_of(gradient, part, config.views.num_views)
                    ).sum()
                )
            loss.backward()
    if errors:
        terms = {"reconstruction": torch.stack(errors).sum()} | terms
    if embedding is not None:
        view = view._replace(embedding=embedding.detach())
    losses = with_sum({name: term.detach() for name, term in terms.items()}, objective)
    if blurs:
        losses["colour_error"] = torch.stack(blurs).sum()
    return view, losses


@torch.no_grad()
def embedded(
    model: nn.Module,
    batch: Batch,
    parts: list[slice],
    config: PretrainConfig,
    device: torch.device,
) -> Tensor:
    """The embeddings of all views, first views first, in fp32."""
    views = []
    for part in parts:
        images, noise = on_device(batch, config, device, part)
        with precision.autocast(device, config.precision):
            view = model(images, noise, rebuild="none")
        views.append(view.embedding.float().unflatten(0, (len(batch.views), -1)))
    return torch.cat(views, dim=1).flatten(0, 1)


def rows_of(embedding: Tensor, part: slice, num_views: int) -> Tensor:
    """Of rows that are all first views, then all second views, those of a part of the images."""
    return embedding.unflatten(0, (num_views, -1))[:, part].flatten(0, 1)
