"""Images that are the same, or nearly: found among millions without comparing all pairs.

Shapes: N images, thumbnails of 16 x 16 pixels, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64

Thumbs = UInt8[np.ndarray, "N 16 16 3"]
Hashes = UInt64[np.ndarray, "N 2"]
Pairs = Int[np.ndarray, "P 2"]

MARGIN = 6  # in sums of 12 pixel values: what is flat has no direction, whatever the encoder did
BANDS = 7  # of 16 bits: pairs that differ in fewer bits than there are bands share one band whole
MAX_BITS = BANDS - 1
FLAT = 3.0  # grey levels of standard deviation under which a thumbnail shows nothing
MAX_BRIGHTNESS_DIFFERENCE = 40.0  # grey levels by which near duplicates may differ on average
PIECE = 1 << 16  # rows at a time


def first_with_same_digest(digests: UInt64[np.ndarray, "N 2"]) -> Int[np.ndarray, " N"]:
    """For each file the place of the first file with the same digest, which may be its own."""
    _, first, which = np.unique(
        np.ascontiguousarray(digests).view([("a", np.uint64), ("b", np.uint64)]).ravel(),
        return_index=True,
        return_inverse=True,
    )
    return first[which]


def contrast(thumbs: Thumbs) -> Float[np.ndarray, " N"]:
    """Standard deviation over a thumbnail's values, in grey levels."""
    parts = [
        thumbs[at : at + PIECE].reshape(len(thumbs[at : at + PIECE]), -1).astype(np.float32).std(1)
        for at in range(0, len(thumbs), PIECE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def difference_hashes(thumbs: Thumbs) -> Hashes:
    """112 bits of each thumbnail: where it gets brighter to the right, and downwards.

    The difference hash of Krawetz ("Kind of Like That", 2013) on 8 x 8 cells, in both directions,
    with a margin so that flat parts give the same bits in every copy.
    """
    parts = [_hashes(thumbs[at : at + PIECE]) for at in range(0, len(thumbs), PIECE)]
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.uint64)


def _hashes(thumbs: Thumbs) -> Hashes:
    cells = thumbs.reshape(len(thumbs), 8, 2, 8, 2, 3).sum(axis=(2, 4, 5), dtype=np.int32)
    right = (np.diff(cells, axis=2) > MARGIN).reshape(len(thumbs), -1)
    down = (np.diff(cells, axis=1) > MARGIN).reshape(len(thumbs), -1)
    # Bit k goes to band k mod 7: neighbouring bits are alike in most images, and a band of them
    # would tell little.
    bits = np.concatenate([right, down], axis=1).reshape(len(thumbs), 16, BANDS).transpose(0, 2, 1)
    bands = np.ascontiguousarray(np.packbits(bits, axis=2)).view(np.uint16)[..., 0]
    padded = np.concatenate([bands, np.zeros((len(thumbs), 1), np.uint16)], axis=1)
    return np.ascontiguousarray(padded).view(np.uint64)


def hamming(a: UInt64[np.ndarray, "P 2"], b: UInt64[np.ndarray, "P 2"]) -> Int[np.ndarray, " P"]:
    """Bits in which hashes differ."""
    return np.bitwise_count(a ^ b).sum(axis=1, dtype=np.int64)


def colour_correlation(
    thumbs: Thumbs, first: Int[np.ndarray, " P"], second: Int[np.ndarray, " P"]
) -> Float[np.ndarray, " P"]:
    """Correlation of the colours of pairs of thumbnails; 0 where one is far brighter."""
    parts = [np.zeros(0, np.float32)]
    for at in range(0, len(first), PIECE):
        a, b = (
            thumbs[side[at : at + PIECE]].reshape(-1, 768).astype(np.float32)
            for side in (first, second)
        )
        shift = np.abs(a.mean(1) - b.mean(1))
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
        parts.append(
            np.where(
                shift <= MAX_BRIGHTNESS_DIFFERENCE, (a * b).sum(1) / np.maximum(scale, 1e-6), 0
            )
        )
    return np.concatenate(parts).astype(np.float32)


def find_near_duplicates(
    thumbs: Thumbs, least: float, usable: Bool[np.ndarray, " N"]
) -> tuple[Pairs, Float[np.ndarray, " P"]]:
    """Pairs of images that look the same, sorted by place.

    Hashes that differ in at most six bits are equal in one of seven bands at least (pigeonhole),
    so only images with an equal band are compared; what remains is decided by the thumbnails.
    Images with the same hash are compared with the first of them, not with each other.

    Args:
        thumbs: Of all images.
        least: Correlation from which a pair counts.
        usable: Images to compare; the others are in no pair.

    Returns:
        Pairs of places, the smaller first, and their similarity.
    """
    places = np.flatnonzero(usable)
    hashes = difference_hashes(thumbs)[places]
    keys = hashes.view([("a", np.uint64), ("b", np.uint64)]).ravel()
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    found = [*_of_one_hash(thumbs, places, which, least)]
    for a, b in _of_near_hashes(hashes[first]):
        one, other = places[first[a]], places[first[b]]
        alike = colour_correlation(thumbs, one, other)
        keep = alike >= least
        found.append((np.stack([one[keep], other[keep]], axis=1), alike[keep]))
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *(pair for pair, _ in found)])
    alike = np.concatenate([np.zeros(0, np.float32), *(value for _, value in found)])
    pairs, kept = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)
    return pairs, alike[kept]


def _of_one_hash(
    thumbs: Thumbs, places: np.ndarray, which: np.ndarray, least: float
) -> Iterator[tuple[Pairs, np.ndarray]]:
    """Images of the same hash with the first that they look like, in a few rounds.

    In each round the first of each hash takes along those that look like it.
    """
    left = np.arange(len(places))
    for _ in range(32):
        _, first, back = np.unique(which[left], return_index=True, return_inverse=True)
        heads = left[first][back]
        rest = heads != left
        one, other = places[heads[rest]], places[left[rest]]
        alike = colour_correlation(thumbs, one, other)
        keep = alike >= least
        yield np.stack([one[keep], other[keep]], axis=1), alike[keep]
        left = left[rest][~keep]
        if not len(left):
            return


def _of_near_hashes(hashes: Hashes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of pairs of different hashes, at most six bits apart; a pair may come repeatedly."""
    bands = np.ascontiguousarray(hashes).view(np.uint16)[:, :BANDS]
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        values = bands[order, band]
        at, step = np.arange(len(values)), 0
        while len(at):  # as often as the largest bucket has members
            step += 1
            at = at[at + step < len(values)]
            at = at[values[at] == values[at + step]]
            a, b = order[at], order[at + step]
            near = hamming(hashes[a], hashes[b]) <= MAX_BITS
            if near.any():
                yield a[near], b[near]
