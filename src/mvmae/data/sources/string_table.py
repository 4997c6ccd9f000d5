"""Millions of strings in little memory."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class StringTable:
    """Strings, such as paths, stored as one run of bytes and the end of each string.

    A path of 60 letters takes 68 bytes here and 117 as a string in a list. Forked reader processes
    never copy its memory pages, because there are no reference counts in between.

    Args:
        blob: All strings, without separators.
        ends: The end of each string in `blob`.
    """

    def __init__(self, blob: bytes, ends: Int[np.ndarray, " strings"]) -> None:
        self.blob, self.ends = blob, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        return (self[at] for at in range(len(self)))

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at = index % len(self)
        start = self.ends[at - 1] if at else 0
        return self.blob[start : self.ends[at]].decode("utf-8", "surrogateescape")


def store_strings(strings: Iterable[str]) -> StringTable:
    """Store strings; they are iterated once."""
    blob, ends = bytearray(), []
    for text in strings:
        blob += text.encode("utf-8", "surrogateescape")  # paths need not be UTF-8
        ends.append(len(blob))
    return StringTable(bytes(blob), np.array(ends, dtype=np.int64))


def label_order(words: Iterable[str]) -> list[str]:
    """Distinct labels in order: by value if all are numbers, else alphabetically."""
    table = sorted(set(words))
    return sorted(table, key=int) if are_numbers(table) else table


def are_numbers(words: Iterable[str]) -> bool:
    """Whether all words are whole numbers of at most 18 digits."""
    # Beyond 4,300 digits int() raises, and up to 18 digits a number fits into 64 bits.
    return all(word.isascii() and word.isdecimal() and len(word) <= 18 for word in words)


class CodedWords(NamedTuple):
    """A word for each image, such as its class, stored as an index in a table of words."""

    codes: Int[np.ndarray, " images"]
    """int32; -1 for an image that has no word."""

    table: tuple[str, ...]

    def word(self, index: int) -> str | None:
        """The word of an image; None if it has none."""
        code = int(self.codes[index])
        return None if code < 0 else self.table[code]

    def words(self) -> list[str]:
        """The words of all images; empty for an image that has none."""
        table = (*self.table, "")  # which -1 picks
        return [table[code] for code in self.codes.tolist()]


def encode_words(words: Iterable[str], table: Sequence[str] | None = None) -> CodedWords:
    """Store a word for each image.

    Args:
        words: The words; iterated once. Empty for an image that has none.
        table: The distinct words in the order of their indices. Default: sorted.
    """
    seen: dict[str, int] = {}
    found = np.fromiter((seen.setdefault(word, len(seen)) for word in words), dtype=np.int32)
    table = sorted(seen.keys() - {""}) if table is None else table
    place = {word: at for at, word in enumerate(table)} | {"": -1}
    return CodedWords(np.array([place[word] for word in seen], np.int32)[found], tuple(table))
