"""Any source read with other channels than gray or colour, or deeper than 8 bit."""

from __future__ import annotations

from mvmae.config.model import MOST_CHANNELS
from mvmae.config.views import Depth
from mvmae.data.reading.decode import Pixels, Wanted, decode_deep, fitted
from mvmae.data.reading.pixel_depth import Values
from mvmae.data.sources.base import Source, group, raw, state, values
from mvmae.errors import UserError


class Deep:
    """Another source's images as they are asked for: from the files, where it has files."""

    def __init__(self, source: Source, wanted: Wanted) -> None:
        self.source, self.wanted = source, wanted
        self.name, self.classes = source.name, source.classes

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Pixels:
        """See `Source`."""
        own = values(self.source, index)
        if own is not None:
            return fitted(own, self.wanted)
        data = raw(self.source, index)
        if data is not None:
            return decode_deep(data, self.wanted)
        array = self.source.read(index).permute(1, 2, 0).numpy()
        return fitted(Values(array), self.wanted)

    def label(self, index: int) -> int:
        """See `Source`."""
        return self.source.label(index)

    def group(self, index: int) -> str | None:
        """See `source.group`."""
        return group(self.source, index)

    def raw(self, index: int) -> bytes | None:
        """See `source.raw`."""
        return raw(self.source, index)

    def values(self, index: int) -> Values | None:
        """See `source.values`."""
        return values(self.source, index)

    def state(self, index: int) -> str | None:
        """See `source.state`."""
        return state(self.source, index)

    def path(self, index: int) -> str:
        """See `Source`."""
        return self.source.path(index)


def plain_channels(channels: int) -> int:
    """Of the source that `deepened` is given.

    Raises:
        UserError: There are no such images.
    """
    if not 1 <= channels <= MOST_CHANNELS:
        raise UserError(f"image files are read with 1 to {MOST_CHANNELS} channels, not {channels}")
    return channels if channels in (1, 3) else 3


def deepened(source: Source, channels: int, depth: Depth) -> Source:
    """The source itself where 8-bit gray or colour is asked for, else `Deep`."""
    if depth == "8" and channels in (1, 3):
        return source
    return Deep(source, Wanted(channels, depth))


def with_depth(source: Source, channels: int, depth: Depth) -> Source:
    """A source that was opened at one depth, at another."""
    plain = source.source if isinstance(source, Deep) else source
    return deepened(plain, channels, depth)
