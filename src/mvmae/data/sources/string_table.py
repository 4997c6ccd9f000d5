"""Millions of strings in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class StringTable(Sequence[str]):
    """Strings, such as paths, stored as one run of bytes and the end of each string.

    A path of 60 letters takes 68 bytes here and 117 as a string in a list. Forked reader processes
    never copy its memory pages, because there are no reference counts in between.

    Args:
        strings: The strings; iterated once.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        blob, lengths = bytearray(), []
        for text in strings:
            own = text.encode("utf-8", "surrogateescape")
            blob += own
            lengths.append(len(own))
        self._blob = bytes(blob)
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)

    @classmethod
    def from_bytes(cls, blob: bytes, ends: np.ndarray) -> StringTable:
        """Strings that follow each other in `blob`, with the end of each."""
        table = cls()
        table._blob = blob
        table._starts = np.concatenate([[0], ends]).astype(np.int64)
        return table

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> StringTable: ...

    def __getitem__(self, index: int | slice) -> str | StringTable:
        if isinstance(index, slice):
            return StringTable(self[at] for at in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at = index % len(self)
        return self._blob[self._starts[at] : self._starts[at + 1]].decode(
            "utf-8", "surrogateescape"
        )

    @property
    def blob(self) -> bytes:
        """All strings without separators."""
        return self._blob

    @property
    def ends(self) -> np.ndarray:
        """The end of each string in `blob`, as int64."""
        return self._starts[1:]


def label_order(words: Iterable[str]) -> list[str]:
    """Distinct labels in order: by value if all are numbers, else alphabetically."""
    table = sorted(set(words))
    return sorted(table, key=int) if are_numbers(table) else table


def are_numbers(words: Iterable[str]) -> bool:
    """Whether all words are whole numbers of at most 18 digits."""
    return all(word.isascii() and word.isdecimal() and len(word) <= 18 for word in words)


class CodedWords:
    """A word for each image, such as its class, stored as an index in a table of words.

    Args:
        words: The words; iterated once. Empty for an image without a word.
        table: The distinct words in the order of their indices. Default: sorted.
    """

    def __init__(self, words: Iterable[str], table: Sequence[str] | None = None) -> None:
        seen: dict[str, int] = {}
        found = np.fromiter((seen.setdefault(word, len(seen)) for word in words), dtype=np.int32)
        self.table = tuple(sorted(seen.keys() - {""}) if table is None else table)
        place = {word: at for at, word in enumerate(self.table)} | {"": -1}
        self.codes = np.array([place[word] for word in seen], dtype=np.int32)[found]

    def word(self, index: int) -> str | None:
        """The word of an image; None if it has none."""
        code = int(self.codes[index])
        return None if code < 0 else self.table[code]

    @property
    def is_whole(self) -> bool:
        """Whether every image has a word."""
        return bool((self.codes >= 0).all())
