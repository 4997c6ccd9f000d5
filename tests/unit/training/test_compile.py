"""The model is one graph to torch.compile, and what is compiled computes the same."""

import subprocess
import sys

import pytest
import torch

from mvmae.config.model import ModelConfig
from mvmae.errors import UserError
from mvmae.method.model import MaskedAutoencoder
from mvmae.training.precision import compile_model

CPU = torch.device("cpu")
SMALL = ModelConfig(encoder="vit_pico", image_size=16, patch_size=4, decoder_dim=32)
# In a separate process, without the checks of shapes that tests switch on: torch cannot trace them.
COMPARE = """
import sys, torch
from mvmae.config.model import ModelConfig
from mvmae.training.precision import compile_model
from mvmae.method.model import MaskedAutoencoder

small = ModelConfig(encoder="vit_pico", image_size=16, patch_size=4, decoder_dim=32)

def passed(model, rebuild):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    view = model(images, torch.rand(4, 16, generator=generator), rebuild=rebuild)
    made = [one for one in view if one is not None]
    torch.stack([one.square().mean() for one in made]).sum().backward()
    return made, [p.grad for p in model.parameters() if p.grad is not None]

backend, tolerance, *ways = sys.argv[1:]
for rebuild in ways:
    plain, other = (MaskedAutoencoder(small, torch.Generator().manual_seed(0)) for _ in range(2))
    if backend == "ours":
        compile_model(other, "on", torch.device("cpu"))
    else:
        other.compile(fullgraph=True, backend=backend)
    assert other.state_dict().keys() == plain.state_dict().keys()
    for ours, theirs in zip(passed(other, rebuild), passed(plain, rebuild), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=float(tolerance), atol=float(tolerance))
"""


OWN = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"  # torch 2.11's importing


def compare(*words: str) -> None:
    command = [sys.executable, "-W", "error", "-W", OWN, "-c", COMPARE, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_model_is_one_graph():
    """A graph that breaks is slower than none; `fullgraph` raises there."""
    compare("aot_eager", "1e-6", "masked", "all", "none")


@pytest.mark.slow
def test_what_is_compiled_computes_the_same():
    compare("ours", "1e-5", "masked")


def test_on_a_cpu_nothing_is_compiled_unasked():
    model = MaskedAutoencoder(SMALL)
    for choice in ("auto", "off"):
        assert compile_model(model, choice, CPU)._compiled_call_impl is None


def test_without_a_compiler_it_is_said_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        compile_model(MaskedAutoencoder(SMALL), "on", CPU)
