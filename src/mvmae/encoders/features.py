"""Features of images: from encoders, and from raw pixels.

Shapes: M images, D width.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvmae.data.reading.loader import Skipped, whole_batches
from mvmae.data.sources.base import Source, Subset
from mvmae.encoders.encoder_json import Preprocessing
from mvmae.errors import UserError
from mvmae.method.views import normalized, shares_or_values
from mvmae.method.vit import Encoder
from mvmae.storage import run_folder
from mvmae.training import checkpoint, distributed, precision, process_store

MAX_IMAGES_PER_FILE = 8192  # images, at most, between two files of what is done so far
TARGET_FILES = 512  # about so many, where they need not hold more than `MAX_IMAGES_PER_FILE`
PIXEL_BATCH_SIZE = 256


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


def encode_source(
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


class FeatureExtractor(NamedTuple):
    """How features of a source come about, a batch after another."""

    batches: Callable[[Source], Iterator[Features]]
    """Of any part of the source that begins where a batch begins."""

    batch_size: int


def encoder_extractor(
    encoder: Encoder,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    precision_name: str,
    batch_size: int,
    workers: int | None,
) -> FeatureExtractor:
    """Pooled features by an encoder; the arguments are those of `encoded`."""
    has_cls = encoder.variant.cls_token
    batch_size = min(batch_size, MAX_IMAGES_PER_FILE)

    def batches(source: Source) -> Iterator[Features]:
        for batch in encode_source(
            encoder,
            source,
            preprocessing,
            device=device,
            precision_name=precision_name,
            batch_size=batch_size,
            workers=workers,
        ):
            labels = torch.tensor([source.label(index) for index in batch.indices]).long()
            if not batch.indices:
                none = torch.empty(0, encoder.embed_dim)
                yield Features(none, none if has_cls else None, labels, batch.skipped)
                continue
            mean = encoder.pooled(batch.tokens, "mean").float().cpu()
            cls = encoder.pooled(batch.tokens, "cls").float().cpu() if has_cls else None
            yield Features(mean, cls, labels, batch.skipped)

    return FeatureExtractor(batches, batch_size)


def pixel_extractor(*, side: int, workers: int | None) -> FeatureExtractor:
    """Images shrunk to `side` as vectors: what any encoder must beat."""
    batch_size = min(PIXEL_BATCH_SIZE, MAX_IMAGES_PER_FILE)

    def batches(source: Source) -> Iterator[Features]:
        for batch in whole_batches(
            source,
            (side, side),
            interpolation="bicubic",
            batch_size=batch_size,
            workers=workers,
            cuda=False,
        ):
            labels = torch.tensor([source.label(index) for index in batch.indices.tolist()]).long()
            yield Features(shares_or_values(batch.images).flatten(1), None, labels, batch.skipped)

    return FeatureExtractor(batches, batch_size)


def compute_features(
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
    """Pooled features of every image of a source, by this process alone.

    Args:
        encoder: What encodes.
        source: The images.
        preprocessing: The encoder's.
        device: Where to compute.
        precision_name: Of `precision.autocast`.
        batch_size: Images at a time.
        workers: Processes that read; default by the machine.
        keep: A folder for partial results of more than `MAX_IMAGES_PER_FILE` images: a later call
            resumes from there. Use a separate folder for each encoder and set of images.
        advance: Told how many more images are done.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    read = encoder_extractor(
        encoder,
        preprocessing,
        device=device,
        precision_name=precision_name,
        batch_size=batch_size,
        workers=workers,
    )
    return extract_features(
        read, source, keep if len(source) > MAX_IMAGES_PER_FILE else None, advance
    )


def pixel_features(
    source: Source,
    *,
    side: int,
    workers: int | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Features:
    """Images shrunk to `side` as vectors, by this process alone.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    return extract_features(pixel_extractor(side=side, workers=workers), source, None, advance)


def extract_distributed(
    read: FeatureExtractor,
    source: Source,
    keep: Path,
    advance: Callable[[int], object] = lambda count: None,
    *,
    resumes: bool = True,
) -> Features | None:
    """Features of every image, each process reading its share; none but in the main process.

    What each has done lies in files that the main one joins, so no process needs memory for what
    others did, and the result is that of one process to the bit: batches are the same.

    Args:
        read: From `encoder_extractor` or `pixel_extractor`.
        source: The images, the same for all.
        keep: As for `features`, on a disk that all processes see.
        advance: Told how many more images are done, by all.
        resumes: Whether files are left for a command that goes on; they are large and quickly made
            anew of pixels.

    Raises:
        UserError: More than half of the images cannot be read, or another process failed.
    """
    if distributed.world_size() == 1:
        is_kept = resumes and len(source) > MAX_IMAGES_PER_FILE
        return extract_features(read, source, keep if is_kept else None, advance)
    spans = _spans(len(source), read.batch_size)
    own = process_store.share(len(spans), distributed.rank(), distributed.world_size())
    todo = [spans[at] for at in own if not _is_whole(_file(keep, spans[at]))]
    shown = 0
    for span, part in zip(todo, _parts(read, source, todo), strict=True):
        _keep(_file(keep, span), part)
        about = min(len(source) - shown, len(span) * distributed.world_size())
        advance(about)  # the others are about as far
        shown += about
    process_store.done()
    if not distributed.is_main():
        return None
    for _ in process_store.waiting():
        pass
    advance(len(source) - shown)
    found = extract_features(read, source, keep, lambda count: None)
    if not resumes:
        shutil.rmtree(keep, ignore_errors=True)
    return found


def extract_features(
    read: FeatureExtractor, source: Source, keep: Path | None, advance: Callable[[int], object]
) -> Features:
    """Features of every image; what is kept in files is taken from there.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    spans = _spans(len(source), read.batch_size)
    whole = {span for span in spans if keep and _is_whole(_file(keep, span))}
    fresh = _parts(read, source, [span for span in spans if span not in whole])
    joined = _Joined(len(source))
    for span in spans:
        part = _kept(_file(keep, span)) if keep and span in whole else None
        if part is None:
            # A file that was whole and is gone again, by another command, is made anew.
            part = next(_parts(read, source, [span]) if span in whole else fresh)
            if keep:
                _keep(_file(keep, span), part)
        joined.add(part)
        advance(len(span))
    require_readable(source, joined.skipped)
    return joined.features()


def _spans(count: int, batch_size: int) -> list[range]:
    """The places of the images in each file: whole batches, the same for any number of processes.

    Few images have a file for each batch, so that many processes get even shares.
    """
    batches = min(
        max(1, MAX_IMAGES_PER_FILE // batch_size), -(-count // (batch_size * TARGET_FILES))
    )
    size = max(1, batches) * batch_size
    return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _parts(read: FeatureExtractor, source: Source, spans: Sequence[range]) -> Iterator[Features]:
    """Features of each span, all read in one go.

    Spans begin where batches begin, and one that ends within a batch is the last of the source.
    """
    if not spans:
        return
    batches = read.batches(Subset(source, list(chain.from_iterable(spans))))
    for span in spans:
        parts = []
        for _ in range(0, len(span), read.batch_size):
            parts.append(next(batches))
            process_store.check()  # whether another process failed
        yield _concatenated(parts)


def _concatenated(parts: Sequence[Features]) -> Features:
    joined = _Joined(sum(len(part.labels) for part in parts))
    for part in parts:
        joined.add(part)
    return joined.features()


class _Joined:
    """Features that come in parts, put at once where they stay: there is one copy of all.

    Args:
        count: Most images.
    """

    def __init__(self, count: int) -> None:
        self.count, self.rows, self.skipped = count, 0, list[Skipped]()
        self.labels = torch.empty(count, dtype=torch.int64)
        self.mean: Tensor | None = None
        self.cls: Tensor | None = None

    def add(self, part: Features) -> None:
        """Put a part behind those before."""
        self.skipped += part.skipped
        if not len(part.labels) and self.mean is not None:
            return
        if self.mean is None or self.mean.shape[1:] != part.mean.shape[1:]:  # none was read so far
            self.mean = torch.empty(self.count, *part.mean.shape[1:])
            self.cls = None if part.cls is None else torch.empty(self.count, *part.cls.shape[1:])
        rows = slice(self.rows, self.rows + len(part.labels))
        self.rows = rows.stop
        self.mean[rows], self.labels[rows] = part.mean, part.labels
        if self.cls is not None and part.cls is not None:
            self.cls[rows] = part.cls

    def features(self) -> Features:
        """What has come."""
        mean = torch.empty(0, 0) if self.mean is None else self.mean
        cls = None if self.cls is None else self.cls[: self.rows]
        return Features(mean[: self.rows], cls, self.labels[: self.rows], self.skipped)


def _file(keep: Path, span: range) -> Path:
    return keep / f"{span.start:09}-{span.stop:09}.safetensors"


def _keep(file: Path, part: Features) -> None:
    run_folder.make(file.parent)
    tensors = {"mean": part.mean, "labels": part.labels}
    if part.cls is not None:
        tensors["cls"] = part.cls
    said = {"skipped": json.dumps(part.skipped)}
    checkpoint.write_whole(
        file, lambda stream: stream.write(safetensors.torch.save(tensors, metadata=said))
    )


def _is_whole(file: Path) -> bool:
    """Whether `_keep` wrote a file to its end; what is in it is not read."""
    try:
        with safetensors.safe_open(file, "pt") as opened:  # which compares sizes
            return {"mean", "labels"} <= set(opened.keys()) and "skipped" in opened.metadata()
    except (OSError, TypeError, safetensors.SafetensorError):
        return False


def _kept(file: Path) -> Features | None:
    """What `_keep` wrote; none where there is nothing, or nothing whole."""
    try:
        with safetensors.safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            skipped = json.loads(opened.metadata()["skipped"])
        return Features(
            tensors["mean"], tensors.get("cls"), tensors["labels"], [Skipped(*s) for s in skipped]
        )
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return None


def require_readable(source: Source, skipped: list[Skipped]) -> None:
    """Stop where more than half of the images cannot be read.

    Raises:
        UserError: They cannot.
    """
    if len(skipped) > len(source) / 2:
        raise UserError(
            f"{len(skipped)} of the {len(source)} images of {source.name} cannot be read, "
            f"{skipped[0].path} for one ({skipped[0].reason})"
        )
