"""Reconstructions, attention and features of some images, as pictures of a page.

Shapes: B images, H and W pixels, C channels.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from markupsafe import Markup
from PIL import Image

from mvmae import encoders
from mvmae.config.figures import ReportConfig
from mvmae.data.sources.base import fingerprint
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.inspect.choose_images import Chosen, choose, finer, select_channels, views
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
from mvmae.method.views import normalize, to_display_range
from mvmae.metrics.principal import principal_colors

BATCH_SIZE = 8  # attention over 224 pixels takes 200 MB a block for this many images
DRAWN_SIDE = 192  # pixels of a picture that attention is laid over
PIXELATED = 96  # pixels: an image up to this side is kept whole and shown as its pixels
MAX_SIDE = 256  # pixels of a side that are worth carrying in a page
QUALITY = 88  # of JPEG
PHOTOS = ("photos",)
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")


class Shown(NamedTuple):
    """The images of a page."""

    data: tuple[str, ...]
    chosen: Chosen
    origin: str
    """Where they are from, in a sentence."""


class Look(NamedTuple):
    """An image, where an encoder looks in it, and the colours of its patches' features."""

    pixels: Float[np.ndarray, "H W C"]
    heat: Float[np.ndarray, "rows columns"]
    """As multiples of even attention."""

    colours: Float[np.ndarray, "rows columns 3"]


class Drawn(NamedTuple):
    """What a run makes of the images; None where it cannot."""

    name: str
    panels: Panels | None
    looks: list[Look] | None
    reasons: list[str]
    """Why something is missing."""


def shown_images(config: ReportConfig, first: RunFacts) -> Shown:
    """Choose the images of --data, else training images of the first run, else built-in ones.

    Raises:
        UserError: The images of --data cannot be read.
    """
    trained = first.pretraining
    form = (trained.model.in_channels, trained.views.pixel_depth) if trained else (3, "8")
    data = first.config.get("data")
    own = tuple(map(str, data)) if isinstance(data, list) else (str(data),) if data else ()
    if not config.data and own:
        with suppress(UserError, OSError, ValueError):  # moved, emptied, or no longer readable
            source = open_source(own, *form)
            chosen = choose(source, config.count, config.seed)
            known = first.environment.get("data_fingerprint")
            changed = known is not None and known != fingerprint(source)
            after = " (the folder has changed since)" if changed else ""
            return Shown(own, chosen, f"Images that {first.name} was trained on{after}.")
    why = "the training images are no longer there" if own else "the run names no images"
    origin = f"The built-in photographs, because {why}."
    shown = config.data or PHOTOS
    chosen = choose(open_source(shown, *form), config.count, config.seed)
    return Shown(shown, chosen, "Images chosen with --data." if config.data else origin)


def draw(facts: RunFacts, shown: Shown, config: ReportConfig, device: torch.device) -> Drawn:
    """Draw everything that a run can make of the images."""
    panels, looks, reasons = None, None, []
    try:
        if facts.command == "pretrain":  # the others have no decoder
            opened = open_with_decoder(str(facts.folder))
            panels = reconstruct_images(
                opened,
                shown.data,
                shown.chosen.indices,
                seed=config.seed,
                mask_ratio=opened.config.model.mask_ratio,
                device=device,
            )
    except UserError as error:
        reasons.append(str(error))
    try:
        if facts.command not in ("detect", "segment"):  # whole models, whose encoder is not apart
            looks = compute_looks(shown, encoders.open_encoder(str(facts.folder)), device)
    except UserError as error:  # often the same: a run without a checkpoint has no encoder either
        reasons += [] if str(error) in reasons else [str(error)]
    return Drawn(facts.name, panels, looks, reasons)


@torch.inference_mode()
def compute_looks(shown: Shown, opened: OpenedEncoder, device: torch.device) -> list[Look]:
    """Compute where an encoder looks in each image, and the colours of its features."""
    encoder, (mean, std, interpolation) = opened.encoder.to(device), opened.preprocessing
    source = open_source(shown.data, encoder.in_channels, opened.depth)
    images = views(source, shown.chosen.indices, encoder.image_size, interpolation)
    heat, tokens = [], []
    for batch in images.split(BATCH_SIZE):
        inputs = normalize(batch, mean, std, device)
        heat += list(attention_maps(encoder, inputs, None)[:, 0])
        tokens.append(encoder(inputs)[:, encoder.num_prefix :].float().cpu())
    colours = principal_colors(torch.cat(tokens)).unflatten(1, encoder.grid).numpy()
    # The encoder's own size is often small: the pictures below its maps are read once more, finer.
    size = finer(encoder.image_size, DRAWN_SIDE)
    fine = views(source, shown.chosen.indices, size, interpolation)
    pixels = select_channels(to_display_range(fine, mean, std).permute(0, 2, 3, 1).numpy())
    return [Look(*one) for one in zip(pixels, heat, colours, strict=True)]


def gallery(drawn: Drawn, shown: Shown) -> Gallery | None:
    """Lay out the pictures of one run, a strip for each image; None where there are none."""
    strips = []
    for at, name in enumerate(shown.chosen.names):
        pictures = []
        if panels := drawn.panels:
            masked = f"{name} with hidden patches in gray"
            pictures.append(picture(panels.original[at], f"The image {name}", "original"))
            pictures.append(picture(panels.masked[at], masked, "what it saw"))
            pictures.append(_rebuilt_picture(panels, at, name, "hidden parts rebuilt"))
        if drawn.looks:
            look = drawn.looks[at]
            pictures.append(attention_picture(look, name, "attention", [look]))
            pictures.append(_features_picture(look, name, "features"))
        strips.append(Strip(name, pictures))
    return Gallery(strips) if strips[0].pictures else None


def side_by_side(drawn: Sequence[Drawn], shown: Shown) -> Iterator[tuple[str, Gallery]]:
    """Lay out a gallery of each kind, with a strip for each image and a picture for each run."""
    rebuilding = [(one.name, one.panels) for one in drawn if one.panels]
    looking = [(one.name, one.looks) for one in drawn if one.looks]
    strips: dict[str, list[Strip]] = {"rebuilt": [], "attention": [], "features": []}
    for at, name in enumerate(shown.chosen.names if rebuilding or looking else ()):
        pixels = looking[0][1][at].pixels if looking else rebuilding[0][1].original[at]
        original = picture(pixels, f"The image {name}", "original")
        rebuilt = [
            _rebuilt_picture(panels, at, f"{name} by {run}", run) for run, panels in rebuilding
        ]
        strips["rebuilt"].append(Strip(name, [original, *rebuilt]))
        looks = [(run, f"{name} by {run}", looks[at]) for run, looks in looking]
        beside = [look for _, _, look in looks]
        attention = [attention_picture(look, alt, run, beside) for run, alt, look in looks]
        strips["attention"].append(Strip(name, [original, *attention]))
        features = [_features_picture(look, alt, run) for run, alt, look in looks]
        strips["features"].append(Strip(name, [original, *features]))
    for kind, found in strips.items():
        if found and len(found[0].pictures) > 1:
            yield kind, Gallery(found)


def _rebuilt_picture(panels: Panels, at: int, name: str, caption: str) -> Picture:
    return picture(panels.pasted[at], f"{name}: rebuilt patches among the visible ones", caption)


def attention_picture(look: Look, name: str, caption: str, beside: Sequence[Look]) -> Picture:
    """Draw where an encoder looks, on one scale with all that look at the same image."""
    drawn = overlay(look.pixels, look.heat, shared_limits(one.heat for one in beside))
    highest = peak(look.heat)
    ninths = Image.fromarray(look.heat).resize((3, 3), Image.Resampling.BOX)
    row, column = divmod(int(np.asarray(ninths).argmax()), 3)
    place = f"strongest in the {ROWS[row]} {COLUMNS[column]}"
    return picture(drawn, f"Attention over {name}: {highest}, {place}", f"{caption}, {highest}")


def _features_picture(look: Look, name: str, caption: str) -> Picture:
    rows, columns = look.colours.shape[:2]
    alt = f"{name} as {rows} x {columns} patches; similar features have similar colours"
    return picture(look.colours, alt, caption)


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
    kind = "png" if is_small else "jpeg"
    image.save(stream, kind, optimize=True, quality=QUALITY)  # a PNG has no quality to lose
    uri = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Picture(Markup(uri), alt, caption, is_small)
