"""The networks of the page, and images as these networks take them.

Shapes: H and W pixels as the networks take them, h and w pixels of a picture, N patches, D width,
K channels drawn (1 or 3).
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from mvmae.data.reading.decode import Pixels
from mvmae.encoders import OpenedAutoencoder, OpenedEncoder
from mvmae.inspect.choose_images import finer, select_channels
from mvmae.method.views import normalize, to_display_range, whole_view
from mvmae.training import precision

SIDE = 384  # pixels on the longer side of a picture below a heat map


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
    decoder: UInt8[Tensor, "1 C H W"] | Float32[Tensor, "1 C H W"]
    """As the autoencoder takes it; the same as `encoder` if there is none."""

    picture: Float[np.ndarray, "h w K"]
    """For people, in [0, 1]: finer than the networks see it."""


def prepare(pixels: Pixels, networks: Networks) -> ImageViews:
    """Crop the centre of an image and resize it to the sizes that are needed.

    The networks' own sizes are small, while a photograph would take 50 MB of memory.
    """
    size, (mean, std, mode) = networks.opened.encoder.image_size, networks.opened.preprocessing
    seen = whole_view(pixels, size, mode)[None]
    for_decoder = seen
    if networks.decoder is not None:
        model, views = networks.decoder.config.model, networks.decoder.config.views
        for_decoder = whole_view(pixels, model.height_width, views.interpolation)[None]
    picture = to_display_range(whole_view(pixels, finer(size, SIDE), mode)[None], mean, std)[0]
    return ImageViews(seen, for_decoder, select_channels(picture.permute(1, 2, 0).numpy()))


@torch.inference_mode()
def encode(
    networks: Networks, images: UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"]
) -> Float[Tensor, "B tokens D"]:
    """Encode whole images into all tokens, prefix tokens first, on the CPU."""
    mean, std, _ = networks.opened.preprocessing
    inputs = normalize(images, mean, std, networks.device)
    with precision.autocast(networks.device, networks.precision):
        return networks.opened.encoder(inputs).float().cpu()


def patch_tokens(networks: Networks, tokens: Float[Tensor, "B tokens D"]) -> Float[Tensor, "B N D"]:
    """Tokens of the patches, without the prefix."""
    return tokens[:, networks.opened.encoder.num_prefix :]


def embedding(networks: Networks, tokens: Float[Tensor, "B tokens D"]) -> Float[Tensor, "B D"]:
    """One vector per image, of length 1, from the token that training shaped."""
    return F.normalize(networks.opened.encoder.pool(tokens, networks.opened.pool), dim=-1)
