"""LARS (You, Gitman and Ginsburg 2017, arXiv 1708.03888): each weight's step by its own size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose step for a matrix is scaled by trust * |w| / |gradient|.

    As in MAE and MoCo v3, what has one dimension (biases) is neither scaled nor decayed, the norm
    of the gradient includes the weight decay, and the learning rate stands outside the momentum.

    Args:
        parameters: What is trained.
        lr: Learning rate.
        momentum: Share of the last step that is kept.
        weight_decay: Added to the gradient, times the weight.
        trust: The paper's eta.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update."""
        loss = closure() if closure else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                velocity = state.setdefault("momentum", torch.zeros_like(parameter))
                velocity.mul_(group["momentum"]).add_(_scaled(parameter, group))
                parameter.sub_(velocity, alpha=group["lr"])
        return loss


def _scaled(parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    if parameter.ndim < 2:
        return gradient
    gradient = gradient.add(parameter, alpha=group["weight_decay"])
    size, steepness = parameter.norm(), gradient.norm()
    ratio = group["trust"] * size / steepness
    return gradient * torch.where((size > 0) & (steepness > 0), ratio, torch.ones_like(ratio))
