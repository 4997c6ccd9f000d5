"""Pixels that a model makes of images: reconstructions, attention maps and overlays.

Shared by `reconstruct`, `attention`, `report` and `explore`. Shapes: B images, H and W pixels,
C channels, rows x columns of patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mvmae import encoders
from mvmae.config.model import num_visible
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedAutoencoder
from mvmae.encoders.attention import attention_rollout, class_attention
from mvmae.errors import UserError
from mvmae.inspect.choose_images import HIDDEN, select_channels, views
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.patches import (
    Statistics,
    denormalize_patches,
    masking_from_noise,
    patchify,
    unpatchify,
)
from mvmae.method.views import display_range, mask_noise, normalize
from mvmae.method.vit import Encoder

BATCH_SIZE = 16
COLOURS = "inferno"  # perceptually uniform: equal steps of attention look equal
LOW, HIGH = 0.02, 0.99  # quantiles of a map that get the darkest and the brightest colour
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
EVEN = 0.5, 2.0  # the narrowest range of a shared scale, as multiples of even attention
MIN_OPACITY, MAX_OPACITY = 0.25, 0.85  # of the colour in an overlay, from low to high heat

Limits = tuple[float, float]
"""The values that get the darkest and the brightest colour."""


class Panels(NamedTuple):
    """A model's reconstructions, one for each image; values in [0, 1], C is 1 or 3."""

    original: Float[np.ndarray, "B H W C"]
    masked: Float[np.ndarray, "B H W C"]
    prediction: Float[np.ndarray, "B H W C"]
    pasted: Float[np.ndarray, "B H W C"]
    error: Float[np.ndarray, " B"]
    """Mean squared error of the drawn prediction, over hidden patches and all channels."""

    plain: Float[np.ndarray, " B"]
    """The same error for filling each hidden patch with its average colour, which no model sees."""


def open_with_decoder(name: str) -> OpenedAutoencoder:
    """Open an autoencoder whose decoder was trained.

    Raises:
        UserError: There is no such checkpoint, it is damaged, or its decoder was not trained.
    """
    opened = encoders.open_autoencoder(name)
    bad = [key for key, one in opened.model.state_dict().items() if not one.isfinite().all()]
    if bad:
        raise UserError(f"{name} is damaged: {bad[0]} holds infinite numbers or NaN")
    # An untrained decoder would draw noise, which looks like a bad run.
    if opened.config.objective.reconstruction_weight == 0:
        raise UserError(
            f"{name} was trained without reconstruction (its weight is 0), so its decoder has "
            "learnt nothing"
        )
    return opened


def reconstruct_images(
    opened: OpenedAutoencoder,
    data: Sequence[str],
    indices: Sequence[int],
    *,
    seed: int,
    mask_ratio: float,
    device: torch.device,
    statistics: Statistics = "visible",
    channels: Sequence[int] = (),
) -> Panels:
    """Read images and reconstruct them; runs with the same grid of patches get the same masks.

    Args:
        opened: The autoencoder.
        data: Where the images are.
        indices: Numbers of the images in the data.
        seed: Seed of the masks.
        mask_ratio: Share of hidden patches.
        device: Where to compute.
        statistics: See `reconstruct_batch`.
        channels: See `reconstruct_batch`.
    """
    model, trained = opened
    shape = trained.model
    source = open_source(data, shape.in_channels, trained.views.pixel_depth)
    images = views(source, indices, shape.height_width, trained.views.interpolation)
    noise = mask_noise(np.random.default_rng((seed, 1)), len(images), shape.num_patches)
    model.to(device)
    visible = num_visible(shape.num_patches, mask_ratio)
    parts = [
        reconstruct_batch(
            model,
            some,
            mask,
            trained,
            num_visible=visible,
            statistics=statistics,
            device=device,
            channels=channels,
        )
        for some, mask in zip(images.split(BATCH_SIZE), noise.split(BATCH_SIZE), strict=True)
    ]
    return Panels(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@torch.inference_mode()
def reconstruct_batch(
    model: MaskedAutoencoder,
    images: Tensor,
    noise: Tensor,
    trained: PretrainConfig,
    *,
    num_visible: int,
    statistics: Statistics,
    device: torch.device,
    channels: Sequence[int] = (),
) -> Panels:
    """Reconstruct a batch of images.

    Args:
        model: On the device.
        images: Pixels, B x C x H x W; deep ones are drawn as `for_people` shows them.
        noise: B x N random numbers that choose the hidden patches.
        trained: How the model was trained.
        num_visible: Patches that the encoder sees.
        statistics: Where the brightness and contrast of hidden patches come from, under normalised
            targets.
        device: Where to compute.
        channels: Channels that are drawn, counted from 1; see `select_channels` for the default.
    """
    mean, std = trained.pixel_statistics
    inputs = normalize(images, mean, std, device)
    masking = masking_from_noise(noise.to(device), num_visible)
    patch, grid = trained.model.patch_size, trained.model.grid
    target = patchify(inputs, patch)
    prediction = model.decode(model.encoder.encode(target, masking.ids_keep), masking)
    if trained.objective.normalize_targets:
        prediction = denormalize_patches(prediction, target, masking.mask, grid, statistics)
    hidden = masking.mask[..., None]

    def to_pixels(patches: Tensor) -> np.ndarray:
        shape = (1, -1, 1, 1)
        pixels = unpatchify(patches, patch, grid)
        pixels = pixels * pixels.new_tensor(std).view(shape) + pixels.new_tensor(mean).view(shape)
        if images.dtype != torch.uint8:  # deep pixels have no black and white: see `for_people`
            low, high = (bound.to(pixels) for bound in display_range(images, mean, std))
            pixels = (pixels - low) / (high - low)
        return pixels.clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()

    original, predicted = to_pixels(target), to_pixels(prediction)
    area = unpatchify(hidden.expand_as(target), patch, grid).permute(0, 2, 3, 1).cpu().numpy()
    # The average colour of each patch, which the docs call `colours`: a mosaic of the image.
    squares = target.unflatten(-1, (-1, images.shape[1])).mean(-2, keepdim=True)
    squares = squares.expand(-1, -1, patch**2, -1).flatten(-2)

    def hidden_error(pixels: np.ndarray) -> np.ndarray:
        return ((pixels - original) ** 2 * area).sum((1, 2, 3)) / area.sum((1, 2, 3))

    shown = select_channels(1 - area, channels)
    return Panels(
        original=select_channels(original, channels),
        masked=select_channels(original, channels) * shown + HIDDEN * (1 - shown),
        prediction=select_channels(predicted, channels),
        pasted=select_channels(to_pixels(prediction * hidden + target * (1 - hidden)), channels),
        error=hidden_error(predicted),
        plain=hidden_error(to_pixels(squares)),
    )


@torch.inference_mode()
def attention_maps(
    encoder: Encoder, images: Float[Tensor, "B C H W"], block: int | None
) -> Float[np.ndarray, "B maps rows columns"]:
    """Compute attention as multiples of even attention: 1 where a patch gets an even share.

    Args:
        encoder: On the device of the images.
        images: Normalised. The weights of a block take heads x N x N numbers for each.
        block: A map for each head of this block; None: one map, a rollout through all blocks.
    """
    if block is None:
        heat = attention_rollout(encoder, images)[:, None]
        num_tokens = heat[0, 0].numel()  # it sums to 1 over the patches alone
    else:
        heat = class_attention(encoder, images, block)
        num_tokens = heat[0, 0].numel() + encoder.num_prefix
    return (heat * num_tokens).float().cpu().numpy()


def limits(heat: Float[np.ndarray, ...]) -> Limits:
    """Return robust ends of a colour scale: one patch in a hundred may exceed the brightest."""
    low, high = np.quantile(heat, (LOW, HIGH))
    return float(low), float(high)


def shared_limits(maps: Iterable[Float[np.ndarray, ...]]) -> Limits:
    """Return one scale for several maps, from the lowest to the highest end of any.

    The scale is never narrower than `EVEN`, or rounding errors of nearly even attention would look
    like an object.

    Args:
        maps: As multiples of even attention.
    """
    each = [EVEN, *map(limits, maps)]
    return min(low for low, _ in each), max(high for _, high in each)


def peak(heat: Float[np.ndarray, ...]) -> str:
    """Say how far the highest value lies above even attention."""
    return f"peak {heat.max():.1f}x even"


def heat_picture(
    heat: Float[np.ndarray, "rows columns"], height: int, width: int, ends: Limits | None = None
) -> Float[np.ndarray, "height width 3"]:
    """Colour heat from dark to bright; values in [0, 1]. `ends` default to those of `limits`."""
    return _apply_colours(_shades(heat, height, width, ends))


def overlay(
    image: Float[np.ndarray, "H W C"],
    heat: Float[np.ndarray, "rows columns"],
    ends: Limits | None = None,
) -> Float[np.ndarray, "H W 3"]:
    """Colour heat over the image in gray, which shows through where the heat is low.

    Args:
        image: 1 or 3 channels, values in [0, 1].
        heat: One value for each patch.
        ends: Of the colour scale; default: those of `limits`.
    """
    gray = image[..., 0] if image.shape[2] == 1 else image @ LUMA
    shades = _shades(heat, image.shape[0], image.shape[1], ends)
    opacity = (MIN_OPACITY + (MAX_OPACITY - MIN_OPACITY) * shades)[..., None]
    return ((1 - opacity) * gray[..., None] + opacity * _apply_colours(shades)).astype(np.float32)


def _shades(heat: np.ndarray, height: int, width: int, ends: Limits | None) -> np.ndarray:
    """Return each pixel's place on the scale, bicubic between the centres of the patches."""
    low, high = ends or limits(heat)
    if high - low <= 1e-6 * max(abs(high), abs(low)):  # rounding errors are not a pattern
        return np.zeros((height, width))
    shares = ((heat - low) / (high - low)).clip(0, 1)
    picture = Image.fromarray(shares.astype(np.float32))
    # Bicubic interpolation overshoots.
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)


def _apply_colours(shades: np.ndarray) -> np.ndarray:
    return mpl.colormaps[COLOURS](shades)[..., :3].astype(np.float32)
