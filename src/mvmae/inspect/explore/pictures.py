"""Arrays as pictures that a page can show."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

FAST = 1  # of zlib: the bytes go no further than this machine


def png(pixels: Float[np.ndarray, "H W K"]) -> bytes:
    """A PNG of values in [0, 1]; gray where K is 1."""
    return _saved(np.round(np.nan_to_num(pixels).clip(0, 1) * 255).astype(np.uint8))


def data_uri(pixels: Float[np.ndarray, "H W K"]) -> str:
    """A PNG as an address that needs no further request."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def jpeg(pixels: UInt8[np.ndarray, "H W K"]) -> bytes:
    """A small JPEG, for the gallery."""
    stream = io.BytesIO()
    Image.fromarray(_plain(pixels)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _saved(pixels: UInt8[np.ndarray, "H W K"]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(_plain(pixels)).save(stream, "PNG", compress_level=FAST)
    return stream.getvalue()


def _plain(pixels: UInt8[np.ndarray, "H W K"]) -> np.ndarray:
    return pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels)
