"""Output files: where pictures go, which files may be replaced, and names of encoders in titles.

Every picture, table and JSON file that a command writes to --out carries a mark, and a command
replaces only files with the mark: a mistyped --out must not destroy another file.
"""

import re
import struct
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from mvmae.errors import UserError
from mvmae.storage import run_folder
from mvmae.storage.atomic import write_bytes

PNG, PDF = b"\x89PNG\r\n\x1a\n", b"%PDF-"
IHDR_END = 8 + 25  # where the chunk IHDR ends, after 8 bytes of magic number
PNG_TAG = b"tEXtSoftware\0mvmae"  # a text chunk: PNG specification, 11.3.4.3
SVG_MARK, PDF_MARK = b"<!-- mvmae -->\n", b"%mvmae\n"  # PDF readers ignore what follows %%EOF
HEAD_BYTES, TAIL_BYTES = 4096, 64  # searched for a mark, at the start and end of a file
FIRST_BYTES = re.compile(  # of the tables and JSON files that commands write to --out
    rb"path,part,label,severity,|"  # the CSV of `data check`
    rb'\{\s*("command": "(data check|data stats|features)"|'
    rb'"config": \{\s*"part": "(step|input|scale)")'  # of the benchmarks
)
ENCODER_PREFIXES = ("random:", "timm:", "hf:")  # of encoders that are not paths
RUN_PARTS = ("checkpoints", "encoder.safetensors", "last.pt")  # in every run, so no help in titles
MAX_NAMES = 3  # encoders that a title names


def add_mark(content: bytes) -> bytes:
    """Return the content of a picture (PNG, SVG or PDF) with the mark of mvmae."""
    if content.startswith(PNG):
        chunk = struct.pack(f">I{len(PNG_TAG)}sI", len(PNG_TAG) - 4, PNG_TAG, zlib.crc32(PNG_TAG))
        return content[:IHDR_END] + chunk + content[IHDR_END:]
    if content.startswith(PDF):
        return content + PDF_MARK
    before, tag, after = content.partition(b"<svg")
    return before + SVG_MARK + tag + after


def is_ours(file: Path) -> bool:
    """Whether a file has the mark of mvmae or is empty, so that a command may replace it."""
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
        tail = stream.read()
    if head.startswith(PNG):
        return PNG_TAG in head[: IHDR_END + 64]
    if head.startswith(PDF):
        return tail.endswith(PDF_MARK)
    return not head or SVG_MARK in head or bool(FIRST_BYTES.match(head))


def require_writable(file: Path, flag: str = "--out") -> None:
    """Require that a file can be written, by making a temporary file in its folder.

    Args:
        file: Path to write to.
        flag: Option that names it.

    Raises:
        UserError: It is a folder, is below a file, or its folder is not writable.
    """
    if file.is_dir():
        raise UserError(f"{flag} {file} is a folder: name a file")
    nearest = next(place for place in file.absolute().parents if place.exists())
    if not nearest.is_dir():
        raise UserError(
            f"{flag} {file}: {nearest.name} is a file, not a folder: choose another path"
        )
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {file}: no file can be made in {nearest} ({error.strerror}): choose another "
            "path"
        ) from error


def require_output(file: Path, flag: str = "--out", *, data: Sequence[str] = ()) -> None:
    """Require that a file can be written, and that mvmae wrote the file that it replaces, if any.

    Args:
        file: Path to write to.
        flag: Option that names it.
        data: Sources of images. The next command would read a picture in their folders as an image.

    Raises:
        UserError: It cannot be written, is among the images, or would replace another file.
    """
    require_writable(file, flag)
    if file.exists():
        if not file.is_file():
            raise UserError(f"{flag} {file} is not a regular file: name another")
        try:
            ours = is_ours(file)
        except OSError as error:
            raise UserError(f"{flag} {file} exists and is unreadable: {error.strerror}") from error
        if not ours:
            raise UserError(
                f"{flag} {file} exists and has no mark of mvmae, so it is not replaced: name "
                "another file, or remove this one first"
            )
    for folder in map(Path, data):
        if folder.is_dir() and file.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{flag} {file} is among the images of {folder} and would be one of them: choose "
                "another path"
            )


def require_picture(file: Path, data: Sequence[str]) -> None:
    """Require that a PNG of images in `data` can be written.

    Raises:
        UserError: The name does not end in .png, or as `require_output`.
    """
    if file.suffix.lower() != ".png":
        raise UserError(f"--out {file} must end in .png")
    require_output(file, data=data)


def picture_file(encoder: str, out: Path | None, name: str, data: Sequence[str]) -> Path:
    """Return the path of a picture: `out`, or `name` in the run's figures/.

    Raises:
        UserError: ENCODER does not exist, or there is neither a run folder nor --out, or as
            `require_picture`.
    """
    if out is not None:
        require_picture(out, data)
        return out
    if not encoder.startswith(ENCODER_PREFIXES) and not Path(encoder).exists():
        raise UserError(f"no such encoder: {encoder}")
    if not run_folder.is_run(Path(encoder)):
        raise UserError(
            f"{encoder} is not a run folder: say where to write the picture with --out FILE.png"
        )
    file = Path(encoder) / "figures" / name
    require_writable(file)  # figures/ belongs to the run, so its files may be replaced
    return file


def write(file: Path, picture: bytes) -> None:
    """Write a PNG, SVG or PDF with the mark of mvmae, completely or not at all."""
    run_folder.make(file.parent)
    write_bytes(file, add_mark(picture))


def short_names(encoders: Sequence[str]) -> list[str]:
    """Return a short name for each encoder: as many last parts of its path as make it unique."""
    kinds_and_parts = [_split(encoder) for encoder in encoders]
    lengths = [1] * len(encoders)
    while True:
        names = [
            kind + "/".join(parts[-length:])
            for (kind, parts), length in zip(kinds_and_parts, lengths, strict=True)
        ]
        ambiguous = [
            at
            for at, (_, parts) in enumerate(kinds_and_parts)
            if names.count(names[at]) > 1 and lengths[at] < len(parts)
        ]
        if not ambiguous:
            return names
        for at in ambiguous:
            lengths[at] += 1


def _split(encoder: str) -> tuple[str, list[str]]:
    """Split an encoder's name into its prefix and the parts of its path that tell runs apart."""
    kind = next((kind for kind in ENCODER_PREFIXES if encoder.startswith(kind)), "")
    if kind in ENCODER_PREFIXES[1:]:
        return "", [encoder]
    path = Path(encoder.removeprefix(kind))
    if kind and not path.exists():  # random:vit_small
        return kind, [encoder.removeprefix(kind)]
    parts = [part for part in path.resolve().parts if part not in RUN_PARTS]
    if path.is_file() and path.name not in RUN_PARTS and len(parts) > 1:
        parts = [*parts[:-2], "/".join(parts[-2:])]  # its run says more than previous.pt
    return kind, parts


def join_names(names: Sequence[str]) -> str:
    """Join names for a title; with more than `MAX_NAMES`, name one and count the others."""
    if len(names) > MAX_NAMES:
        return f"{names[0]} and {len(names) - 1} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
