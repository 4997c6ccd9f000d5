"""Small images with masks, and what is found among them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvmae.data.annotations.mask_check import check_pairs, usable_data
from mvmae.data.annotations.masks import find_pairs
from mvmae.errors import UserError


def save_pair(root: Path, name: str, values: np.ndarray, part: str = "", masks="annotations"):
    """An image whose red is ten times its mask's value, and the mask."""
    image, mask = root / "images" / part / f"{name}.png", root / masks / part / f"{name}.png"
    for file in (image, mask):
        file.parent.mkdir(parents=True, exist_ok=True)
    colour = np.stack([values * 10, values * 0, values * 0 + 100], axis=-1)
    Image.fromarray(colour.astype(np.uint8)).save(image)
    Image.fromarray(values.astype(np.uint8)).save(mask)


def make_stripes(*numbers: int, size=(20, 30)) -> np.ndarray:
    """Vertical stripes."""
    return np.array(numbers)[np.arange(size[1]) * len(numbers) // size[1]][None].repeat(size[0], 0)


def find_test_pairs(root: Path, **options):
    options = {
        "folders": None,
        "channels": 3,
        "ignore_index": "auto",
        "test_split": None,
        "names": None,
    } | options
    return find_pairs(str(root), **options)


def check_test_pairs(root: Path, num_classes=None, **options):
    return check_pairs(find_test_pairs(root, **options), num_classes)


def complaint(root: Path, num_classes=None, **options) -> str:
    def open_pairs():
        where = find_test_pairs(root, **options)
        return usable_data(where, check_pairs(where, num_classes))

    with pytest.raises(UserError) as caught:
        open_pairs()
    return str(caught.value)
