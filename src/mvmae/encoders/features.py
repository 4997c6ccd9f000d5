"""Features of images: from encoders, and from raw pixels.

Shapes: M images, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvmae.data.loader import Skipped, whole_batches
from mvmae.data.sources.source import Source, Subset
from mvmae.data.views import normalized, shares_or_values
from mvmae.encoders.product import Preprocessing
from mvmae.engine import checkpoint, precision, runs
from mvmae.errors import UserError
from mvmae.models.vit import Encoder

PART = 8192  # images between two files of what is done so far


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
    keep: Path | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Features:
    """Pooled features of every image of a source.

    Args:
        encoder: What encodes.
        source: The images.
        preprocessing: The encoder's.
        device: Where to compute.
        precision_name: Of `precision.autocast`.
        batch_size: Images at a time.
        workers: Processes that read; default by the machine.
        keep: A folder for what is done so far of more than `PART` images: asked again, it goes on
            from there. The folder must be this encoder's and these images' alone.
        advance: Told how many more images are done.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    parts = []
    for begin in range(0, len(source), PART):
        file = keep / f"{begin:09}.safetensors" if keep and len(source) > PART else None
        part = _kept(file)
        if part is None:
            here = Subset(source, range(begin, min(begin + PART, len(source))))
            part = _features_of_part(
                encoded(
                    encoder,
                    here,
                    preprocessing,
                    device=device,
                    precision_name=precision_name,
                    batch_size=batch_size,
                    workers=workers,
                ),
                encoder,
                here,
                advance,
            )
            if file:
                _keep(file, part)
        else:
            advance(len(part.labels) + len(part.skipped))
        parts.append(part)
    return _joined(parts, source)


def _features_of_part(
    batches: Iterable[Tokens], encoder: Encoder, source: Source, advance: Callable[[int], object]
) -> Features:
    means, cls, labels, skipped = [], [], [], []
    for batch in batches:
        skipped += batch.skipped
        labels += [source.label(index) for index in batch.indices]
        if batch.indices:
            means.append(encoder.pooled(batch.tokens, "mean").float().cpu())
            if encoder.variant.cls_token:
                cls.append(encoder.pooled(batch.tokens, "cls").float().cpu())
        advance(len(batch.indices) + len(batch.skipped))
    none = torch.empty(0, encoder.embed_dim)
    mean = torch.cat(means) if means else none
    token = (torch.cat(cls) if cls else none) if encoder.variant.cls_token else None
    return Features(mean, token, torch.tensor(labels, dtype=torch.int64), skipped)


def _joined(parts: list[Features], source: Source) -> Features:
    skipped = [skip for part in parts for skip in part.skipped]
    refuse_unreadable(source, skipped)
    cls = [part.cls for part in parts if part.cls is not None]
    return Features(
        torch.cat([part.mean for part in parts]),
        torch.cat(cls) if cls else None,
        torch.cat([part.labels for part in parts]),
        skipped,
    )


def _keep(file: Path, part: Features) -> None:
    runs.make(file.parent)
    tensors = {"mean": part.mean, "labels": part.labels}
    if part.cls is not None:
        tensors["cls"] = part.cls
    said = {"skipped": json.dumps(part.skipped)}
    checkpoint.write_whole(
        file, lambda stream: stream.write(safetensors.torch.save(tensors, metadata=said))
    )


def _kept(file: Path | None) -> Features | None:
    """What `_keep` wrote; none where there is nothing, or nothing whole."""
    if file is None or not file.exists():
        return None
    try:
        with safetensors.safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            skipped = json.loads(opened.metadata()["skipped"])
        return Features(
            tensors["mean"], tensors.get("cls"), tensors["labels"], [Skipped(*s) for s in skipped]
        )
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return None


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
    source: Source,
    *,
    side: int,
    batch_size: int = 256,
    workers: int | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Features:
    """Images shrunk to `side` as vectors: what any encoder must beat.

    Raises:
        UserError: More than half of the images cannot be read.
    """
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
        images.append(shares_or_values(batch.images).flatten(1))
        labels += [source.label(index) for index in batch.indices.tolist()]
        skipped += batch.skipped
        advance(len(batch.images) + len(batch.skipped))
    refuse_unreadable(source, skipped)
    pixels = torch.cat([part for part in images if part.numel()])
    return Features(pixels, None, torch.tensor(labels), skipped)
