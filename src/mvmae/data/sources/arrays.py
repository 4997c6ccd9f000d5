"""Images in one .npy file, N x H x W, N x H x W x C or N x C x H x W, read on demand.

Labels are beside it, in NAME.labels.npy (whole numbers) or in NAME.csv (one label per line).
"""

import csv
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from mvmae.config.model import MAX_CHANNELS
from mvmae.data.reading.pixel_depth import Values, Wanted
from mvmae.data.sources.base import Source
from mvmae.data.sources.folders import file_version
from mvmae.data.sources.string_table import CodedWords, encode_words, label_order
from mvmae.errors import UserError


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
        self._stamp = file_version(file)
        self.label_codes, self.classes = _read_labels(file, len(self.images))

    @cached_property
    def images(self) -> np.ndarray:
        """The array; each process maps the file for itself."""
        return _map_images(self.file)

    def __getstate__(self) -> dict[str, object]:
        """Omit the array, which would be pickled as a copy of the whole file."""
        return {name: value for name, value in self.__dict__.items() if name != "images"}

    def __len__(self) -> int:
        return len(self.images)

    def content(self, index: int) -> Values:
        image = np.array(self.images[index])  # a copy, because torch needs memory it may write to
        return Values(image if image.ndim == 3 else image[..., None])

    def version(self, index: int) -> str:
        return f"{index} {self._stamp}"

    def path(self, index: int) -> str:
        return f"{self.file}/{index}"

    def files(self) -> Iterator[str]:
        return map(str, (self.file, *_label_files(self.file)))


def _map_images(file: str) -> np.ndarray:
    """Map the array of images in a file, channels last.

    Raises:
        UserError: The array does not hold images.
    """
    array = _map_array(file, "images")
    shape = " x ".join(map(str, array.shape)) or "none"
    if array.dtype.kind not in "buif":  # booleans, integers and floats
        raise UserError(f"{file} holds {array.dtype}: images are integers or floats")
    if array.ndim == 4 and array.shape[1] < min(array.shape[2:]):  # N x C x H x W
        array = array.transpose(0, 2, 3, 1)  # a view: the file stays mapped
    channels = array.shape[3] if array.ndim == 4 else 1
    if array.ndim not in (3, 4) or 0 in array.shape or channels > MAX_CHANNELS:
        raise UserError(
            f"{file} holds an array of shape {shape}: images are N x H x W, N x H x W x C or "
            f"N x C x H x W, with at most {MAX_CHANNELS} channels"
        )
    return array


def _map_array(file: str, what: str) -> np.ndarray:
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


def _read_labels(file: str, count: int) -> CodedWords:
    """Read the label of each image from beside the file; no labels without such a file.

    Raises:
        UserError: The number of labels is wrong, or they are not labels.
    """
    numbers, table = _label_files(file)
    if numbers.is_file():
        beside, values = numbers, _map_array(str(numbers), "labels")
        if values.ndim != 1 or values.dtype.kind not in "iuU":
            raise UserError(f"{beside} must hold one whole number, or one text, for each image")
        words = [str(value) for value in values.tolist()]
    elif table.is_file():
        beside, words = table, _read_label_column(table)
    else:
        return encode_words(())
    if len(words) != count:
        raise UserError(f"{beside} has {len(words):,} labels, and {file} {count:,} images")
    if not all(words):
        raise UserError(f"{beside}, entry {words.index('') + 1}: the label is empty")
    return encode_words(words, label_order(words))


def _read_label_column(file: Path) -> list[str]:
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
