"""hf:NAME, data sets of the package `datasets`: a folder of `save_to_disk`, or from its cache.

Streams are not supported: without random access there is neither a shuffle over all images nor a
resume at any step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mvmae.data.reading.decode import UnreadableImageError, Wanted
from mvmae.data.sources.base import NOT_FILES_MESSAGE, Source
from mvmae.data.sources.cache_dir import CONSENT, may_download
from mvmae.data.sources.folders import read_file
from mvmae.data.sources.labelled import TEST, TRAIN
from mvmae.data.sources.string_table import CodedWords, encode_words
from mvmae.errors import UserError

PREFIX = "hf:"
LABELS = ("label", "labels", "fine_label", "class")


class HubSet(Source):
    """One split of a data set of `datasets`, with the image files that it contains.

    Args:
        name: What the user called it, with the name of the split.
        rows: The split, a `datasets.Dataset`.
        channels: Channels of the pixels.

    Raises:
        UserError: There is no column of images.
    """

    def __init__(self, name: str, rows: Any, channels: int) -> None:
        from datasets import ClassLabel, Image, Value  # pyrefly: ignore[missing-import]  # extra

        self.name, self.wanted = name, Wanted(channels)
        self.refuses_check = NOT_FILES_MESSAGE.format(name)
        images = [key for key, kind in rows.features.items() if isinstance(kind, Image)]
        if not images:
            raise UserError(
                f"{name} has no column of images: its columns are {', '.join(rows.column_names)}"
            )
        self.column = "image" if "image" in images else images[0]
        # Undecoded, so that one decoder reads the images of all sources.
        self.rows = rows.select_columns([self.column]).cast_column(self.column, Image(decode=False))
        label = next((key for key in LABELS if key in rows.features), None)
        kind = rows.features[label] if label else None
        labels = encode_words(())
        if isinstance(kind, ClassLabel):
            values = rows.with_format("numpy")[label][:]
            labels = CodedWords(np.asarray(values, dtype=np.int64), tuple(kind.names))
        elif isinstance(kind, Value):
            labels = encode_words([str(value) for value in rows[label][:]])
        if not (labels.codes < 0).any():  # as in a test split whose labels are kept secret
            self.label_codes, self.classes = labels

    def __len__(self) -> int:
        return len(self.rows)

    def content(self, index: int) -> bytes:
        cell = self.rows[index][self.column] or {}
        if cell.get("bytes") is not None:
            return cell["bytes"]
        if not cell.get("path"):
            raise UnreadableImageError("no image in this row")
        return read_file(cell["path"])

    def path(self, index: int) -> str:
        return f"{self.name}/{index}"

    def version(self, index: int) -> str:
        # `datasets` keeps a hash of everything that a set was made from.
        return f"{index} {self.rows._fingerprint}"


def open_images(data: str, channels: int) -> HubSet:
    """Open the training split of the set that `hf:NAME` names, or the whole set without splits.

    Raises:
        UserError: `datasets` is missing, or the set is not on this machine.
    """
    parts = _load_parts(data)
    name = next((one for one in TRAIN if one in parts), next(iter(parts)))
    return HubSet(f"{data}:{name}", parts[name], channels)


def open_parts(data: str, channels: int) -> tuple[HubSet, HubSet] | None:
    """Open the training and the test split; None if the set does not have both.

    Raises:
        UserError: As `open_images`.
    """
    parts = _load_parts(data)
    names = [next((one for one in part if one in parts), "") for part in (TRAIN, TEST)]
    if not all(names):
        return None
    train, test = (HubSet(f"{data}:{name}", parts[name], channels) for name in names)
    return train, test


def _load_parts(data: str) -> dict[str, Any]:
    """The splits of a set by name."""
    name = data.removeprefix(PREFIX)
    if not name:
        raise UserError(
            "hf: is not followed by a name: write hf:NAME, or hf:FOLDER for a set saved to disk"
        )
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{data} needs: pip install 'mvmae[hf]'") from error
    try:
        if Path(name).is_dir():
            found = datasets.load_from_disk(name)
        else:
            with _offline(not may_download()):
                found = datasets.load_dataset(name)
    except Exception as error:  # it raises anything, including errors of network packages
        # One line, and not pages of hints for programmers.
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{data} cannot be opened: {said}. Name a folder written by save_to_disk, or a set in "
            f"the cache of the package datasets; set {CONSENT}=1 to download it"
        ) from error
    if not isinstance(found, datasets.DatasetDict):
        return {"train": found}
    return {str(part): rows for part, rows in found.items()}


@contextmanager
def _offline(is_offline: bool) -> Iterator[None]:
    """Restrict `datasets` to its cache; it and its hub read these settings at each call."""
    import datasets.config  # pyrefly: ignore[missing-import]
    import huggingface_hub.constants as hub

    before = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    if is_offline:
        datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before
