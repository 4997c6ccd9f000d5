"""Compute embeddings part by part, in one process or in several that share the parts."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mvmae import encoders
from mvmae.config.embed import EmbedConfig
from mvmae.data.reading.loader import Skipped
from mvmae.data.sources.base import Source, Subset
from mvmae.embed import storage
from mvmae.embed.storage import Index, PartBuffer, WrittenPart
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.method.vit import Encoder
from mvmae.terminal import Bar
from mvmae.training import distributed, process_store
from mvmae.training.interrupt import Interrupt


class Job(NamedTuple):
    """What is embedded, with what, into which folder."""

    config: EmbedConfig
    folder: Path
    opened: OpenedEncoder
    source: Source
    device: torch.device


class EncodedBatch(NamedTuple):
    """Embeddings of a batch of images, which are given as positions in the data."""

    covered: Sequence[int]
    """All images of the batch, in order."""

    indices: list[int]
    """Images that could be read."""

    vectors: np.ndarray
    """Their embeddings."""

    unreadable: list[tuple[int, Skipped]]


class BatchResult(NamedTuple):
    """What one batch added."""

    written: list[WrittenPart]
    """Parts that the batch completed."""

    pending: int
    """Images in the unfinished part."""


def compute_embeddings(job: Job, index: Index, bar: Bar, interrupt: Interrupt) -> tuple[Index, int]:
    """Compute the missing parts and record those of all processes in the index.

    Returns:
        The index, and the signal that stopped any of the processes, or 0.

    Raises:
        UserError: More than half of the images cannot be read, or an embedding is not finite.
    """
    began = time.perf_counter() - index.seconds
    for result in _results_then_wait(job, index):
        others = [  # parts that other processes have written since the last call
            WrittenPart(entry, [Skipped(*row) for row in rows])
            for entry, rows in process_store.current().read_posts()
        ]
        if written := [*result.written, *others]:
            unreadable = [skip for part in written for skip in part.skipped]
            require_readable(job.source, index.total("skipped"), unreadable)
            seconds = time.perf_counter() - began
            index = storage.record_parts(job.folder, index, written, seconds)
        bar.advance(index.total("images") + result.pending - bar.done)
        if (signal := process_store.current().check(interrupt.signal)) and index.missing:
            return index, signal
    return index, 0


def _results_then_wait(job: Job, index: Index) -> Iterator[BatchResult]:
    """Yield the results of this process, then empty ones until all others are done."""
    yield from write_parts(job, index)
    process_store.current().finish_phase()
    nothing = BatchResult([], 0)
    for _ in process_store.current().wait_for_others():
        yield nothing
    yield nothing  # the others may have written more since the last one


def write_parts(job: Job, index: Index) -> Iterator[BatchResult]:
    """Write this process's share of the missing parts, one batch at a time.

    Raises:
        UserError: An embedding is not finite.
    """
    missing = index.missing
    share = process_store.partition(len(missing), distributed.rank(), distributed.world_size())
    spans = missing[share.start : share.stop]
    if not spans:
        return
    buffer = PartBuffer(spans[0], index.shape, job.config.dtype)
    for batch in encode_batches(job, index, spans):
        written = []
        while spans and spans[0].start <= batch.covered[-1]:
            buffer.add(batch.indices, batch.vectors)
            buffer.skip(batch.unreadable)
            if batch.covered[-1] < spans[0][-1]:
                break
            written.append(storage.write_part(job.folder, index, buffer, job.source))
            spans = spans[1:]
            if spans:
                buffer = PartBuffer(spans[0], index.shape, job.config.dtype)
        yield BatchResult(written, len(buffer.indices) if spans else 0)


def encode_batches(job: Job, index: Index, spans: Sequence[range]) -> Iterator[EncodedBatch]:
    """Encode every batch that holds images of the parts.

    Batches begin at multiples of the batch size in the data, whichever parts are missing: the last
    bits of an embedding depend on the other images in its batch, and a resumed folder must be equal
    to one made in a single run.
    """
    size, source, encoder = job.config.batch_size, job.source, job.opened.encoder
    numbers = sorted({image // size for span in spans for image in span})
    order = [
        image
        for number in numbers
        for image in range(number * size, min((number + 1) * size, len(source)))
    ]
    batches = encoders.encode_source(
        encoder,
        Subset(source, order),
        job.opened.preprocessing,
        device=job.device,
        precision_name=index.facts["precision"],
        batch_size=size,
        workers=job.config.workers,
    )
    for number, batch in enumerate(batches):
        covered = order[number * size : (number + 1) * size]
        indices = [order[at] for at in batch.indices]
        # The loader lists them in the order of the data, without saying which they are.
        unreadable = sorted(set(covered) - set(indices))
        vectors = select_vectors(encoder, batch.tokens, index.facts["tokens"], job.config.dtype)
        _check_finite(job, vectors, indices)
        yield EncodedBatch(
            covered, indices, vectors, list(zip(unreadable, batch.skipped, strict=True))
        )


def select_vectors(encoder: Encoder, tokens: torch.Tensor, kind: str, dtype: str) -> np.ndarray:
    """Embeddings of a batch: B x D, or B x N x D for patch tokens."""
    if not len(tokens):
        return np.empty(0, dtype)
    tokens = tokens.float()  # numpy has no bfloat16
    kept = (
        tokens[:, encoder.num_prefix :]
        if kind == "patch"
        else encoder.pool(tokens, "cls" if kind == "cls" else "mean")
    )
    with np.errstate(over="ignore"):  # _check_finite reports what float16 cannot hold
        return kept.cpu().numpy().astype(dtype)


def _check_finite(job: Job, vectors: np.ndarray, indices: list[int]) -> None:
    """Stop at an embedding that is not finite.

    Raises:
        UserError: There is one.
    """
    remedy = "check that its weights are not damaged"
    if job.config.dtype == "float16":
        remedy = "try --dtype float32, which holds numbers above 65504"
    for vector, image in zip(vectors, indices, strict=True):
        if not np.isfinite(vector).all():
            raise UserError(
                f"{job.config.encoder} gives an embedding that is not finite for "
                f"{job.source.path(image)}: {remedy}"
            )


def require_readable(source: Source, known: int, unreadable: Sequence[Skipped]) -> None:
    """Stop if more than half of all images cannot be read, `known` ones of them from before.

    Checked before parts are recorded, so that --resume meets the same limit again.

    Raises:
        UserError: They cannot.
    """
    if unreadable and known + len(unreadable) > len(source) / 2:
        path, reason = unreadable[-1]
        raise UserError(
            f"more than half of the {len(source)} images of {source.name} cannot be read, "
            f"for example {path} ({reason}): check that DATA is right"
        )
