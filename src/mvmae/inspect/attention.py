"""Attention maps: the paper's Figure 2 for any encoders and any images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mvmae import encoders, terminal
from mvmae.config.figures import AttentionConfig
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedEncoder
from mvmae.encoders.attention import attention_rollout, class_attention
from mvmae.inspect import attention_panels as figure
from mvmae.inspect.attention_panels import Maps, Model
from mvmae.inspect.choose_images import (
    Chosen,
    choose,
    displayed,
    finer,
    missing,
    require_channels,
    views,
)
from mvmae.method.views import for_people, normalized
from mvmae.method.vit import Encoder
from mvmae.storage.outputs import headings, picture_file, together, write
from mvmae.training import precision

FINE = 256  # pixels of a drawn image's longer side, at least: a cell of the figure
SAID = {
    "rollout": "Attention rollout: the heads' mean, followed through all {depth} blocks",
    "last": "Attention in the last block, mean of the heads",
    "heads": "Attention in the last block, head by head",
}


def run(config: AttentionConfig) -> None:
    """Draw images, where the encoders look, and the two over each other.

    Raises:
        UserError: There is no such encoder, no readable image, or nowhere to write.
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
    picture = figure.draw(
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
    """What an encoder was shown, and where it looked."""
    encoder = opened.encoder.to(device)
    mean, std, interpolation = opened.preprocessing
    source = open_source(config.data, encoder.in_channels, opened.depth)
    shown = views(source, chosen.indices, finer(encoder.image_size, FINE), interpolation)
    pixels = displayed(for_people(shown, mean, std).permute(0, 2, 3, 1).numpy(), config.channels)
    seen = views(source, chosen.indices, encoder.image_size, interpolation)
    heat = heat_of(encoder, normalized(seen, mean, std, device), config)
    heads = len(heat[0])
    words = [f"head {number}" for number in range(1, heads + 1)]
    return Model(
        heading,
        list(pixels),
        [Maps(words[head] if heads > 1 else "heat map", heat[:, head]) for head in range(heads)],
    )


@torch.inference_mode()
def heat_of(
    encoder: Encoder, images: Float[Tensor, "B C H W"], config: AttentionConfig
) -> Float[np.ndarray, "B maps rows columns"]:
    """Maps as multiples of even attention: 1 where a patch gets what every token would get.

    An image at a time, for the weights of a block are heads x N x N numbers an image.
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
    """The encoders."""
    names = headings((config.encoder, *config.against))
    return f"Where {together(names)} {'looks' if len(names) == 1 else 'look'}"


def note_of(config: AttentionConfig, shown: Sequence[Encoder]) -> str:
    """How the maps came about, and how to read their colours."""
    depths = sorted({encoder.size.depth for encoder in shown})
    said = SAID[config.kind].format(depth=" or ".join(map(str, depths)))
    with_cls = {encoder.variant.cls_token for encoder in shown}
    if with_cls == {True}:
        token = "from the class token"
    elif with_cls == {False}:
        token = "mean over the patches, as there is no class token"
    else:
        token = "from the class token, or where there is none the mean over the patches"
    low, high = figure.EVEN
    scale = (
        f"one scale of colours a row, from {low:g}x even or below to {high:g}x or above"
        if config.scale == "row"
        else "each map has a scale of its own, which makes a pattern of any difference"
    )
    return f"{said}, {token}; {scale}. Even: every token gets the same."
