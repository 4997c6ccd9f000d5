"""Features of images: from encoders, and from raw pixels.

Shapes: M images, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvmae.data.loader import Skipped, whole_batches
from mvmae.data.sources.source import Source
from mvmae.data.views import normalized
from mvmae.encoders.product import Preprocessing
from mvmae.engine import precision
from mvmae.errors import UserError
from mvmae.models.vit import Encoder


class Features(NamedTuple):
    """Vectors of labelled images."""

    mean: Float[Tensor, "M D"]
    """Means of the patch tokens."""

    cls: Float[Tensor, "M D"] | None
    """Class tokens, where the encoder has one."""

    labels: Int[Tensor, " M"]
    skipped: list[Skipped]


class Tokens(NamedTuple):
    """What an encoder makes of a batch of images."""

    tokens: Float[Tensor, "B tokens D"]
    """On the encoder's device; prefix tokens first."""

    indices: list[int]
    """Places of the images in their source."""

    skipped: list[Skipped]


def encoded(
    encoder: Encoder,
    source: Source,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    precision_name: str,
    batch_size: int,
    workers: int | None,
) -> Iterator[Tokens]:
    """Encode every image of a source in order, whole and unmasked, a batch at a time."""
    was_training = encoder.training
    encoder.eval().to(device)
    try:
        for batch in whole_batches(
            source,
            encoder.image_size,
            interpolation=preprocessing.interpolation,
            batch_size=batch_size,
            workers=workers,
            cuda=device.type == "cuda",
        ):
            if not len(batch.images):
                yield Tokens(torch.empty(0, 0, encoder.embed_dim), [], batch.skipped)
                continue
            images = normalized(batch.images, preprocessing.mean, preprocessing.std, device)
            with torch.inference_mode(), precision.autocast(device, precision_name):
                tokens = encoder(images)
            yield Tokens(tokens, batch.indices.tolist(), batch.skipped)
    finally:
        encoder.train(was_training)


def features(
    encoder: Encoder,
    source: Source,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    precision_name: str,
    batch_size: int,
    workers: int | None,
) -> Features:
    """Pooled features of every image of a source.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    means, cls, labels, skipped = [], [], [], []
    for batch in encoded(
        encoder,
        source,
        preprocessing,
        device=device,
        precision_name=precision_name,
        batch_size=batch_size,
        workers=workers,
    ):
        skipped += batch.skipped
        labels += [source.label(index) for index in batch.indices]
        if batch.indices:
            means.append(encoder.pooled(batch.tokens, "mean").float().cpu())
            if encoder.variant.cls_token:
                cls.append(encoder.pooled(batch.tokens, "cls").float().cpu())
    refuse_unreadable(source, skipped)
    return Features(
        torch.cat(means), torch.cat(cls) if cls else None, torch.tensor(labels), skipped
    )


def refuse_unreadable(source: Source, skipped: list[Skipped]) -> None:
    """Stop where more than half of the images cannot be read.

    Raises:
        UserError: They cannot.
    """
    if len(skipped) > len(source) / 2:
        raise UserError(
            f"{len(skipped)} of the {len(source)} images of {source.name} cannot be read, "
            f"{skipped[0].path} for one ({skipped[0].reason})"
        )


def raw_pixels(
    source: Source, *, side: int, batch_size: int = 256, workers: int | None = None
) -> Features:
    """Images shrunk to `side` as vectors: what any encoder must beat."""
    images, labels, skipped = [], [], []
    batches = whole_batches(
        source,
        (side, side),
        interpolation="bicubic",
        batch_size=batch_size,
        workers=workers,
        cuda=False,
    )
    for batch in batches:
        images.append(batch.images.flatten(1).float() / 255)
        labels += [source.label(index) for index in batch.indices.tolist()]
        skipped += batch.skipped
    refuse_unreadable(source, skipped)
    pixels = torch.cat([part for part in images if part.numel()])
    return Features(pixels, None, torch.tensor(labels), skipped)
