"""What the page asks for, of images named by number: nothing that it sends is ever a path."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from mvmae.data.reading.decode import Pixels, UnreadableImageError, Wanted, decode, decode_deep
from mvmae.data.sources.base import Source
from mvmae.errors import encodable
from mvmae.inspect.attention_panels import shared_limits
from mvmae.inspect.choose_images import class_name
from mvmae.inspect.explore import model, pictures
from mvmae.inspect.explore.embeddings import Embedded, Near
from mvmae.inspect.explore.model import Networks, Seen
from mvmae.method.views import for_people, whole_view

T = TypeVar("T")
THUMBNAIL = 128  # pixels
MOST_IMAGES = 64  # kept at hand: of ViT-B at 224 pixels 3 MB each
MOST_ANSWERS = 256  # heat maps and tokens: below 1 MB each
MOST_THUMBNAILS = 2048


class NoSuchImageError(Exception):
    """The page asks for an image that is not there, or cannot be read; the message says why."""


class Facts(NamedTuple):
    """What the page says of what is explored, in words."""

    name: str
    encoder: str
    data: str
    no_decoder: str
    """Why there are no reconstructions; empty where there are."""


class Kept:
    """The values asked for last; several threads may ask.

    Args:
        most: Values kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made where it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        self.put(key, value)
        return value

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a value, and forget the one that was asked for longest ago."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.most:
                self._values.popitem(last=False)

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._values


class Session:
    """An encoder, images, and what was computed of them last.

    An image is called `d17`, the one of number 17 in the data, or `u` and a hash of its bytes.

    Args:
        networks: What computes. `reconstruct`, `attention`, `similar`, `features` and `neighbours`
            use them, and one thread at a time may call these.
        source: The images.
        order: All of its numbers, in the order of the gallery.
        embedded: The vectors of some of them.
        facts: What is said of all this.
    """

    def __init__(
        self,
        networks: Networks,
        source: Source,
        order: np.ndarray,
        embedded: Embedded,
        facts: Facts,
    ) -> None:
        self.networks, self.source, self.order = networks, source, order
        self.embedded, self.facts = embedded, facts
        self._images, self._uploads = Kept(MOST_IMAGES), Kept(MOST_IMAGES)
        self._answers, self._thumbnails = Kept(MOST_ANSWERS), Kept(MOST_THUMBNAILS)

    # what is there

    def about(self) -> dict[str, Any]:
        """Facts that the page is built from."""
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
        """How far the embeddings are, and whether colours have a common basis."""
        progress = self.embedded.progress()._asdict()
        return progress | {"has_basis": self.embedded.basis is not None}

    def gallery(self, offset: int, count: int) -> dict[str, Any]:
        """Some images of the data."""
        chosen = self.order[offset : offset + count].tolist()
        return {"images": [self.card(index) for index in chosen], "total": len(self.order)}

    def card(self, index: int) -> dict[str, Any]:
        """What an image of the data is called."""
        return {
            "image": f"d{index}",
            "name": encodable("/".join(Path(self.source.path(index)).parts[-2:])),
            "label": encodable(class_name(self.source, index)) or None,
        }

    def thumbnail(self, index: int) -> bytes:
        """A small JPEG of an image of the data; of one that cannot be read a gray one."""
        return self._thumbnails.get(index, lambda: self._thumbnail(index))

    def _thumbnail(self, index: int) -> bytes:
        opened = self.networks.opened
        height, width = opened.encoder.image_size
        scale = THUMBNAIL / max(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        try:
            pixels = self.pixels(index)
        except NoSuchImageError:
            return pictures.jpeg(np.full((*size, 1), 128, np.uint8))
        view = whole_view(pixels, size, opened.preprocessing.interpolation)
        how = opened.preprocessing
        shown = (for_people(view[None], how.mean, how.std)[0] * 255).round().byte()
        return pictures.jpeg(shown[: 3 if len(shown) >= 3 else 1].permute(1, 2, 0).numpy())

    # images

    def pixels(self, index: int) -> Pixels:
        """Those of an image of the data.

        Raises:
            NoSuchImageError: There is none of that number, or it cannot be read.
        """
        if not 0 <= index < len(self.source):
            raise NoSuchImageError(
                f"there is no image {index}: they are numbered from 0 to {len(self.source) - 1}"
            )
        try:
            return self.source.read(index)
        except UnreadableImageError as error:
            name = self.card(index)["name"]
            raise NoSuchImageError(f"{name} cannot be read: {reason(error)}.") from error

    def upload(self, content: bytes) -> str:
        """Take in the bytes of an image file; its name here.

        Raises:
            NoSuchImageError: They are no image that is read.
        """
        name = f"u{hashlib.sha256(content).hexdigest()[:16]}"
        if name not in self._uploads:
            channels = self.networks.opened.encoder.in_channels
            depth = self.networks.opened.depth
            plain = depth == "8" and channels in (1, 3)
            wanted = None if plain else Wanted(channels, depth)
            try:
                pixels = decode_deep(content, wanted) if wanted else decode(content, channels)
            except UnreadableImageError as error:
                raise NoSuchImageError(
                    f"That file cannot be read as an image: {reason(error)}."
                ) from error
            self._uploads.put(name, model.see(pixels, self.networks))
        return name

    def seen(self, image: str) -> Seen:
        """An image as networks see it.

        Raises:
            NoSuchImageError: There is none of that name, or it cannot be read.
        """
        number = image[1:]
        if image.startswith("d") and number.isascii() and number.isdigit() and len(number) < 19:
            return self._images.get(
                image, lambda: model.see(self.pixels(int(number)), self.networks)
            )

        def forgotten() -> Seen:
            raise NoSuchImageError("That image is not kept any more: choose or drop it again.")

        return self._uploads.get(image, forgotten)

    def shown(self, image: str) -> bytes:
        """A PNG of the part of an image that networks see."""
        return pictures.png(self.seen(image).shown)

    def tokens(self, image: str) -> Tensor:
        """All tokens of an image, 1 x tokens x D."""
        seen = self.seen(image)
        return self._answers.get(
            ("tokens", image), lambda: model.tokens_of(self.networks, seen.encoder)
        )

    # answers

    def reconstruct(
        self, image: str, mask_ratio: float, seed: int, visible: Sequence[int] | None
    ) -> dict[str, Any]:
        """What the decoder makes of the visible part of an image."""
        found = model.reconstruction(
            self.networks, self.seen(image), mask_ratio=mask_ratio, seed=seed, visible=visible
        )
        return {
            "pictures": {k: pictures.data_uri(v) for k, v in found.pictures.items()},
            "visible": found.visible,
            "error": found.error,
        }

    def attention(self, image: str, block: int | None, heads: bool) -> dict[str, Any]:
        """Heat maps on the image: one of all blocks or of one, or one for each head of a block."""
        seen = self.seen(image)
        heat = self._answers.get(
            ("heat", image, block), lambda: model.heat_maps(self.networks, seen, block)
        )
        maps = heat if heads else [heat.mean(axis=0)]
        side = model.HEAD if heads else model.SHOWN
        ends = shared_limits(maps)
        drawn = [model.overlaid(seen, one, side, ends) for one in maps]
        return {"maps": [pictures.data_uri(one) for one in drawn]}

    def similar(self, image: str, patch: int) -> dict[str, Any]:
        """How like one patch all patches of its image are."""
        cosines = model.alike(self.networks, self.tokens(image), patch)
        return {
            "map": pictures.data_uri(model.overlaid(self.seen(image), cosines)),
            "values": [round(float(value), 4) for value in cosines.flatten()],
        }

    def features(self, image: str, alone: bool) -> dict[str, Any]:
        """A colour for each patch; in a basis of its own until there is a common one."""
        basis = None if alone else self.embedded.basis
        painted = model.painted(self.networks, self.tokens(image), basis)
        return {"map": pictures.data_uri(painted), "common": basis is not None}

    def neighbours(self, image: str, count: int) -> dict[str, Any]:
        """The images of the data that are most like an image; itself is left out."""
        vector = model.embedding(self.networks, self.tokens(image))[0]
        own = int(image[1:]) if image.startswith("d") else None
        found = self.embedded.nearest(vector, count, own)
        return {"images": self._ranked(found), "among": len(self.embedded.indices)}

    def typical(self, count: int) -> dict[str, Any]:
        """The images of the data that have most, and fewest, like them."""
        most, least = self.embedded.extremes(count)
        return {"most": self._ranked(most), "least": self._ranked(least)}

    def _ranked(self, found: Sequence[Near]) -> list[dict[str, Any]]:
        return [self.card(near.index) | {"similarity": near.similarity} for near in found]


def reason(error: UnreadableImageError) -> str:
    """Why an image cannot be read, for a page; torchvision names its own source files."""
    said = encodable(str(error)).rstrip(".")
    return "the JPEG is damaged" if said.startswith("decode_jpeg") else said
