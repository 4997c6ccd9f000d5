import pytest
import torch
from torch import nn

from mvmae.config.model import ModelConfig
from mvmae.method.model import MaskedAutoencoder
from mvmae.training.optim import adamw, parameter_groups, set_lr
from mvmae.training.plan import warmup_cosine


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(4, 2, 1))


def test_every_trained_parameter_is_in_one_group():
    autoencoder = MaskedAutoencoder(
        ModelConfig(
            encoder="vit_pico", image_size=16, patch_size=4, decoder_dim=32, decoder_depth=1
        )
    )
    decayed, plain = parameter_groups(autoencoder, 0.05)
    members = [*decayed["params"], *plain["params"]]
    assert len(members) == len(set(members))
    assert set(members) == set(autoencoder.parameters())


def test_matrices_decay_and_vectors_do_not():
    linear, norm, conv = net = model()
    decayed, plain = parameter_groups(net, 0.1)
    assert decayed["params"] == [linear.weight, conv.weight]
    assert plain["params"] == [linear.bias, norm.weight, norm.bias, conv.bias]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_frozen_parameters_are_left_out():
    linear, _, _ = net = model()
    linear.requires_grad_(False)
    for group in parameter_groups(net, 0.1):
        assert linear.weight not in set(group["params"])
        assert linear.bias not in set(group["params"])


def test_weights_without_a_gradient_to_follow_only_shrink_where_they_decay():
    net = model()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    optimizer = adamw(net, lr=0.1, betas=(0.9, 0.95), weight_decay=0.5)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, old in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (0.95 if old.ndim > 1 else 1.0))


def test_set_lr_reaches_every_group():
    optimizer = adamw(model(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.05)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0), (5, 0.5), (10, 1), (35, 0.5), (60, 0), (61, 0)]
)
def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine(step, share):
    rate = warmup_cosine(step, peak=3.0, warmup_steps=10, total_steps=60)
    assert rate == pytest.approx(3.0 * share, abs=1e-12)


def test_without_warmup_the_rate_begins_at_its_peak():
    assert warmup_cosine(0, peak=3.0, warmup_steps=0, total_steps=10) == 3.0


def test_an_optimizer_with_these_groups_learns():
    net, x = nn.Linear(3, 1), torch.randn(64, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    optimizer = adamw(net, lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(100):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(
        net.weight.detach(), torch.tensor([[1.0, -2.0, 0.5]]), rtol=0, atol=0.02
    )
