"""Recognise encoders in other projects' checkpoints and rename their tensors to timm's keys.

Supported are checkpoints of MAE, MoCo v3, DINO and DINOv2, timm's ViTs, and transformers' ViT,
ViTMAE and DINOv2, under every spelling of their keys that transformers has used.
"""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mvmae.config.model import ENCODERS, Size
from mvmae.config.views import ViewsConfig
from mvmae.encoders.encoder_json import OpenedEncoder, Preprocessing
from mvmae.errors import UserError
from mvmae.method.vit import Encoder, Variant
from mvmae.training import checkpoint

WRAPPERS = (  # keys under which files keep their tensors, in order of preference
    *("teacher", "model_ema", "state_dict", "model", "module", "model_state_dict", "student"),
)
EMBEDDINGS = {"patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"}
PREFERRED = ("base_encoder.", "teacher.", "backbone.")  # if a file holds several encoders

HEADS = re.compile(  # keys beside an encoder that are not part of it
    r"(head|head_dist|fc|fc_norm|pre_logits|attn_pool|pooler|classifier|decoder\w*|mask_token"
    r"|lm_head|projection_head|predictor|embeddings\.mask_token)(\.|$)"
)
UNSUPPORTED = (  # parts that mvmae's encoder lacks: what their keys contain, and what it means
    ("relative_position", "a relative position bias (BEiT, SimMIM, Swin)"),
    ("rel_pos_bias", "a relative position bias (BEiT, SimMIM, CAE)"),
    ("q_norm", "normalised queries and keys"),
    ("rope", "rotary positions (DINOv3, EVA-02)"),
    ("freqs", "rotary positions"),
    ("norm_pre", "a norm before its blocks (CLIP)"),
    ("pre_layrnorm", "a norm before its blocks (CLIP)"),
    ("mlp.w", "a gated MLP (SwiGLU)"),  # w1, w2, w3, w12 or weights_in
    ("patch_embed.backbone", "a convolutional stem (hybrid ViT)"),
    ("patch_embed.proj.0.", "a convolutional stem"),
    ("stages.", "stages (a hierarchical network)"),
)


class Hints(NamedTuple):
    """Facts about an encoder that its tensors do not show, from another file or package."""

    num_heads: int | None = None
    norm_eps: float | None = None
    image_size: tuple[int, int] | None = None


NO_HINTS = Hints()


def find_encoder(
    state: Mapping[str, Any], *, source: str, hints: Hints = NO_HINTS
) -> OpenedEncoder:
    """Build the encoder that the content of a checkpoint file holds, with default preprocessing.

    Args:
        state: Tensors by key, or a dict that contains them at some level.
        source: Name of the file for error messages.
        hints: Facts that the tensors do not show.

    Raises:
        UserError: There is no ViT, its architecture is not supported, or a key is missing or
            unknown; the message names it.
    """
    everything = unwrap_tensors(state)
    prefix = _prefix(everything, source)
    inside = {k.removeprefix(prefix): v for k, v in everything.items() if k.startswith(prefix)}
    beside = [key for key in everything if not key.startswith(prefix)]
    # Before the keys are renamed, so that the message shows a key of the user's file.
    for part, what in UNSUPPORTED:
        if odd := next((key for key in inside if part in key), None):
            raise UserError(
                f"{source} is a network with {what}, which mvmae's encoder does not support "
                f"({odd}): give a plain ViT (MAE, MoCo v3, DINO, DINOv2, DeiT, ViT)"
            )
    maker = identify_maker(everything, inside, prefix)
    tensors, left_out = {}, list(beside)
    for key, tensor in inside.items():
        for pattern, new in RENAMES:
            key = pattern.sub(new, key)
        if HEADS.match(key):
            left_out.append(prefix + key)
        else:
            tensors[key] = tensor
    # The code below asks for lengths and widths, which a number does not have.
    if scalar := next((key for key, tensor in tensors.items() if tensor.ndim == 0), None):
        raise UserError(
            f"{source} is damaged: {scalar} holds a single number, not a tensor of weights"
        )
    tensors = _join_qkv(tensors, source)
    if maker == "MoCo v3" and tensors["patch_embed.proj.weight"].shape[0] == 384:
        hints = hints._replace(num_heads=hints.num_heads or 12)  # its ViT-S has 12 heads, others 6
    if maker.startswith("transformers"):
        # transformers' own defaults, for files without the config.json that says it.
        default = 1e-6 if maker == "transformers DINOv2" else 1e-12
        hints = hints._replace(norm_eps=hints.norm_eps or default)
    return _build(maker, tensors, tuple(sorted(left_out)), hints, source)


def unwrap_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors by key, stripped of the dicts that wrap them."""
    while True:
        inner = next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), None)
        tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
        # A file may have both an encoder and a key such as "model" beside it.
        if inner is None or any(key.endswith(tuple(EMBEDDINGS)) for key in tensors):
            return tensors
        state = inner


def _prefix(tensors: Mapping[str, Tensor], source: str) -> str:
    """Find the prefix of the encoder's keys; of several encoders, the preferred one's."""
    found = {
        key.removesuffix(end)
        for key in tensors
        for end in EMBEDDINGS
        if key.endswith(end) and (key == end or key.removesuffix(end).endswith("."))
    }
    if not found:
        listed = ", ".join(sorted(tensors)[:3]) or "no tensors at all"
        raise UserError(
            f"{source} holds no Vision Transformer that mvmae knows (it has {listed}): give a "
            "plain ViT (MAE, MoCo v3, DINO, DINOv2, DeiT, ViT)"
        )
    # The teacher is what DINO evaluates; MoCo v3 publishes its base encoder.
    preferred = [p for like in PREFERRED for p in sorted(found) if p.endswith(like)]
    return (preferred or sorted(found, key=len))[0]


def identify_maker(everything: Mapping[str, Any], inside: Mapping[str, Any], prefix: str) -> str:
    """Name the project whose layout a file has."""
    # The name is shown to the user; beyond that it decides MoCo v3's heads and the default epsilon.
    if "embeddings.patch_embeddings.projection.weight" in inside:
        if any("layer_scale" in key for key in inside):
            return "transformers DINOv2"
        is_mae = any(key.startswith("decoder.") for key in everything)
        return "transformers ViTMAE" if is_mae else "transformers ViT"
    if "base_encoder." in prefix:
        return "MoCo v3"
    if any(key.startswith("decoder_") for key in inside):
        return "MAE"
    if "backbone." in prefix:
        return "DINO"
    return "ViT with timm's keys"


RENAMES = tuple(  # transformers' keys in old and new spelling; applied in this order
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"^embeddings\.distillation_token$", "dist_token"),
        (r"^register_tokens$", "reg_token"),
        (r"^layernorm\.", "norm."),
        (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
        (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
        (r"\.attention\.q_proj\.", ".attn.query."),
        (r"\.attention\.k_proj\.", ".attn.key."),
        (r"\.attention\.v_proj\.", ".attn.value."),
        (r"\.attention\.(?:o_proj|output\.dense)\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
    )
)


def _join_qkv(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Join separate queries, keys and values into one matrix; missing biases become zeros."""
    joined = {
        key: value
        for key, value in tensors.items()
        if not re.search(r"\.attn\.(query|key|value|q_bias|v_bias)\b", key)
    }
    for block in sorted({key.split(".")[1] for key in tensors if key.startswith("blocks.")}):
        attn = f"blocks.{block}.attn."
        for what in ("weight", "bias"):
            parts = [tensors.get(f"{attn}{name}.{what}") for name in ("query", "key", "value")]
            if any(part is not None for part in parts):
                if missing := [n for n, part in zip("qkv", parts, strict=True) if part is None]:
                    raise UserError(f"{source} lacks the {missing[0]} {what} of block {block}")
                joined[f"{attn}qkv.{what}"] = _stack_qkv(parts, block, source)  # type: ignore[arg-type]
        if f"{attn}q_bias" in tensors:  # in BEiT and its relatives, keys have no bias
            q, v = tensors[f"{attn}q_bias"], tensors.get(f"{attn}v_bias")
            if v is None:
                raise UserError(f"{source} lacks the v bias of block {block}")
            joined[f"{attn}qkv.bias"] = _stack_qkv([q, torch.zeros_like(q), v], block, source)
        # A model trained without these biases computes the same with zeros.
        if (weight := joined.get(f"{attn}qkv.weight")) is not None:
            joined.setdefault(f"{attn}qkv.bias", weight.new_zeros(len(weight)))
    # A patch embedding may lack its bias too; `Encoder` has one.
    embedding = joined["patch_embed.proj.weight"]
    joined.setdefault("patch_embed.proj.bias", embedding.new_zeros(len(embedding)))
    return joined


def _stack_qkv(parts: list[Tensor], block: str, source: str) -> Tensor:
    """Concatenate queries, keys and values along the output dimension."""
    if len({part.shape for part in parts}) > 1:
        shapes = ", ".join(str(list(part.shape)) for part in parts)
        raise UserError(
            f"{source} is damaged: queries, keys and values of block {block} differ in shape "
            f"({shapes})"
        )
    return torch.cat(parts)


def _build(
    maker: str,
    tensors: dict[str, Tensor],
    left_out: tuple[str, ...],
    hints: Hints,
    source: str,
) -> OpenedEncoder:
    """Build an encoder of the sizes that its tensors show, and load them; every key must fit."""
    embedding = tensors["patch_embed.proj.weight"]
    if embedding.ndim != 4 or embedding.shape[2] != embedding.shape[3]:
        raise UserError(
            f"{source} has a patch embedding of shape {list(embedding.shape)}: patches must be "
            "square"
        )
    width, in_channels, patch = embedding.shape[:3]
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    hidden = tensors.get("blocks.0.mlp.fc1.weight")
    if hidden is None or hidden.ndim != 2 or "pos_embed" not in tensors:
        missing = "pos_embed" if hidden is not None else "blocks.0.mlp.fc1.weight"
        raise UserError(f"{source} is not a plain ViT: it lacks {missing}")
    tensors, num_registers, grid = _arrange_positions(tensors, hints.image_size, patch, source)
    variant = Variant(
        mlp_ratio=len(hidden) / width,
        cls_token="cls_token" in tensors,
        num_registers=num_registers,
        layer_scale="blocks.0.ls1.gamma" in tensors,
        final_norm="norm.weight" in tensors,
        norm_eps=hints.norm_eps or 1e-6,
    )
    encoder = Encoder(
        Size(width, depth, hints.num_heads or num_heads(width, depth, source)),
        image_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        in_channels=in_channels,
        variant=variant,
    )
    checkpoint.load_weights(encoder, tensors, source=source)
    pool = "cls" if variant.cls_token and variant.final_norm else "mean"
    return OpenedEncoder(encoder, default_preprocessing(in_channels), pool, maker, left_out)


def default_preprocessing(channels: int) -> Preprocessing:
    """ImageNet's pixel statistics, or plain ones for other numbers of channels."""
    return Preprocessing(*ViewsConfig().pixel_statistics(channels), "bicubic")


def num_heads(width: int, depth: int, source: str) -> int:
    """Guess the number of heads that a file does not give: a known size's, else width / 64."""
    # Head count does not show in any shape, and a wrong one loads without error.
    known = [size.num_heads for size in ENCODERS.values() if size[:2] == (width, depth)]
    if not known and width % 64:
        raise UserError(
            f"{source} does not give its number of attention heads, and its width {width} is not "
            "a multiple of 64: save the encoder with timm or transformers, which do"
        )
    return known[0] if known else width // 64


def _arrange_positions(
    tensors: dict[str, Tensor], image_size: tuple[int, int] | None, patch: int, source: str
) -> tuple[dict[str, Tensor], int, tuple[int, int]]:
    """Arrange position embeddings as in `Encoder`: the class token's row, then one per patch.

    Files differ in which prefix tokens have a position. That of a register (DeiT's distillation
    token counts as one) is added to the token; a class token without a position gets zeros.

    Returns:
        The tensors, the number of registers, and the grid of patches.
    """
    tensors = dict(tensors)
    if "dist_token" in tensors:
        tensors["reg_token"] = tensors.pop("dist_token")
    positions = tensors["pos_embed"]
    positions = positions[None] if positions.ndim == 2 else positions
    registers = tensors.get("reg_token")
    for name, tensor in (("positions", positions), ("registers", registers)):
        if tensor is not None and (tensor.ndim != 3 or len(tensor) != 1):
            raise UserError(
                f"{source} has {name} of shape {list(tensor.shape)}: expected 1 x tokens x width"
            )
    num_registers = 0 if registers is None else registers.shape[1]
    num_cls = int("cls_token" in tensors)
    # All prefix tokens, the class token alone (DINOv2 with registers), or none (timm's
    # no_embed_class): the number of positions tells which, as patches fill a square or the image.
    for prefix in (num_cls + num_registers, num_cls, 0):
        grid = _grid_of_patches(positions.shape[1] - prefix, image_size, patch)
        if grid:
            break
    else:
        raise UserError(
            f"{source} has {positions.shape[1]} positions, which do not form a square of patches"
        )
    own, patches = positions[:, :prefix], positions[:, prefix:]
    if registers is not None and prefix > num_cls:
        tensors["reg_token"] = registers + own[:, num_cls:]
    cls = own[:, :num_cls] if prefix else torch.zeros_like(patches[:, :num_cls])
    tensors["pos_embed"] = torch.cat([cls, patches], dim=1)
    return tensors, num_registers, grid


def _grid_of_patches(
    count: int, image_size: tuple[int, int] | None, patch: int
) -> tuple[int, int] | None:
    """Rows and columns of `count` patches; None if they do not fill the image."""
    side = isqrt(max(count, 0))
    rows, columns = (length // patch for length in image_size) if image_size else (side, side)
    return (rows, columns) if rows * columns == count > 0 else None
