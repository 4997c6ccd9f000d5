"""Images in one .npy file, N x H x W, N x H x W x C or N x C x H x W, read on demand.

Labels are beside it, in NAME.labels.npy (whole numbers) or in NAME.csv (one label per line).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mvmae.config.model import MAX_CHANNELS
from mvmae.data.reading.pixel_depth import Values, Wanted
from mvmae.data.sources.base import Source
from mvmae.data.sources.string_table import CodedWords, label_order
from mvmae.errors import UserError

KINDS = "buif"  # numpy's letters for booleans, integers and floats


class ArrayFile(Source):
    """The images of an array in a file, which is mapped rather than loaded.

    Args:
        file: The .npy file.
        channels: Channels of the pixels: 3 for colour, 1 for gray.

    Raises:
        UserError: The array does not hold images, or the labels do not match them.
    """

    def __init__(self, file: str, channels: int) -> None:
        self.name, self.file, self.wanted = file, file, Wanted(channels)
        self._images: np.ndarray | None = None
        facts = Path(file).stat()
        self._stamp = f"{facts.st_size} {facts.st_mtime_ns}"
        self._count = len(self.images)
        self._classes = _labels(file, self._count)
        self.classes = self._classes.table if self._classes else ()

    @property
    def images(self) -> np.ndarray:
        """The array; each process maps the file for itself."""
        if self._images is None:
            self._images = _mapped(self.file)
        return self._images

    def __getstate__(self) -> dict[str, object]:
        """Omit the array, which would be pickled as a copy of the whole file."""
        return self.__dict__ | {"_images": None}

    def __len__(self) -> int:
        return self._count

    def content(self, index: int) -> Values:
        image = np.array(self.images[index])
        return Values(image if image.ndim == 3 else image[..., None])

    def label(self, index: int) -> int:
        return -1 if self._classes is None else int(self._classes.codes[index])

    def version(self, index: int) -> str:
        return f"{index} {self._stamp}"

    def path(self, index: int) -> str:
        return f"{self.file}/{index}"

    def files(self) -> Iterator[str]:
        return map(str, (self.file, *_label_files(self.file)))


def open_images(names: Sequence[str], channels: int) -> ArrayFile:
    """Open the one array in `names`."""
    return ArrayFile(names[0], channels)


def _mapped(file: str) -> np.ndarray:
    """Map the array of images in a file, channels last.

    Raises:
        UserError: The array does not hold images.
    """
    array = _array(file, "images")
    if array.dtype.kind not in KINDS:
        raise UserError(f"{file} holds {array.dtype}: images are integers or floats")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise UserError(
            f"{file} holds an array of shape {_shape(array)}: images are N x H x W, "
            "N x H x W x C or N x C x H x W"
        )
    images = _channels_last(array)
    if images.ndim == 4 and images.shape[3] > MAX_CHANNELS:
        raise UserError(
            f"{file} holds an array of shape {_shape(array)}, of {images.shape[3]} channels, and "
            f"at most {MAX_CHANNELS} are read"
        )
    return images


def _channels_last(array: np.ndarray) -> np.ndarray:
    """N x H x W x C: the second axis is the channels where it is shorter than both behind it."""
    if array.ndim == 4 and array.shape[1] < min(array.shape[2:]):
        return array.transpose(0, 2, 3, 1)  # mapped still
    return array


def _shape(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape)) or "none"


def _array(file: str, what: str) -> np.ndarray:
    """Map the array in a .npy file.

    Raises:
        UserError: It is not such a file, or holds Python objects, which cannot be mapped.
    """
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # a damaged header raises anything: ValueError, TokenError, ...
        first = next(iter(str(error).splitlines()), type(error).__name__)
        why = "it holds Python objects" if "Python objects" in first else first
        raise UserError(f"{file} is not a .npy file of {what}: {why}") from error


def _label_files(file: str) -> tuple[Path, Path]:
    """Where labels may be, as an array and as a table."""
    stem = Path(file).with_suffix("")
    return stem.with_name(stem.name + ".labels.npy"), stem.with_name(stem.name + ".csv")


def _labels(file: str, count: int) -> CodedWords | None:
    """Read the label of each image from beside the file; None without such a file.

    Raises:
        UserError: The number of labels is wrong, or they are not labels.
    """
    numbers, table = _label_files(file)
    if numbers.is_file():
        words, beside = _of_array(numbers), numbers
    elif table.is_file():
        words, beside = _of_table(table), table
    else:
        return None
    if len(words) != count:
        raise UserError(f"{beside} has {len(words):,} labels, and {file} {count:,} images")
    if not all(words):
        raise UserError(f"{beside}, entry {words.index('') + 1}: the label is empty")
    return CodedWords(words, label_order(words))


def _of_array(file: Path) -> list[str]:
    values = _array(str(file), "labels")
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        raise UserError(f"{file} must hold one whole number, or one text, for each image")
    return [str(value) for value in values.tolist()]


def _of_table(file: Path) -> list[str]:
    """The column with the header label or class, or the only column if there is no header."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = [[cell.strip() for cell in row] for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the labels {file}: {error}") from error
    header = [cell.lower() for cell in rows[0]] if rows else []
    for name in ("label", "class"):
        if name in header:
            at = header.index(name)
            return [row[at] if at < len(row) else "" for row in rows[1:]]
    if any(len(row) != 1 for row in rows):
        raise UserError(f"{file} has several columns: name one of them label in the first row")
    return [row[0] for row in rows]
