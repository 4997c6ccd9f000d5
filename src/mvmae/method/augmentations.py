"""Views in other colours: brightness, contrast, saturation and hue, drawn anew for each view.

What MoCo v2 and SimCLR do to views, and the paper does not: without it two crops of an image share
their colours, and a contrast may look no further. Applied to whole batches, on their device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mvmae.config.views import ViewsConfig
from mvmae.method.views import DEVIATIONS, shares_or_values

APPLIED = 0.8  # of the views are changed, SimCLR's probability
LIGHT, HUE = 0.8, 0.2  # SimCLR's ranges at strength 1: factors of 1 +- 0.8, 0.2 of a turn
GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601, as torchvision's rgb_to_grayscale
UNCHANGED = (1.0, 1.0, 1.0, 0.0)

Colours = Float[Tensor, "*views 4"]
"""Factors of brightness, contrast and saturation, and a turn of the hue in [-0.5, 0.5]."""


def random_colours(seed: tuple[int, ...], config: ViewsConfig) -> Float[Tensor, "V 4"] | None:
    """Colours for the views of one image, a function of `seed` alone.

    The ranges are SimCLR's ColorJitter(0.8 s, 0.8 s, 0.8 s, 0.2 s) of probability 0.8 at strength
    s, then RandomGrayscale; a gray view is one of saturation 0.

    Returns:
        None where views keep their colours.
    """
    strength = config.color_jitter
    if strength == 0 and config.grayscale == 0:
        return None
    rng = np.random.default_rng(seed)
    drawn = np.empty((config.num_views, 4), dtype=np.float32)
    for view in drawn:
        light = rng.uniform(1 - LIGHT * strength, 1 + LIGHT * strength, size=3)
        view[:] = (*light, rng.uniform(-HUE * strength, HUE * strength))
        if rng.random() >= APPLIED:
            view[:] = UNCHANGED
        if rng.random() < config.grayscale:
            view[2] = 0
    return torch.from_numpy(drawn)


def of_batch(drawn: Sequence[Colours | None]) -> Float[Tensor, "V B 4"] | None:
    """The colours of all images of a batch, from `random_colours`; none where none change."""
    changed = [colours for colours in drawn if colours is not None]
    return torch.stack(changed, dim=1) if changed else None


def in_other_colours(
    images: UInt8[Tensor, "B C H W"] | Float[Tensor, "B C H W"],
    colours: Float[Tensor, "B 4"],
    views: ViewsConfig,
    channels: int,
) -> Float[Tensor, "B C H W"]:
    """Images as they come from the reader, as floats, in other colours; see `recoloured`.

    Values that are no shares (`views.depth` "float") have no black. Theirs is what is shown as
    black too: `DEVIATIONS` below each channel's mean, and white as far above; nothing is cut.
    """
    if views.pixel_depth != "float":
        return recoloured(shares_or_values(images), colours, bounded=True)
    mean, std = (images.new_tensor(s).view(-1, 1, 1) for s in views.pixel_statistics(channels))
    black, span = mean - DEVIATIONS * std, 2 * DEVIATIONS * std
    return black + span * recoloured((images - black) / span, colours, bounded=False)


def recoloured(
    images: Float[Tensor, "B C H W"], colours: Float[Tensor, "B 4"], *, bounded: bool
) -> Float[Tensor, "B C H W"]:
    """Images in other colours: brightness, contrast, saturation, hue, in this order.

    Equal to torchvision's `adjust_*` one after the other (which draws a random order). Images that
    are not of 3 channels have neither saturation nor hue.

    Args:
        images: Shares of the full range, or with `bounded` false values of any range.
        colours: From `random_colours`, a row an image.
        bounded: Whether results are cut to [0, 1].
    """
    brightness, contrast, saturation, hue = colours[..., None, None, None].unbind(1)
    images = _cut(images * brightness, bounded)
    mean = gray(images).mean((1, 2, 3), keepdim=True)
    images = _cut(mean + contrast * (images - mean), bounded)
    if images.shape[1] != 3:
        return images
    shade = gray(images)
    return turned(_cut(shade + saturation * (images - shade), bounded), hue)


def gray(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """Luminance of colour images, the mean of the channels of others."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(GRAY).view(1, 3, 1, 1)).sum(1, keepdim=True)


def turned(images: Float[Tensor, "B 3 H W"], hue: Float[Tensor, "B 1 1 1"]) -> Tensor:
    """Colours turned about the gray axis of HSV, by a share of the full circle.

    The largest and the smallest of a pixel's three numbers stay. With h its hue in sixths of a
    circle, channel n (5, 3, 1 for red, green, blue) is v - c max(0, min(k, 4 - k, 1)) where
    k = (n + h) mod 6, v is the largest and c the span: the inverse of the usual HSV formula in one.
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


def _cut(images: Tensor, bounded: bool) -> Tensor:
    return images.clamp(0, 1) if bounded else images
