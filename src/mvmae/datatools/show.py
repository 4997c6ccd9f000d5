"""`mvmae data show`: draw images, their views, and what the masks leave of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from mvmae import terminal
from mvmae.config.datatools import DataShowConfig
from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.data.reading.detect_kind import detect_kind
from mvmae.data.reading.loader import ViewsDataset
from mvmae.data.reading.samples import Sample
from mvmae.data.sources.base import Source, plain_channels
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError
from mvmae.figures import contact_sheet
from mvmae.figures.contact_sheet import HIDDEN, Views
from mvmae.inspect.choose_images import Chosen, choose, displayed, missing
from mvmae.method.augmentations import augment
from mvmae.method.patches import masking_from_noise, patchify, unpatchify
from mvmae.method.preflight.resolve_config import resolve_config
from mvmae.method.views import Box, crop, for_people
from mvmae.storage.outputs import require_picture, write

WHOLE_IMAGE_SIDE = 256  # pixels of its longer side on the sheet


def run(config: DataShowConfig) -> None:
    """Draw the sheet.

    Raises:
        UserError: No image can be read, or --out cannot be written.
    """
    require_picture(config.out, config.data)
    source = open_source(config.data, plain_channels(config.model.in_channels))
    own = choose_channels(config, source)
    settings = PretrainConfig(
        data=config.data,
        model=replace(config.model, head="none", in_channels=own),
        views=config.views,
        objective=ObjectiveConfig(
            contrastive_weight=0.0, normalize_targets=False
        ),  # nothing is trained
        seed=config.seed,
        workers=0,
    )
    trained, source, remarks = resolve_config(settings, source)
    chosen = choose(source, config.count, config.seed)
    picture = contact_sheet.draw(
        read_whole_images(source, chosen, trained, config.channels),
        draw_views(source, chosen, trained, config.channels),
        names=chosen.names,
        title=make_title(trained, len(source)),
        note=describe_views(trained),
    )
    write(config.out, picture)
    console = terminal.people()
    if own != config.model.in_channels:
        remarks = [
            f"the images have {own} channels: pretrain reads them with --model.in-channels {own}",
            *remarks,
        ]
    for remark in remarks:
        console.print(remark)
    for remark in missing(chosen, config.count):
        console.print(remark)
    console.print(f"written: {config.out}")
    terminal.emit("result", {"command": "data show", "file": str(config.out)})


def choose_channels(config: DataShowConfig, source: Source) -> int:
    """Return --model.in-channels; where its default of 3 does not fit, the images' own number.

    Raises:
        UserError: --channels names a channel beyond these.
    """
    own = config.model.in_channels
    if own == 3 and not (kind := detect_kind(source, config.seed)).fits(own):
        own = kind.channels
    if max(config.channels, default=1) > own:
        raise UserError(
            f"--channels {' '.join(map(str, config.channels))} are counted from 1 to {own}, the "
            "images' channels; --model.in-channels sets how many are read"
        )
    return own


def read_whole_images(
    source: Source, chosen: Chosen, trained: PretrainConfig, channels: tuple[int, ...]
) -> list[Float[np.ndarray, "_ _ C"]]:
    """Read the images in their own shapes, shrunk to the size on the sheet."""
    found = []
    for index in chosen.indices:
        pixels = source.read(index)
        height, width = pixels.shape[1:]
        scale = min(1.0, WHOLE_IMAGE_SIDE / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        small = crop(pixels, Box(0, 0, *pixels.shape[1:]), size, trained.views.interpolation)
        shown = for_people(small[None], *trained.pixel_statistics, like=pixels[None])
        found.append(displayed(shown.permute(0, 2, 3, 1).numpy(), channels)[0])
    return found


def draw_views(
    source: Source, chosen: Chosen, trained: PretrainConfig, channels: tuple[int, ...]
) -> list[Views]:
    """Draw the views of the first epoch, with and without their masks."""
    dataset = ViewsDataset(source, trained)
    samples = [dataset[0, index] for index in chosen.indices]
    rows = [  # views of each image, in its own range of brightness
        for_people(augment_views(sample, trained), *trained.pixel_statistics, like=own[None])
        for sample, own in zip(samples, map(source.read, chosen.indices), strict=True)
        if isinstance(sample.views, torch.Tensor)
    ]
    found = []
    for view in range(trained.views.num_views):
        shown = torch.stack([row[view] for row in rows])
        noise = torch.stack([sample.noise[view] for sample in samples])
        visible = visible_pixels(noise, trained, shown)
        whole, masked = (
            displayed(one.permute(0, 2, 3, 1).numpy(), channels)
            for one in (shown, shown * visible + HIDDEN * (1 - visible))
        )
        found.append(Views(whole, masked))
    return found


def augment_views(
    sample: Sample, trained: PretrainConfig
) -> UInt8[Tensor, "V C h w"] | Float32[Tensor, "V C h w"]:
    """Apply the colour augmentations, which training applies on the device."""
    assert isinstance(sample.views, Tensor)
    if sample.augmentations is None:
        return sample.views
    channels = trained.model.in_channels
    changed = augment(sample.views, sample.augmentations, trained.views, channels)
    return (255 * changed).round().byte() if sample.views.dtype == torch.uint8 else changed


def visible_pixels(
    noise: Float[Tensor, "B N"], trained: PretrainConfig, images: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """Mark pixels that the encoder sees with 1, others with 0."""
    shape = trained.model
    hidden = masking_from_noise(noise, shape.num_visible).mask[..., None]
    target = patchify(images, shape.patch_size)
    return 1 - unpatchify(hidden.expand_as(target).contiguous(), shape.patch_size, shape.grid)


def make_title(trained: PretrainConfig, count: int) -> str:
    """Name the data, the size of the views and the number of visible patches."""
    height, width = trained.model.height_width
    name = " ".join(trained.data)
    return (
        f"{name}: {count} images; views of {height} x {width}, {trained.model.num_visible} of "
        f"{trained.model.num_patches} patches seen"
    )


def describe_views(trained: PretrainConfig) -> str:
    """Describe how the views are made."""
    views = trained.views
    low, high = views.crop_scale
    mirrored = {"none": "not mirrored", "horizontal": "half are mirrored"}
    flips = mirrored.get(views.flip, "half are mirrored, half upside down")
    stretched = (
        ""
        if views.pixel_depth == "8"
        else " Colours: each channel within 2.5 deviations of its mean."
    )
    changed = [
        *(
            [f"four in five in other colours, strength {views.color_jitter:g}"]
            if views.color_jitter
            else []
        ),
        *([f"{views.grayscale:.0%} are gray"] if views.grayscale else []),
    ]
    ways = ", ".join([f"{low:.0%} to {high:.0%} of the image's area", flips, *changed])
    return f"Each view: {ways}.{stretched}"
