"""Reconstructions, attention and features of some images, as pictures of a page.

Shapes: B images, H and W pixels, C channels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mvmae import encoders
from mvmae.config.figures import ReportConfig
from mvmae.config.views import Depth, ViewsConfig
from mvmae.data.sources.base import fingerprint
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedEncoder
from mvmae.encoders.attention import attention_rollout
from mvmae.errors import UserError
from mvmae.inspect import attention_panels
from mvmae.inspect.choose_images import Chosen, choose, displayed, finer, views
from mvmae.inspect.model_pictures import Panels
from mvmae.inspect.reconstruct import open_with_decoder, panels_of
from mvmae.inspect.report.gather import RunFacts
from mvmae.inspect.report.html import Gallery, Picture, Strip
from mvmae.inspect.report.wording import count, one_line, without_home
from mvmae.method.views import for_people, mask_noise, normalized
from mvmae.metrics.principal import principal_colors

TOGETHER = 8  # images in a batch: attention of 224 pixels is 200 MB a block for so many
FINE = 192  # pixels of a picture that attention is laid over
PIXELATED = 96  # pixels: an image up to this side is kept whole and shown as its pixels
MAX_SIDE = 256  # pixels of a side that are worth carrying in a page
QUALITY = 88  # of JPEG
PHOTOS = ("photos",)
Made = TypeVar("Made")


class Shown(NamedTuple):
    """The images of a page."""

    data: tuple[str, ...]
    chosen: Chosen
    said: str
    """Where they are from, in words."""


class Look(NamedTuple):
    """An image, and where an encoder looks."""

    pixels: Float[np.ndarray, "H W C"]
    heat: Float[np.ndarray, "rows columns"]
    """As multiples of even attention."""


class Drawn(NamedTuple):
    """What a run makes of the images; none where it cannot."""

    name: str
    channels: int
    panels: Panels | None
    looks: list[Look] | None
    features: list[Float[np.ndarray, "rows columns 3"]] | None
    reasons: list[str]
    """Why something is missing."""


def shown_images(config: ReportConfig, first: RunFacts) -> Shown:
    """The images asked for; else some that the first run was trained on, or the built-in ones.

    Raises:
        UserError: Those asked for cannot be read.
    """
    channels = _channels(first)
    if config.data:
        source = open_source(config.data, channels, _depth(first))
        chosen = choose(source, config.count, config.seed)
        return Shown(config.data, chosen, "Images chosen with --data.")
    data = first.config.get("data")
    own = tuple(map(str, data)) if isinstance(data, list) else (str(data),) if data else ()
    if own:
        try:
            source = open_source(own, channels, _depth(first))
            chosen = choose(source, config.count, config.seed)
            known = first.environment.get("data_fingerprint")
            changed = known is not None and known != fingerprint(source)
            after = " (the folder has changed since)" if changed else ""
            return Shown(own, chosen, f"Images that {one_line(first.name)} was trained on{after}.")
        except (UserError, OSError, ValueError):  # gone, emptied, or no longer to be read
            pass
    chosen = choose(open_source(PHOTOS, channels, _depth(first)), config.count, config.seed)
    why = "the images that it was trained on are no longer there" if own else "no images are named"
    return Shown(PHOTOS, chosen, f"The built-in photographs, since {why}.")


def _channels(facts: RunFacts) -> int:
    return facts.pretraining.model.in_channels if facts.pretraining else 3


def _depth(facts: RunFacts) -> Depth:
    return facts.pretraining.views.pixel_depth if facts.pretraining else "8"


def draw(facts: RunFacts, shown: Shown, config: ReportConfig, device: torch.device) -> Drawn:
    """Everything that a run makes of the images."""
    reasons: list[str] = []
    panels = _attempt(lambda: reconstructed(facts, shown, config, device), reasons)
    seen = _attempt(lambda: looked(facts, shown, device), reasons)
    looks, features = seen or (None, None)
    said = [without_home(reason) for reason in dict.fromkeys(reasons)]
    return Drawn(facts.name, _channels(facts), panels, looks, features, said)


def _attempt(make: Callable[[], Made | None], reasons: list[str]) -> Made | None:
    """What can be made; a run without it is no mistake of the user's, and is told on the page."""
    try:
        return make()
    except UserError as error:
        reasons.append(str(error))
        return None


def reconstructed(
    facts: RunFacts, shown: Shown, config: ReportConfig, device: torch.device
) -> Panels | None:
    """The four pictures of each image; none of a run that never has a decoder.

    Raises:
        UserError: The run has no decoder that was trained, or its checkpoint is gone.
    """
    if facts.command != "pretrain":
        return None
    trained = facts.pretraining
    if trained is not None and trained.objective.reconstruction_weight == 0:
        raise UserError(
            f"{facts.name} was trained without reconstruction (its weight is 0), so its decoder "
            "has learnt nothing: nothing is rebuilt here."
        )
    model, trained = open_with_decoder(str(facts.folder))
    shape = trained.model
    source = open_source(shown.data, shape.in_channels, trained.views.pixel_depth)
    images = views(source, shown.chosen.indices, shape.height_width, trained.views.interpolation)
    noise = mask_noise(np.random.default_rng((config.seed, 1)), len(images), shape.num_patches)
    model.to(device)
    parts = [
        panels_of(
            model,
            images[first : first + TOGETHER],
            noise[first : first + TOGETHER],
            trained,
            num_visible=shape.num_visible,
            statistics="visible",
            device=device,
        )
        for first in range(0, len(images), TOGETHER)
    ]
    return Panels(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def looked(
    facts: RunFacts, shown: Shown, device: torch.device
) -> tuple[list[Look], list[np.ndarray]] | None:
    """Attention over the images, and the colours of their patches; none of a whole model.

    Raises:
        UserError: The folder holds no encoder.
    """
    if facts.command in ("detect", "segment"):
        return None
    opened = encoders.open_encoder(str(facts.folder))
    encoder = opened.encoder.to(device)
    source = open_source(shown.data, encoder.in_channels, opened.depth)
    how = opened.preprocessing.interpolation
    images = views(source, shown.chosen.indices, encoder.image_size, how)
    fine = views(source, shown.chosen.indices, finer(encoder.image_size, FINE), how)
    heat, tokens = encoded(opened, images, device)
    mean, std = opened.preprocessing.mean, opened.preprocessing.std
    pixels = displayed(for_people(fine, mean, std).permute(0, 2, 3, 1).numpy())
    looks = [Look(image, one * one.size) for image, one in zip(pixels, heat, strict=True)]
    colours = principal_colors(tokens).unflatten(1, encoder.grid).numpy()
    return looks, list(colours)


@torch.inference_mode()
def encoded(
    opened: OpenedEncoder, images: Tensor, device: torch.device
) -> tuple[Float[np.ndarray, "B rows columns"], Float[Tensor, "B N D"]]:
    """Attention rollout and patch tokens of 8-bit images, a few at a time."""
    encoder, how = opened.encoder, opened.preprocessing
    heat, tokens = [], []
    for first in range(0, len(images), TOGETHER):
        inputs = normalized(images[first : first + TOGETHER], how.mean, how.std, device)
        heat.append(attention_rollout(encoder, inputs).float().cpu().numpy())
        tokens.append(encoder(inputs)[:, encoder.num_prefix :].float().cpu())
    return np.concatenate(heat), torch.cat(tokens)


ROWS, SIDES = ("upper", "middle", "lower"), ("left", "centre", "right")


def brightest(picture_of: Float[np.ndarray, "H W 3"]) -> str:
    """Where an overlay is brightest, in words."""
    light = picture_of.sum(axis=2)
    height, width = light.shape
    thirds = [
        light[
            height * row // 3 : height * (row + 1) // 3, width * side // 3 : width * (side + 1) // 3
        ]
        for row in range(3)
        for side in range(3)
    ]
    best = int(np.argmax([part.mean() if part.size else -1 for part in thirds]))
    return f"{ROWS[best // 3]} {SIDES[best % 3]}"


def strip_pictures(drawn: Drawn, at: int, name: str) -> Iterator[Picture]:
    """All pictures of one image."""
    if drawn.panels is not None:
        yield from _panel_pictures(drawn.panels, at, name)
    if drawn.looks is not None:
        yield overlay_picture(drawn.looks[at], name, "attention")
    if drawn.features is not None:
        yield features_picture(drawn, at, name, "features")


def _panel_pictures(panels: Panels, at: int, name: str) -> Iterator[Picture]:
    yield picture(panels.original[at], alt=f"The image {name}", caption="original")
    yield picture(
        panels.masked[at], alt=f"{name} with the hidden patches in gray", caption="what it saw"
    )
    yield pasted_picture(panels, at, name, "hidden parts rebuilt")


def pasted_picture(panels: Panels, at: int, name: str, caption: str) -> Picture:
    """The rebuilt patches among the visible ones."""
    alt = f"{name}: the rebuilt patches among those that were seen"
    return picture(panels.pasted[at], alt=alt, caption=caption)


def overlay_picture(look: Look, name: str, caption: str, beside: Sequence[Look] = ()) -> Picture:
    """Where the encoder looks, on one scale with those who look at the same image."""
    ends = attention_panels.shared_limits(one.heat for one in (look, *beside))
    one = attention_panels.overlay(look.pixels, look.heat, ends)
    peak = attention_panels.peak(look.heat)
    alt = f"Attention over {name}: {peak}, brightest in the {brightest(one)}"
    return picture(one, alt=alt, caption=f"{caption}, {peak}")


def features_picture(drawn: Drawn, at: int, name: str, caption: str) -> Picture:
    """The patches in the colours of their principal components, a pixel a patch."""
    assert drawn.features is not None
    one = drawn.features[at]
    rows, columns = one.shape[:2]
    alt = f"{name} as {rows} x {columns} patches, coloured by what the encoder takes for alike"
    return picture(one, alt=alt, caption=caption)


def gallery(drawn: Drawn, shown: Shown) -> Gallery | None:
    """The pictures of one run, a strip an image; none where there are none."""
    strips = []
    for at, name in enumerate(map(one_line, shown.chosen.names)):
        pictures = list(strip_pictures(drawn, at, name))
        if pictures:
            strips.append(Strip(name, pictures))
    if not strips:
        return None
    return Gallery(strips, columns=max(len(strip.pictures) for strip in strips))


def side_by_side(
    drawn: Sequence[Drawn], shown: Shown, originals: Sequence[np.ndarray]
) -> Iterator[tuple[str, Gallery]]:
    """A gallery of each kind, in which a strip is an image and a picture is a run's."""
    names = [one_line(name) for name in shown.chosen.names]
    kinds = (
        ("rebuilt", [one for one in drawn if one.panels is not None]),
        ("attention", [one for one in drawn if one.looks is not None]),
        ("features", [one for one in drawn if one.features is not None]),
    )
    for kind, able in kinds:
        if not able:
            continue
        strips = []
        for at, name in enumerate(names):
            first = picture(originals[at], alt=f"The image {name}", caption="original")
            others = [_of_kind(kind, one, at, name, able) for one in able]
            strips.append(Strip(name, [first, *others]))
        yield kind, Gallery(strips, columns=1 + len(able))


def _of_kind(kind: str, drawn: Drawn, at: int, name: str, beside: Sequence[Drawn]) -> Picture:
    named = f"{name} by {one_line(drawn.name)}"
    caption = one_line(drawn.name)
    if kind == "rebuilt":
        assert drawn.panels is not None
        return pasted_picture(drawn.panels, at, named, caption)
    if kind == "attention":
        assert drawn.looks is not None
        looks = [one.looks[at] for one in beside if one.looks is not None]
        return overlay_picture(drawn.looks[at], named, caption, looks)
    return features_picture(drawn, at, named, caption)


def original_pixels(shown: Shown, first: RunFacts) -> list[Float[np.ndarray, "H W C"]]:
    """The images themselves in the first run's shape, for pages of several runs."""
    source = open_source(shown.data, _channels(first), _depth(first))
    shape = first.pretraining.model.height_width if first.pretraining else (FINE, FINE)
    fine = views(source, shown.chosen.indices, finer(shape, FINE), "bicubic")
    channels = _channels(first)
    mean, std = (first.pretraining.views if first.pretraining else ViewsConfig()).pixel_statistics(
        channels
    )
    return list(for_people(fine, mean, std).permute(0, 2, 3, 1).numpy())


def how_many(shown: Shown) -> str:
    """How many images are shown."""
    number = len(shown.chosen.indices)
    return f"{count(number)} image{'s' if number != 1 else ''}"


def picture(pixels: Float[np.ndarray, "H W C"], *, alt: str, caption: str) -> Picture:
    """Return an image as a data URI: PNG where it is small, JPEG otherwise.

    Args:
        pixels: Values in [0, 1], 1 or 3 channels; NaN is drawn gray.
        alt: What there is to see.
        caption: Below it.
    """
    values = np.round(255 * np.clip(np.nan_to_num(pixels, nan=0.5), 0, 1)).astype(np.uint8)
    image = Image.fromarray(values.squeeze(axis=2) if values.shape[2] == 1 else values)
    is_small = max(image.size) <= PIXELATED
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    stream = io.BytesIO()
    if is_small:
        image.save(stream, "PNG", optimize=True)
    else:
        image.save(stream, "JPEG", quality=QUALITY)
    kind = "png" if is_small else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Picture(uri, alt, caption, is_small)
