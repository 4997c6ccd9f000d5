"""The exact gradient of a batch that is larger than memory, from its parts.

The contrast compares every image with every other, so its gradient is not the sum of the parts'
gradients. But it reaches the weights only through the embeddings (GradCache, Gao et al. 2021, arXiv
2101.06983): embed all parts without keeping activations, find the gradient of each embedding, then
pass each part again and propagate that gradient. The cost is a second forward pass of the encoder.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.samples import Batch
from mvmae.method.inputs import model_inputs
from mvmae.method.losses import Term, compares_images, embedding_terms, equation_7, patch_terms
from mvmae.method.model import View
from mvmae.training import distributed, precision


def split_batch(batch: Batch, config: PretrainConfig) -> list[slice]:
    """Split this process's images into parts of at most `micro_batch_size`."""
    count = batch.noise.shape[1]
    size = config.micro_batch_size or count
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def backward(
    model: nn.Module,
    batch: Batch,
    parts: list[slice],
    config: PretrainConfig,
    device: torch.device,
) -> tuple[View, dict[str, Term]]:
    """Add the gradient of the whole batch to the model's, part by part.

    Returns:
        All embeddings, with the predictions of the last part; the terms of the whole batch.
    """
    objective, num_views = config.objective, config.views.num_views
    compared: dict[str, Term] = {}
    embedding = embedding_gradient = None
    if compares_images(objective):
        embedding = embed_parts(model, batch, parts, config, device).requires_grad_()
        compared = embedding_terms(embedding, objective, num_views, batch.groups)
        (embedding_gradient,) = torch.autograd.grad(equation_7(compared), embedding)

    summed: dict[str, Term] = {}
    view = View(torch.empty(0))
    for part in parts:
        images, noise = model_inputs(batch, config, device, part)
        with distributed.without_averaging(model, unless=part is parts[-1]):
            with precision.autocast(device, config.precision):
                view = model(images, noise, rebuild=objective.rebuild)
            terms = patch_terms(view, objective, config.model.in_channels)
            share = (part.stop - part.start) / batch.noise.shape[1]
            loss = share * equation_7(terms) if terms else torch.zeros((), device=device)
            if embedding_gradient is not None:
                # The derivative of this product is the gradient found above.
                gradient = rows_of(embedding_gradient, part, num_views)
                loss = loss + (view.embedding.float() * gradient).sum()
            loss.backward()
        for name, (weight, value) in terms.items():
            before = summed[name].value if name in summed else 0.0
            summed[name] = Term(weight, before + share * value.detach())
    if embedding is not None:
        view = view._replace(embedding=embedding.detach())
    return view, summed | compared


@torch.no_grad()
def embed_parts(
    model: nn.Module,
    batch: Batch,
    parts: list[slice],
    config: PretrainConfig,
    device: torch.device,
) -> Float[Tensor, "R D"]:
    """Embed all views part by part, in fp32, all first views first."""
    embeddings = []
    for part in parts:
        images, noise = model_inputs(batch, config, device, part)
        with precision.autocast(device, config.precision):
            view = model(images, noise, rebuild="none")
        embeddings.append(view.embedding.float().unflatten(0, (len(batch.views), -1)))
    return torch.cat(embeddings, dim=1).flatten(0, 1)


def rows_of(rows: Float[Tensor, "R D"], part: slice, num_views: int) -> Float[Tensor, "r D"]:
    """Rows of some images, from rows that hold all first views, then all second views."""
    return rows.unflatten(0, (num_views, -1))[:, part].flatten(0, 1)
