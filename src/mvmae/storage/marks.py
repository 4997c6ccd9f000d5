"""Which files are ours: what commands write to --out carries a mark; nothing else is replaced."""

from __future__ import annotations

import re
import struct
import tempfile
import zlib
from pathlib import Path

from mvmae.errors import UserError

PNG, PDF = b"\x89PNG\r\n\x1a\n", b"%PDF-"
FIRST_CHUNKS = 8 + 25  # bytes of a PNG file's beginning: magic number and IHDR
TEXT = b"tEXtSoftware\0mvmae"  # PNG specification, 11.3.4.3
SVG_MARK, PDF_MARK = b"<!-- mvmae -->\n", b"%mvmae\n"  # after the end of a PDF comments are free
HEAD, TAIL = 4096, 64  # bytes that are looked at
TABLE = b"path,part,label,severity,"  # how the CSV of `data check` begins
JSON = re.compile(
    rb'\{\s*("command": "(data check|data stats|features)"|'
    rb'"config": \{\s*"part": "(step|input|scale)")'  # of `bench`
)


def signed(content: bytes) -> bytes:
    """A picture with our mark: PNG, SVG or PDF."""
    if content.startswith(PNG):
        chunk = struct.pack(">I", len(TEXT) - 4) + TEXT + struct.pack(">I", zlib.crc32(TEXT))
        return content[:FIRST_CHUNKS] + chunk + content[FIRST_CHUNKS:]
    if content.startswith(PDF):
        return content + PDF_MARK
    before, tag, after = content.partition(b"<svg")
    return before + SVG_MARK + tag + after


def is_ours(file: Path) -> bool:
    """Whether a file has our mark; an empty one is nobody's and counts as ours."""
    with file.open("rb") as stream:
        head = stream.read(HEAD)
        stream.seek(max(0, file.stat().st_size - TAIL))
        tail = stream.read()
    if head.startswith(PNG):
        return TEXT in head[: FIRST_CHUNKS + 64]
    if head.startswith(PDF):
        return tail.endswith(PDF_MARK)
    return not head or SVG_MARK in head or head.startswith(TABLE) or bool(JSON.match(head))


def require_replaceable(file: Path, flag: str = "--out") -> None:
    """Make sure that a file is not there yet, or is ours.

    Raises:
        UserError: It is somebody else's, or no regular file.
    """
    if not file.exists():
        return
    if not file.is_file():
        raise UserError(f"{flag} {file} is no regular file: name another")
    try:
        ours = is_ours(file)
    except OSError as error:
        raise UserError(f"{flag} {file} is there and cannot be read: {error.strerror}") from error
    if not ours:
        raise UserError(
            f"{flag} {file} is there and has no mark of mvmae, so it is not replaced: name another "
            "file, or remove this one first"
        )


def require_place(file: Path, flag: str = "--out") -> None:
    """Make sure that a file can go there, by making one without a name.

    Raises:
        UserError: It is a folder, lies below a file, or where no file can be made.
    """
    if file.is_dir():
        raise UserError(f"{flag} {file} is a folder: name a file")
    nearest = next(place for place in file.absolute().parents if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{flag} {file}: {nearest.name} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {file}: no file can be made in {nearest} ({error.strerror}): name another "
            "place"
        ) from error


def require_outside(file: Path, folders: tuple[str, ...]) -> None:
    """Make sure that a picture will not be one of the images the next time.

    Raises:
        UserError: It lies in one of the folders.
    """
    for folder in folders:
        if Path(folder).is_dir() and file.resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(
                f"--out {file} lies among the images of {folder} and would be one of them: name "
                "another place"
            )
