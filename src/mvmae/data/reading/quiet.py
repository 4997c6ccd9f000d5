"""libtiff says on stderr what it thinks of a file; what counts is raised by Pillow anyway."""

from __future__ import annotations

import contextlib
import ctypes

HANDLERS = ("TIFFSetWarningHandler", "TIFFSetErrorHandler")
LOADED = "/proc/self/maps"  # Linux; elsewhere libtiff stays as it is


def hush_libtiff() -> None:
    """Take the handlers from the libtiff that this process has loaded, which is Pillow's.

    libtiff, TIFFError(3): no handler, no message. A handler belongs to the process; where another
    library of it wants messages, it sets its own.
    """
    with contextlib.suppress(OSError, AttributeError):
        with open(LOADED, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            paths = {line.split(maxsplit=5)[-1].strip() for line in lines if "libtiff" in line}
        for path in paths:
            library = ctypes.CDLL(path)  # again the same one
            for name in HANDLERS:
                setter = getattr(library, name)
                setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
                setter(None)
