"""Find identical and nearly identical images among millions without comparing all pairs.

Shapes: N images, thumbnails of 16 x 16 pixels, P pairs.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64

Thumbs = UInt8[np.ndarray, "N 16 16 3"]
Hashes = UInt64[np.ndarray, "N 2"]
Pairs = Int[np.ndarray, "P 2"]

MARGIN = 6  # in sums of 12 pixel values, so that compression noise in flat parts sets no bit
BANDS = 7  # each has 16 bits: pairs that differ in fewer than 7 bits have an equal band
MAX_BITS = BANDS - 1
FLAT = 3.0  # standard deviation in grey levels below which a thumbnail shows nothing
MAX_BRIGHTNESS_DIFFERENCE = 40.0  # of near-duplicates, in grey levels on average
PIECE = 1 << 16  # rows at a time


def first_with_same_digest(digests: UInt64[np.ndarray, "N 2"]) -> Int[np.ndarray, " N"]:
    """For each file, the index of the first file with the same digest, possibly its own."""
    _, first, which = np.unique(
        np.ascontiguousarray(digests).view([("a", np.uint64), ("b", np.uint64)]).ravel(),
        return_index=True,
        return_inverse=True,
    )
    return first[which]


def contrast(thumbs: Thumbs) -> Float[np.ndarray, " N"]:
    """Standard deviation of each thumbnail's values, in grey levels."""
    parts = [
        thumbs[at : at + PIECE].reshape(len(thumbs[at : at + PIECE]), -1).astype(np.float32).std(1)
        for at in range(0, len(thumbs), PIECE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def difference_hashes(thumbs: Thumbs) -> Hashes:
    """Compute 112 bits of each thumbnail: where it gets brighter to the right and downwards.

    This is the difference hash of Krawetz ("Kind of Like That", 2013) on 8 x 8 cells, in both
    directions, with a margin so that flat parts give the same bits in every copy.
    """
    parts = [_hashes(thumbs[at : at + PIECE]) for at in range(0, len(thumbs), PIECE)]
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.uint64)


def _hashes(thumbs: Thumbs) -> Hashes:
    cells = thumbs.reshape(len(thumbs), 8, 2, 8, 2, 3).sum(axis=(2, 4, 5), dtype=np.int32)
    right = (np.diff(cells, axis=2) > MARGIN).reshape(len(thumbs), -1)
    down = (np.diff(cells, axis=1) > MARGIN).reshape(len(thumbs), -1)
    # Bit k goes to band k mod 7: neighbouring bits agree in most images, so a band of neighbours
    # would match too many pairs.
    bits = np.concatenate([right, down], axis=1).reshape(len(thumbs), 16, BANDS).transpose(0, 2, 1)
    bands = np.ascontiguousarray(np.packbits(bits, axis=2)).view(np.uint16)[..., 0]
    padded = np.concatenate([bands, np.zeros((len(thumbs), 1), np.uint16)], axis=1)
    return np.ascontiguousarray(padded).view(np.uint64)


def hamming(a: UInt64[np.ndarray, "P 2"], b: UInt64[np.ndarray, "P 2"]) -> Int[np.ndarray, " P"]:
    """Number of bits in which hashes differ."""
    return np.bitwise_count(a ^ b).sum(axis=1, dtype=np.int64)


def colour_correlation(
    thumbs: Thumbs, first: Int[np.ndarray, " P"], second: Int[np.ndarray, " P"]
) -> Float[np.ndarray, " P"]:
    """Correlation of the colours of pairs of thumbnails; 0 if one is far brighter."""
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
    thumbs: Thumbs, threshold: float, usable: Bool[np.ndarray, " N"]
) -> tuple[Pairs, Float[np.ndarray, " P"]]:
    """Find pairs of images that look the same, sorted by index.

    Hashes that differ in at most six bits are equal in at least one of seven bands (pigeonhole
    principle), so only images with an equal band are compared, by the colours of their thumbnails.
    Images with the same hash are compared with the first of them, not with each other.

    Args:
        thumbs: Thumbnails of all images.
        threshold: Smallest correlation of a pair.
        usable: Images to compare; the others are in no pair.

    Returns:
        Pairs of indices, the smaller first, and their correlation.
    """
    indices = np.flatnonzero(usable)
    hashes = difference_hashes(thumbs)[indices]
    keys = hashes.view([("a", np.uint64), ("b", np.uint64)]).ravel()
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    found = [*_pairs_of_equal_hash(thumbs, indices, which, threshold)]
    for a, b in _pairs_of_close_hashes(hashes[first]):
        one, other = indices[first[a]], indices[first[b]]
        alike = colour_correlation(thumbs, one, other)
        keep = alike >= threshold
        found.append((np.stack([one[keep], other[keep]], axis=1), alike[keep]))
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *(pair for pair, _ in found)])
    alike = np.concatenate([np.zeros(0, np.float32), *(value for _, value in found)])
    pairs, kept = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)
    return pairs, alike[kept]


def _pairs_of_equal_hash(
    thumbs: Thumbs, indices: np.ndarray, which: np.ndarray, threshold: float
) -> Iterator[tuple[Pairs, np.ndarray]]:
    """Pair images of the same hash with the first one that they look like.

    In each round, the first remaining image of each hash is paired with those that look like it.
    """
    left = np.arange(len(indices))
    for _ in range(32):  # a limit for adversarial data; a few rounds are enough
        _, first, back = np.unique(which[left], return_index=True, return_inverse=True)
        heads = left[first][back]
        rest = heads != left
        one, other = indices[heads[rest]], indices[left[rest]]
        alike = colour_correlation(thumbs, one, other)
        keep = alike >= threshold
        yield np.stack([one[keep], other[keep]], axis=1), alike[keep]
        left = left[rest][~keep]
        if not len(left):
            return


def _pairs_of_close_hashes(hashes: Hashes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Find pairs of different hashes at most six bits apart; a pair may be found repeatedly."""
    bands = np.ascontiguousarray(hashes).view(np.uint16)[:, :BANDS]
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        values = bands[order, band]
        at, step = np.arange(len(values)), 0
        while len(at):  # compares each hash with the next, the one after, ... of its band
            step += 1
            at = at[at + step < len(values)]
            at = at[values[at] == values[at + step]]
            a, b = order[at], order[at + step]
            near = hamming(hashes[a], hashes[b]) <= MAX_BITS
            if near.any():
                yield a[near], b[near]
