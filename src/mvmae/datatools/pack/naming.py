"""What images are called in a tar file: their paths, made to WebDataset's rules."""

from __future__ import annotations

import os

from mvmae.data.sources.base import Source

LONGEST = 200  # bytes of a folder's or a file's name: unpacked, 255 are what file systems take


class Naming:
    """Keys of images: their paths below what all have in common, without dots in the last part.

    What a tar file holds of one image shares a name up to the first dot of its last part, the key.

    Args:
        source: The images.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        base: str | None = None
        for index in range(len(source)):
            folder = self.source.member(index).rpartition("/")[0] + "/"
            if base is None:
                base = folder
            elif not folder.startswith(base):
                base = _common(base, folder)
        self.base = base or ""

    def key(self, index: int) -> str:
        """Of an image; two images may have the same."""
        inside = self.source.member(index)[len(self.base) :]
        parts = [_plain(part) for part in inside.split("/") if part not in ("", ".", "..")]
        stem = os.path.splitext(parts[-1])[0] if parts else ""  # noqa: PTH122
        return "/".join([*parts[:-1], stem.replace(".", "_") or "image"])


def _common(one: str, other: str) -> str:
    """The folders that two folders, both with a slash at their end, lie in."""
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return one[: one.rfind("/", 0, length) + 1]


def _plain(part: str) -> str:
    """Without a dot in front, which would hide it, and short enough to be unpacked."""
    part = part.lstrip(".") or "image"
    name = part.encode("utf-8", "surrogateescape")
    if len(name) <= LONGEST:
        return part
    stem, dot, suffix = part.rpartition(".")
    kept = (stem if dot else part).encode("utf-8", "surrogateescape")[: LONGEST - 20]
    return kept.decode("utf-8", "ignore") + dot + suffix[:16]


def unlike(key: str, taken: set[str]) -> str:
    """The key, or with a number where another image of the tar file has it; then it is taken."""
    found, number = key, 1
    while found in taken:
        number += 1
        found = f"{key}-{number}"
    taken.add(found)
    return found
