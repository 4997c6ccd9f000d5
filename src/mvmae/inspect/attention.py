"""Attention maps: the paper's Figure 2 for any encoders and any images.

A sheet shows images, where each encoder looks, and the two over each other. Shapes: B images,
H and W pixels, C channels 1 or 3, rows x columns of patches.
"""

from __future__ import annotations

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
from mvmae.encoders.attention import attention_rollout, class_attention
from mvmae.figures import page
from mvmae.figures.page import Column, Group, Scale
from mvmae.inspect.choose_images import (
    Chosen,
    choose,
    displayed,
    finer,
    missing,
    require_channels,
    views,
)
from mvmae.inspect.model_pictures import (
    COLOURS,
    EVEN,
    Limits,
    heat_picture,
    overlay,
    peak,
    shared_limits,
)
from mvmae.method.views import for_people, normalized
from mvmae.method.vit import Encoder
from mvmae.storage.outputs import headings, join_names, picture_file, write
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
    for name, one in zip(names, opened, strict=True):
        require_channels(config.channels, one.encoder.in_channels, name)
    source = open_source(config.data, opened[0].encoder.in_channels, opened[0].depth)
    chosen = choose(source, config.count, config.seed)
    models = [
        model_of(heading, one, chosen, config, device)
        for heading, one in zip(headings(names), opened, strict=True)
    ]
    picture = draw(
        models,
        names=chosen.names,
        title=title_of(config),
        note=note_of(config, [one.encoder for one in opened]),
        shared_scale=config.scale == "row",
        heat_column=config.kind != "heads",
    )
    write(file, picture)
    console = terminal.people()
    for remark in missing(chosen, config.count):
        console.print(remark)
    console.print(f"written: {file}")
    terminal.emit("result", {"command": "attention", "file": str(file)})


def model_of(
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
    shown = views(source, chosen.indices, finer(encoder.image_size, DRAWN_SIDE), interpolation)
    pixels = displayed(for_people(shown, mean, std).permute(0, 2, 3, 1).numpy(), config.channels)
    seen = views(source, chosen.indices, encoder.image_size, interpolation)
    heat = heat_of(encoder, normalized(seen, mean, std, device), config)
    heads = len(heat[0])
    names = [f"head {number}" for number in range(1, heads + 1)] if heads > 1 else ["heat map"]
    return Model(
        heading,
        list(pixels),
        [Maps(name, heat[:, head]) for head, name in enumerate(names)],
    )


@torch.inference_mode()
def heat_of(
    encoder: Encoder, images: Float[Tensor, "B C H W"], config: AttentionConfig
) -> Float[np.ndarray, "B maps rows columns"]:
    """Compute maps as multiples of even attention: 1 where a patch gets an even share.

    One image at a time, because the weights of a block take heads x N x N numbers per image.
    """
    maps = []
    for image in images.split(1):
        if config.kind == "rollout":
            heat = attention_rollout(encoder, image)[:, None]
            tokens = heat[0, 0].numel()  # it sums to 1 over the patches alone
        else:
            heat = class_attention(encoder, image)
            tokens = heat[0, 0].numel() + encoder.num_prefix
            heat = heat.mean(dim=1, keepdim=True) if config.kind == "last" else heat
        maps.append((heat * tokens).float().cpu().numpy())
    return np.concatenate(maps)


def title_of(config: AttentionConfig) -> str:
    """Name the encoders."""
    names = headings((config.encoder, *config.against))
    return f"Where {join_names(names)} {'looks' if len(names) == 1 else 'look'}"


def note_of(config: AttentionConfig, shown: Sequence[Encoder]) -> str:
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
    ends = [_row_ends(models, row) if shared_scale else None for row in range(len(names))]
    first = models[0].images
    groups = []
    for place, model in enumerate(models):
        columns = []
        if place and model.images[0].shape != first[0].shape:
            columns.append(Column("its part", model.images))
        for maps in model.maps:
            columns += _columns(model.images, maps, ends, heat_column=heat_column)
        groups.append(Group(model.heading if len(models) > 1 else "", columns))
    original = Column("original", first)
    if len(models) == 1:
        groups = [Group("", [original, *groups[0].columns])]
    else:
        groups = [Group("", [original]), *groups]
    scale = Scale(COLOURS, "little attention", "much")
    return page.draw(groups, names=names, title=title, note=note, scale=scale)


def _row_ends(models: Sequence[Model], row: int) -> Limits:
    """Return one colour scale for all maps of an image."""
    return shared_limits(maps.heat[row] for model in models for maps in model.maps)


def _columns(
    images: Sequence[np.ndarray], maps: Maps, ends: Sequence[Limits | None], *, heat_column: bool
) -> list[Column]:
    rows = list(zip(images, maps.heat, ends, strict=True))
    captions = [peak(heat) for heat in maps.heat]
    over = [overlay(image, heat, end) for image, heat, end in rows]
    if not heat_column:
        return [Column(maps.heading, over, captions)]
    alone = [heat_picture(heat, image.shape[0], image.shape[1], end) for image, heat, end in rows]
    return [Column(maps.heading, alone, captions), Column("overlay", over)]
