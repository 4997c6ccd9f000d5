"""How the embeddings of some parts are made, by one process or by several that share the parts."""

from __future__ import annotations

import itertools
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
from mvmae.embed.progress import Meter
from mvmae.embed.storage import Index, Made
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.method.vit import Encoder
from mvmae.training import distributed, process_store
from mvmae.training.interrupt import Interrupt


def gathered(
    folder: Path,
    index: Index,
    opened: OpenedEncoder,
    source: Source,
    config: EmbedConfig,
    device: torch.device,
    meter: Meter,
    interrupt: Interrupt,
) -> tuple[Index, int]:
    """Embed, and enter into the index what this process and the others made.

    Returns:
        The index, and the signal that stopped some process, or 0.

    Raises:
        UserError: More than half of the images cannot be read, or an embedding is no number.
    """
    began, signal, unread = time.perf_counter() - index.seconds, 0, index.count("skipped")
    last: list[Skipped] = []

    def entered(index: Index, made: Sequence[Made]) -> Index:
        return storage.enter(folder, index, made, time.perf_counter() - began) if made else index

    def posted() -> list[Made]:
        return [
            Made(said, [Skipped(*row) for row in rows]) for said, rows in process_store.posted()
        ]

    for turn in turns(folder, index, own_parts(index), opened, source, config, device):
        theirs = posted()
        index = entered(index, [*turn.made, *theirs])
        last = [skip for one in theirs for skip in one.skipped] + turn.unreadable or last
        unread += len(turn.unreadable) + sum(len(one.skipped) for one in theirs)
        refuse_unreadable(source, unread, last)
        meter.advance(index.count("images") + turn.begun)
        if (signal := process_store.check(interrupt.signal)) and index.todo:
            return index, signal
    process_store.done()
    for _ in itertools.chain(process_store.waiting(), [None]):  # once more when all are done
        theirs = posted()
        index = entered(index, theirs)
        last = [skip for one in theirs for skip in one.skipped] or last
        refuse_unreadable(source, index.count("skipped"), last)
        meter.advance(index.count("images"))
        if index.todo and (signal := process_store.check(interrupt.signal)):
            return index, signal
    return index, 0


def own_parts(index: Index) -> list[range]:
    """The parts that this process is to make, of those that are not there yet."""
    todo = index.todo
    share = process_store.share(len(todo), distributed.rank(), distributed.world_size())
    return todo[share.start : share.stop]


class Encoded(NamedTuple):
    """A batch of images as places in the data."""

    covered: Sequence[int]
    """All that were read, in order."""

    places: list[int]
    """Those that could be read."""

    vectors: np.ndarray
    """Of these."""

    unreadable: list[tuple[int, Skipped]]


class Turn(NamedTuple):
    """What came of a batch."""

    made: list[Made]
    """Parts that are whole with it, on the disk."""

    begun: int
    """Images in the part at hand."""

    unreadable: list[Skipped]
    """Images of the parts that are made here."""


def turns(
    folder: Path,
    index: Index,
    todo: list[range],
    opened: OpenedEncoder,
    source: Source,
    config: EmbedConfig,
    device: torch.device,
) -> Iterator[Turn]:
    """Write some parts, a batch after another.

    Raises:
        UserError: An embedding is no number.
    """
    if not todo:
        return
    own, size = {span.start for span in todo}, index.facts["part_size"]
    filling = storage.Filling(todo[0], index.shape, config.dtype)
    for batch in encoded(index, todo, opened, source, config, device):
        made = []
        while todo and todo[0].start <= batch.covered[-1]:
            filling.add(batch.places, batch.vectors)
            filling.skip(batch.unreadable)
            if batch.covered[-1] < todo[0][-1]:
                break
            made.append(storage.finish(folder, index, filling, source))
            todo = todo[1:]
            if todo:
                filling = storage.Filling(todo[0], index.shape, config.dtype)
        unreadable = [skip for place, skip in batch.unreadable if place // size * size in own]
        yield Turn(made, len(filling.places) * bool(todo), unreadable)


def encoded(
    index: Index,
    todo: Sequence[range],
    opened: OpenedEncoder,
    source: Source,
    config: EmbedConfig,
    device: torch.device,
) -> Iterator[Encoded]:
    """The batches that hold images of parts to do, each as it is in a run of one process."""
    size = config.batch_size
    numbers = sorted({place // size for span in todo for place in span})
    order = [
        place
        for number in numbers
        for place in range(number * size, min((number + 1) * size, len(source)))
    ]
    batches = encoders.encode_source(
        opened.encoder,
        Subset(source, order),
        opened.preprocessing,
        device=device,
        precision_name=index.facts["precision"],
        batch_size=size,
        workers=config.workers,
    )
    for number, batch in enumerate(batches):
        covered = order[number * size : (number + 1) * size]
        places = [order[at] for at in batch.indices]
        lost = sorted(set(covered) - set(places))
        vectors = vectors_of(opened.encoder, batch.tokens, index.facts["tokens"], config.dtype)
        refuse_what_is_no_number(vectors, places, source, config)
        yield Encoded(covered, places, vectors, list(zip(lost, batch.skipped, strict=True)))


def vectors_of(encoder: Encoder, tokens: torch.Tensor, kind: str, dtype: str) -> np.ndarray:
    """What is kept of a batch: B x D, or B x N x D of patch tokens."""
    if not len(tokens):
        return np.empty(0, dtype)
    tokens = tokens.float()
    kept = (
        tokens[:, encoder.num_prefix :]
        if kind == "patch"
        else encoder.pooled(tokens, "cls" if kind == "cls" else "mean")
    )
    with np.errstate(over="ignore"):  # what is too large for float16 is found and said next
        return kept.cpu().numpy().astype(dtype)


def refuse_what_is_no_number(
    vectors: np.ndarray, places: list[int], source: Source, config: EmbedConfig
) -> None:
    """Stop at an embedding that is infinite or no number.

    Raises:
        UserError: There is one.
    """
    bad = [row for row in range(len(places)) if not np.isfinite(vectors[row]).all()]
    if bad:
        remedy = "are its weights damaged?"
        if config.dtype == "float16":
            remedy = "try --dtype float32, which holds numbers above 65504"
        raise UserError(
            f"{config.encoder} makes no finite embedding of {source.path(places[bad[0]])}: {remedy}"
        )


def refuse_unreadable(source: Source, count: int, last: Sequence[Skipped]) -> None:
    """Stop as soon as it is certain that more than half cannot be read.

    Raises:
        UserError: They cannot.
    """
    if count > len(source) / 2:
        path, reason = last[-1]
        raise UserError(
            f"more than half of the {len(source)} images of {source.name} cannot be read, "
            f"{path} for one ({reason}): is this the right DATA?"
        )
