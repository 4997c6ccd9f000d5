"""Attention maps: the paper's Figure 2 for any encoders and any images.

A sheet shows images, where each encoder looks, and the two over each other. Shapes: B images,
H and W pixels, C channels 1 or 3, rows x columns of patches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mvmae import encoders, terminal
from mvmae.config.figures import AttentionConfig
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedEncoder
from mvmae.figures import page
from mvmae.figures.page import Column, Scale
from mvmae.inspect.choose_images import (
    Chosen,
    choose,
    finer,
    report_missing,
    require_channels,
    select_channels,
    views,
)
from mvmae.inspect.model_pictures import (
    COLOURS,
    EVEN,
    attention_maps,
    heat_picture,
    overlay,
    peak,
    shared_limits,
)
from mvmae.method.views import normalize, to_display_range
from mvmae.method.vit import Encoder
from mvmae.storage.outputs import join_names, picture_file, short_names, write
from mvmae.training import precision

DRAWN_SIDE = 256  # pixels of a drawn image's longer side, at least: one cell of the figure
METHODS = {
    "rollout": "Attention rollout: mean of the heads, followed through all {depth} blocks",
    "last": "Attention in the last block, mean of the heads",
    "heads": "Attention in the last block, head by head",
}


class Maps(NamedTuple):
    """Maps of one encoder under one heading: its attention, or that of one of its heads."""

    heading: str
    heat: Float[np.ndarray, "B rows columns"]
    """As multiples of even attention, in which all patches get 1."""


class Model(NamedTuple):
    """One encoder: what it was shown, and where it looks."""

    heading: str
    images: Sequence[Float[np.ndarray, "H W C"]]
    """The part of each image that it saw, at the size it is drawn; values in [0, 1]."""

    maps: Sequence[Maps]


def run(config: AttentionConfig) -> None:
    """Draw images, where the encoders look, and the two over each other.

    Raises:
        UserError: An encoder or an image cannot be read, or the figure cannot be written.
    """
    device = precision.choose_device(config.device)
    file = picture_file(config.encoder, config.out, "attention.png", config.data)
    names = (config.encoder, *config.against)
    opened = [encoders.open_encoder(name, config.image_size) for name in names]
    # Checked for every encoder before any image is read.
    for name, one in zip(names, opened, strict=True):
        require_channels(config.channels, one.encoder.in_channels, name)
    source = open_source(config.data, opened[0].encoder.in_channels, opened[0].depth)
    chosen = choose(source, config.count, config.seed)
    models = [
        look_at_images(heading, one, chosen, config, device)
        for heading, one in zip(short_names(names), opened, strict=True)
    ]
    looks = "looks" if len(names) == 1 else "look"
    picture = draw(
        models,
        names=chosen.names,
        title=f"Where {join_names(short_names(names))} {looks}",
        note=write_note(config, [one.encoder for one in opened]),
        shared_scale=config.scale == "row",
        heat_column=config.kind != "heads",
    )
    write(file, picture)
    report_missing(chosen, config.count)
    terminal.console().print(f"written: {file}")
    terminal.emit("result", {"command": "attention", "file": str(file)})


def look_at_images(
    heading: str,
    opened: OpenedEncoder,
    chosen: Chosen,
    config: AttentionConfig,
    device: torch.device,
) -> Model:
    """Compute where an encoder looks in the chosen images."""
    encoder = opened.encoder.to(device)
    mean, std, interpolation = opened.preprocessing
    source = open_source(config.data, encoder.in_channels, opened.depth)
    # Drawn finer than the encoder sees them, so that a small input is not drawn as blocks.
    shown = views(source, chosen.indices, finer(encoder.image_size, DRAWN_SIDE), interpolation)
    pixels = select_channels(
        to_display_range(shown, mean, std).permute(0, 2, 3, 1).numpy(), config.channels
    )
    seen = views(source, chosen.indices, encoder.image_size, interpolation)
    heat = compute_heat(encoder, normalize(seen, mean, std, device), config)
    maps = [Maps(f"head {head + 1}", heat[:, head]) for head in range(heat.shape[1])]
    return Model(heading, list(pixels), maps if len(maps) > 1 else [Maps("heat map", heat[:, 0])])


def compute_heat(
    encoder: Encoder, images: Float[Tensor, "B C H W"], config: AttentionConfig
) -> Float[np.ndarray, "B maps rows columns"]:
    """Compute maps as multiples of even attention, one image at a time to save memory."""
    block = None if config.kind == "rollout" else -1
    heat = np.concatenate([attention_maps(encoder, image, block) for image in images.split(1)])
    return heat.mean(axis=1, keepdims=True) if config.kind == "last" else heat


def write_note(config: AttentionConfig, shown: Sequence[Encoder]) -> str:
    """Say how the maps were made, and how to read their colours."""
    depths = sorted({encoder.size.depth for encoder in shown})
    method = METHODS[config.kind].format(depth=" or ".join(map(str, depths)))
    with_cls = {encoder.variant.cls_token for encoder in shown}
    if with_cls == {True}:
        token = "from the class token"
    elif with_cls == {False}:
        token = "mean over the patches, as there is no class token"
    else:
        token = "from the class token, or the mean over the patches where there is none"
    low, high = EVEN
    scale = (
        f"one colour scale for each row, from {low:g}x even or below to {high:g}x or above"
        if config.scale == "row"
        else "each map has its own colour scale, so that any difference looks like a pattern"
    )
    return f"{method}, {token}; {scale}. Even: every token gets the same."


def draw(
    models: Sequence[Model],
    *,
    names: Sequence[str],
    title: str,
    note: str,
    shared_scale: bool = True,
    heat_column: bool = True,
) -> bytes:
    """Draw a PNG with one row for each image: the image, and each encoder's heat map and overlay.

    Args:
        models: At least one; all of the same images.
        names: What each row shows, in small print beside it.
        title: Above the figure.
        note: Below it, how it was made.
        shared_scale: Whether the maps of an image share one colour scale.
        heat_column: Whether the heat map is also drawn alone, not only as an overlay.
    """
    # One scale for a row: on its own scale a map without a preference looks like an object.
    ends = [
        shared_limits(maps.heat[row] for model in models for maps in model.maps)
        if shared_scale
        else None
        for row in range(len(names))
    ]
    first = models[0].images
    groups = []
    for model in models:
        columns = []
        if model.images[0].shape != first[0].shape:
            columns.append(Column("its part", model.images))
        for maps in model.maps:
            cells = list(zip(model.images, maps.heat, ends, strict=True))
            captions = [peak(heat) for heat in maps.heat]
            over = [overlay(*cell) for cell in cells]
            if heat_column:
                alone = [
                    heat_picture(heat, image.shape[0], image.shape[1], end)
                    for image, heat, end in cells
                ]
                columns += [Column(maps.heading, alone, captions), Column("overlay", over)]
            else:
                columns.append(Column(maps.heading, over, captions))
        groups.append((model.heading, columns))
    rows = page.columns_to_rows([Column("original", first)], names, groups)
    scale = Scale(COLOURS, "little attention", "much")
    return page.draw(rows, title=title, note=note, scale=scale)
