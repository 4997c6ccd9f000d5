"""LARS as MAE's linear probe has it, written out by hand."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from mvmae.training.lars import Lars


class ByHand:
    """One parameter's rule in NumPy: (3) to (6) of the paper, as MAE reads them."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight, self.velocity = weight.astype(np.float64), np.zeros(weight.shape)

    def step(self, gradient: np.ndarray, *, lr, momentum, decay, trust) -> None:
        if self.weight.ndim > 1:
            gradient = gradient + decay * self.weight
            size, steepness = (np.sqrt((x**2).sum()) for x in (self.weight, gradient))
            if size > 0 and steepness > 0:
                gradient = trust * size / steepness * gradient
        self.velocity = momentum * self.velocity + gradient
        self.weight = self.weight - lr * self.velocity


RULES = [
    {"lr": 0.1, "momentum": 0.0, "decay": 0.0, "trust": 0.001},
    {"lr": 6.4, "momentum": 0.9, "decay": 0.0, "trust": 0.001},
    {"lr": 0.5, "momentum": 0.9, "decay": 0.1, "trust": 0.02},
]


def lars(parameters, rule) -> Lars:
    return Lars(
        parameters,
        lr=rule["lr"],
        momentum=rule["momentum"],
        weight_decay=rule["decay"],
        trust=rule["trust"],
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2), (5,), ()])
def test_steps_are_the_papers(rule, shape):
    rng = np.random.default_rng(0)
    start = rng.standard_normal(shape)
    parameter, hand = nn.Parameter(torch.from_numpy(np.asarray(start))), ByHand(np.asarray(start))
    optimizer = lars([parameter], rule)
    for _ in range(6):
        gradient = np.asarray(rng.standard_normal(shape))
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
        hand.step(gradient, **rule)
        np.testing.assert_allclose(parameter.detach().numpy(), hand.weight, rtol=1e-10)


def test_a_changed_learning_rate_scales_the_whole_step_and_not_the_momentum():
    """As in MAE; torch's SGD would agree, a rule with the rate inside the momentum would not."""
    parameter, hand = nn.Parameter(torch.ones(2, 2).double()), ByHand(np.ones((2, 2)))
    optimizer = lars([parameter], RULES[1])
    for lr in (1.0, 100.0, 0.01):
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = torch.full((2, 2), 0.3).double()
        optimizer.step()
        hand.step(np.full((2, 2), 0.3), **(RULES[1] | {"lr": lr}))
    np.testing.assert_allclose(parameter.detach().numpy(), hand.weight, rtol=1e-10)


def test_a_bias_is_neither_scaled_nor_decayed():
    bias, rule = nn.Parameter(torch.full((3,), 5.0)), RULES[2] | {"momentum": 0.0}
    bias.grad = torch.tensor([1.0, 0.0, -2.0])
    lars([bias], rule).step()
    torch.testing.assert_close(bias.detach(), torch.tensor([4.5, 5.0, 6.0]))


def test_weights_of_zero_leave_it_by_the_plain_gradient():
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    lars([weight], RULES[0]).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.1))


def test_a_gradient_of_zero_moves_nothing_and_makes_no_nan():
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2)
    lars([weight], RULES[0]).step()
    assert torch.equal(weight, torch.ones(2, 2))


def test_a_parameter_without_a_gradient_stays():
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    used.grad = torch.ones(2, 2)
    lars([used, unused], RULES[2]).step()
    assert torch.equal(unused, torch.ones(2, 2))
    assert not torch.equal(used, torch.ones(2, 2))


def test_a_closure_is_called_once():
    calls = []
    assert lars([nn.Parameter(torch.ones(1))], RULES[0]).step(lambda: calls.append(1) or 7) == 7
    assert calls == [1]


def test_what_was_saved_goes_on_exactly():
    def steps(layer: nn.Module, optimizer: Lars, seeds: range) -> None:
        for seed in seeds:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            layer(x).pow(2).mean().backward()
            optimizer.step()

    layer = nn.Linear(4, 3)
    optimizer = lars(layer.parameters(), RULES[2])
    steps(layer, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"layer": layer.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    again = copy.deepcopy(layer)
    nn.init.zeros_(again.weight)
    again.load_state_dict(state["layer"])
    other = Lars(again.parameters(), lr=0.0)
    other.load_state_dict(state["optimizer"])
    for both in ((layer, optimizer), (again, other)):
        steps(*both, range(3, 6))
    assert torch.equal(again.weight, layer.weight)
    assert torch.equal(again.bias, layer.bias)
