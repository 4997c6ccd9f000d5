"""classes.txt beside tar files: the class names in the order of their numbers, one per line."""

from collections import Counter
from collections.abc import Sequence

from mvmae.data.sources.string_table import are_numbers
from mvmae.errors import UserError

CLASSES = "classes.txt"  # an empty file says that there are no classes
MAX_SHOWN = 40  # characters of a class name in a message


def parse_class_list(content: bytes, name: str) -> list[str]:
    """Read class names, one per line; like paths, they may contain bytes that are not UTF-8.

    Raises:
        UserError: The content is not text, or names a class twice.
    """
    if b"\0" in content:
        raise UserError(f"{name} is not a list of class names: it contains zero bytes")
    # Editors may begin the file with a byte order mark, which is not part of the first name.
    found = content.decode("utf-8-sig", "surrogateescape").splitlines()
    if len(set(found)) < len(found) or "" in found:
        raise UserError(f"{name} names a class twice, or has an empty line")
    return found


def class_list_text(names: Sequence[str]) -> bytes:
    """Write class names so that `parse_class_list` reads them.

    Raises:
        UserError: A name occurs twice, or cannot be written as a line.
    """
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(
            f"two classes have the name {twice[0]!r}, and {CLASSES} distinguishes classes by name"
        )
    for name in names:
        try:
            line = name.encode("utf-8", "surrogateescape")
            is_line = bool(name.strip()) and parse_class_list(line, CLASSES) == [name]
        except (UnicodeEncodeError, UserError):
            is_line = False
        if not is_line:
            raise UserError(
                f"the class name {name!r} cannot be written to {CLASSES}, one line per class"
            )
    return "".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape")


def class_names(words: list[str], listed: list[str], name: str) -> list[str]:
    """The class name of each label: the label itself or, if all are numbers, the listed name.

    Args:
        words: The label of each image.
        listed: Names of the classes.
        name: What the user called the images, for messages.

    Raises:
        UserError: A label is not in the list.
    """
    by_number = {str(number): word for number, word in enumerate(listed)}
    if are_numbers(set(words)):
        words, names = [str(int(word)) for word in words], by_number
    else:
        names = {word: word for word in listed}
    unknown = set(words) - names.keys()
    if unknown:
        strange = min(unknown - by_number.keys() or unknown)  # a word rather than a number
        strange = strange if len(strange) <= MAX_SHOWN else f"{strange[:MAX_SHOWN]}..."
        raise UserError(f"{name} has the class {strange}, which {CLASSES} does not name")
    return [names[word] for word in words]
