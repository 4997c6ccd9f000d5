"""Compute what the page of `mvmae explore` asks for.

Images are named by number or hash: the page never sends a path.
Shapes: H x W pixels, K channels drawn (1 or 3), D width.
"""

import base64
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mvmae.config.model import num_visible
from mvmae.data.reading.decode import UnreadableImageError, Wanted, decode_content
from mvmae.data.sources.base import Source
from mvmae.encoders import OpenedAutoencoder
from mvmae.encoders.attention import patch_similarity
from mvmae.errors import encodable
from mvmae.inspect.choose_images import class_name, render_image
from mvmae.inspect.explore import model
from mvmae.inspect.explore.embeddings import EmbeddingIndex, Match
from mvmae.inspect.explore.model import ImageViews, Networks
from mvmae.inspect.model_pictures import (
    Limits,
    attention_maps,
    overlay,
    reconstruct_batch,
    shared_limits,
)
from mvmae.method.views import mask_noise, normalize
from mvmae.metrics.principal import colors, principal_basis
from mvmae.training import precision

HEAD_SIDE = 192  # pixels on the longer side of a picture where there is one for each head
THUMBNAIL = 128  # pixels
UNREADABLE = 128  # gray of the thumbnail of an unreadable image
MAX_IMAGES = 64  # in memory: 3 MB each for ViT-B at 224 pixels
MAX_ANSWERS = 128  # images whose heat maps, or tokens, are in memory: less than 1 MB each
MAX_THUMBNAILS = 2048  # in memory


class RequestError(Exception):
    """A request that cannot be answered; the message says why, and what would be right.

    Args:
        message: Sentences for the page.
        status: HTTP status.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Facts(NamedTuple):
    """Descriptions that the page shows."""

    name: str
    encoder: str
    data: str
    no_decoder: str
    """Why there are no reconstructions; empty if there are."""


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
        self._uploads: OrderedDict[str, ImageViews] = OrderedDict()
        self._lock = threading.Lock()  # for `_uploads`; `lru_cache` has its own
        self._read = lru_cache(MAX_IMAGES)(self._read_views)
        self.thumbnail = lru_cache(MAX_THUMBNAILS)(self._make_thumbnail)
        self.tokens = lru_cache(MAX_ANSWERS)(self._encode)
        self._heat = lru_cache(MAX_ANSWERS)(self._attend)

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

    def _make_thumbnail(self, index: int) -> bytes:
        """A small JPEG of an image of the data; gray if the image cannot be read."""
        opened = self.networks.opened
        pixels = render_image(self.source, index, opened, THUMBNAIL, unreadable=UNREADABLE)
        return encode_picture(pixels, "JPEG", quality=85)

    # images

    def views(self, image: str) -> ImageViews:
        """An image in the sizes that the networks and the page need.

        Raises:
            RequestError: There is no such image, or it cannot be read.
        """
        number = image[1:]
        # `isdigit` alone accepts digits of other alphabets; 19 digits do not fit into 64 bits.
        if image.startswith("d") and number.isascii() and number.isdigit() and len(number) < 19:
            return self._read(int(number))
        with self._lock:
            if image not in self._uploads:
                raise RequestError("That image is no longer in memory: upload it again.", 404)
            self._uploads.move_to_end(image)
            return self._uploads[image]

    def _read_views(self, index: int) -> ImageViews:
        if not 0 <= index < len(self.source):
            last = len(self.source) - 1
            raise RequestError(f"There is no image {index}: name one from 0 to {last}.", 404)
        try:
            return model.prepare(self.source.read(index), self.networks)
        except UnreadableImageError as error:
            name, reason = self.card(index)["name"], encodable(str(error)).rstrip(".")
            raise RequestError(f"{name} cannot be read: {reason}.", 404) from error

    def upload(self, content: bytes) -> str:
        """Accept the bytes of an image file and return the image's name.

        Raises:
            RequestError: They cannot be read as an image.
        """
        channels, depth = self.networks.opened.encoder.in_channels, self.networks.opened.depth
        try:
            pixels = decode_content(content, Wanted(channels, depth))
        except UnreadableImageError as error:
            reason = encodable(str(error)).rstrip(".")
            raise RequestError(f"That file cannot be read as an image: {reason}.") from error
        name = f"u{hashlib.sha256(content).hexdigest()[:16]}"
        views = model.prepare(pixels, self.networks)  # outside of the lock: it takes longest
        with self._lock:
            self._uploads[name] = views
            self._uploads.move_to_end(name)
            if len(self._uploads) > MAX_IMAGES:
                self._uploads.popitem(last=False)
        return name

    def picture(self, image: str) -> bytes:
        """A PNG of the part of an image that the networks see."""
        return encode_png(self.views(image).picture)

    # answers

    def reconstruct(
        self,
        decoder: OpenedAutoencoder,
        image: str,
        mask_ratio: float,
        seed: int,
        visible: Sequence[int] | None,
    ) -> dict[str, Any]:
        """Reconstruct an image from its visible patches.

        Args:
            decoder: The autoencoder of the networks.
            image: Name of the image.
            mask_ratio: Share of patches hidden; at least one stays visible and one hidden.
            seed: Seed of the mask. With the same seed, a larger share hides all that a smaller one
                hides, and more.
            visible: Numbers of the visible patches, instead of a mask by share and seed.

        Returns:
            `pictures` as data URIs, numbers of the `visible` patches, and the `error`.

        Raises:
            RequestError: There is no such image, or it cannot be read.
        """
        network, trained = decoder
        total = trained.model.num_patches
        if visible is None:
            noise = mask_noise(np.random.default_rng((seed, 1)), 1, total)
            count = min(max(num_visible(total, mask_ratio), 1), total - 1)
        else:
            # The patches with the smallest noise are visible.
            noise = torch.ones(1, total)
            noise[0, list(visible)] = 0
            count = len(set(visible))
        panels = reconstruct_batch(
            network,
            self.views(image).decoder,
            noise,
            trained,
            num_visible=count,
            statistics="visible",
            device=self.networks.device,
        )
        shown = ("original", "masked", "prediction", "pasted")
        return {
            "pictures": {name: data_uri(getattr(panels, name)[0]) for name in shown},
            "visible": sorted(noise[0].argsort(stable=True)[:count].tolist()),
            "error": float(panels.error[0]),
        }

    def attention(self, image: str, block: int | None, heads: bool) -> dict[str, Any]:
        """Draw attention as heat maps on the image.

        Args:
            image: Name of the image.
            block: Index of a block; None: one map, a rollout through all blocks.
            heads: One map for each head of the block, instead of their mean.

        Raises:
            RequestError: There is no such image, or it cannot be read.
        """
        heat = self._heat(image, block)
        maps = heat if heads else [heat.mean(axis=0)]
        side, limits = HEAD_SIDE if heads else model.SIDE, shared_limits(maps)
        return {"maps": [self._overlay(image, one, side, limits) for one in maps]}

    def _attend(self, image: str, block: int | None) -> Float[np.ndarray, "heads rows columns"]:
        opened, device = self.networks.opened, self.networks.device
        mean, std, _ = opened.preprocessing
        inputs = normalize(self.views(image).encoder, mean, std, device)
        with precision.autocast(device, self.networks.precision):
            return attention_maps(opened.encoder, inputs, block)[0]

    def _overlay(
        self,
        image: str,
        heat: Float[np.ndarray, "rows columns"],
        side: int = model.SIDE,
        limits: Limits | None = None,
    ) -> str:
        """Draw a heat map on the image, on its own colour scale if no limits are given."""
        picture = self.views(image).picture
        step = max(1, round(max(picture.shape[:2]) / side))
        return data_uri(overlay(picture[::step, ::step], heat, limits))

    def similar(self, image: str, patch: int) -> dict[str, Any]:
        """Cosine similarity of one patch, by its number, to all patches of its image.

        Raises:
            RequestError: There is no such image, or it cannot be read.
        """
        tokens = model.patch_tokens(self.networks, self.tokens(image))
        cosines = patch_similarity(tokens, patch)[0].clamp(-1, 1)
        heat = cosines.unflatten(0, self.networks.opened.encoder.grid).numpy()
        values = [round(value, 4) for value in cosines.tolist()]
        return {"map": self._overlay(image, heat), "values": values}

    def features(self, image: str, alone: bool) -> dict[str, Any]:
        """A colour for each patch, from the first three principal components of the tokens.

        The components come from a sample of the data, so that colours can be compared between
        images; `common` is true then. They come from this image if `alone` is true, or as long as
        too few images are embedded.

        Raises:
            RequestError: There is no such image, or it cannot be read.
        """
        basis = None if alone else self.embedded.basis
        tokens = model.patch_tokens(self.networks, self.tokens(image))
        coloured = colors(tokens, principal_basis(tokens) if basis is None else basis)[0]
        pixels = coloured.unflatten(0, self.networks.opened.encoder.grid).numpy()
        return {"map": data_uri(pixels), "common": basis is not None}

    def neighbours(self, image: str, count: int) -> dict[str, Any]:
        """The `count` images of the data that are most similar to an image.

        Raises:
            RequestError: There is no such image, or it cannot be read.
        """
        # Leave out the image itself, which would always come first.
        vector = model.embedding(self.networks, self.tokens(image))[0]
        itself = int(image[1:]) if image.startswith("d") else None
        matches = self.embedded.nearest(vector, count, itself)
        return {"images": self._cards(matches), "among": len(self.embedded.indices)}

    def typical(self, count: int) -> dict[str, Any]:
        """The images of the data with the most, and with the fewest, similar images."""
        most, least = self.embedded.extremes(count)
        return {"most": self._cards(most), "least": self._cards(least)}

    def _encode(self, image: str) -> Tensor:
        """All tokens of an image, 1 x tokens x D."""
        return model.encode(self.networks, self.views(image).encoder)

    def _cards(self, matches: Sequence[Match]) -> list[dict[str, Any]]:
        return [self.card(match.index) | {"similarity": match.similarity} for match in matches]


def encode_png(pixels: Float[np.ndarray, "H W K"]) -> bytes:
    """Encode values in [0, 1] as a PNG, gray if K is 1."""
    levels = np.round(np.nan_to_num(pixels).clip(0, 1) * 255).astype(np.uint8)
    return encode_picture(levels, "PNG", compress_level=1)  # fast: the bytes stay on this machine


def data_uri(pixels: Float[np.ndarray, "H W K"]) -> str:
    """Encode values in [0, 1] as a PNG in a data URI, which needs no further request."""
    return f"data:image/png;base64,{base64.b64encode(encode_png(pixels)).decode()}"


def encode_picture(pixels: UInt8[np.ndarray, "H W K"], kind: str, **options: int) -> bytes:
    """Encode pixels in a file format of Pillow.

    Args:
        pixels: Gray if K is 1.
        kind: Pillow's name of the format.
        **options: Options of Pillow's encoder.
    """
    plain = pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels)
    stream = io.BytesIO()
    Image.fromarray(plain).save(stream, kind, **options)
    return stream.getvalue()
