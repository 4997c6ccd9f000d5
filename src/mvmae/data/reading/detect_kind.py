"""Channels and depth of images, from the headers or arrays of some of them."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvmae.config.views import Depth
from mvmae.data.reading.deep_formats import FileFormat, read_format
from mvmae.data.reading.pixel_depth import lossless_depth
from mvmae.data.sources.base import Source
from mvmae.errors import UserError

MAX_HEADERS = 32  # images that stand for all


class ImageKind(NamedTuple):
    """Channels and depth of a set of images."""

    formats: list[FileFormat]
    """Formats of the inspected images that have a readable header."""

    @property
    def channels(self) -> int:
        """The most frequent number of channels; for a mix of colour and gray, colour."""
        counts = Counter(one.channels for one in self.formats)
        if not counts or set(counts) <= {1, 3}:
            return max(counts, default=3)
        return counts.most_common(1)[0][0]

    @property
    def pages(self) -> int:
        """The largest number of pages of a file; pages may be channels."""
        return max((one.pages for one in self.formats), default=1)

    @property
    def has_alpha(self) -> bool:
        """Whether any image has transparency."""
        return any(one.alpha for one in self.formats)

    @property
    def depth(self) -> Depth:
        """The smallest depth that keeps all values.

        Raises:
            UserError: Some images hold shares of a full range, and others plain values.
        """
        found = {one.depth for one in self.formats}
        if "float" not in found:
            return "16" if "16" in found else "8"
        if len(found) > 1:
            raise UserError(
                "some images hold 8-bit or 16-bit integers, others floating-point, signed or "
                "32-bit values: --views.depth float takes all as they are, --views.depth 16 skips "
                "the others"
            )
        return "float"

    def fits(self, channels: int) -> bool:
        """Whether any image can be read with this number of channels."""
        convertible = {1, 3}  # gray becomes colour, and colour gray
        return not self.formats or any(
            one.channels == channels
            or {one.channels, channels} <= convertible
            or (one.alpha and one.channels + 1 == channels)
            or (one.pages > 1 and channels in convertible)
            for one in self.formats
        )


def sample_indices(count: int, most: int, seed: int) -> list[int]:
    """At most `most` of `count` indices, drawn at random, in ascending order."""
    if count <= most:
        return list(range(count))
    drawn = np.random.default_rng((seed, count)).choice(count, most, replace=False)
    return sorted(drawn.tolist())


def detect_kind(source: Source, seed: int) -> ImageKind:
    """Inspect the headers or arrays of some images, drawn at random."""
    formats = []
    for place in sample_indices(len(source), MAX_HEADERS, seed):
        with contextlib.suppress(Exception):  # decoders raise anything; training names the image
            content = source.content(place)
            formats.append(
                read_format(content)
                if isinstance(content, bytes)
                else FileFormat(
                    content.array.shape[2], lossless_depth(content.array.dtype), content.alpha
                )
            )
    return ImageKind(formats)


def require_channels(kind: ImageKind, channels: int, data: Sequence[str], flag: str = "") -> None:
    """Make sure that some images can be read with this number of channels.

    Args:
        kind: Channels and depth of the images.
        channels: Requested channels.
        data: What the user called the images.
        flag: The flag that sets the number of channels, if there is one.

    Raises:
        UserError: None of the inspected images can.
    """
    if not kind.fits(channels):
        raise UserError(
            f"the images in {' '.join(data)} have {kind.channels} channels, not {channels}"
            + (f": set {flag} {kind.channels}" if flag else "")
        )
