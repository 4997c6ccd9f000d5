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
from mvmae.errors import UserError
from mvmae.inspect.choose_images import Chosen, choose, displayed, finer, views
from mvmae.inspect.model_pictures import (
    Panels,
    attention_maps,
    open_with_decoder,
    overlay,
    peak,
    reconstruct_images,
    shared_limits,
)
from mvmae.inspect.report.gather import RunFacts
from mvmae.inspect.report.html import Gallery, Picture, Strip
from mvmae.inspect.report.wording import one_line, without_home
from mvmae.method.views import for_people, normalized
from mvmae.metrics.principal import principal_colors

BATCH_SIZE = 8  # attention over 224 pixels takes 200 MB a block for this many images
DRAWN_SIDE = 192  # pixels of a picture that attention is laid over
PIXELATED = 96  # pixels: an image up to this side is kept whole and shown as its pixels
MAX_SIDE = 256  # pixels of a side that are worth carrying in a page
QUALITY = 88  # of JPEG
PHOTOS = ("photos",)
T = TypeVar("T")


class Shown(NamedTuple):
    """The images of a page."""

    data: tuple[str, ...]
    chosen: Chosen
    origin: str
    """Where they are from, in a sentence."""


class Look(NamedTuple):
    """An image, and where an encoder looks in it."""

    pixels: Float[np.ndarray, "H W C"]
    heat: Float[np.ndarray, "rows columns"]
    """As multiples of even attention."""


class Drawn(NamedTuple):
    """What a run makes of the images; None where it cannot."""

    name: str
    panels: Panels | None
    looks: list[Look] | None
    features: list[Float[np.ndarray, "rows columns 3"]] | None
    reasons: list[str]
    """Why something is missing."""


def shown_images(config: ReportConfig, first: RunFacts) -> Shown:
    """Choose the images of --data, else training images of the first run, else built-in ones.

    Raises:
        UserError: The images of --data cannot be read.
    """
    channels, depth = _input_of(first)
    if config.data:
        chosen = choose(open_source(config.data, channels, depth), config.count, config.seed)
        return Shown(config.data, chosen, "Images chosen with --data.")
    data = first.config.get("data")
    own = tuple(map(str, data)) if isinstance(data, list) else (str(data),) if data else ()
    if own:
        try:
            source = open_source(own, channels, depth)
            chosen = choose(source, config.count, config.seed)
            known = first.environment.get("data_fingerprint")
            changed = known is not None and known != fingerprint(source)
            after = " (the folder has changed since)" if changed else ""
            return Shown(own, chosen, f"Images that {one_line(first.name)} was trained on{after}.")
        except (UserError, OSError, ValueError):  # moved, emptied, or no longer readable
            pass
    chosen = choose(open_source(PHOTOS, channels, depth), config.count, config.seed)
    why = "the training images are no longer there" if own else "the run names no images"
    return Shown(PHOTOS, chosen, f"The built-in photographs, because {why}.")


def _input_of(facts: RunFacts) -> tuple[int, Depth]:
    """Return the channels and the pixel depth that a run was trained with."""
    trained = facts.pretraining
    return (trained.model.in_channels, trained.views.pixel_depth) if trained else (3, "8")


def draw(facts: RunFacts, shown: Shown, config: ReportConfig, device: torch.device) -> Drawn:
    """Draw everything that a run can make of the images."""
    reasons: list[str] = []
    panels = _attempt(lambda: reconstruct(facts, shown, config, device), reasons)
    looks, features = _attempt(lambda: look(facts, shown, device), reasons) or (None, None)
    missing = [without_home(reason) for reason in dict.fromkeys(reasons)]
    return Drawn(facts.name, panels, looks, features, missing)


def _attempt(work: Callable[[], T], reasons: list[str]) -> T | None:
    """Return what `work` makes; None where it cannot, with the reason added to `reasons`."""
    try:
        return work()
    except UserError as error:
        reasons.append(str(error))
        return None


def reconstruct(
    facts: RunFacts, shown: Shown, config: ReportConfig, device: torch.device
) -> Panels | None:
    """Reconstruct the images; None for a run that never has a decoder.

    Raises:
        UserError: The decoder was not trained, or the checkpoint is gone.
    """
    if facts.command != "pretrain":
        return None
    trained = facts.pretraining
    if trained is not None and trained.objective.reconstruction_weight == 0:
        raise UserError(
            f"{facts.name} was trained without reconstruction (its weight is 0), so its decoder "
            "has learnt nothing and no reconstructions are drawn."
        )
    opened = open_with_decoder(str(facts.folder))
    return reconstruct_images(
        opened,
        shown.data,
        shown.chosen.indices,
        seed=config.seed,
        mask_ratio=opened.config.model.mask_ratio,
        device=device,
    )


def look(
    facts: RunFacts, shown: Shown, device: torch.device
) -> tuple[list[Look], list[np.ndarray]] | None:
    """Return attention over the images and the colours of their patches; None for whole models.

    Raises:
        UserError: The folder holds no encoder.
    """
    if facts.command in ("detect", "segment"):
        return None
    opened = encoders.open_encoder(str(facts.folder))
    encoder = opened.encoder.to(device)
    source = open_source(shown.data, encoder.in_channels, opened.depth)
    mean, std, interpolation = opened.preprocessing
    images = views(source, shown.chosen.indices, encoder.image_size, interpolation)
    size = finer(encoder.image_size, DRAWN_SIDE)
    fine = views(source, shown.chosen.indices, size, interpolation)
    heat, tokens = _encode(opened, images, device)
    pixels = displayed(for_people(fine, mean, std).permute(0, 2, 3, 1).numpy())
    looks = [Look(*one) for one in zip(pixels, heat, strict=True)]
    return looks, list(principal_colors(tokens).unflatten(1, encoder.grid).numpy())


@torch.inference_mode()
def _encode(
    opened: OpenedEncoder, images: Tensor, device: torch.device
) -> tuple[Float[np.ndarray, "B rows columns"], Float[Tensor, "B N D"]]:
    """Compute attention as multiples of even, and patch tokens, a batch at a time."""
    encoder, how = opened.encoder, opened.preprocessing
    heat, tokens = [], []
    for batch in images.split(BATCH_SIZE):
        inputs = normalized(batch, how.mean, how.std, device)
        heat.append(attention_maps(encoder, inputs, None)[:, 0])
        tokens.append(encoder(inputs)[:, encoder.num_prefix :].float().cpu())
    return np.concatenate(heat), torch.cat(tokens)


ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")


def brightest(drawn: Float[np.ndarray, "H W 3"]) -> str:
    """Say in which ninth of an overlay it is brightest."""
    thirds = [
        part
        for row in np.array_split(drawn.sum(axis=2), 3)
        for part in np.array_split(row, 3, axis=1)
    ]
    best = int(np.argmax([part.mean() if part.size else -1 for part in thirds]))
    return f"{ROWS[best // 3]} {COLUMNS[best % 3]}"


def pasted_picture(panels: Panels, at: int, name: str, caption: str) -> Picture:
    """Return the rebuilt patches among the visible ones."""
    return picture(panels.pasted[at], f"{name}: rebuilt patches among the visible ones", caption)


def overlay_picture(look: Look, name: str, caption: str, beside: Sequence[Look] = ()) -> Picture:
    """Return where an encoder looks, on one scale with others that look at the same image."""
    drawn = overlay(look.pixels, look.heat, shared_limits(one.heat for one in (look, *beside)))
    highest = peak(look.heat)
    alt = f"Attention over {name}: {highest}, brightest in the {brightest(drawn)}"
    return picture(drawn, alt, f"{caption}, {highest}")


def features_picture(features: np.ndarray, name: str, caption: str) -> Picture:
    """Return the patches in the colours of their principal components, one pixel a patch."""
    rows, columns = features.shape[:2]
    alt = (
        f"{name} as {rows} x {columns} patches; patches with similar features have similar colours"
    )
    return picture(features, alt, caption)


def gallery(drawn: Drawn, shown: Shown) -> Gallery | None:
    """Lay out the pictures of one run, a strip for each image; None where there are none."""
    strips = [
        Strip(name, list(_strip(drawn, at, name)))
        for at, name in enumerate(map(one_line, shown.chosen.names))
    ]
    columns = max(len(strip.pictures) for strip in strips)
    return Gallery(strips, columns) if columns else None


def _strip(drawn: Drawn, at: int, name: str) -> Iterator[Picture]:
    if panels := drawn.panels:
        yield picture(panels.original[at], f"The image {name}", "original")
        yield picture(panels.masked[at], f"{name} with hidden patches in gray", "what it saw")
        yield pasted_picture(panels, at, name, "hidden parts rebuilt")
    if drawn.looks is not None:
        yield overlay_picture(drawn.looks[at], name, "attention")
    if drawn.features is not None:
        yield features_picture(drawn.features[at], name, "features")


def side_by_side(
    drawn: Sequence[Drawn], shown: Shown, originals: Sequence[np.ndarray]
) -> Iterator[tuple[str, Gallery]]:
    """Lay out a gallery of each kind, with a strip for each image and a picture for each run."""
    kinds = {"rebuilt": "panels", "attention": "looks", "features": "features"}
    for kind, field in kinds.items():
        able = [one for one in drawn if getattr(one, field) is not None]
        if not able:
            continue
        strips = []
        for at, name in enumerate(map(one_line, shown.chosen.names)):
            first = picture(originals[at], f"The image {name}", "original")
            others = [_of_kind(kind, one, at, name, able) for one in able]
            strips.append(Strip(name, [first, *others]))
        yield kind, Gallery(strips, columns=1 + len(able))


def _of_kind(kind: str, drawn: Drawn, at: int, name: str, beside: Sequence[Drawn]) -> Picture:
    caption = one_line(drawn.name)
    named = f"{name} by {caption}"
    if kind == "rebuilt" and drawn.panels is not None:
        return pasted_picture(drawn.panels, at, named, caption)
    if kind == "attention" and drawn.looks is not None:
        looks = [one.looks[at] for one in beside if one.looks is not None]
        return overlay_picture(drawn.looks[at], named, caption, looks)
    assert drawn.features is not None
    return features_picture(drawn.features[at], named, caption)


def original_pixels(shown: Shown, first: RunFacts) -> list[Float[np.ndarray, "H W C"]]:
    """Read the images themselves in the first run's shape, for pages of several runs."""
    channels, depth = _input_of(first)
    trained = first.pretraining
    shape = trained.model.height_width if trained else (DRAWN_SIDE, DRAWN_SIDE)
    fine = views(
        open_source(shown.data, channels, depth),
        shown.chosen.indices,
        finer(shape, DRAWN_SIDE),
        "bicubic",
    )
    mean, std = (trained.views if trained else ViewsConfig()).pixel_statistics(channels)
    return list(for_people(fine, mean, std).permute(0, 2, 3, 1).numpy())


def picture(pixels: Float[np.ndarray, "H W C"], alt: str, caption: str) -> Picture:
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
