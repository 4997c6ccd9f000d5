"""Parameters to an optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and tokens, none for biases and norms.

    As MAE (timm's `add_weight_decay`): what has one dimension is not decayed; the class and mask
    tokens, of three, are.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; fused, which is 3.7 times as fast on a CPU."""
    groups = parameter_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


STEM = ("cls_token", "reg_token", "pos_embed", "patch_embed")  # layer 0 of a ViT
TOKENS = ("cls_token", "reg_token", "pos_embed")  # of those, what is not decayed


def layer_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups of a model's parameters by layer, each with its share of the learning rate.

    As BEiT's, MAE's and timm's layer-wise decay: patch embedding, tokens and positions are layer 0,
    block i is layer i + 1, and what comes after the blocks is the last layer, whose share is 1.
    Each layer below has `layer_decay` times the share of the one above. What has one dimension,
    tokens and positions are not decayed.

    Args:
        model: What holds an `Encoder` as `encoder`; parameters that are not trained are left out.
        weight_decay: Of matrices.
        layer_decay: In (0, 1].
    """
    named = [(own_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
    blocks = {int(own.split(".")[1]) for own, _ in named if own.startswith("blocks.")}
    last = max(blocks, default=-1) + 2
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for own, parameter in named:
        layer = layer_of(own, last)
        decays = parameter.ndim > 1 and not own.startswith(TOKENS)
        fresh = {
            "params": [],
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** (last - layer),
        }
        groups.setdefault((layer, decays), fresh)["params"].append(parameter)
    return list(groups.values())


def own_name(name: str) -> str:
    """The name within a ViT of what a larger model holds under `encoder.`, others as they are.

    Relative positions, which a `Backbone` keeps beside its encoder, count as their block's.
    """
    if ".relative." in f".{name}":
        return "blocks." + name.rpartition("relative.")[2]
    return name.partition("encoder.")[2] if ".encoder." in f".{name}" else name


def layer_of(name: str, last: int) -> int:
    """The layer of a parameter of a ViT, by its timm name; `last` is that of norm and head."""
    if name.startswith(STEM):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else last


def layerwise_adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    layer_decay: float,
) -> torch.optim.AdamW:
    """AdamW over `layer_groups`; `set_lr` minds their shares."""
    groups = layer_groups(model, weight_decay=weight_decay, layer_decay=layer_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use this learning rate for the next step, or a group's share of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
