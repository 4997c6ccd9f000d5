"""Embed the data in the background while the page is in use.

Shapes: M embedded images, D width.
"""

import hashlib
import json
import time
from collections.abc import Sequence
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
from mvmae.inspect.explore.server import Workers
from mvmae.method.views import whole_view
from mvmae.metrics.principal import Basis, principal_basis
from mvmae.metrics.typicality import typicality
from mvmae.storage import atomic, run_folder

BASIS_IMAGES, MIN_BASIS_IMAGES = 64, 8  # whose patches set the colours; fewer for fine grids
BASIS_TOKENS = 20_000
MAX_BATCH = 64
MAX_BATCH_SECONDS = 0.2  # a request of the page may have to wait for a batch
# The background takes turns with a person: it starts no batch until nothing was asked for a while.
PAUSE = 0.4  # seconds without a request after which the background continues


class Match(NamedTuple):
    """An image and its similarity to what was searched for."""

    index: int
    similarity: float


class EmbeddingIndex:
    """Embeddings, of length 1, of a growing number of images.

    One thread adds rows while others read: rows are written before they are counted.

    Args:
        source: The images.
        order: Numbers of the images to embed.
        width: Numbers in an embedding.
    """

    def __init__(self, source: Source, order: Sequence[int], width: int) -> None:
        self.source, self.order, self.width = source, list(order), width
        self._vectors, self._indices = torch.zeros(len(self.order), width), np.zeros(0, np.int64)
        self._count = self._unreadable = 0
        self.finished, self._error = False, ""
        self.basis: Basis | None = None
        self.typicality: Float[Tensor, " M"] | None = None

    @property
    def vectors(self) -> Float[Tensor, "M D"]:
        """Embeddings so far."""
        return self._vectors[: self._count]

    @property
    def indices(self) -> Int[np.ndarray, " M"]:
        """Number of the image of each embedding."""
        return self._indices[: self._count]

    def progress(self) -> dict[str, Any]:
        """State of the background for the page; `error` says why it stopped early, or is empty."""
        return {
            "done": self._count + self._unreadable,
            "total": len(self.order),
            "unreadable": self._unreadable,
            "finished": self.finished,
            "error": self._error,
            "has_basis": self.basis is not None,
        }

    def add(self, indices: Sequence[int], vectors: Float[Tensor, "b D"], unreadable: int) -> None:
        """Add a batch."""
        begin, end = self._count, self._count + len(indices)
        self._vectors[begin:end] = vectors  # before they are counted, since others read meanwhile
        self._indices = np.concatenate([self.indices, np.array(indices, np.int64)])
        self._count, self._unreadable = end, self._unreadable + unreadable

    def finish(self, error: str = "") -> None:
        """Mark the embeddings as complete, or as stopped by an error."""
        if self._count and not error:
            self.typicality = typicality(self.vectors)
        self.finished, self._error = True, error

    def nearest(
        self, vector: Float[Tensor, " D"], count: int, itself: int | None = None
    ) -> list[Match]:
        """The images most similar to a vector, most similar first, without the image `itself`."""
        indices = self.indices
        cosines = (self.vectors[: len(indices)] @ vector).clamp(-1, 1)
        best = cosines.argsort(descending=True, stable=True)[: count + 1].tolist()
        matches = [Match(int(indices[at]), float(cosines[at])) for at in best]
        return [match for match in matches if match.index != itself][:count]

    def extremes(self, count: int) -> tuple[list[Match], list[Match]]:
        """The most and the least typical images, most extreme first; empty until it is finished."""
        if self.typicality is None:
            return [], []
        order = self.typicality.argsort(descending=True, stable=True).tolist()
        ranked = [Match(int(self.indices[at]), float(self.typicality[at])) for at in order]
        count = min(count, len(ranked) // 2)  # no image is in both lists
        return ranked[:count], ranked[::-1][:count]


def embed_in_background(embedded: EmbeddingIndex, networks: Networks, workers: Workers) -> None:
    """Embed images until all are done or the workers stop.

    An error is recorded in the progress, for the page, and raised.
    """
    try:
        _embed(embedded, networks, workers)
    except Exception as error:
        if not workers.stopped.is_set():  # at the end of the program the compute thread is gone
            embedded.finish(f"{type(error).__name__}: {error}")
            raise


def _embed(embedded: EmbeddingIndex, networks: Networks, workers: Workers) -> None:
    rows, columns = networks.opened.encoder.grid
    num_sampled = max(MIN_BASIS_IMAGES, min(BASIS_IMAGES, BASIS_TOKENS // (rows * columns)))
    sample: list[Tensor] = []

    def set_basis() -> None:
        # A fixed number of images, so that the colours do not depend on speed.
        tokens = torch.cat(sample)[:num_sampled]
        embedded.basis = workers.compute(lambda: principal_basis(tokens))

    begin, size = 0, 1
    while begin < len(embedded.order):
        batch = embedded.order[begin : begin + size]
        images, indices = _read(embedded.source, batch, networks)
        begin += size
        while workers.idle() < PAUSE and not workers.stopped.wait(PAUSE / 4):
            pass
        if workers.stopped.is_set():
            return
        lost = len(batch) - len(indices)
        if not indices:
            embedded.add([], torch.zeros(0, embedded.width), lost)
            continue
        began = time.perf_counter()
        tokens = workers.compute(lambda images=images: model.encode(networks, images))
        seconds = (time.perf_counter() - began) / len(indices)
        # Grow from one image, because the first batch also pays for what is done once.
        size = max(1, min(MAX_BATCH, 2 * size, int(MAX_BATCH_SECONDS / seconds)))
        embedded.add(indices, model.embedding(networks, tokens), lost)
        if embedded.basis is None:
            sample.append(model.patch_tokens(networks, tokens))
            if sum(map(len, sample)) >= num_sampled:
                set_basis()
    if embedded.basis is None and sample:
        set_basis()
    embedded.finish("" if len(embedded.indices) else "none of the images can be read")


def _read(source: Source, batch: Sequence[int], networks: Networks) -> tuple[Tensor, list[int]]:
    """Read images as the encoder takes them; unreadable ones are left out."""
    size, mode = networks.opened.encoder.image_size, networks.opened.preprocessing.interpolation
    views = {}
    for index in batch:
        with suppress(UnreadableImageError):
            views[index] = whole_view(source.read(index), size, mode)
    return torch.stack([*views.values()]) if views else torch.empty(0), [*views]


def cache_file(folder: Path, embedded: EmbeddingIndex, networks: Networks) -> Path:
    """File for finished embeddings, named after a hash of all that they depend on."""
    facts = {
        "digest": encoders.weights_digest(networks.opened.encoder),
        "facts": encoders.encoder_metadata(networks.opened),
        "images": stamp(Subset(embedded.source, embedded.order)),
        "precision": networks.precision,
        "device": networks.device.type,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "cache" / f"explore-{key}.safetensors"


def save(file: Path, embedded: EmbeddingIndex, basis: Basis) -> None:
    """Write finished embeddings, and the basis of the colours, to a file."""
    tensors = {f"basis.{name}": value for name, value in basis._asdict().items()}
    tensors |= {"vectors": embedded.vectors, "indices": torch.from_numpy(embedded.indices)}
    content = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
    run_folder.make(file.parent)
    atomic.write_bytes(file, content)


def load(file: Path, embedded: EmbeddingIndex) -> bool:
    """Load what `save` wrote; return whether there was a complete file."""
    try:
        tensors: dict[str, Any] = safetensors.torch.load(file.read_bytes())
        basis = Basis(*(tensors[f"basis.{name}"] for name in Basis._fields))
        indices, vectors = tensors["indices"].tolist(), tensors["vectors"]
        # The key of the file excludes other images and settings, but not a damaged file.
        if not set(indices) <= set(embedded.order) or vectors.shape[1] != embedded.width:
            return False
        embedded.add(indices, vectors, len(embedded.order) - len(indices))
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError):
        return False
    embedded.basis = basis
    embedded.finish()
    return True
