"""Embeddings of the data, made in the background while the page is in use.

Shapes: M embedded images, D width.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvmae import encoders
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources.base import Source, Subset, stamp
from mvmae.inspect.explore import model
from mvmae.inspect.explore.model import Networks
from mvmae.method.views import whole_view
from mvmae.metrics.principal import Basis
from mvmae.metrics.typicality import typicality
from mvmae.storage import atomic, run_folder

SAMPLE_IMAGES = 64  # whose patches set the colours; fewer of very fine grids
SAMPLE_TOKENS = 20_000
FEWEST = 8
LONGEST_BATCH = 0.2  # seconds that a person's question may have to wait for a batch
LARGEST_BATCH = 64
QUIET = 0.4  # seconds without a question after which the background goes on


class Near(NamedTuple):
    """An image and how like the question it is."""

    index: int
    similarity: float


class Progress(NamedTuple):
    """How far the background is."""

    done: int
    total: int
    unreadable: int
    finished: bool
    trouble: str
    """Why it stopped, where it did."""


class Embedded:
    """Vectors of length 1 of some images of a source, more and more of them.

    One thread writes, others read what is there: rows are filled before they are counted.

    Args:
        source: The images.
        order: Those to embed, by index.
        width: Of the vectors.
    """

    def __init__(self, source: Source, order: Sequence[int], width: int) -> None:
        self.source, self.order = source, list(order)
        self._vectors, self._indices = torch.zeros(len(self.order), width), np.zeros(0, np.int64)
        self._count = self._unreadable = 0
        self._finished, self._trouble = False, ""
        self.basis: Basis | None = None
        self.typical: Float[Tensor, " M"] | None = None

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self._vectors.shape[1]

    @property
    def vectors(self) -> Float[Tensor, "M D"]:
        """Of the images embedded so far."""
        return self._vectors[: self._count]

    @property
    def indices(self) -> Int[np.ndarray, " M"]:
        """Which images these are."""
        return self._indices[: self._count]

    def progress(self) -> Progress:
        """How far it is."""
        done = self._count + self._unreadable
        return Progress(done, len(self.order), self._unreadable, self._finished, self._trouble)

    def add(self, indices: Sequence[int], vectors: Float[Tensor, "b D"], unreadable: int) -> None:
        """Take in a batch."""
        begin, end = self._count, self._count + len(indices)
        self._vectors[begin:end] = vectors
        self._indices = np.concatenate([self.indices, np.array(indices, np.int64)])
        self._count, self._unreadable = end, self._unreadable + unreadable

    def finish(self, trouble: str = "") -> None:
        """Say that no more comes."""
        if self._count and not trouble:
            self.typical = typicality(self.vectors)
        self._finished, self._trouble = True, trouble

    def nearest(
        self, vector: Float[Tensor, " D"], count: int, without: int | None = None
    ) -> list[Near]:
        """The images most like a vector, the best first; `without` is left out."""
        indices = self.indices
        cosines = (self.vectors[: len(indices)] @ vector).clamp(-1, 1)
        best = cosines.argsort(descending=True, stable=True)[: count + 1].tolist()
        found = [Near(int(indices[at]), float(cosines[at])) for at in best]
        return [near for near in found if near.index != without][:count]

    def extremes(self, count: int) -> tuple[list[Near], list[Near]]:
        """The most and the least typical images, the extreme first; none before it is finished."""
        if self.typical is None:
            return [], []
        order = self.typical.argsort(descending=True, stable=True).tolist()
        ranked = [Near(int(self.indices[at]), float(self.typical[at])) for at in order]
        count = min(count, len(ranked) // 2)
        return ranked[:count], ranked[::-1][:count]


def embed(
    embedded: Embedded,
    networks: Networks,
    *,
    compute: Callable[[Callable[[], Any]], Any],
    idle: Callable[[], float],
    stop: threading.Event,
) -> None:
    """Fill `embedded` until it is full or stopped; what goes wrong is kept in its progress.

    Args:
        embedded: What is filled.
        networks: Of which the encoder embeds.
        compute: Runs a function where networks run, and waits for what it returns.
        idle: Seconds since a person asked something.
        stop: Set at the end of the program.
    """
    try:
        _embed(embedded, networks, compute, idle, stop)
    except Exception as error:
        if not stop.is_set():  # at the end nothing computes any more
            embedded.finish(f"{type(error).__name__}: {error}")
            raise


def _embed(
    embedded: Embedded,
    networks: Networks,
    compute: Callable[[Callable[[], Any]], Any],
    idle: Callable[[], float],
    stop: threading.Event,
) -> None:
    sample: list[Tensor] = []
    begin, size = 0, 1
    while begin < len(embedded.order):
        views, indices = _read(embedded, networks, begin, size)
        begin, lost = begin + size, min(size, len(embedded.order) - begin) - len(indices)
        while idle() < QUIET and not stop.wait(QUIET / 4):
            pass
        if stop.is_set():
            return
        if not indices:
            embedded.add([], torch.zeros(0, embedded.width), lost)
            continue
        began = time.perf_counter()
        tokens = compute(lambda views=views: model.tokens_of(networks, views))
        seconds = (time.perf_counter() - began) / len(indices)
        size = max(1, min(LARGEST_BATCH, 2 * size, int(LONGEST_BATCH / seconds)))
        embedded.add(indices, model.embedding(networks, tokens), lost)
        if embedded.basis is None:
            sample.append(model.patch_tokens(networks, tokens))
            if sum(map(len, sample)) >= sample_size(networks):
                _set_basis(embedded, networks, sample, compute)
    if embedded.basis is None and sample:
        _set_basis(embedded, networks, sample, compute)
    embedded.finish("" if len(embedded.indices) else "none of the images can be read")


def _set_basis(
    embedded: Embedded,
    networks: Networks,
    sample: list[Tensor],
    compute: Callable[[Callable[[], Any]], Any],
) -> None:
    """Set the colours by what has been embedded; which images that is does not hang on speed."""
    tokens = torch.cat(sample)[: sample_size(networks)]
    embedded.basis = compute(lambda: model.basis_of(tokens))


def _read(
    embedded: Embedded, networks: Networks, begin: int, size: int
) -> tuple[Tensor, list[int]]:
    """Some images as the encoder sees them, those that can be read."""
    opened = networks.opened
    views, indices = [], []
    for index in embedded.order[begin : begin + size]:
        with suppress(UnreadableImageError):
            pixels = embedded.source.read(index)
            views.append(
                whole_view(pixels, opened.encoder.image_size, opened.preprocessing.interpolation)
            )
            indices.append(index)
    return torch.stack(views) if views else torch.empty(0), indices


def sample_size(networks: Networks) -> int:
    """Images whose patches set the colours."""
    rows, columns = networks.opened.encoder.grid
    return max(FEWEST, min(SAMPLE_IMAGES, SAMPLE_TOKENS // (rows * columns)))


def cache_file(folder: Path, embedded: Embedded, networks: Networks) -> Path:
    """Where finished embeddings are kept: its name is a hash of all that they depend on."""
    said = {
        "digest": encoders.weights_digest(networks.opened.encoder),
        "facts": encoders.encoder_metadata(networks.opened),
        "images": stamp(Subset(embedded.source, embedded.order)),
        "precision": networks.precision,
        "device": networks.device.type,
    }
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "cache" / f"explore-{key}.safetensors"


def keep(file: Path, embedded: Embedded) -> None:
    """Write finished embeddings."""
    assert embedded.basis is not None
    tensors = {f"basis.{k}": v.contiguous() for k, v in embedded.basis._asdict().items()}
    tensors |= {
        "vectors": embedded.vectors.contiguous(),
        "indices": torch.from_numpy(embedded.indices.copy()),
    }
    run_folder.make(file.parent)
    content = safetensors.torch.save(tensors)
    atomic.write_bytes(file, content)


def recall(file: Path, embedded: Embedded) -> bool:
    """Take in what `keep` wrote; false where there is nothing, or nothing whole."""
    try:
        tensors: dict[str, Any] = safetensors.torch.load(file.read_bytes())
        basis = Basis(*(tensors[f"basis.{name}"] for name in Basis._fields))
        indices, vectors = tensors["indices"].tolist(), tensors["vectors"]
        if not set(indices) <= set(embedded.order) or vectors.shape[1] != embedded.width:
            return False
        embedded.add(indices, vectors, len(embedded.order) - len(indices))
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError):
        return False
    embedded.basis = basis
    embedded.finish()
    return True
