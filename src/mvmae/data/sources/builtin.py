"""Images from packages that mvmae depends on; nothing is downloaded.

`photos`: windows of the photographs in scikit-image's and scikit-learn's wheels, labelled by the
photograph. `digits`: scikit-learn's handwritten digits.
"""

from importlib.resources import files
from typing import Literal

import numpy as np
import torch
from PIL import Image

from mvmae.data.reading.decode import Wanted, decode
from mvmae.data.reading.pixel_depth import Values
from mvmae.data.sources.base import Source
from mvmae.data.sources.string_table import CodedWords

Split = Literal["train", "val"]

SCIKIT_IMAGE = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png"),
    *("coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg"),
)
PHOTOGRAPHS = {file.split(".")[0]: ("skimage.data", file) for file in SCIKIT_IMAGE} | {
    "china": ("sklearn.datasets.images", "china.jpg"),
    "flower": ("sklearn.datasets.images", "flower.jpg"),
}

WINDOW_SIDES = (72, 128)  # pixels in the photograph
STORED_SIDE = 64  # pixels of a stored window: twice the demo's input
NUM_WINDOWS = {"train": 200, "val": 60}  # per photograph
SHARE = {"train": (0.0, 0.6), "val": (0.62, 1.0)}  # of the width; no pixel is in both


class InMemory(Source):
    """Images in one array, N x 1 or `channels` x height x width."""

    def __init__(self, name: str, images: np.ndarray, labels: CodedWords, channels: int) -> None:
        self.name, self.wanted = name, Wanted(channels)
        self.images = torch.from_numpy(images).expand(-1, channels, -1, -1)
        self.label_codes, self.classes = labels
        kind, _, _ = name.partition(":")
        self.refuses_check = f"{kind} is built in: there is nothing to check. Name a folder"

    def __len__(self) -> int:
        return len(self.images)

    def content(self, index: int) -> Values:
        return Values(self.images[index].permute(1, 2, 0).numpy())

    def version(self, index: int) -> str:
        return ""

    def path(self, index: int) -> str:
        return f"{self.name}/{self.classes[self.label(index)]}/{index}"


def photos(split: Split, channels: int) -> InMemory:
    """Square windows of 18 photographs; the label is the photograph.

    Training windows come from the left 60 % of each photograph, validation windows from the right
    38 %. They are drawn with a fixed seed, the same on every machine.
    """
    windows = []
    for label, (package, file) in enumerate(PHOTOGRAPHS.values()):
        photograph = decode(files(package).joinpath(file).read_bytes(), channels)
        windows.append(_windows(photograph.permute(1, 2, 0).numpy(), split, label))
    images = np.concatenate(windows).transpose(0, 3, 1, 2)
    labels = np.repeat(np.arange(len(PHOTOGRAPHS)), NUM_WINDOWS[split])
    coded = CodedWords(labels, tuple(PHOTOGRAPHS))
    return InMemory(f"photos:{split}", np.ascontiguousarray(images), coded, channels)


def _windows(photograph: np.ndarray, split: Split, label: int) -> np.ndarray:
    """Windows of one photograph at the stored size: count x side x side x channels."""
    # One generator for each photograph and part: another photograph leaves the others as they are.
    rng = np.random.default_rng((label, split == "val"))
    height, width, channels = photograph.shape
    low, high = (round(share * width) for share in SHARE[split])
    windows = []
    for _ in range(NUM_WINDOWS[split]):
        side = int(rng.integers(WINDOW_SIDES[0], 1 + min(WINDOW_SIDES[1], height, high - low)))
        top = int(rng.integers(0, 1 + height - side))
        left = int(rng.integers(low, 1 + high - side))
        window = Image.fromarray(photograph[top : top + side, left : left + side].squeeze())
        window = window.resize((STORED_SIDE, STORED_SIDE), Image.Resampling.BICUBIC)
        windows.append(np.asarray(window).reshape(STORED_SIDE, STORED_SIDE, channels))
    return np.stack(windows)


def digits(split: Split, channels: int) -> InMemory:
    """1,797 handwritten digits of 8 x 8 pixels; every fifth is for validation."""
    from sklearn.datasets import load_digits  # half a second, for this source only

    values, labels = load_digits(return_X_y=True)
    validates = np.arange(len(labels)) % 5 == 4
    keep = validates if split == "val" else ~validates
    images = np.round(values[keep] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    coded = CodedWords(labels[keep], tuple("0123456789"))
    return InMemory(f"digits:{split}", images, coded, channels)


SETS = {"photos": photos, "digits": digits}


def open_images(name: str, channels: int) -> InMemory:
    """Open the training part of `photos` or `digits`."""
    return SETS[name.removeprefix("builtin:")]("train", channels)


def open_parts(name: str, channels: int) -> tuple[InMemory, InMemory]:
    """Open the training and the validation part."""
    build = SETS[name.removeprefix("builtin:")]
    return build("train", channels), build("val", channels)
