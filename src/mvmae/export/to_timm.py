"""Export encoders as timm's VisionTransformer."""

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
from mvmae.storage.atomic import write_bytes

FILE = "model.safetensors"
GENERAL = "vit_base_patch16_224"  # its arguments can describe any ViT


def write(folder: Path, opened: OpenedEncoder) -> None:
    """Write the weights under timm's names; the file's metadata describe the preprocessing."""
    weights = {key: tensor.detach().contiguous() for key, tensor in to_timm(opened.encoder).items()}
    facts = {"encoder": json.dumps(encoders.encoder_metadata(opened))}
    # `save_file` would make a file that only its owner can read.
    content = safetensors.torch.save(weights, metadata=facts)
    write_bytes(folder / FILE, content)


def to_timm(encoder: Encoder) -> dict[str, Tensor]:
    """State dict for timm.

    In timm either all prefix tokens have position embeddings or none. So with registers, which have
    none here, the class token's position is added to the token itself.
    """
    state = dict(encoder.state_dict())
    if not has_timm_weights(encoder):
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


def has_timm_weights(encoder: Encoder) -> bool:
    """Whether timm can load the weights as mvmae stores them."""
    return not (encoder.variant.num_registers and encoder.variant.cls_token)


def model_arguments(opened: OpenedEncoder) -> tuple[str, dict[str, Any]]:
    """The closest model name in timm, and the arguments for everything that differs from it."""
    import timm

    encoder, variant, size = opened.encoder, opened.encoder.variant, opened.encoder.size
    height, width = encoder.image_size
    arguments: dict[str, Any] = {}
    known = [key for key, known_size in ENCODERS.items() if known_size == size]
    # timm's names are made of size, patch and image side: the closest one needs fewest arguments.
    for end in (f"{encoder.patch_size}_{height}", f"{encoder.patch_size}_224", "16_224", "14_224"):
        named = [f"{key}_patch{end}" for key in known if timm.is_model(f"{key}_patch{end}")]
        if named:
            name = named[0]
            break
    else:
        name = GENERAL
        arguments = {"embed_dim": size.width, "depth": size.depth, "num_heads": size.num_heads}
    patch, side = (int(number) for number in name.rpartition("patch")[2].split("_"))
    options = {  # with timm's defaults
        "img_size": (height if height == width else (height, width), side),
        "patch_size": (encoder.patch_size, patch),
        "in_chans": (encoder.in_channels, 3),
        "mlp_ratio": (_mlp_ratio(encoder), PLAIN.mlp_ratio),
        "class_token": (variant.cls_token, True),
        "reg_tokens": (variant.num_registers, 0),
        "no_embed_class": (variant.num_registers > 0, False),
        # Any number switches layer scale on; the file's weights replace it.
        "init_values": (1e-5 if variant.layer_scale else None, None),
        "final_norm": (variant.final_norm, True),
    }
    arguments |= {key: own for key, (own, default) in options.items() if own != default}
    if variant.norm_eps != PLAIN.norm_eps:
        arguments["norm_layer"] = partial(nn.LayerNorm, eps=variant.norm_eps)
    if opened.pool == "mean":  # timm would move the norm behind the pooling
        arguments |= {"global_pool": "avg", "fc_norm": False}
    return name, arguments | {"num_classes": 0}


def _mlp_ratio(encoder: Encoder) -> float:
    """A ratio that gives the same MLP width in timm, which truncates where mvmae rounds."""
    width, ratio = encoder.size.width, encoder.variant.mlp_ratio
    hidden = round(width * ratio)
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def snippet(folder: Path, opened: OpenedEncoder, file: str = FILE) -> str:
    """Python code that creates the model with its weights; it maps images to pooled features."""
    name, arguments = model_arguments(opened)
    words = [repr(name), f"checkpoint_path={str(folder / file)!r}"]
    imports = ["import timm"]
    for key, value in arguments.items():
        if isinstance(value, partial):
            imports = ["import functools", "import timm", "import torch"]
            eps = value.keywords["eps"]
            words.append(f"{key}=functools.partial(torch.nn.LayerNorm, eps={eps!r})")
        else:
            words.append(f"{key}={value!r}")
    return "\n".join([*imports, f"model = timm.create_model({', '.join(words)}).eval()"])


def load(folder: Path, opened: OpenedEncoder) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Load the file in timm, which computes pooled and patch features."""
    import timm

    name, arguments = model_arguments(opened)
    with torch.random.fork_rng(devices=[]):  # timm initialises at random before it loads the file
        model: Any = timm.create_model(name, checkpoint_path=str(folder / FILE), **arguments)
    model.eval()
    first = model.num_prefix_tokens
    return lambda images: (model(images), model.forward_features(images)[:, first:])
