"""Compute what the page shows of an image, with an encoder and maybe a decoder.

Shapes: H and W pixels as the networks take them, h and w pixels of a picture, N patches, D width,
K channels drawn (1 or 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from mvmae.config.model import num_visible
from mvmae.data.reading.decode import Pixels
from mvmae.encoders import OpenedAutoencoder, OpenedEncoder
from mvmae.encoders.attention import attention_rollout, class_attention, patch_similarity
from mvmae.inspect.choose_images import displayed, finer
from mvmae.inspect.model_pictures import Limits, overlay, panels_of
from mvmae.method.views import for_people, mask_noise, normalized, whole_view
from mvmae.metrics.principal import Basis, colors, principal_basis
from mvmae.training import precision

SIDE = 384  # pixels on the longer side of a picture below a heat map
HEAD_SIDE = 192  # where there are several


class Networks(NamedTuple):
    """The encoder and the decoder."""

    opened: OpenedEncoder
    decoder: OpenedAutoencoder | None
    """The run's autoencoder, at the size it was trained with; None if there is none."""

    device: torch.device
    precision: str


class ImageViews(NamedTuple):
    """The part of an image that the networks see, in the sizes that are needed."""

    encoder: UInt8[Tensor, "1 C H W"] | Float32[Tensor, "1 C H W"]
    decoder: UInt8[Tensor, "1 C H W"] | Float32[Tensor, "1 C H W"] | None
    picture: Float[np.ndarray, "h w K"]
    """For people, in [0, 1]: finer than the networks see it."""


class Reconstruction(NamedTuple):
    """What a decoder made of the visible patches; pictures in [0, 1]."""

    pictures: dict[str, Float[np.ndarray, "H W K"]]
    visible: list[int]
    """Numbers of the visible patches, row by row, in ascending order."""

    error: float
    """Mean squared error over the hidden patches."""


def prepare(pixels: Pixels, networks: Networks) -> ImageViews:
    """Crop the centre of an image and resize it to the sizes that are needed."""
    opened, decoder = networks.opened, networks.decoder
    size, interpolation = opened.encoder.image_size, opened.preprocessing.interpolation
    fine = whole_view(pixels, finer(size, SIDE), interpolation)
    picture = for_people(fine[None], opened.preprocessing.mean, opened.preprocessing.std)[0]
    for_decoder = None
    if decoder is not None:
        trained = decoder.config
        for_decoder = whole_view(pixels, trained.model.height_width, trained.views.interpolation)[
            None
        ]
    return ImageViews(
        whole_view(pixels, size, interpolation)[None],
        for_decoder,
        displayed(picture.permute(1, 2, 0).numpy()),
    )


@torch.inference_mode()
def encode(
    networks: Networks, images: UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"]
) -> Float[Tensor, "B tokens D"]:
    """Encode whole images into all tokens, prefix tokens first, on the CPU."""
    with precision.autocast(networks.device, networks.precision):
        return networks.opened.encoder(_normalise(networks, images)).float().cpu()


def _normalise(networks: Networks, images: Tensor) -> Float[Tensor, "B C H W"]:
    preprocessing = networks.opened.preprocessing
    return normalized(images, preprocessing.mean, preprocessing.std, networks.device)


def patch_tokens(networks: Networks, tokens: Float[Tensor, "B tokens D"]) -> Float[Tensor, "B N D"]:
    """Tokens of the patches, without the prefix."""
    return tokens[:, networks.opened.encoder.num_prefix :]


def embedding(networks: Networks, tokens: Float[Tensor, "B tokens D"]) -> Float[Tensor, "B D"]:
    """One vector per image, of length 1, from the token that training shaped."""
    return F.normalize(networks.opened.encoder.pool(tokens, networks.opened.pool), dim=-1)


def reconstruct(
    networks: Networks,
    views: ImageViews,
    *,
    mask_ratio: float,
    seed: int,
    visible: Sequence[int] | None,
) -> Reconstruction:
    """Reconstruct an image from its visible patches.

    Args:
        networks: With a decoder.
        views: The image.
        mask_ratio: Share of patches hidden; at least one patch stays visible and one hidden.
        seed: Seed of the mask. For one seed, a larger share hides all that a smaller share hides.
        visible: Numbers of the visible patches, in place of a mask by share and seed.
    """
    assert networks.decoder is not None
    assert views.decoder is not None
    model, trained = networks.decoder
    count = trained.model.num_patches
    if visible is None:
        noise = mask_noise(np.random.default_rng((seed, 1)), 1, count)
        shown = min(max(num_visible(count, mask_ratio), 1), count - 1)
    else:
        noise = torch.ones(1, count)
        noise[0, list(visible)] = 0
        shown = len(set(visible))
    panels = panels_of(
        model.to(networks.device),
        views.decoder,
        noise,
        trained,
        num_visible=shown,
        statistics="visible",
        device=networks.device,
    )
    names = ("original", "masked", "prediction", "pasted")
    return Reconstruction(
        {name: getattr(panels, name)[0] for name in names},
        sorted(noise[0].argsort(stable=True)[:shown].tolist()),
        float(panels.error[0]),
    )


@torch.inference_mode()
def attention_maps(
    networks: Networks, views: ImageViews, block: int | None
) -> Float[np.ndarray, "heads rows columns"]:
    """Where the image's vector comes from: each head of a block, or all blocks as one rollout.

    Values are multiples of even attention.
    """
    encoder = networks.opened.encoder
    inputs = _normalise(networks, views.encoder)
    with precision.autocast(networks.device, networks.precision):
        heat = (
            attention_rollout(encoder, inputs)
            if block is None
            else class_attention(encoder, inputs, block)[0]
        )
    num_patches = heat[0].numel()  # a rollout sums to 1 over the patches alone
    num_tokens = num_patches if block is None else num_patches + encoder.num_prefix
    return (heat * num_tokens).float().cpu().numpy()


def overlay_heat(
    views: ImageViews,
    heat: Float[np.ndarray, "rows columns"],
    side: int = SIDE,
    limits: Limits | None = None,
) -> Float[np.ndarray, "h w 3"]:
    """Draw a heat map on the image, on its own colour scale if no limits are given."""
    step = max(1, round(max(views.picture.shape[:2]) / side))
    return overlay(views.picture[::step, ::step], heat, limits)


def patch_cosines(
    networks: Networks, tokens: Float[Tensor, "1 tokens D"], patch: int
) -> Float[np.ndarray, "rows columns"]:
    """Cosine of one patch's token to those of all patches."""
    values = patch_similarity(patch_tokens(networks, tokens), patch)[0]
    return values.clamp(-1, 1).unflatten(0, networks.opened.encoder.grid).numpy()


def patch_colours(
    networks: Networks, tokens: Float[Tensor, "1 tokens D"], basis: Basis | None
) -> Float[np.ndarray, "rows columns 3"]:
    """A colour for each patch, by a basis of many images or, without one, of this image alone."""
    own = patch_tokens(networks, tokens)
    coloured = colors(own, principal_basis(own) if basis is None else basis)[0]
    return coloured.unflatten(0, networks.opened.encoder.grid).numpy()
