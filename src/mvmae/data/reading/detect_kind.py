"""What kind of images there are, from the headers, or the arrays, of some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvmae.config.views import Depth
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.reading.deep_formats import FileFormat, read_format
from mvmae.data.reading.pixel_depth import depth_of
from mvmae.data.sources.base import Source
from mvmae.errors import UserError

MAX_HEADERS = 32  # images whose headers say how deep all are


class ImageKind(NamedTuple):
    """Of images."""

    facts: list[FileFormat]
    """Of those looked at that have a header."""

    @property
    def channels(self) -> int:
        """What most have; where there is colour and gray, colour."""
        counts = Counter(one.channels for one in self.facts)
        if not counts or set(counts) <= {1, 3}:
            return max(counts, default=3)
        return counts.most_common(1)[0][0]

    @property
    def pages(self) -> int:
        """The most pages of a file, which may be channels."""
        return max((one.pages for one in self.facts), default=1)

    @property
    def has_alpha(self) -> bool:
        """Whether any has something transparent."""
        return any(one.alpha for one in self.facts)

    @property
    def depth(self) -> Depth:
        """The least that loses nothing.

        Raises:
            UserError: Some hold shares of a full range, and some values of their own.
        """
        found = {one.depth for one in self.facts}
        if "float" not in found:
            return "16" if "16" in found else "8"
        if len(found) > 1:
            raise UserError(
                "some images hold whole numbers of 8 or 16 bit, others floating-point, signed or "
                "32-bit values: --views.depth float takes all as they are, --views.depth 16 passes "
                "the others over"
            )
        return "float"

    def fits(self, channels: int) -> bool:
        """Whether any can be read with so many channels."""
        return not self.facts or any(_fits(one, channels) for one in self.facts)


def _fits(one: FileFormat, channels: int) -> bool:
    between = {1, 3}  # gray becomes colour, and colour gray
    return (
        one.channels == channels
        or {one.channels, channels} <= between
        or (one.alpha and one.channels + 1 == channels)
        or (one.pages > 1 and channels in between)
    )


def sample_indices(count: int, most: int, seed: int) -> list[int]:
    """So many places at most, drawn at random, in order."""
    if count <= most:
        return list(range(count))
    drawn = np.random.default_rng((seed, count)).choice(count, most, replace=False)
    return sorted(drawn.tolist())


def detect_kind(source: Source, seed: int) -> ImageKind:
    """Look at some images' headers or arrays; those that have neither are passed over."""
    facts = [format_at(source, place) for place in sample_indices(len(source), MAX_HEADERS, seed)]
    return ImageKind([one for one in facts if one is not None])


def format_at(source: Source, place: int) -> FileFormat | None:
    """What an image's header or its array says; None where it cannot be read."""
    try:
        content = source.content(place)
        if isinstance(content, bytes):
            return read_format(content)
        return FileFormat(content.array.shape[2], depth_of(content.array.dtype), content.alpha)
    except UnreadableImageError:
        return None
    except Exception:  # decoders raise anything, and training will say of which image
        return None


def require_channels(kind: ImageKind, channels: int, data: Sequence[str], flag: str = "") -> None:
    """Make sure that some images can be read with so many channels.

    Args:
        kind: Of the images.
        channels: Asked for.
        data: What the user called them.
        flag: By which another number can be asked for, if it can.

    Raises:
        UserError: None looked at can.
    """
    if not kind.fits(channels):
        raise UserError(
            f"the images in {' '.join(data)} have {kind.channels} channels, not {channels}"
            + (f": set {flag} {kind.channels}" if flag else "")
        )
