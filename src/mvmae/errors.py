"""Errors that the user can fix, and text that is safe to print."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """An option, a file or the machine is at fault, and the user can fix it.

    The message is one plain line: what is wrong, what was expected, what to do. The command line
    prints it and exits with status 2. Any other exception is a bug in mvmae.
    """


class OtherFailedError(UserError):
    """Another process of the same command failed or died; this one's finished work is valid."""


class ReportedError(UserError):
    """An error that another process of the same command prints, so this one must not."""


FIXABLE_ERRNOS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE),
}


def user_message(error: BaseException) -> str | None:
    """Return the one-line message of an error that the user can fix; None for bugs."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in FIXABLE_ERRNOS:
        return f"{error.strerror}: {error.filename or 'no file named'}"
    # By name, because this module must not import torch; its CPU allocator raises a RuntimeError.
    is_memory = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    if isinstance(error, RuntimeError) and is_memory:
        return "not enough memory: lower --batch-size or --image-size, or choose a smaller model"
    return None


NOT_ESCAPED = "\n\t\u00a0"  # harmless, though `str.isprintable` is false for them


def printable(text: str) -> str:
    r"""Escape characters that a terminal would obey or cannot print, such as `\x1b`.

    Names of files may contain escape sequences and bytes that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in NOT_ESCAPED else one.encode("unicode_escape").decode()
        for one in text
    )


def encodable(text: str) -> str:
    r"""Make text encodable as UTF-8: an invalid byte of a file name becomes `\udcff` as text."""
    return text.encode("utf-8", "backslashreplace").decode()


class DivergedError(UserError):
    """The loss stopped being a finite number.

    Args:
        message: As in `UserError`.
        step: The first step whose loss is not finite.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def suggest(word: str, names: Iterable[str]) -> str:
    """Return the end of an error message: ": did you mean 'NAME'?", or "" if no name is close."""
    close = get_close_matches(word, list(names), n=1)
    return f": did you mean '{close[0]}'?" if close else ""


def pluralize(number: int, noun: str) -> str:
    """Write a number with its noun: 1 image, 2 images."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def abridge(text: str, longest: int = 90) -> str:
    """Make text fit on one line: escape control characters and broken bytes, cut a long middle."""
    plain = printable(text.replace("\n", "\\n").replace("\t", "\\t"))
    if len(plain) <= longest:
        return plain
    return f"{plain[: longest // 3]}...{plain[-(longest - longest // 3) :]}"
