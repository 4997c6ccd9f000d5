"""What the page shows of an image: pictures and numbers from an encoder and, maybe, a decoder.

Shapes: one image; H and W pixels as the encoder takes them, h and w those of what is drawn, N
patches, D width, K channels drawn (1 or 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from mvmae.config.model import num_visible
from mvmae.data.reading.decode import Pixels
from mvmae.encoders import OpenedAutoencoder, OpenedEncoder
from mvmae.encoders.attention import attention_rollout, class_attention, patch_similarity
from mvmae.inspect import attention_panels as figures
from mvmae.inspect.choose_images import displayed, finer
from mvmae.inspect.reconstruct import panels_of
from mvmae.method.views import for_people, mask_noise, normalized, whole_view
from mvmae.metrics.principal import Basis, colors, principal_basis
from mvmae.training import precision

SHOWN = 384  # pixels of the longer side of what lies below a heat map
HEAD = 192  # of one of several


class Networks(NamedTuple):
    """What computes."""

    opened: OpenedEncoder
    decoder: OpenedAutoencoder | None
    """The run's autoencoder, at the size it was trained with; none where there is none."""

    device: torch.device
    precision: str


class Seen(NamedTuple):
    """The part of an image that networks see."""

    encoder: UInt8[Tensor, "1 C H W"] | Float32[Tensor, "1 C H W"]
    decoder: UInt8[Tensor, "1 C H W"] | Float32[Tensor, "1 C H W"] | None
    shown: Float[np.ndarray, "h w K"]
    """For a person, in [0, 1]: finer than the networks see it."""


class Reconstruction(NamedTuple):
    """What a decoder made of the visible patches; pictures in [0, 1]."""

    pictures: dict[str, Float[np.ndarray, "H W K"]]
    visible: list[int]
    """Numbers of the visible patches, row by row, rising."""

    error: float
    """Mean squared error over hidden patches."""


def see(pixels: Pixels, networks: Networks) -> Seen:
    """The middle of an image in the sizes that are needed."""
    opened, decoder = networks.opened, networks.decoder
    size, interpolation = opened.encoder.image_size, opened.preprocessing.interpolation
    view = whole_view(pixels, finer(size, SHOWN), interpolation)
    mean, std = opened.preprocessing.mean, opened.preprocessing.std
    shown = for_people(view[None], mean, std)[0]
    masked = None
    if decoder is not None:
        trained = decoder.config
        masked = whole_view(pixels, trained.model.height_width, trained.views.interpolation)[None]
    return Seen(
        whole_view(pixels, size, interpolation)[None],
        masked,
        displayed(shown.permute(1, 2, 0).numpy()),
    )


@torch.inference_mode()
def tokens_of(
    networks: Networks, images: UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"]
) -> Float[Tensor, "B tokens D"]:
    """All tokens of whole images, prefix first, on the CPU."""
    opened = networks.opened
    inputs = normalized(
        images, opened.preprocessing.mean, opened.preprocessing.std, networks.device
    )
    with precision.autocast(networks.device, networks.precision):
        return opened.encoder(inputs).float().cpu()


def patch_tokens(networks: Networks, tokens: Float[Tensor, "B tokens D"]) -> Float[Tensor, "B N D"]:
    """Those of patches alone."""
    return tokens[:, networks.opened.encoder.num_prefix :]


def embedding(networks: Networks, tokens: Float[Tensor, "B tokens D"]) -> Float[Tensor, "B D"]:
    """One vector an image, of length 1, from the token that training shaped."""
    vectors = networks.opened.encoder.pooled(tokens, networks.opened.pool)
    return torch.nn.functional.normalize(vectors, dim=-1)


def reconstruction(
    networks: Networks,
    seen: Seen,
    *,
    mask_ratio: float,
    seed: int,
    visible: Sequence[int] | None,
) -> Reconstruction:
    """What the decoder makes of an image.

    Args:
        networks: With a decoder.
        seen: The image.
        mask_ratio: Share of patches hidden; at least one patch stays visible and one hidden.
        seed: Of the mask. With the same seed a larger share hides what a smaller one hides, too.
        visible: The visible patches by number, in place of a mask by share and seed.
    """
    assert networks.decoder is not None
    assert seen.decoder is not None
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
        seen.decoder,
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
def heat_maps(
    networks: Networks, seen: Seen, block: int | None
) -> Float[np.ndarray, "heads rows columns"]:
    """What the image's vector comes from: each head of a block, or all blocks as one rollout.

    As multiples of even attention.
    """
    opened = networks.opened
    inputs = normalized(
        seen.encoder, opened.preprocessing.mean, opened.preprocessing.std, networks.device
    )
    with precision.autocast(networks.device, networks.precision):
        heat = (
            attention_rollout(opened.encoder, inputs)
            if block is None
            else class_attention(opened.encoder, inputs, block)[0]
        )
    patches = heat[0].numel()  # a rollout sums to 1 over them alone
    tokens = patches if block is None else patches + opened.encoder.num_prefix
    return (heat * tokens).float().cpu().numpy()


def overlaid(
    seen: Seen,
    heat: Float[np.ndarray, "rows columns"],
    side: int = SHOWN,
    ends: figures.Limits | None = None,
) -> Float[np.ndarray, "h w 3"]:
    """A heat map on the image, from its own low to its own high where no `ends` are given."""
    step = max(1, round(max(seen.shown.shape[:2]) / side))
    return figures.overlay(seen.shown[::step, ::step], heat, ends)


def alike(
    networks: Networks, tokens: Float[Tensor, "1 tokens D"], patch: int
) -> Float[np.ndarray, "rows columns"]:
    """Cosine of one patch's token to all of them."""
    values = patch_similarity(patch_tokens(networks, tokens), patch)[0]
    return values.clamp(-1, 1).unflatten(0, networks.opened.encoder.grid).numpy()


def basis_of(tokens: Float[Tensor, "B N D"]) -> Basis:
    """Colours for patches of these images."""
    return principal_basis(tokens)


def painted(
    networks: Networks, tokens: Float[Tensor, "1 tokens D"], basis: Basis | None
) -> Float[np.ndarray, "rows columns 3"]:
    """A colour for each patch, in a basis of many images, or of this one alone."""
    own = patch_tokens(networks, tokens)
    painted = colors(own, basis_of(own) if basis is None else basis)[0]
    return painted.unflatten(0, networks.opened.encoder.grid).numpy()
