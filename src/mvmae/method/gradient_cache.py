"""The exact gradient of a batch that is larger than memory, from its parts.

The contrast compares every image with every other, so its gradient is not the sum of the parts'
gradients. But it reaches the weights only through the embeddings (GradCache, Gao et al. 2021, arXiv
2101.06983). So embed all parts without keeping activations, find the gradient of each embedding,
then encode each part again and propagate that gradient. The cost is a second forward pass of the
encoder.

Shapes: V views, R = V * B rows of this process's batch, D embedding width.
"""

import torch
from torch import nn

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.loader import Batch
from mvmae.method.inputs import model_inputs
from mvmae.method.losses import Term, compares_images, embedding_terms, equation_7, patch_terms
from mvmae.method.model import Rebuild, View
from mvmae.training import distributed, precision


def split_batch(batch: Batch, config: PretrainConfig) -> list[slice]:
    """Split this process's images into slices of at most `micro_batch_size`."""
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
    """Accumulate the gradient of the whole batch in the model's parameters, part by part.

    Args:
        model: A `MaskedAutoencoder`, wrapped or not.
        batch: Images of this process.
        parts: Slices of the images, from `split_batch`.
        config: Options of the run.
        device: Device of this process.

    Returns:
        All embeddings, with the predictions of the last part only; the terms of the whole batch.
    """
    objective, num_views = config.objective, config.views.num_views

    def forward(part: slice, rebuild: Rebuild) -> View:
        images, noise = model_inputs(batch, config, device, part)
        with precision.autocast(device, config.precision):
            return model(images, noise, rebuild=rebuild)

    contrast_terms: dict[str, Term] = {}
    embedding_gradient = embedding = None
    if compares_images(objective):
        # 1. Embed all parts, and keep nothing else. Each has V * (images in the part) rows.
        with torch.no_grad():
            embeddings = [forward(part, "none").embedding.float() for part in parts]
        by_view = [rows.unflatten(0, (num_views, -1)) for rows in embeddings]  # V x images x D
        embedding = torch.cat(by_view, dim=1).flatten(0, 1).requires_grad_()  # R x D
        # 2. Compute the contrast over the whole batch, and its gradient for each embedding.
        contrast_terms = embedding_terms(embedding, objective, num_views, batch.groups)
        (embedding_gradient,) = torch.autograd.grad(equation_7(contrast_terms), embedding)

    # 3. Encode each part again, now with activations. The reconstruction is a mean over rows, so
    # the gradients of the parts add up, weighted by their shares of the batch.
    patch_sums: dict[str, Term] = {}
    view = View(torch.empty(0))
    for part in parts:
        # The processes average their gradients once per batch, in the last part's backward pass.
        with distributed.without_averaging(model, unless=part is parts[-1]):
            view = forward(part, objective.rebuild)
            terms = patch_terms(view, objective, config.model.in_channels)
            share = (part.stop - part.start) / batch.noise.shape[1]
            loss = share * equation_7(terms) if terms else torch.zeros((), device=device)
            if embedding_gradient is not None:
                # Chain rule: the derivative of this product with respect to the weights is the
                # gradient from step 2 times the derivative of the embedding.
                gradient = embedding_gradient.unflatten(0, (num_views, -1))[:, part].flatten(0, 1)
                loss = loss + (view.embedding.float() * gradient).sum()
            loss.backward()
        for name, (weight, value) in terms.items():
            before = patch_sums[name].value if name in patch_sums else 0.0
            patch_sums[name] = Term(weight, before + share * value.detach())
    if embedding is not None:
        view = view._replace(embedding=embedding.detach())
    return view, patch_sums | contrast_terms
