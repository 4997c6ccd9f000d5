"""What a source of images is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from mvmae.data.reading.decode import Pixels
from mvmae.data.reading.pixel_depth import Values


@runtime_checkable  # beartype asks in tests
class Source(Protocol):
    """Images by number; picklable, for it goes to the processes that read."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Names of the labels; none where there are no labels."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: int) -> Pixels:
        """The pixels of an image.

        Raises:
            UnreadableImageError: It cannot be decoded.
        """
        ...

    def label(self, index: int) -> int:
        """The class of an image, as a place in `classes`; -1 where there are no labels."""
        ...

    def path(self, index: int) -> str:
        """Where an image is, for messages; no two alike."""
        ...


class Subset:
    """Some images of another source."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)
        self.name, self.classes = source.name, source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Pixels:
        """See `Source`."""
        return self.source.read(int(self.indices[index]))

    def label(self, index: int) -> int:
        """See `Source`."""
        return self.source.label(int(self.indices[index]))

    def group(self, index: int) -> str | None:
        """See `group`."""
        return group(self.source, int(self.indices[index]))

    def raw(self, index: int) -> bytes | None:
        """See `raw`."""
        return raw(self.source, int(self.indices[index]))

    def values(self, index: int) -> Values | None:
        """See `values`."""
        return values(self.source, int(self.indices[index]))

    def state(self, index: int) -> str | None:
        """See `state`."""
        return state(self.source, int(self.indices[index]))

    def path(self, index: int) -> str:
        """See `Source`."""
        return self.source.path(int(self.indices[index]))


def labels(source: Source) -> np.ndarray:
    """The class of every image, as int64."""
    return np.array([source.label(index) for index in range(len(source))], dtype=np.int64)


def group(source: Source, index: int) -> str | None:
    """What an image belongs to besides its class, such as a patient; none where that is unknown.

    A source that knows groups has a method of this name.
    """
    own = getattr(source, "group", None)
    return own(index) if own else None


def raw(source: Source, index: int) -> bytes | None:
    """The bytes of an image file; none where the source holds pixels, and no files.

    A source of files has a method of this name.

    Raises:
        UnreadableImageError: They cannot be read.
    """
    own = getattr(source, "raw", None)
    return own(index) if own else None


def values(source: Source, index: int) -> Values | None:
    """The numbers of an image as they are kept; none where the source has files, or only pixels.

    A source of arrays has a method of this name.
    """
    own = getattr(source, "values", None)
    return own(index) if own else None


def state(source: Source, index: int) -> str | None:
    """What changes when an image does, of images that are no files of their own.

    A source of such images has a method of this name.
    """
    own = getattr(source, "state", None)
    return own(index) if own else None
