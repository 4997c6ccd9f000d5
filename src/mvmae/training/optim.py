"""AdamW with the weight decay and layer decay of MAE and BEiT."""

from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group parameters: weight decay for matrices and tokens, none for biases and norms.

    As in MAE (timm's `add_weight_decay`), parameters with one dimension are not decayed; the class
    and mask tokens, with three, are.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    layer_decay: float | None = None,
) -> torch.optim.AdamW:
    """Make AdamW over `parameter_groups`, or over `layer_groups` with a layer decay.

    Change the rate later with `set_lr`, which applies the factors of the layers.
    """
    if layer_decay is None:
        groups = parameter_groups(model, weight_decay)
    else:
        groups = layer_groups(model, weight_decay=weight_decay, layer_decay=layer_decay)
    # The fused kernel is 3.7 times as fast on a CPU.
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


# Beginnings of parameter names, after `name_in_vit`.
LAYER_0 = ("cls_token", "reg_token", "pos_embed", "patch_embed")
NOT_DECAYED = ("cls_token", "reg_token", "pos_embed")


def layer_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Group parameters by layer, each layer with its factor for the learning rate.

    The layer-wise decay of BEiT, MAE and timm: patch embedding, tokens and positions are layer 0,
    block i is layer i + 1, and everything after the blocks is the last layer, with factor 1. Each
    layer below has `layer_decay` times the factor of the one above. Tokens, positions and
    parameters with one dimension have no weight decay.

    Args:
        model: Holds an `Encoder` as `encoder`; frozen parameters are left out.
        weight_decay: Weight decay of matrices.
        layer_decay: Factor between one layer and the next above it, in (0, 1].

    Returns:
        Groups for an optimiser; `lr_scale` is the factor, which `set_lr` reads.
    """
    named = [(name_in_vit(name), p) for name, p in model.named_parameters() if p.requires_grad]
    layers = {name: int(name.split(".")[1]) + 1 for name, _ in named if name.startswith("blocks.")}
    last = max(layers.values(), default=0) + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named:
        layer = 0 if name.startswith(LAYER_0) else layers.get(name, last)
        decays = parameter.ndim > 1 and not name.startswith(NOT_DECAYED)
        fresh = {
            "params": [],
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** (last - layer),
        }
        groups.setdefault((layer, decays), fresh)["params"].append(parameter)
    return list(groups.values())


def name_in_vit(name: str) -> str:
    """Strip everything up to `encoder.` from a parameter's name; leave other names as they are.

    Relative positions, which a `Backbone` keeps beside its encoder, count as part of their block.
    """
    if ".relative." in f".{name}":
        return "blocks." + name.rpartition("relative.")[2]
    return name.partition("encoder.")[2] if ".encoder." in f".{name}" else name


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each group for the next step: `lr` times its factor, if any."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
