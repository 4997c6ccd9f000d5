"""torchvision:NAME, data sets of torchvision that are on the disk already."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torchvision import datasets

from mvmae.data.reading.pixel_depth import UnreadableImageError, Values, Wanted
from mvmae.data.sources.base import NOT_FILES_MESSAGE, Source
from mvmae.data.sources.cache_dir import CONSENT, cache_folder, may_download
from mvmae.errors import UserError, suggest

PREFIX = "torchvision:"
ROOT = "MVMAE_TORCHVISION"  # a folder
Split = Literal["train", "test"]

BY_TRAIN = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS")
TRAIN_TEST = (
    *("Country211", "DTD", "FGVCAircraft", "Flowers102", "Food101", "GTSRB", "PCAM"),
    *("RenderedSST2", "STL10", "SVHN", "StanfordCars"),
)
WHOLE = ("Caltech101", "Caltech256", "EuroSAT", "SUN397")  # without a split
Options = dict[Split, dict[str, Any]]
BY_SPLIT: Options = {"train": {"split": "train"}, "test": {"split": "test"}}
BY_FLAG: Options = {"train": {"train": True}, "test": {"train": False}}
ONE_PART: Options = {"train": {}}
PARTS: dict[str, Options] = {
    **dict.fromkeys(BY_TRAIN, BY_FLAG),
    **dict.fromkeys(TRAIN_TEST, BY_SPLIT),
    **dict.fromkeys(WHOLE, ONE_PART),
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
}


class TorchvisionSet(Source):
    """One split of one of torchvision's data sets.

    Args:
        name: Name of the class in torchvision.
        split: The split.
        channels: Channels of the pixels.

    Raises:
        UserError: The set is missing or damaged.
    """

    def __init__(self, name: str, split: Split, channels: int) -> None:
        self.name, self.channels = f"{PREFIX}{name}:{split}", channels
        self.wanted, self.refuses_check = Wanted(channels), NOT_FILES_MESSAGE.format(self.name)
        root, kind, options = folder(), getattr(datasets, name), dict(PARTS[name][split])
        # Some classes cannot download, and raise an error if they are asked to.
        if "download" in inspect.signature(kind).parameters:
            options["download"] = may_download()
        try:
            if may_download():
                root.mkdir(parents=True, exist_ok=True)
            elif not root.is_dir():  # some classes would create it
                raise FileNotFoundError("not found")
            self.images = kind(str(root), **options)
        except (RuntimeError, OSError, ValueError, ImportError) as error:
            raise UserError(_explain_missing(name, root, error)) from error
        self.label_codes = _read_labels(self.images)
        self.classes = _class_names(self.images, self.label_codes)

    def __len__(self) -> int:
        return len(self.images)

    def content(self, index: int) -> Values:
        try:
            picture = self.images[index][0]
        except Exception as error:  # Pillow raises anything
            raise UnreadableImageError(" ".join(str(error).split())[:200]) from error
        if not isinstance(picture, Image.Image):
            raise UnreadableImageError("not an image")
        gray = picture.mode in ("1", "L")
        array = np.asarray(picture.convert("L" if gray else "RGB"))
        # As wide as requested, so that `detect_kind` does not make a gray set gray by itself.
        return Values(np.repeat(array[..., None], self.channels, axis=2) if gray else array)

    def version(self, index: int) -> str:
        return ""

    def path(self, index: int) -> str:
        return f"{self.name}/{self.classes[self.label(index)]}/{index}"


def open_images(data: str, channels: int, split: Split = "train") -> TorchvisionSet:
    """Open one split of the set that `torchvision:NAME` names.

    Raises:
        UserError: The set is unknown, or not on the disk.
    """
    name = data.removeprefix(PREFIX)
    known = {one.lower(): one for one in PARTS}
    if name.lower() not in known:
        raise UserError(
            f"unknown torchvision set '{name}'{suggest(name, PARTS)} (supported: "
            f"{', '.join(sorted(PARTS))})"
        )
    return TorchvisionSet(known[name.lower()], split, channels)


def open_parts(data: str, channels: int) -> tuple[TorchvisionSet, TorchvisionSet] | None:
    """Open the training and the test split; None if the set has no split.

    Raises:
        UserError: As `open_images`.
    """
    train = open_images(data, channels)
    parts = PARTS[train.name.split(":")[1]]
    return (train, open_images(data, channels, "test")) if "test" in parts else None


def folder() -> Path:
    """The folder that contains torchvision's data sets."""
    own = os.environ.get(ROOT)
    return Path(own).expanduser() if own else cache_folder() / "torchvision"


def _explain_missing(name: str, root: Path, error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{PREFIX}{name} needs another package: {error}"
    said = " ".join(str(error).split())
    if "not found" in said.lower() or "no such file" in said.lower():
        said = "the folder or file is missing"
    return (
        f"{PREFIX}{name} cannot be read from {root}: {said[:200]}. Set {ROOT} to the folder that "
        f"contains it, or {CONSENT}=1 to download it"
    )


def _read_labels(images: Any) -> np.ndarray:
    """The label of each image; images are read only if torchvision does not keep the labels."""
    for name in ("targets", "labels", "_labels", "y"):  # names in torchvision's classes
        if (values := getattr(images, name, None)) is not None:
            # QMNIST has eight numbers per image, of which the first is the label.
            return np.asarray(values, dtype=np.int64).reshape(len(images), -1)[:, 0]
    if (samples := getattr(images, "_samples", None)) is not None:
        return np.array([label for _, label in samples], dtype=np.int64)
    return np.array([images[index][1] for index in range(len(images))], dtype=np.int64)


def _class_names(images: Any, labels: np.ndarray) -> tuple[str, ...]:
    """Torchvision's class names, or numbers if it has none."""
    names: Sequence[Any] = getattr(images, "classes", None) or getattr(images, "categories", ())
    words = [" ".join(one) if isinstance(one, tuple) else str(one) for one in names]
    if len(words) <= int(labels.max(initial=-1)) or len(set(words)) < len(words):
        words = [str(number) for number in range(int(labels.max(initial=-1)) + 1)]
    return tuple(words)
