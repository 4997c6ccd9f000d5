"""classes.txt beside tar files: the class names in the order of their numbers, one per line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mvmae.data.sources.string_table import are_numbers
from mvmae.errors import UserError

CLASSES = "classes.txt"  # an empty file says that there are no classes
MAX_SHOWN = 40  # characters of a class name in a message


def parse_class_list(content: bytes, name: str) -> list[str]:
    """The names of classes, a line each; they may be of bytes that are no UTF-8, as paths may.

    Raises:
        UserError: It is no text, or names a class twice.
    """
    if b"\0" in content:
        raise UserError(f"{name} is no text of class names: it holds zero bytes")
    found = content.decode("utf-8-sig", "surrogateescape").splitlines()
    if len(set(found)) < len(found) or "" in found:
        raise UserError(f"{name} names a class twice, or has an empty line")
    return found


def class_list_text(names: Sequence[str]) -> bytes:
    """What `parse_class_list` reads as these names.

    Raises:
        UserError: A name cannot stand there, or stands there twice.
    """
    if len(set(names)) < len(names):
        twice = next(name for name, times in Counter(names).items() if times > 1)
        raise UserError(
            f"two classes are called {twice!r}, and {CLASSES} tells them by their names"
        )
    for name in names:
        if not _is_a_line(name):
            raise UserError(f"the class {name!r} cannot stand in {CLASSES}, a line for each class")
    return "".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape")


def _is_a_line(name: str) -> bool:
    """Whether a name can be written as a line and is itself when that is read."""
    try:
        line = name.encode("utf-8", "surrogateescape")
        return bool(name.strip()) and parse_class_list(line, CLASSES) == [name]
    except (UnicodeEncodeError, UserError):
        return False


def class_names(words: list[str], listed: list[str], name: str) -> list[str]:
    """What stands for each word, which is a name or, where all words are numbers, a place."""
    places = {str(at): word for at, word in enumerate(listed)}
    if are_numbers(set(words)):
        words, names = [str(int(word)) for word in words], places
    else:
        names = {word: word for word in listed}
    unknown = set(words) - names.keys()
    if unknown:
        strange = min(unknown - places.keys() or unknown)  # among numbers, what is none
        strange = strange if len(strange) <= MAX_SHOWN else f"{strange[:MAX_SHOWN]}..."
        raise UserError(f"{name} has the class {strange}, which {CLASSES} does not name")
    return [names[word] for word in words]
