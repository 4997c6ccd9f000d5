"""The interface of an image source, and sources that wrap another source."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np

from mvmae.config.model import MAX_CHANNELS
from mvmae.config.views import Depth
from mvmae.data.reading.decode import Pixels, Wanted, decode_content
from mvmae.data.reading.pixel_depth import Values
from mvmae.data.sources.string_table import CodedWords, encode_words
from mvmae.errors import UserError

NOT_FILES_MESSAGE = (  # why `data check` refuses a data set given by name
    "{} does not consist of files: mvmae data pack writes it to tar files, which can be checked"
)


class Source(ABC):
    """Images by index. Sources are picklable, because reader processes get a copy.

    A new kind of source implements the four abstract methods and sets `name` and `wanted`.
    """

    name: str
    """DATA as the user wrote it."""

    wanted: Wanted
    """Channels and depth of the pixels that `read` returns."""

    classes: Sequence[str] = ()
    """Class names in the order of the labels; empty without labels."""

    label_codes: np.ndarray = np.empty(0)
    """Index in `classes` for each image; empty without labels."""

    groups: CodedWords = encode_words(())
    """Name of each image's group, such as its patient; empty without groups."""

    has_own_files: bool = False
    """Whether each image is a separate file, at `path`."""

    refuses_check: str = ""
    """Why `mvmae data check` cannot check these images; empty if it can."""

    damage: Sequence[tuple[str, str]] = ()
    """Path and problem of each archive that can be read only in part."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def path(self, index: int) -> str:
        """Path of an image, for messages; unique in this source."""

    @abstractmethod
    def content(self, index: int) -> bytes | Values:
        """An encoded image file, or an array of pixel values.

        Raises:
            UnreadableImageError: The content cannot be read.
        """

    @abstractmethod
    def version(self, index: int) -> str:
        """A text that changes when the image changes; empty for images that never change."""

    def label(self, index: int) -> int:
        """Index of an image's class in `classes`; -1 without labels."""
        return int(self.label_codes[index]) if len(self.label_codes) else -1

    def group(self, index: int) -> str | None:
        """Name of an image's group; None if it is in none."""
        return self.groups.word(index) if self.groups.table else None

    def read(self, index: int) -> Pixels:
        """The pixels of an image, C x H x W.

        Raises:
            UnreadableImageError: The image cannot be decoded.
        """
        return decode_content(self.content(index), self.wanted)

    def member(self, index: int) -> str:
        """Path under which `data pack` stores an image in an archive, with forward slashes."""
        return self.path(index).replace(os.sep, "/")

    def files(self) -> Iterator[str]:
        """Local files that images, labels and class names come from; some may not exist."""
        return iter(())


class SourceWrapper(Source):
    """A source that forwards everything to another source; subclasses override parts."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name, self.classes, self.wanted = source.name, source.classes, source.wanted
        self.has_own_files, self.damage = source.has_own_files, source.damage
        self.refuses_check = source.refuses_check

    def original(self, index: int) -> int:
        """The index of an image in the wrapped source."""
        return index

    def __len__(self) -> int:
        return len(self.source)

    def path(self, index: int) -> str:
        return self.source.path(self.original(index))

    def content(self, index: int) -> bytes | Values:
        return self.source.content(self.original(index))

    def version(self, index: int) -> str:
        return self.source.version(self.original(index))

    def label(self, index: int) -> int:
        return self.source.label(self.original(index))

    def group(self, index: int) -> str | None:
        return self.source.group(self.original(index))

    def read(self, index: int) -> Pixels:
        return self.source.read(self.original(index))

    def member(self, index: int) -> str:
        return self.source.member(self.original(index))

    def files(self) -> Iterator[str]:
        return self.source.files()


class Subset(SourceWrapper):
    """Some images of another source."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        super().__init__(source)
        self.indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def original(self, index: int) -> int:
        return int(self.indices[index])


def plain_channels(channels: int) -> int:
    """The number of channels to open a source with before `with_depth` converts it: 1 or 3.

    Raises:
        UserError: `channels` is not between 1 and `MAX_CHANNELS`.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        raise UserError(f"image files are read with 1 to {MAX_CHANNELS} channels, not {channels}")
    return channels if channels in (1, 3) else 3


def with_depth(source: Source, channels: int, depth: Depth) -> Source:
    """Return a source whose `read` returns pixels with these channels and this depth.

    For 8-bit gray and colour that is the source itself, otherwise a copy.

    Args:
        source: Opened with `plain_channels`.
        channels: Number of channels of the pixels.
        depth: Depth of the pixels, see `Wanted`.
    """
    if depth == "8" and channels in (1, 3):
        return source
    deep = copy(source)
    deep.wanted = Wanted(channels, depth)
    if isinstance(deep, SourceWrapper):  # the source inside reads the pixels
        deep.source = with_depth(deep.source, channels, depth)
    return deep


def labels(source: Source) -> np.ndarray:
    """The label of every image, as int64."""
    return np.array([source.label(index) for index in range(len(source))], dtype=np.int64)


def fingerprint(source: Source) -> str:
    """A short hash of the number of images and their paths, to notice that the data changed."""
    # Without the size and time of each file, for which a network disk takes long; see `stamp`.
    digest = hashlib.sha256(str(len(source)).encode())
    for index in range(len(source)):
        digest.update(source.path(index).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def stamp(source: Source) -> str:
    """`fingerprint` and the version of every image, to notice that an image was replaced."""
    digest = hashlib.sha256(fingerprint(source).encode())
    for index in range(len(source)):
        digest.update(source.version(index).encode())
    return digest.hexdigest()[:16]
