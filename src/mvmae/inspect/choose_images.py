"""Choose the images that are drawn, and prepare them for the encoder and for the figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8
from torch import Tensor

from mvmae import terminal
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources.base import Source
from mvmae.data.sources.labelled import TEST, TRAIN
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.method.views import to_display_range, whole_view

PARTS = frozenset((*TRAIN, *TEST))  # folder names that are parts of a data set and not classes

HIDDEN = 0.5  # gray of a hidden patch in pictures, in [0, 1]


class Chosen(NamedTuple):
    """Readable images of a source."""

    indices: list[int]
    names: list[str]
    """Folder and file."""

    passed_over: list[tuple[str, str]]
    """Path and reason of each image that cannot be read."""


def choose(source: Source, count: int, seed: int) -> Chosen:
    """Choose readable images at random.

    Raises:
        UserError: None can be read.
    """
    chosen = Chosen([], [], [])
    # Masks are drawn from (seed, 1): another number of images changes no mask.
    for index in np.random.default_rng((seed, 0)).permutation(len(source)).tolist():
        try:
            source.read(index)
        except UnreadableImageError as error:
            chosen.passed_over.append((source.path(index), str(error)))
            continue
        chosen.indices.append(index)
        chosen.names.append("/".join(Path(source.path(index)).parts[-2:]))
        if len(chosen.indices) == count:
            break
    if not chosen.indices:
        path, reason = chosen.passed_over[0]
        raise UserError(
            f"none of the {len(source)} images of {source.name} can be read, {path} for one "
            f"({reason})"
        )
    return chosen


def report_missing(chosen: Chosen, count: int) -> None:
    """Print why fewer images than requested are drawn, and which cannot be read."""
    console = terminal.console()
    if len(chosen.indices) < count:
        what = "no more can be read" if chosen.passed_over else "there are no more"
        console.print(f"{len(chosen.indices)} of {count} images: {what}")
    if chosen.passed_over:
        path, reason = (" ".join(text.split()) for text in chosen.passed_over[0])
        number = len(chosen.passed_over)
        first = path if number == 1 else f"{number} images that cannot be read, {path} for one"
        console.print(f"passed over: {first} ({reason})")


def views(
    source: Source, indices: Sequence[int], size: tuple[int, int], interpolation: str
) -> UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"]:
    """Read images as an encoder of that size sees them; photographs are too large to keep."""
    return torch.stack([whole_view(source.read(index), size, interpolation) for index in indices])


def finer(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Scale a size up, so that its longer side has at least the given number of pixels."""
    factor = max(1.0, long_side / max(size))
    return round(size[0] * factor), round(size[1] * factor)


def require_channels(channels: Sequence[int], have: int, encoder: str) -> None:
    """Check that images have the requested channels.

    Raises:
        UserError: They have fewer.
    """
    if channels and max(channels) > have:
        raise UserError(
            f"--channels {' '.join(map(str, channels))}: images of {encoder} have {have}, "
            "counted from 1"
        )


def select_channels(
    pixels: Shaped[np.ndarray, "*B C"], channels: Sequence[int] = ()
) -> Shaped[np.ndarray, "*B K"]:
    """Select the requested channels, else the first three, or the first of fewer."""
    have = pixels.shape[-1]
    # Two channels, or four and more, have no agreed colours: red, green and blue come first if any.
    chosen = channels or (range(1, 4) if have >= 3 else range(1, 2))
    return pixels[..., [channel - 1 for channel in chosen]]


def render_image(
    source: Source,
    index: int,
    opened: OpenedEncoder,
    long_side: int = 192,
    *,
    unreadable: int = 255,
) -> UInt8[np.ndarray, "H W K"]:
    """The part of an image that an encoder sees, as a picture for people.

    Args:
        source: The images.
        index: Number of the image in the source.
        opened: The encoder.
        long_side: Pixels on the longer side of the picture, usually more than the encoder sees.
        unreadable: Gray level, 0 to 255, of a picture in place of an image that cannot be read.
    """
    height, width = opened.encoder.image_size
    scale = long_side / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    preprocessing = opened.preprocessing
    try:
        view = whole_view(source.read(index), size, preprocessing.interpolation)
    except UnreadableImageError:
        view = torch.full((opened.encoder.in_channels, *size), unreadable, dtype=torch.uint8)
    picture = to_display_range(view[None], preprocessing.mean, preprocessing.std)[0]
    return select_channels((picture * 255).round().byte().permute(1, 2, 0).numpy())


def class_name(source: Source, index: int) -> str:
    """Name of an image's class; empty if it has none.

    Where the classes of a source are only parts of a data set, such as train/ and val/, an image's
    class is the folder that holds it.
    """
    label = source.label(index)
    if label < 0:
        return ""
    if not PARTS.issuperset(source.classes):
        return source.classes[label]
    name = Path(source.path(index)).parent.name
    return "" if name in PARTS else name
