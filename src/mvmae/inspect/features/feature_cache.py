"""Features of the images that `mvmae features` draws, cached until all of them are computed.

Shapes: M images, D width.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvmae import encoders
from mvmae.config.figures import FeaturesConfig
from mvmae.config.model import Pool
from mvmae.data.reading.loader import Skipped
from mvmae.data.sources.base import Source, Subset, stamp
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.evaluation.result_text import short_name
from mvmae.evaluation.shared import cache_key
from mvmae.figures.page import Cell
from mvmae.inspect.choose_images import class_name, render_image
from mvmae.terminal import Bar
from mvmae.training import distributed
from mvmae.training.run_start import claim_shared_folder


class Job(NamedTuple):
    """What is drawn, with which encoders, into which folder."""

    config: FeaturesConfig
    opened: OpenedEncoder
    against: dict[str, OpenedEncoder]
    """Further encoders of the picture `pca`, by name."""

    pool: Pool
    """Token that represents an image."""

    source: Source
    device: torch.device
    folder: Path

    @property
    def encoder_name(self) -> str:
        """Short name of the encoder."""
        return short_name(self.config.encoder, self.config.against)

    def cell(self, index: int, detail: str = "") -> Cell:
        """The part of an image that the encoder sees, its file name and a detail."""
        captions = (Path(self.source.path(index)).name, detail)
        picture = render_image(self.source, index, self.opened)
        return Cell(picture, captions=captions if detail else captions[:1])


class ImageFeatures(NamedTuple):
    """Features of the images that could be read."""

    indices: list[int]
    """Positions of the images in the source."""

    features: Float[Tensor, "M D"]
    labels: Int[np.ndarray, " M"] | None
    """Positions in `classes`; None if there are fewer than two classes."""

    classes: Sequence[str]
    skipped: list[Skipped]

    def label(self, row: int) -> str:
        """Class of an image; empty if there are no classes."""
        return "" if self.labels is None else self.classes[self.labels[row]]

    def select(self, indices: Sequence[int]) -> ImageFeatures:
        """Keep the images at some positions of the source."""
        wanted = set(indices)
        rows = [row for row, index in enumerate(self.indices) if index in wanted]
        return self._replace(
            indices=[self.indices[row] for row in rows],
            features=self.features[rows],
            labels=None if self.labels is None else self.labels[rows],
        )


class Drawing(NamedTuple):
    """One picture of the command, and what is reported about it."""

    png: bytes | None
    """None if there is nothing to draw."""

    facts: dict[str, Any]
    """Entry in features.json."""

    summary: str
    """Line for the terminal."""

    table: bytes | None = None
    """CSV file beside the picture."""


def sample_indices(count: int, limit: int, seed: int) -> list[int]:
    """Choose at most `limit` of `count` images at random, in ascending order."""
    chosen = np.random.default_rng((seed, 1)).permutation(count)[:limit]
    return sorted(chosen.tolist())


def compute_image_features(job: Job, indices: Sequence[int]) -> ImageFeatures | None:
    """Compute the features of some images, by all processes together.

    Returns:
        The features in the main process, None in the others.

    Raises:
        UserError: More than half of the images cannot be read, or a feature is not finite.
    """
    config, source = job.config, Subset(job.source, indices)
    with _cache_folder(job, source) as cache, Bar(len(source)) as bar:
        bar.name("features")
        extractor = encoders.encoder_extractor(
            job.opened.encoder,
            job.opened.preprocessing,
            device=job.device,
            precision_name=config.precision,
            batch_size=config.batch_size,
            workers=config.workers,
        )
        found = encoders.extract_distributed(extractor, source, cache, bar.advance)
    if found is None:
        return None
    # Rows are the readable images, in order: extraction leaves unreadable ones out.
    unreadable = {skip.path for skip in found.skipped}
    readable = [index for index in indices if job.source.path(index) not in unreadable]
    vectors = found.cls if job.pool == "cls" and found.cls is not None else found.mean
    bad = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"{config.encoder} gives features that are not finite for "
            f"{job.source.path(readable[bad[0]])}: try --precision fp32"
        )
    classes, labels = find_classes(job.source, readable)
    return ImageFeatures(readable, vectors, labels, classes, found.skipped)


@contextmanager
def _cache_folder(job: Job, source: Source) -> Iterator[Path]:
    """Folder for finished features, beside the pictures; removed once all are computed.

    An interrupted command leaves it behind, and the next one with the same encoder, images and
    settings continues from there.
    """
    config, encoder = job.config, job.opened.encoder
    facts = (encoders.weights_digest(encoder), encoder.image_size, job.opened.preprocessing)
    images = distributed.from_main(stamp(source) if distributed.is_main() else "")
    settings = (job.device.type, config.precision, config.batch_size, images)
    parent = job.folder / ".cache"
    folder = parent / f"features-{cache_key((*facts, *settings))}"
    with claim_shared_folder(parent):
        yield folder
        if distributed.is_main():
            shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # missing, or in use by another command
        parent.rmdir()


def find_classes(
    source: Source, indices: Sequence[int]
) -> tuple[Sequence[str], Int[np.ndarray, " M"] | None]:
    """The classes of some images and each image's label, if there are at least two classes."""
    if not source.classes:
        return (), None
    names = [class_name(source, index) for index in indices]
    classes = sorted(set(names))
    if len(classes) < 2:  # one colour for all would say nothing
        return (), None
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, np.array([numbers[name] for name in names], dtype=np.int64)


def to_csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """Encode a table as CSV; file names that are not UTF-8 keep their bytes."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")
