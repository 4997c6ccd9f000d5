"""Inspect one image: whether training can read it, what it is, and a thumbnail.

`Inspector` runs in subprocesses that may be lost (`subprocess_pool`), so its results are plain
values.
"""

import hashlib
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from mvmae.data.reading.decode import Pixels, UnreadableImageError, decode
from mvmae.data.reading.deep_formats import NPY_MAGIC, open_image, read_values, upright_size
from mvmae.data.reading.jpeg_header import ORIENTATION
from mvmae.data.reading.pixel_depth import Values, Wanted, convert_values
from mvmae.data.sources.base import Source
from mvmae.data.sources.folders import read_file
from mvmae.method.views import resize

Problem = Literal[
    "", "special", "unopened", "empty", "no image", "bomb", "truncated", "unread", "damaged",
    "memory", "hung", "died", "deep", "other",
]  # fmt: skip
THUMB = 16  # pixels, the side of a thumbnail
HEADER_BYTES = 1 << 16  # read of a file with another suffix
# How decoders say that a file ends too early.
CUT_SHORT = ("truncated", "broken data stream", "premature", "not enough", "incomplete", "overrun")
# First bytes of image files: with them, a file is damaged; without, it was never an image.
BEGINNINGS = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
)
PROBLEMS: dict[Problem, tuple[str, ...]] = {  # by words in the decoder's message, the first counts
    "bomb": ("decompression bomb",),
    "memory": ("memory",),
    "unread": ("are not supported", " channels, not "),
    "truncated": CUT_SHORT,
}
SPECIAL_FILES = {"p": "a pipe", "c": "a device", "b": "a device", "s": "a socket", "d": "a folder"}


class Part(NamedTuple):
    """An image that is not a separate file."""

    source: int
    """Which of the `Inspector`'s sources."""

    index: int


class Header(NamedTuple):
    """A file of which only the header is read, because training passes over its suffix."""

    path: str


Item = str | Part | Header
"""What is inspected: a path, or an image of a source."""


class Inspection(NamedTuple):
    """What is known of an image."""

    problem: Problem = ""
    """Why training cannot read it; empty if it can. "deep": only with its own channels and depth,
    not as 8-bit gray or colour. "other", known once all files are inspected: readable, but with
    other settings than most files."""

    reason: str = ""
    """The decoder's message."""

    digest: bytes = b""
    """Hash of its bytes, 16 bytes long."""

    size: int = 0
    """Size in bytes."""

    shape: tuple[int, int] | None = None
    """Height and width of the upright image from the header; None if it cannot be read."""

    format: str = ""
    """Pillow's name of the format; NPY for numpy's files."""

    mode: str = ""
    """Pillow's mode or, for deep files, a description."""

    bits: int = 0
    """Bits per channel."""

    channels: int = 0

    rotated: bool = False
    """Whether EXIF says that the stored pixels are not upright."""

    animated: bool = False
    alpha: bool = False
    thumb: bytes = b""
    """`THUMB` x `THUMB` x 3 bytes."""


class Inspector:
    """Inspects images; picklable, and called in processes that may be lost.

    Args:
        sources: Where the parts come from.
    """

    def __init__(self, sources: Sequence[Source] = ()) -> None:
        self.sources = sources

    def __call__(self, item: Item) -> Inspection:
        """Read an image as training would."""
        try:
            if isinstance(item, Part):
                return _inspect_part(self.sources[item.source], item.index)
            return inspect_header(item.path) if isinstance(item, Header) else inspect_file(item)
        except MemoryError:  # of reading; what decoding needs is caught where it is decoded
            return Inspection("memory", "the file is larger than the memory")


def inspect_file(path: str) -> Inspection:
    """Read an image file as training would; what is not a regular file is not opened."""
    try:
        facts = Path(path).stat()
        if not stat.S_ISREG(facts.st_mode):
            kind = stat.filemode(facts.st_mode)[0]
            return Inspection("special", SPECIAL_FILES.get(kind, "not a regular file"))
        data = read_file(path)
    except (UnreadableImageError, OSError, ValueError) as error:
        return Inspection("unopened", getattr(error, "strerror", None) or str(error))
    return _inspect_bytes(data)


def _inspect_part(source: Source, index: int) -> Inspection:
    try:
        content = source.content(index)
    except UnreadableImageError as error:
        reason = str(error)
        return Inspection("truncated" if "ends before" in reason else "unopened", reason)
    return _inspect_bytes(content) if isinstance(content, bytes) else _inspect_values(content)


def _inspect_values(values: Values) -> Inspection:
    found = _with_digest(values.array.tobytes())
    try:
        found = found._replace(thumb=_thumb(convert_values(values, Wanted(3))))
    except UnreadableImageError as error:
        found = found._replace(problem="unread", reason=str(error))
    return _with_values(found, values, "NPY")


def _inspect_bytes(data: bytes) -> Inspection:
    found = _with_digest(data)
    if not data:
        return found._replace(problem="empty", reason="no bytes")
    try:
        found = found._replace(thumb=_thumb(decode(data, 3)))
    except UnreadableImageError as error:
        problem, reason = _classify(error, data)
        found = found._replace(problem=problem, reason=reason)
    except (MemoryError, RuntimeError) as error:
        found = found._replace(problem="memory", reason=str(error)[:200])
    found = _with_header(found, data)
    # "unread": perhaps readable with its own channels and depth; no mode: Pillow does not know it.
    if found.problem == "unread" or found.bits > 8 or not (found.problem or found.mode):
        kind = found.format or ("NPY" if data.startswith(NPY_MAGIC) else "TIFF")
        return _with_values(found, data, kind)
    return found


def _with_digest(data: bytes) -> Inspection:
    return Inspection(digest=hashlib.blake2b(data, digest_size=16).digest(), size=len(data))


def inspect_header(path: str) -> Inspection:
    """Inspect the header of a file that training ignores because of its suffix.

    `format` of the result is empty if it is not an image.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return Inspection("special")
        with Path(path).open("rb") as file:
            return _with_header(Inspection(), file.read(HEADER_BYTES))
    except (OSError, ValueError) as error:
        return Inspection("unopened", str(error))


def _classify(error: UnreadableImageError, data: bytes) -> tuple[Problem, str]:
    """The problem, and the decoder's words without what the problem already says."""
    reason = str(error)
    if "not an image of a supported kind" in reason:
        is_riff = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
        is_image = data.startswith(BEGINNINGS) or is_riff or data[4:8] == b"ftyp"
        return ("damaged", "its header cannot be read") if is_image else ("no image", "")
    for problem, words in PROBLEMS.items():
        if any(word in reason.lower() for word in words):
            return problem, reason
    return "damaged", reason


def _thumb(pixels: Pixels) -> bytes:
    small = resize(pixels, (THUMB, THUMB), "bilinear")
    return small.permute(1, 2, 0).contiguous().numpy().tobytes()


def _with_values(found: Inspection, content: bytes | Values, format_name: str) -> Inspection:
    """Add what is known of a deep image; return it unchanged if it cannot be read as such."""
    try:
        channels = None if found.problem else 3
        values = read_values(content, channels) if isinstance(content, bytes) else content
        pixels = convert_values(values, Wanted(None, "float"))
    except UnreadableImageError as error:
        return found._replace(reason=str(error)) if found.problem == "unread" else found
    except Exception:  # decoders raise anything, and the problem is known already
        return found
    kind, channels = values.array.dtype, len(pixels)
    if kind.name == "uint8" and found.mode and not found.problem:  # Pillow reduced it
        return found
    several = f", {channels} channels" if channels > 1 else ""
    known = found._replace(
        shape=(int(pixels.shape[1]), int(pixels.shape[2])),
        format=format_name,
        mode=f"{'16-bit' if kind.name == 'uint16' else kind.name}{several}",
        bits=1 if kind.name == "bool" else 8 * kind.itemsize,
        channels=channels,
    )
    if found.problem:
        thumb = _thumb(_stretch_to_gray(pixels))
        known = known._replace(problem="deep", animated=False, thumb=thumb)  # pages are channels
    return known


def _stretch_to_gray(pixels: Pixels) -> Pixels:
    """The mean of all channels, stretched from black to white."""
    mean = pixels.float().mean(0, keepdim=True)
    low, high = float(mean.min()), float(mean.max())
    gray = (mean - low) * (255 / (high - low) if high > low else 0.0)
    return gray.round().clamp(0, 255).byte().expand(3, -1, -1)


def _with_header(found: Inspection, data: bytes) -> Inspection:
    """Add the facts from the header, if Pillow can read it."""
    try:
        with open_image(data) as file:
            return found._replace(
                shape=upright_size(file),
                format=str(file.format),
                mode=file.mode,
                bits=_count_bits(file),
                channels=1 if file.mode[0] in "1LFI" else 3,
                rotated=file.getexif().get(ORIENTATION) in range(2, 9),
                animated=getattr(file, "n_frames", 1) > 1 and file.format != "MPO",
                alpha=file.has_transparency_data,
            )
    except Exception:  # Pillow raises anything
        return found


def _count_bits(file: Image.Image) -> int:
    """Bits per channel in the file; Pillow opens 16-bit colour as 8-bit."""
    known = {"1": 1, "I": 32, "F": 32, "I;16": 16, "I;16B": 16, "I;16L": 16}
    tiles = [str(tile) for tile in getattr(file, "tile", ())]
    wide = any(";16" in tile for tile in tiles)
    return 16 if wide else known.get(file.mode, 8)
