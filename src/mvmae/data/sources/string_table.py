"""Many strings in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class StringTable(Sequence[str]):
    """Strings, as paths are, kept as one run of bytes and where each of them ends.

    A path of 60 letters takes 68 bytes here and 117 as a string in a list; and the processes that
    read, which are forked, never copy a page of it: no counter of references lies in between.

    Args:
        strings: Read once.
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
    def of_bytes(cls, blob: bytes, ends: np.ndarray) -> StringTable:
        """Strings that lie in `blob` one after another, and where each ends."""
        made = cls()
        made._blob = blob
        made._starts = np.concatenate([[0], ends]).astype(np.int64)
        return made

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
        """All of them, without anything in between."""
        return self._blob

    @property
    def ends(self) -> np.ndarray:
        """Where in `blob` each ends, as int64."""
        return self._starts[1:]


def label_order(words: Iterable[str]) -> list[str]:
    """Words of labels, each once: numbers by what they are worth, anything else by letters."""
    table = sorted(set(words))
    return sorted(table, key=int) if are_numbers(table) else table


def are_numbers(words: Iterable[str]) -> bool:
    """Whether all are whole numbers, of a length that labels may have."""
    return all(word.isascii() and word.isdecimal() and len(word) <= 18 for word in words)


class CodedWords:
    """A word for each image, such as its class, as a number in a table of the words there are.

    Args:
        words: Read once; an empty one stands for none.
        table: The words in the order of their numbers. Default: those that occur, sorted.
    """

    def __init__(self, words: Iterable[str], table: Sequence[str] | None = None) -> None:
        seen: dict[str, int] = {}
        found = np.fromiter((seen.setdefault(word, len(seen)) for word in words), dtype=np.int32)
        self.table = tuple(sorted(seen.keys() - {""}) if table is None else table)
        place = {word: at for at, word in enumerate(self.table)} | {"": -1}
        self.codes = np.array([place[word] for word in seen], dtype=np.int32)[found]

    def word(self, index: int) -> str | None:
        """The word of an image; none where it has none."""
        code = int(self.codes[index])
        return None if code < 0 else self.table[code]

    @property
    def is_whole(self) -> bool:
        """Whether every image has one."""
        return bool((self.codes >= 0).all())
