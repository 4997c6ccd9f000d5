"""Mean, deviation and quantiles of the pixels of many images, per channel, in one pass.

Integers are counted, so all results are exact. For floats, sums are kept in double precision. The
results do not depend on the number of processes: each takes fixed pieces of the images, which are
merged in order.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from math import floor, gcd, log10
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.utils.data import DataLoader, Dataset

from mvmae.config.views import Depth
from mvmae.data.reading.decode import Pixels, UnreadableImageError
from mvmae.data.reading.loader import Skipped, loader_options
from mvmae.data.reading.resilient_loader import POLL, Watched, resilient_batches
from mvmae.data.sources.base import Source

# Images that a process reads before it answers. Fixed, because sums of floats depend on what was
# summed first, and the number of processes must not matter.
PIECE = 16
MAX_KEPT_VALUES = 200_000  # per channel, to estimate the quantiles of floats
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
Advance = Callable[[int], object]
LEVELS: dict[Depth, int] = {"8": 256, "16": 65536}


class Sums(NamedTuple):
    """Sums over floats, one number per channel."""

    count: Int[np.ndarray, " C"]
    mean: Float[np.ndarray, " C"]
    squares: Float[np.ndarray, " C"]
    """Sum of squared distances from the mean."""

    low: Float[np.ndarray, " C"]
    high: Float[np.ndarray, " C"]
    zeros: Int[np.ndarray, " C"]


class Piece(NamedTuple):
    """The results of one process for some images."""

    levels: list[tuple[np.ndarray, np.ndarray]]
    """For integers, per channel: the values that occur, and how often."""

    sums: Sums | None
    """For floats."""

    kept: list[np.ndarray]
    """For floats: some values, channels x values."""

    sizes: list[tuple[int, int]]
    skipped: list[Skipped]


class Channel(NamedTuple):
    """The values of one channel, in the units of `--views.mean`."""

    mean: float
    std: float
    low: float
    high: float
    quantiles: tuple[float, ...]
    """At `QUANTILES`."""

    zeros: float
    """Share of the values."""

    saturated: float
    """Share of values equal to the largest that fits the used bits; for floats, to the maximum."""

    bits: int | None
    """Used bits, such as 12 in a file of 16; None for floats."""

    values: int
    """Number of values."""


class PixelStatistics(NamedTuple):
    """Statistics of many images."""

    depth: Depth
    channels: list[Channel]
    sizes: Counter[tuple[int, int]]
    """Number of images by height and width."""

    skipped: list[Skipped]


def measure_pixels(
    source: Source,
    indices: Sequence[int],
    depth: Depth,
    *,
    workers: int | None,
    timeout: float = 600.0,
    advance: Advance = lambda count: None,
) -> PixelStatistics:
    """Measure every pixel of some images.

    Args:
        source: The images, opened at this depth.
        indices: Indices of the images.
        depth: Depth of the pixels.
        workers: Reader processes. None: chosen for the machine.
        timeout: Seconds that reading one image may take.
        advance: Called with the number of images that were finished.
    """
    indices = list(indices)
    begins = range(0, len(indices), PIECE)
    pieces = [indices[begin : begin + PIECE] for begin in begins]
    options = loader_options(workers, cuda=False, timeout=POLL)
    watched = Watched(source, options["num_workers"])
    dataset = PieceDataset(watched, depth, len(indices))
    # torch's own collating would turn the arrays into tensors.
    options |= {"batch_size": None, "collate_fn": Piece._make}

    def loader(rest: range) -> DataLoader:
        return DataLoader(dataset, sampler=[pieces[at] for at in rest], **options)

    everything = resilient_batches(loader, range(len(pieces)), watched, timeout=timeout)
    return _merge(everything, depth, advance)


class PieceDataset(Dataset):
    """Results for a piece, by the indices of its images."""

    def __init__(self, source: Source, depth: Depth, count: int) -> None:
        self.source, self.depth, self.count = source, depth, count

    def __getitem__(self, index: Sequence[int]) -> Piece:
        images, skipped = [], []
        for place in index:
            try:
                images.append((place, self.source.read(place)))
            except UnreadableImageError as error:
                skipped.append(Skipped(self.source.path(place), str(error)))
        sizes = [(image.shape[1], image.shape[2]) for _, image in images]
        if not images:
            return Piece([], None, [], sizes, skipped)
        if self.depth in LEVELS:
            counted = sum(_counts(image, LEVELS[self.depth]) for _, image in images)
            # Only levels that occur are sent: of 65,536, a piece of few images has a small part.
            levels = [(used := np.flatnonzero(row), row[used]) for row in np.asarray(counted)]
            return Piece(levels, None, [], sizes, skipped)
        sums = reduce(merge_sums, (_sums(image) for _, image in images))
        kept = [one for place, image in images if len(one := self._spread_values(place, image))]
        return Piece([], sums, kept, sizes, skipped)

    def _spread_values(self, place: int, image: Pixels) -> np.ndarray:
        """Values spread over an image, fewer per image the more images there are."""
        quota, every = max(1, MAX_KEPT_VALUES // self.count), max(1, self.count // MAX_KEPT_VALUES)
        if place % every:
            return np.empty(0)
        flat = image.flatten(1)
        return flat[:, :: max(1, -(-flat.shape[1] // quota))].numpy()


def _counts(image: Pixels, levels: int) -> Int[np.ndarray, "C levels"]:
    """How often each integer occurs in each channel."""
    whole = image if image.dtype == torch.uint8 else (image.double() * (levels - 1)).round()
    flat = whole.flatten(1).numpy().astype(np.int64)
    return np.stack([np.bincount(row, minlength=levels) for row in flat])


def _sums(image: Pixels) -> Sums:
    flat = image.flatten(1).numpy().astype(np.float64)
    mean = flat.mean(axis=1)
    squares = np.square(flat - mean[:, None]).sum(axis=1)
    count = np.full(len(flat), flat.shape[1], dtype=np.int64)
    return Sums(count, mean, squares, flat.min(1), flat.max(1), (flat == 0).sum(axis=1))


def merge_sums(a: Sums, b: Sums) -> Sums:
    """Merge the sums of two sets of values (Chan, Golub and LeVeque 1983)."""
    count, apart = a.count + b.count, b.mean - a.mean
    return Sums(
        count,
        a.mean + apart * (b.count / count),
        a.squares + b.squares + apart**2 * (a.count / count * b.count),
        np.minimum(a.low, b.low),
        np.maximum(a.high, b.high),
        a.zeros + b.zeros,
    )


def _merge(pieces: Iterator[Piece], depth: Depth, advance: Advance) -> PixelStatistics:
    counts: list[np.ndarray] = []
    sums: Sums | None = None
    kept: list[np.ndarray] = []
    sizes: Counter[tuple[int, int]] = Counter()
    skipped: list[Skipped] = []
    for piece in pieces:
        advance(len(piece.sizes) + len(piece.skipped))
        sizes.update(piece.sizes)
        skipped += piece.skipped
        kept += piece.kept
        counts = counts or [np.zeros(LEVELS[depth], np.int64) for _ in piece.levels]
        for total, (used, times) in zip(counts, piece.levels, strict=False):
            total[used] += times
        if piece.sums is not None:
            sums = piece.sums if sums is None else merge_sums(sums, piece.sums)
    channels = [_from_counts(total) for total in counts]
    if sums is not None:
        channels = _from_sums(sums, np.concatenate(kept, axis=1))
    return PixelStatistics(depth, channels, sizes, skipped)


def _from_counts(counts: Int[np.ndarray, " levels"]) -> Channel:
    """Statistics of integers from their counts, computed in integers."""
    # In Python's integers: squares of 16-bit values times their counts outgrow 64 bits.
    used = np.flatnonzero(counts).tolist()
    times = [int(counts[value]) for value in used]
    total, full = sum(times), len(counts) - 1
    first = sum(value * n for value, n in zip(used, times, strict=True))
    second = sum(value * value * n for value, n in zip(used, times, strict=True))
    # 8 bits spread over 16 are multiples of 257, and 12 bits are often multiples of 16.
    step = gcd(*used) or 1
    bits = (used[-1] // step).bit_length()
    top = (2**bits - 1) * step
    places = np.searchsorted(np.cumsum(times), [q * (total - 1) for q in QUANTILES], side="right")
    return Channel(
        mean=first / total / full,
        std=(total * second - first * first) ** 0.5 / total / full,
        low=used[0] / full,
        high=used[-1] / full,
        quantiles=tuple(used[place] / full for place in places),
        zeros=int(counts[0]) / total,
        saturated=int(counts[top]) / total if 0 < top <= full else 0.0,
        bits=bits,
        values=total,
    )


def _from_sums(sums: Sums, kept: Float[np.ndarray, "C values"]) -> list[Channel]:
    found = []
    for at, values in enumerate(kept):
        total = int(sums.count[at])
        quantiles = np.quantile(values.astype(np.float64), QUANTILES).tolist()
        found.append(
            Channel(
                mean=float(sums.mean[at]),
                std=float((sums.squares[at] / total) ** 0.5),
                low=float(sums.low[at]),
                high=float(sums.high[at]),
                quantiles=tuple(quantiles),
                zeros=int(sums.zeros[at]) / total,
                saturated=float((values == sums.high[at]).mean()),
                bits=None,
                values=total,
            )
        )
    return found


def rounded_statistics(channels: list[Channel]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation to six digits; a constant channel gets the deviation 1.

    A mean far above its deviation keeps more digits, so that six digits of the deviation count.
    """
    mean = tuple(float(f"{one.mean:.{_digits(one)}g}") for one in channels)
    return mean, tuple(float(f"{one.std:.6g}") if one.std > 0 else 1.0 for one in channels)


def _digits(one: Channel) -> int:
    ratio = abs(one.mean) / one.std if one.std > 0 else 1.0
    return 6 + max(0, min(9, floor(log10(ratio)))) if ratio > 0 else 6


def constant_notes(channels: list[Channel]) -> list[str]:
    """Return a note on constant channels, from which nothing can be learnt, or none."""
    flat = [str(at) for at, one in enumerate(channels, 1) if one.std == 0]
    return [f"one value in all measured pixels: channel {', '.join(flat)}"] if flat else []
