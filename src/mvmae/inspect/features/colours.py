"""features-pca.png: images, and their patches in colour, for one encoder or several.

Shapes: B images, N patch tokens, D width.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mvmae import encoders
from mvmae.data.sources.base import Subset
from mvmae.encoders import OpenedEncoder
from mvmae.errors import pluralize
from mvmae.evaluation.result_text import short_name
from mvmae.figures import page
from mvmae.figures.page import Cell, Group, Row
from mvmae.inspect.choose_images import choose
from mvmae.inspect.features.feature_cache import Drawing, Job
from mvmae.metrics.principal import colors, principal_basis
from mvmae.terminal import Bar

BASIS_IMAGES = 64  # at least, or as many as are drawn
MAX_COLUMNS = 8
MAX_BASIS_TOKENS = 100_000  # of images that are not drawn


def draw(job: Job) -> Drawing:
    """Colour patches by the first three principal components, with one basis for all images.

    Raises:
        UserError: None of the images can be read.
    """
    config = job.config
    named = {config.encoder: job.opened, **job.against}
    largest = max(np.prod(opened.encoder.grid) for opened in named.values())
    count = max(config.count, min(BASIS_IMAGES, MAX_BASIS_TOKENS // int(largest)))
    indices = choose(job.source, count, config.seed).indices
    drawn = indices[: config.count]
    cells = [job.cell(index) for index in drawn]
    # Names above the images, so that the colours are right below these.
    images = [Cell(cell.picture, cell.captions[0]) for cell in cells]
    rows, facts = [Row([Group(images)], "image")], []
    with Bar(len(named) * len(indices)) as bar:
        for name, opened in named.items():
            label = short_name(name, [*named])
            bar.name(label)
            tokens = encode_patches(job, opened, indices, bar)
            basis = principal_basis(tokens)
            coloured = colors(tokens[: len(drawn)], basis).unflatten(1, opened.encoder.grid)
            patches = Group([Cell(picture) for picture in coloured.cpu().numpy()])
            shares = basis.explained.tolist()
            listed = " + ".join(f"{100 * share:.0f}" for share in shares)
            rows.append(Row([patches], label, f"{listed} %"))
            facts.append(
                {
                    "encoder": name,
                    "digest": encoders.weights_digest(opened.encoder),
                    "grid": list(opened.encoder.grid),
                    "explained": [round(share, 6) for share in shares],
                    "explained_total": round(sum(shares), 6),
                }
            )
    title = f"Patches in colour: {job.source.name}"
    note = (
        "Red, green and blue: the first three principal components of the patch tokens of "
        f"{pluralize(len(indices), 'image')}, with their shares of the variance. Patches of "
        "similar colour are similar to the encoder, wherever they are."
    )
    if job.against:
        note += " Compare colours within a row only: each encoder has its own."
    png = page.draw(page.in_blocks(rows, MAX_COLUMNS), title=title, note=note, side=page.SMALL_CELL)
    return Drawing(
        png,
        {"images": len(indices), "drawn": len(drawn), "encoders": facts},
        summarise_variance(facts),
    )


def encode_patches(
    job: Job, opened: OpenedEncoder, indices: list[int], bar: Bar
) -> Float[Tensor, "B N D"]:
    """Encode images into patch tokens on the CPU."""
    config, parts = job.config, []
    for batch in encoders.encode_source(
        opened.encoder,
        Subset(job.source, indices),
        opened.preprocessing,
        device=job.device,
        precision_name=config.precision,
        batch_size=min(config.batch_size, len(indices)),
        workers=0,  # starting reader processes takes longer than reading so few images
    ):
        parts.append(batch.tokens[:, opened.encoder.num_prefix :].float().cpu())
        bar.advance(len(batch.indices))
    return torch.cat(parts)


def summarise_variance(facts: list[dict[str, Any]]) -> str:
    """Say how much of the patches' variance the colours of each encoder show."""
    names = [one["encoder"] for one in facts]
    shares = [
        f"{one['explained_total']:.0%} ({short_name(one['encoder'], names)})" for one in facts
    ]
    return f"the colours show {', '.join(shares)} of the variance of the patches"
