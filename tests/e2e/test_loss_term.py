"""A term added to equation 7 reaches loss, gradient, metrics, curves and report on both paths.

Whole batches (`method/pretrain.py`) and micro-batches (`method/gradient_cache.py`) take their terms
from the same functions; each test adds terms to those functions and looks where they arrive.
"""

from dataclasses import replace
from pathlib import Path
from traceback import extract_stack

import pytest
import torch
import torch.nn.functional as F
from run_folders import metrics
from torch import Generator

import mvmae
from mvmae.cli.main import main
from mvmae.data.reading.loader import Batch
from mvmae.method import gradient_cache, losses, pretrain
from mvmae.method.losses import Term
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.pretrain import training_step

WEIGHTS = {"uniformity": 0.5, "sharpness": 0.25}
MICRO_BATCHES = (None, 3)


@pytest.fixture
def two_more_terms(monkeypatch):
    """Adds `uniformity`, which compares images, and `sharpness`, a mean over patches."""
    embedding_terms, patch_terms = losses.embedding_terms, losses.patch_terms
    for user in (pretrain, gradient_cache):
        assert user.embedding_terms is embedding_terms
        assert user.patch_terms is patch_terms
        assert user.equation_7 is losses.equation_7

    def with_uniformity(embedding, objective, num_views, groups=None):
        terms = embedding_terms(embedding, objective, num_views, groups)
        cosines = F.normalize(embedding) @ F.normalize(embedding).T
        return terms | {"uniformity": Term(WEIGHTS["uniformity"], cosines.exp().mean())}

    def with_sharpness(view, objective, channels):
        terms = patch_terms(view, objective, channels)
        sharpness = view.prediction.float().diff(dim=-1).square().mean()
        return terms | {"sharpness": Term(WEIGHTS["sharpness"], sharpness)}

    for user in (pretrain, gradient_cache):
        monkeypatch.setattr(user, "embedding_terms", with_uniformity)
        monkeypatch.setattr(user, "patch_terms", with_sharpness)


def one_step(config, micro_batch_size):
    """Losses and gradients of a step with fixed weights and images."""
    config = replace(config, micro_batch_size=micro_batch_size)
    generator = Generator().manual_seed(1)
    model = MaskedAutoencoder(config.model, Generator().manual_seed(0))
    images = torch.randint(256, (2, 8, 3, 16, 16), generator=generator, dtype=torch.uint8)
    batch = Batch(images, torch.rand(2, 8, 16, generator=generator), [], True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _, values = training_step(model, optimizer, batch, config, torch.device("cpu"))
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return {name: value.item() for name, value in values.items()}, gradient


def test_the_terms_are_in_the_loss_and_in_the_gradient(tiny, request):
    _, gradient_before = one_step(tiny, None)
    request.getfixturevalue("two_more_terms")
    whole, gradient = one_step(tiny, None)
    parts, gradient_of_parts = one_step(tiny, 3)
    assert (gradient - gradient_before).norm() > 1e-3 * gradient_before.norm()
    torch.testing.assert_close(gradient_of_parts, gradient, rtol=1e-4, atol=1e-7)
    for values in (whole, parts):
        weighted = values["reconstruction"] + 2 * values["contrastive"]
        weighted += sum(weight * values[name] for name, weight in WEIGHTS.items())
        assert values["loss"] == pytest.approx(weighted, rel=1e-6)
    assert parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", MICRO_BATCHES)
def test_the_terms_are_in_metrics_curves_and_report(
    two_more_terms, image_folder, pretrain, tmp_path, monkeypatch, micro_batch_size
):
    monkeypatch.chdir(tmp_path)
    options = {} if micro_batch_size is None else {"micro-batch-size": micro_batch_size}
    assert pretrain(image_folder(per_class=8), "run", options) == 0
    for name in WEIGHTS:
        assert all(name in line for line in metrics(tmp_path / "run") if "loss" in line)
    assert main(["curves", "run", "--out", "curves.svg"]) == 0
    assert main(["report", "run", "--out", "report.html"]) == 0
    for file in ("curves.svg", "report.html"):
        text = (tmp_path / file).read_text()
        assert all(name in text for name in WEIGHTS)


def test_four_calls_lead_from_the_command_to_the_contrast(
    pretrain_command, image_folder, tmp_path, monkeypatch
):
    """What a reader has to follow; `python -m checks.size` prints the same path."""
    source, paths, nt_xent = str(Path(mvmae.__file__).parent), set(), losses.nt_xent

    def record_callers(*args, **options):
        calls = [call for call in extract_stack() if call.filename.startswith(source)]
        paths.add(tuple(call.name for call in calls if not call.name.startswith("<")))
        return nt_xent(*args, **options)

    monkeypatch.setattr(losses, "nt_xent", record_callers)
    assert main(pretrain_command(image_folder(), tmp_path / "run", {"epochs": 1})) == 0
    assert paths == {("main", "run", "training_step", "embedding_terms")}
