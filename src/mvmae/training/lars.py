"""LARS (You, Gitman and Ginsburg 2017, arXiv 1708.03888): steps scaled by each weight's norm."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose step for a matrix is scaled by trust * |w| / |gradient|.

    As in MAE and MoCo v3, parameters with one dimension (biases) are neither scaled nor decayed,
    the norm of the gradient includes the weight decay, and the learning rate multiplies the
    momentum buffer, not the gradient.

    Args:
        parameters: To train.
        lr: Learning rate.
        momentum: Share of the previous velocity.
        weight_decay: Times the weight, added to the gradient.
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
        """Update the parameters once."""
        loss = closure() if closure else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                velocity = state.setdefault("momentum", torch.zeros_like(parameter))
                velocity.mul_(group["momentum"]).add_(
                    _scale_gradient(parameter, parameter.grad, group)
                )
                parameter.sub_(velocity, alpha=group["lr"])
        return loss


def _scale_gradient(parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> Tensor:
    if parameter.ndim < 2:
        return gradient
    gradient = gradient.add(parameter, alpha=group["weight_decay"])
    weight_norm, gradient_norm = parameter.norm(), gradient.norm()
    ratio = group["trust"] * weight_norm / gradient_norm
    is_defined = (weight_norm > 0) & (gradient_norm > 0)
    return gradient * torch.where(is_defined, ratio, torch.ones_like(ratio))
