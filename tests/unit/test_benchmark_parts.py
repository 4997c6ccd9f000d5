"""Parts of a step in `benchmarks step`, against sleeps, sizes and products known beforehand."""

import time

import pytest
import torch
from torch import nn

from benchmarks import parts, step
from benchmarks.config import BenchConfig
from mvmae.config.model import ModelConfig
from mvmae.method import losses
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.pretrain import training_step
from mvmae.training.optim import adamw

CPU = torch.device("cpu")
TINY = ModelConfig(encoder="vit_pico", image_size=16, patch_size=4, decoder_dim=32, decoder_depth=2)
NAP = 0.2  # seconds, far more than a step takes


def make_step(model_config: ModelConfig, batch_size: int = 2):
    """A model, and a step that trains it, twice taken."""
    config = BenchConfig(part="step", model=model_config, batch_size=batch_size, device="cpu")
    training = step.training_config(config)
    model = MaskedAutoencoder(training.model).train()
    optimizer = adamw(model, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    batch = step.random_batch(training, pinned=False)

    def once() -> None:
        training_step(model, optimizer, batch, training, CPU)

    once()
    once()
    return model, once


class SleepsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        time.sleep(NAP)
        return gradients[0]


class Sleepy(nn.Module):
    """A module that takes its time, one way or the other."""

    def __init__(self, inner: nn.Module, way: str) -> None:
        super().__init__()
        self.inner, self.way = inner, way

    def forward(self, x):
        if self.way == "forward":
            time.sleep(NAP)
            return self.inner(x)
        return SleepsBackward.apply(self.inner(x))


@pytest.mark.parametrize(
    ("path", "part", "way"),
    [
        ("encoder.patch_embed", "patch embedding", "backward"),
        ("encoder.blocks.2.attn.proj", "encoder attention", "forward"),
        ("encoder.blocks.2.attn.proj", "encoder attention", "backward"),
        ("encoder.blocks.3.mlp.fc2", "encoder MLP", "backward"),
        ("encoder.blocks.0.norm2", "encoder norms, sums", "backward"),
        ("decoder_embed", "into the decoder", "backward"),
        ("decoder_blocks.1.attn.qkv", "decoder attention", "backward"),
        ("decoder_blocks.0.mlp", "decoder MLP", "backward"),
        ("decoder_norm", "decoder norms, sums", "forward"),
        ("decoder_norm", "decoder norms, sums", "backward"),
        ("decoder_pred", "prediction", "backward"),
        ("projection_head", "masks, gathers", "backward"),
    ],
)
def test_a_slow_place_is_found_in_its_part(path, part, way):
    model, once = make_step(TINY)
    owner, _, name = path.rpartition(".")
    holder = model.get_submodule(owner)
    holder.set_submodule(name, Sleepy(getattr(holder, name), way))
    found = parts.parts_of_step(once, model, CPU)
    charged = {
        (name, where): milliseconds
        for name, spent in found["parts"].items()
        for where, milliseconds in spent.items()
    }
    slowest = max(charged, key=charged.get)
    assert slowest == (part, way)
    assert charged[slowest] >= NAP * 1e3 * 0.99
    assert sum(charged.values()) == pytest.approx(found["total"], abs=0.1)
    assert charged["rest", "forward"] >= 0


def test_slow_losses_and_optimisers_are_found_in_theirs(monkeypatch):
    model, once = make_step(TINY)
    slow = losses.nt_xent
    monkeypatch.setattr(losses, "nt_xent", lambda *a, **k: (time.sleep(NAP), slow(*a, **k))[1])
    spent = parts.parts_of_step(once, model, CPU)["parts"]
    assert spent["contrast"]["forward"] >= NAP * 1e3 * 0.99
    monkeypatch.undo()

    class SlowAdamW(torch.optim.AdamW):
        def step(self, closure=None):
            time.sleep(NAP)

    slow_one = SlowAdamW(model.parameters())
    found = parts.parts_of_step(lambda: (once(), slow_one.step()), model, CPU)
    assert found["parts"]["optimiser"]["forward"] >= NAP * 1e3 * 0.99


def test_looking_leaves_nothing_behind():
    model, once = make_step(TINY)
    before = losses.reconstruction_loss, losses.nt_xent
    parts.parts_of_step(once, model, CPU)
    assert (losses.reconstruction_loss, losses.nt_xent) == before
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    assert not any(after or before for after, before in hooks)


def products_by_part(config: ModelConfig, batch_size: int) -> dict[str, float]:
    """GFLOP of a step by docs/performance.md: a product of a x b and b x c is 2abc, and a linear
    layer's backward pass twice its forward pass."""
    D, L, _ = config.size
    d, N, K = config.decoder_dim, config.num_patches, config.num_visible
    P = config.patch_size**2 * config.in_channels
    T, S = K + 1, N + 1
    forward = {
        "patch embedding": 2 * K * P * D,
        "encoder attention": L * (8 * T * D**2 + 4 * T**2 * D),
        "encoder MLP": L * 16 * T * D**2,
        "into the decoder": 2 * T * D * d,
        "decoder attention": config.decoder_depth * (8 * S * d**2 + 4 * S**2 * d),
        "decoder MLP": config.decoder_depth * 16 * S * d**2,
        "prediction": 2 * (N - K) * d * P,
        "contrast": 4 * batch_size * D,
    }
    passes = dict.fromkeys(forward, 3) | {"patch embedding": 2}  # pixels need no gradient
    return {name: forward[name] * passes[name] * 2 * batch_size / 1e9 for name in forward}


@pytest.mark.parametrize(
    "config", [TINY, ModelConfig(encoder="vit_nano", image_size=48, patch_size=8, in_channels=1)]
)
def test_products_by_part_are_those_of_the_formulas(config):
    _, once = make_step(config, batch_size=3)
    gflop = parts.gflop_by_part(step.count_products(once).get_flop_counts())
    assert gflop == pytest.approx(products_by_part(config, 3), abs=1e-4)
