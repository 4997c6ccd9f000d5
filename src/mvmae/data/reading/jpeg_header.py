"""The header of a JPEG file (ITU T.81, annex B; Exif 2.3)."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Shaped
from torch import Tensor

MAGIC = b"\xff\xd8\xff"
SCAN, APP1, APP14 = 0xDA, 0xE1, 0xEE
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the others of this range are tables
HUFFMAN = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; not lossless, not arithmetic
EXIF, ORIENTATION = b"Exif\0\0", 0x0112
FLIPS = {1: (), 2: (-1,), 3: (-1, -2), 4: (-2,), 5: (), 6: (-1,), 7: (-1, -2), 8: (-2,)}
TRANSPOSED = 5  # from this orientation on, height and width are swapped


class Header(NamedTuple):
    """The header of an 8-bit gray or colour file without anything unusual."""

    stored_height: int
    stored_width: int

    channels: int
    """1 or 3."""

    is_ycc: bool
    """Whether colours are stored as in JFIF: gray, or brightness and two differences."""

    orientation: int
    """Exif orientation, 1 to 8."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image in pixels."""
        stored = self.stored_height, self.stored_width
        return stored[::-1] if self.orientation >= TRANSPOSED else stored


def read_header(data: bytes) -> Header | None:
    """Read everything before the first scan; None if anything is unusual."""
    frames: list[tuple[int, bytes]] = []
    exif = adobe = None
    for marker, content in segments(data):
        if marker in FRAMES:
            frames.append((marker, content))
        elif marker == APP1 and exif is None:  # the first one counts
            exif = content
        elif marker == APP14 and content.startswith(b"Adobe") and len(content) >= 12:
            adobe = content[11]  # colour transform; 0: none
        elif marker == SCAN:
            break
    else:
        return None
    # Several frames (hierarchical coding) and lossless or arithmetic ones go to Pillow.
    if len(frames) != 1 or frames[0][0] not in HUFFMAN or len(frames[0][1]) < 6:
        return None
    precision, height, width, channels = struct.unpack_from(">BHHB", frames[0][1])
    ids = frames[0][1][6::3]
    orientation = 1 if exif is None else exif_orientation(exif)
    usual = precision == 8 and channels in (1, 3) and len(ids) == channels and height and width
    if not usual or orientation is None:
        return None
    return Header(height, width, channels, adobe != 0 and ids != b"RGB", orientation)


def announced_pixels(data: bytes) -> int:
    """Number of pixels according to the frame header; 0 without one."""
    for marker, content in segments(data):
        if marker in FRAMES and len(content) >= 5:
            height, width = struct.unpack_from(">HH", content, 1)
            return height * width
    return 0


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment up to the first scan, or to the first damage."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # padding before a marker
            at += 1
            continue
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, data[at + 4 : at + 2 + length]
        if marker == SCAN or length < 2:
            return
        at += 2 + length


def exif_orientation(content: bytes) -> int | None:
    """Orientation from an APP1 segment, 1 if it is not Exif; None if it is damaged."""
    if not content.startswith(EXIF):
        return 1
    tiff = content[len(EXIF) :]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return None
    (count,) = struct.unpack_from(order + "H", tiff, start)
    entries = tiff[start + 2 : start + 2 + 12 * count]
    if len(entries) < 12 * count:
        return None
    for tag, _, _, value, _ in struct.iter_unpack(order + "HHIHH", entries):
        if tag == ORIENTATION:
            return value if value in FLIPS else 1
    return 1


def upright(image: Shaped[Tensor, "C h w"], orientation: int) -> Shaped[Tensor, "C H W"]:
    """Rotate and mirror stored pixels to the upright image."""
    turned = image.mT if orientation >= TRANSPOSED else image
    flips = FLIPS[orientation]
    return turned.flip(flips) if flips else turned
