"""Encoders as timm's VisionTransformer."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mvmae import encoders
from mvmae.config.model import ENCODERS
from mvmae.encoders import OpenedEncoder
from mvmae.method.vit import PLAIN, Encoder
from mvmae.training.checkpoint import write_whole

FILE = "model.safetensors"
GENERAL = "vit_base_patch16_224"  # whose arguments can make any ViT


def write(folder: Path, opened: OpenedEncoder) -> None:
    """Write the weights under timm's names; the file's metadata say how images are prepared."""
    plain = {key: value.detach().contiguous() for key, value in weights(opened.encoder).items()}
    facts = {"encoder": json.dumps(encoders.encoder_metadata(opened))}
    content = safetensors.torch.save(plain, metadata=facts)  # save_file's are unreadable to others
    write_whole(folder / FILE, lambda stream: stream.write(content))


def weights(encoder: Encoder) -> dict[str, Tensor]:
    """The state dict for timm, whose registers share the class token's fate: positions or none."""
    state = dict(encoder.state_dict())
    if not is_same(encoder):
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


def is_same(encoder: Encoder) -> bool:
    """Whether timm takes the weights as mvmae keeps them."""
    return not (encoder.variant.num_registers and encoder.variant.cls_token)


def name_and_arguments(opened: OpenedEncoder) -> tuple[str, dict[str, Any]]:
    """The name in timm for these sizes, and the arguments for all in which the encoder differs."""
    import timm

    encoder, variant = opened.encoder, opened.encoder.variant
    height, width = encoder.image_size
    sizes = {"img_size": height if height == width else (height, width)}
    sizes |= {"patch_size": encoder.patch_size}
    name = GENERAL
    arguments: dict[str, Any] = {}
    known = [key for key, size in ENCODERS.items() if size == encoder.size]
    for end in (f"{encoder.patch_size}_{height}", f"{encoder.patch_size}_224", "16_224", "14_224"):
        named = [f"{key}_patch{end}" for key in known if timm.is_model(f"{key}_patch{end}")]
        if named:
            name = named[0]
            break
    else:
        size = encoder.size
        arguments = {"embed_dim": size.width, "depth": size.depth, "num_heads": size.num_heads}
    patch, side = (int(number) for number in name.rpartition("patch")[2].split("_"))
    usual = {"img_size": side, "patch_size": patch}
    arguments |= {key: value for key, value in sizes.items() if value != usual[key]}
    if encoder.in_channels != 3:
        arguments["in_chans"] = encoder.in_channels
    if variant.mlp_ratio != PLAIN.mlp_ratio:
        arguments["mlp_ratio"] = _ratio(encoder)
    if not variant.cls_token:
        arguments["class_token"] = False
    if variant.num_registers:
        arguments |= {"reg_tokens": variant.num_registers, "no_embed_class": True}
    if variant.layer_scale:
        arguments["init_values"] = 1e-5
    if not variant.final_norm:
        arguments["final_norm"] = False
    if variant.norm_eps != PLAIN.norm_eps:
        arguments["norm_layer"] = partial(nn.LayerNorm, eps=variant.norm_eps)
    if opened.pool == "mean":  # the norm stays before the pooling
        arguments |= {"global_pool": "avg", "fc_norm": False}
    return name, arguments | {"num_classes": 0}


def _ratio(encoder: Encoder) -> float:
    """A ratio that gives the MLP's width though timm cuts off where mvmae rounds."""
    width, ratio = encoder.size.width, encoder.variant.mlp_ratio
    hidden = round(width * ratio)
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def lines(file: Path, opened: OpenedEncoder) -> str:
    """Python that makes the model with its weights; images in, pooled features out."""
    name, arguments = name_and_arguments(opened)
    said = [repr(name), f"checkpoint_path={str(file)!r}"]
    imports = ["import timm"]
    for key, value in arguments.items():
        if isinstance(value, partial):
            imports = ["import functools", "import timm", "import torch"]
            eps = value.keywords["eps"]
            said.append(f"{key}=functools.partial(torch.nn.LayerNorm, eps={eps!r})")
        else:
            said.append(f"{key}={value!r}")
    return "\n".join([*imports, f"model = timm.create_model({', '.join(said)}).eval()"])


def load(folder: Path, opened: OpenedEncoder) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What computes pooled and patch features as timm does from the file."""
    import timm

    name, arguments = name_and_arguments(opened)
    with torch.random.fork_rng(devices=[]):  # timm draws weights that the file then replaces
        model: Any = timm.create_model(name, checkpoint_path=str(folder / FILE), **arguments)
    model.eval()
    first = model.num_prefix_tokens
    return lambda images: (model(images), model.forward_features(images)[:, first:])
