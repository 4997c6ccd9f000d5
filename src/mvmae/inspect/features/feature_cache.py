"""What is looked at: encoders, images, the features of images and how these are drawn.

Shapes: M images, D width, H and W pixels, C channels 1 or 3.
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
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mvmae import encoders
from mvmae.config.features import FeaturesConfig
from mvmae.config.model import Pool
from mvmae.data.reading.loader import Skipped
from mvmae.data.sources.base import Source, Subset, stamp
from mvmae.data.sources.labelled import TEST, TRAIN
from mvmae.embed.search import seen
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.evaluation.shared import cache_key, short_name
from mvmae.storage.lock import shared
from mvmae.terminal import Bar
from mvmae.training import distributed

PARTS = frozenset((*TRAIN, *TEST))  # folders that are parts of a data set


class Setting(NamedTuple):
    """What is drawn, of what, and where the pictures go."""

    config: FeaturesConfig
    opened: OpenedEncoder
    against: dict[str, OpenedEncoder]
    pool: Pool
    """The token that stands for an image."""

    source: Source
    device: torch.device
    folder: Path

    @property
    def name(self) -> str:
        """The encoder in few words."""
        return short_name(self.config.encoder, self.config.against)


class Images(NamedTuple):
    """Images that could be read and what the encoder makes of them."""

    places: list[int]
    """In the source."""

    features: Float[Tensor, "M D"]
    labels: Int[np.ndarray, " M"] | None
    """Places in `classes`; none where there are no classes, or only one."""

    classes: Sequence[str]
    skipped: list[Skipped]

    def name(self, row: int) -> str:
        """An image's class; nothing where there are none."""
        return "" if self.labels is None else self.classes[self.labels[row]]

    def only(self, places: Sequence[int]) -> Images:
        """Those at some places of the source."""
        wanted = set(places)
        rows = [row for row, place in enumerate(self.places) if place in wanted]
        return self._replace(
            places=[self.places[row] for row in rows],
            features=self.features[rows],
            labels=None if self.labels is None else self.labels[rows],
        )


class Picture(NamedTuple):
    """What a part of the command makes."""

    png: bytes | None
    """None where there is nothing to draw."""

    facts: dict[str, Any]
    """For features.json."""

    said: str
    """For the screen."""

    table: bytes | None = None
    """For a .csv beside the picture."""


def sample(count: int, most: int, seed: int) -> list[int]:
    """Places of so many images at random, in their order."""
    drawn = np.random.default_rng((seed, 1)).permutation(count)[:most]
    return sorted(drawn.tolist())


def read(setting: Setting, places: Sequence[int]) -> Images | None:
    """The features of some images; of very many, what is done is kept until all are.

    Several processes share them; there are none but in the main one.

    Raises:
        UserError: More than half cannot be read, or a feature is no number.
    """
    config, source = setting.config, Subset(setting.source, places)
    with _kept(setting, source) as keep, Bar(len(source)) as bar:
        bar.name("features")
        how = encoders.encoder_extractor(
            setting.opened.encoder,
            setting.opened.preprocessing,
            device=setting.device,
            precision_name=config.precision,
            batch_size=config.batch_size,
            workers=config.workers,
        )
        found = encoders.extract_distributed(how, source, keep, bar.advance)
    if found is None:
        return None
    lost = {skip.path for skip in found.skipped}
    left = [place for place in places if setting.source.path(place) not in lost]
    vectors = found.cls if setting.pool == "cls" and found.cls is not None else found.mean
    bad = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"{config.encoder} makes no finite features of {setting.source.path(left[bad[0]])}: "
            "try --precision fp32"
        )
    classes, labels = classes_of(setting.source, left)
    return Images(left, vectors, labels, classes, found.skipped)


@contextmanager
def _kept(setting: Setting, source: Source) -> Iterator[Path]:
    """A folder for what is done, beside the pictures; gone once all is done."""
    config, encoder = setting.config, setting.opened.encoder
    facts = (encoders.weights_digest(encoder), encoder.image_size, setting.opened.preprocessing)
    stamped = distributed.from_main(stamp(source) if distributed.is_main() else "")
    how = (setting.device.type, config.precision, config.batch_size, stamped)
    above = setting.folder / ".cache"
    keep = above / f"features-{cache_key((*facts, *how))}"
    with shared(above):
        yield keep
        if distributed.is_main():
            shutil.rmtree(keep, ignore_errors=True)
    with suppress(OSError):  # not there, or of use to another command
        above.rmdir()


def classes_of(
    source: Source, places: Sequence[int]
) -> tuple[Sequence[str], Int[np.ndarray, " M"] | None]:
    """The classes of some images, where there are at least two."""
    if not source.classes:
        return (), None
    names = [class_of(source, place) for place in places]
    classes = sorted(set(names))
    if len(classes) < 2:
        return (), None
    at = {name: number for number, name in enumerate(classes)}
    return classes, np.array([at[name] for name in names], dtype=np.int64)


def class_of(source: Source, place: int) -> str:
    """The name of an image's class; empty where it has none.

    Folders train/ and val/ are parts and no classes: an image's class is then the folder that it
    lies in.
    """
    label = source.label(place)
    if label < 0:
        return ""
    if not PARTS.issuperset(source.classes):
        return source.classes[label]
    name = Path(source.path(place)).parent.name
    return "" if name in PARTS else name


def pixels(setting: Setting, place: int) -> UInt8[np.ndarray, "H W C"]:
    """The part of an image that the encoder sees."""
    return seen(setting.source, place, setting.opened)


def name_of(setting: Setting, place: int) -> str:
    """An image as it is called below its picture."""
    return Path(setting.source.path(place)).name


def csv_of(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """A table as the bytes of a .csv; names of files that are no UTF-8 stay as they are."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")
