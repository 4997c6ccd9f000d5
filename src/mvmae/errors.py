"""The one error that is the user's to mend, and what may be shown of what he gave."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user set or gave cannot work.

    The message is one plain line: what is wrong, and what would be right. The command line
    prints it and exits with status 2; any other exception is our own fault.
    """


class OtherFailedError(UserError):
    """Another process of the same command failed, or is gone; what was done is as good as ever."""


class ToldError(UserError):
    """As another process of the same command says it, or said it: nothing is left to print."""


MACHINE_SAYS_NO = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE),
}


def line_of(error: BaseException) -> str | None:
    """What a person is told of an error who can do something about it; none of our own faults."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in MACHINE_SAYS_NO:
        return f"{error.strerror}: {error.filename or 'no file named'}"
    # torch's own class and its CPU allocator's words; torch is not loaded here
    is_memory = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    if isinstance(error, RuntimeError) and is_memory:
        return (
            "the memory is too small for this: lower --batch-size or --image-size, or choose a "
            "smaller model"
        )
    return None


KEPT = "\n\t\u00a0"  # a no-break space counts as not printable


def printable(text: str) -> str:
    r"""Text as a terminal can show it: what it would obey, or cannot write, becomes `\x1b`.

    Names of files may hold anything: colours, a command to the terminal, bytes that are no UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in KEPT else one.encode("unicode_escape").decode()
        for one in text
    )


def encodable(text: str) -> str:
    r"""Text that UTF-8 can hold: bytes of a file name that are not UTF-8 become `\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


class DivergedError(UserError):
    """The loss stopped being a finite number.

    Args:
        message: As of a `UserError`.
        step: The first step whose loss is not finite.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def nearest(word: str, names: Iterable[str]) -> str:
    """The end of an error message that names what was probably meant; empty if nothing is near."""
    close = get_close_matches(word, list(names), n=1)
    return f": did you mean '{close[0]}'?" if close else ""


def counted(number: int, what: str) -> str:
    """A number of things, in words: 1 image, 2 images."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def shown(text: str, longest: int = 90) -> str:
    """A name as it can be printed: control characters and broken bytes escaped, the middle cut."""
    plain = printable(text.replace("\n", "\\n").replace("\t", "\\t"))
    if len(plain) <= longest:
        return plain
    return f"{plain[: longest // 3]}...{plain[-(longest - longest // 3) :]}"
