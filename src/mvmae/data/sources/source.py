"""What a source of images is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from mvmae.data.decode import Pixels


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
        self.source, self.indices = source, list(indices)
        self.name, self.classes = source.name, source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Pixels:
        """See `Source`."""
        return self.source.read(self.indices[index])

    def label(self, index: int) -> int:
        """See `Source`."""
        return self.source.label(self.indices[index])

    def path(self, index: int) -> str:
        """See `Source`."""
        return self.source.path(self.indices[index])


def labels(source: Source) -> np.ndarray:
    """The class of every image, as int64."""
    return np.array([source.label(index) for index in range(len(source))], dtype=np.int64)
