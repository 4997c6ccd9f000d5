"""Colour augmentations of views: brightness, contrast, saturation and hue.

MoCo v2 and SimCLR use them; the paper does not. Without them two crops of an image share their
colours, and the contrast may learn nothing but colours. Their strengths are drawn for each view by
the readers, and applied to whole batches on the device.

To add an augmentation, add an option to `ViewsConfig`, a column to `Augmentations` and `UNCHANGED`,
its numbers to `draw_augmentations`, and its effect to `augment`.

Shapes: V views, B images, R rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mvmae.config.views import ViewsConfig
from mvmae.method.views import DISPLAY_DEVIATIONS, to_floats

JITTER_PROBABILITY = 0.8  # SimCLR's
LIGHT_RANGE, HUE_RANGE = 0.8, 0.2  # SimCLR's at strength 1: factors of 1 +- 0.8, 0.2 of a turn
GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601, as in torchvision's rgb_to_grayscale
UNCHANGED = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


class Augmentations(NamedTuple):
    """Random numbers of each view, one column per augmentation.

    Shapes: "V" for one image, "V B" for a batch, "R" for `augment`.
    """

    brightness: Float[Tensor, ...]
    """Factor."""

    contrast: Float[Tensor, ...]
    """Factor."""

    saturation: Float[Tensor, ...]
    """Factor; 0 gives a gray image."""

    hue: Float[Tensor, ...]
    """Rotation of the hue, from -0.5 to 0.5 turns."""


def draw_augmentations(seed: tuple[int, ...], config: ViewsConfig) -> Augmentations | None:
    """Draw the augmentations of one image's views, as a function of `seed` alone.

    The ranges are those of SimCLR's ColorJitter(0.8 s, 0.8 s, 0.8 s, 0.2 s) with probability 0.8 at
    strength s, followed by RandomGrayscale; a gray view has saturation 0.

    Returns:
        Columns of shape "V"; None if views keep their colours.
    """
    strength = config.color_jitter
    if strength == 0 and config.grayscale == 0:
        return None
    rng = np.random.default_rng(seed)
    drawn = Augmentations(**{k: torch.full((config.num_views,), v) for k, v in UNCHANGED.items()})
    for view in range(config.num_views):
        light = rng.uniform(1 - LIGHT_RANGE * strength, 1 + LIGHT_RANGE * strength, size=3)
        hue = rng.uniform(-HUE_RANGE * strength, HUE_RANGE * strength)
        if rng.random() < JITTER_PROBABILITY:
            drawn.brightness[view], drawn.contrast[view], drawn.saturation[view] = light
            drawn.hue[view] = hue
        if rng.random() < config.grayscale:
            drawn.saturation[view] = 0
    # A new augmentation draws its numbers here, after those of all views, so that runs without it
    # draw the same numbers as before.
    return drawn


def stack_augmentations(drawn: Sequence[Augmentations | None]) -> Augmentations | None:
    """Stack the columns of a batch's images to shape "V B"; None if no view changes."""
    images = [one for one in drawn if one is not None]
    if not images:
        return None
    columns = zip(*images, strict=True)
    return Augmentations(*(torch.stack(column, dim=1) for column in columns))


def augment(
    images: UInt8[Tensor, "R C H W"] | Float[Tensor, "R C H W"],
    drawn: Augmentations,
    views: ViewsConfig,
    channels: int,
) -> Float[Tensor, "R C H W"]:
    """Apply the augmentations to images as the reader returns them; return floats.

    Pixels of depth "float" have no black and no white. The values `DISPLAY_DEVIATIONS` standard
    deviations below and above each channel's mean serve instead, as in pictures, and nothing is
    clipped.
    """
    if views.pixel_depth != "float":
        return change_colours(to_floats(images), drawn, bounded=True)
    mean, std = (images.new_tensor(s).view(-1, 1, 1) for s in views.pixel_statistics(channels))
    black, span = mean - DISPLAY_DEVIATIONS * std, 2 * DISPLAY_DEVIATIONS * std
    return black + span * change_colours((images - black) / span, drawn, bounded=False)


def change_colours(
    images: Float[Tensor, "R C H W"], drawn: Augmentations, *, bounded: bool
) -> Float[Tensor, "R C H W"]:
    """Change brightness, contrast, saturation and hue, in this order.

    Equal to torchvision's `adjust_*` functions one after the other (its ColorJitter draws a random
    order). Images without exactly 3 channels have neither saturation nor hue.

    Args:
        images: Pixels in [0, 1], or of any range if not `bounded`.
        drawn: One number per row in each column.
        bounded: Whether results are clipped to [0, 1].
    """
    drawn = Augmentations(*(column[:, None, None, None] for column in drawn))
    images = _clip(images * drawn.brightness, bounded)
    mean = gray(images).mean((1, 2, 3), keepdim=True)
    images = _clip(mean + drawn.contrast * (images - mean), bounded)
    if images.shape[1] != 3:
        return images
    luminance = gray(images)
    saturated = _clip(luminance + drawn.saturation * (images - luminance), bounded)
    return rotate_hue(saturated, drawn.hue)


def gray(images: Float[Tensor, "R C H W"]) -> Float[Tensor, "R 1 H W"]:
    """Return the luminance of colour images, and the mean over the channels of others."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(GRAY).view(1, 3, 1, 1)).sum(1, keepdim=True)


def rotate_hue(images: Float[Tensor, "R 3 H W"], hue: Float[Tensor, "R 1 1 1"]) -> Tensor:
    """Rotate the hue of HSV by `hue` turns.

    A pixel keeps its largest and its smallest value. With h its hue in sixths of a turn, channel n
    (5, 3, 1 for red, green, blue) becomes v - c max(0, min(k, 4 - k, 1)), where k = (n + h) mod 6,
    v is the largest value and c the largest minus the smallest. This is the usual conversion from
    HSV to RGB, without its six cases.
    """
    red, green, blue = images.unbind(1)
    value, span = images.amax(1), images.amax(1) - images.amin(1)
    unit = torch.where(span == 0, 1, span)
    sixths = torch.where(
        value == red,
        (green - blue) / unit,
        torch.where(value == green, 2 + (blue - red) / unit, 4 + (red - green) / unit),
    )
    offsets = images.new_tensor((5, 3, 1)).view(1, 3, 1, 1)
    k = (offsets + (sixths[:, None] + 6 * hue)).remainder(6)
    return value[:, None] - span[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def _clip(images: Tensor, bounded: bool) -> Tensor:
    return images.clamp(0, 1) if bounded else images
