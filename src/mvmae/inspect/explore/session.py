"""Answers to the page. Images are named by number or hash: the page never sends a path."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mvmae.data.reading.decode import Pixels, UnreadableImageError, Wanted, decode, decode_deep
from mvmae.data.sources.base import Source
from mvmae.errors import encodable
from mvmae.inspect.choose_images import class_name, render_image
from mvmae.inspect.explore import model
from mvmae.inspect.explore.embeddings import EmbeddingIndex, Match
from mvmae.inspect.explore.model import ImageViews, Networks
from mvmae.inspect.model_pictures import shared_limits

T = TypeVar("T")
THUMBNAIL = 128  # pixels
UNREADABLE = 128  # gray of the thumbnail of an unreadable image
MAX_IMAGES = 64  # in memory: 3 MB each for ViT-B at 224 pixels
MAX_ANSWERS = 256  # heat maps and tokens in memory: less than 1 MB each
MAX_THUMBNAILS = 2048


class ImageNotFoundError(Exception):
    """An image that the page asks for does not exist or cannot be read; the message says why."""


class Facts(NamedTuple):
    """Descriptions that the page shows."""

    name: str
    encoder: str
    data: str
    no_decoder: str
    """Why there are no reconstructions; empty if there are."""


class Cache:
    """The most recently used values, shared by several threads.

    Args:
        limit: Maximum number of values.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of a key, and make it first if it is missing."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        self.store(key, value)
        return value

    def store(self, key: Hashable, value: Any) -> None:
        """Store a value, and drop the least recently used one."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.limit:
                self._values.popitem(last=False)

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._values


class Session:
    """An encoder, images, and the latest results for them.

    An image is called `d17`, for number 17 of the data, or `u` and a hash of an upload's bytes.

    Args:
        networks: Encoder and decoder. `reconstruct`, `attention`, `similar`, `features` and
            `neighbours` use them, and only one thread at a time may call these.
        source: The images.
        order: Numbers of all images, in the order of the gallery.
        embedded: Embeddings of some of the images.
        facts: Descriptions for the page.
    """

    def __init__(
        self,
        networks: Networks,
        source: Source,
        order: np.ndarray,
        embedded: EmbeddingIndex,
        facts: Facts,
    ) -> None:
        self.networks, self.source, self.order = networks, source, order
        self.embedded, self.facts = embedded, facts
        self._images, self._uploads = Cache(MAX_IMAGES), Cache(MAX_IMAGES)
        self._answers, self._thumbnails = Cache(MAX_ANSWERS), Cache(MAX_THUMBNAILS)

    # what there is

    def about(self) -> dict[str, Any]:
        """Facts from which the page is built."""
        encoder, decoder = self.networks.opened.encoder, self.networks.decoder
        trained = decoder.config if decoder else None
        return {
            **self.facts._asdict(),
            "images": len(self.source),
            "grid": list(encoder.grid),
            "size": list(encoder.image_size),
            "blocks": len(encoder.blocks),
            "heads": encoder.size.num_heads,
            "has_class_token": encoder.variant.cls_token,
            "decoder": trained
            and {
                "grid": list(trained.model.grid),
                "size": list(trained.model.height_width),
                "mask_ratio": trained.model.mask_ratio,
                "hidden": trained.model.num_patches - trained.model.num_visible,
                "normalized": trained.objective.normalize_targets,
            },
        }

    def progress(self) -> dict[str, Any]:
        """Progress of the embeddings, and whether there are colours for all images."""
        progress = self.embedded.progress()._asdict()
        return progress | {"has_basis": self.embedded.basis is not None}

    def gallery(self, offset: int, count: int) -> dict[str, Any]:
        """Some images of the data."""
        indices = self.order[offset : offset + count].tolist()
        return {"images": [self.card(index) for index in indices], "total": len(self.order)}

    def card(self, index: int) -> dict[str, Any]:
        """Name and label of an image of the data."""
        return {
            "image": f"d{index}",
            "name": encodable("/".join(Path(self.source.path(index)).parts[-2:])),
            "label": encodable(class_name(self.source, index)) or None,
        }

    def thumbnail(self, index: int) -> bytes:
        """A small JPEG of an image of the data; gray if the image cannot be read."""
        opened = self.networks.opened

        def make() -> bytes:
            pixels = render_image(self.source, index, opened, THUMBNAIL, unreadable=UNREADABLE)
            return encode_picture(pixels, "JPEG", quality=85)

        return self._thumbnails.get(index, make)

    # images

    def pixels(self, index: int) -> Pixels:
        """Pixels of an image of the data.

        Raises:
            ImageNotFoundError: There is no such image, or it cannot be read.
        """
        if not 0 <= index < len(self.source):
            last = len(self.source) - 1
            raise ImageNotFoundError(f"There is no image {index}: name one from 0 to {last}.")
        try:
            return self.source.read(index)
        except UnreadableImageError as error:
            name = self.card(index)["name"]
            raise ImageNotFoundError(f"{name} cannot be read: {read_problem(error)}.") from error

    def upload(self, content: bytes) -> str:
        """Accept the bytes of an image file and return the image's name.

        Raises:
            ImageNotFoundError: They cannot be read as an image.
        """
        name = f"u{hashlib.sha256(content).hexdigest()[:16]}"
        if name not in self._uploads:
            channels = self.networks.opened.encoder.in_channels
            depth = self.networks.opened.depth
            is_plain = depth == "8" and channels in (1, 3)
            try:
                pixels = (
                    decode(content, channels)
                    if is_plain
                    else decode_deep(content, Wanted(channels, depth))
                )
            except UnreadableImageError as error:
                raise ImageNotFoundError(
                    f"That file cannot be read as an image: {read_problem(error)}."
                ) from error
            self._uploads.store(name, model.prepare(pixels, self.networks))
        return name

    def views(self, image: str) -> ImageViews:
        """An image in the sizes that the networks and the page need.

        Raises:
            ImageNotFoundError: There is no such image, or it cannot be read.
        """
        number = image[1:]
        if image.startswith("d") and number.isascii() and number.isdigit() and len(number) < 19:
            return self._images.get(
                image, lambda: model.prepare(self.pixels(int(number)), self.networks)
            )

        def report_missing() -> ImageViews:
            raise ImageNotFoundError("That image is no longer in memory: upload it again.")

        return self._uploads.get(image, report_missing)

    def picture(self, image: str) -> bytes:
        """A PNG of the part of an image that the networks see."""
        return encode_png(self.views(image).picture)

    def tokens(self, image: str) -> Tensor:
        """All tokens of an image, 1 x tokens x D."""
        views = self.views(image)
        return self._answers.get(
            ("tokens", image), lambda: model.encode(self.networks, views.encoder)
        )

    # answers

    def reconstruct(
        self, image: str, mask_ratio: float, seed: int, visible: Sequence[int] | None
    ) -> dict[str, Any]:
        """Reconstruct an image from its visible patches."""
        result = model.reconstruct(
            self.networks, self.views(image), mask_ratio=mask_ratio, seed=seed, visible=visible
        )
        return {
            "pictures": {name: data_uri(pixels) for name, pixels in result.pictures.items()},
            "visible": result.visible,
            "error": result.error,
        }

    def attention(self, image: str, block: int | None, heads: bool) -> dict[str, Any]:
        """Heat maps on the image: one of all blocks, one of a block, or one per head of a block."""
        views = self.views(image)
        heat = self._answers.get(
            ("heat", image, block), lambda: model.attention_maps(self.networks, views, block)
        )
        maps = heat if heads else [heat.mean(axis=0)]
        side = model.HEAD_SIDE if heads else model.SIDE
        limits = shared_limits(maps)
        pictures = [model.overlay_heat(views, one, side, limits) for one in maps]
        return {"maps": [data_uri(picture) for picture in pictures]}

    def similar(self, image: str, patch: int) -> dict[str, Any]:
        """Similarity of one patch to all patches of its image."""
        cosines = model.patch_cosines(self.networks, self.tokens(image), patch)
        return {
            "map": data_uri(model.overlay_heat(self.views(image), cosines)),
            "values": [round(float(value), 4) for value in cosines.flatten()],
        }

    def features(self, image: str, alone: bool) -> dict[str, Any]:
        """A colour for each patch; for this image alone until there are colours for all."""
        basis = None if alone else self.embedded.basis
        coloured = model.patch_colours(self.networks, self.tokens(image), basis)
        return {"map": data_uri(coloured), "common": basis is not None}

    def neighbours(self, image: str, count: int) -> dict[str, Any]:
        """The images of the data that are most similar to an image, without itself."""
        vector = model.embedding(self.networks, self.tokens(image))[0]
        itself = int(image[1:]) if image.startswith("d") else None
        matches = self.embedded.nearest(vector, count, itself)
        return {"images": self._cards(matches), "among": len(self.embedded.indices)}

    def typical(self, count: int) -> dict[str, Any]:
        """The images of the data with the most, and with the fewest, similar images."""
        most, least = self.embedded.extremes(count)
        return {"most": self._cards(most), "least": self._cards(least)}

    def _cards(self, matches: Sequence[Match]) -> list[dict[str, Any]]:
        return [self.card(match.index) | {"similarity": match.similarity} for match in matches]


def read_problem(error: UnreadableImageError) -> str:
    """Why an image cannot be read, in words for the page."""
    reason = encodable(str(error)).rstrip(".")
    # torchvision's message names its own source files.
    return "the JPEG is damaged" if reason.startswith("decode_jpeg") else reason


def encode_png(pixels: Float[np.ndarray, "H W K"]) -> bytes:
    """Encode values in [0, 1] as a PNG, gray if K is 1."""
    levels = np.round(np.nan_to_num(pixels).clip(0, 1) * 255).astype(np.uint8)
    return encode_picture(levels, "PNG", compress_level=1)  # fast: the bytes stay on this machine


def data_uri(pixels: Float[np.ndarray, "H W K"]) -> str:
    """Encode a PNG as an address, which needs no further request."""
    return f"data:image/png;base64,{base64.b64encode(encode_png(pixels)).decode()}"


def encode_picture(pixels: UInt8[np.ndarray, "H W K"], kind: str, **options: int) -> bytes:
    """Encode pixels as a file of one of Pillow's formats."""
    plain = pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels)
    stream = io.BytesIO()
    Image.fromarray(plain).save(stream, kind, **options)
    return stream.getvalue()
