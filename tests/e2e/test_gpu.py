"""The same on a GPU: what is compiled, in bf16, in parts, stopped and resumed."""

import json

import pytest
import torch
from run_folders import metrics

from mvmae.cli.main import main
from mvmae.method.inputs import move_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ON_GPU = {"device": "cuda"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compile": "off"},
        {"precision": "fp32", "compile": "off"},
        {"recompute": True},
        {"micro-batch-size": 3},
    ],
)
def test_pretraining_runs_and_its_loss_falls(image_folder, pretrain, tmp_path, options):
    run = tmp_path / "run"
    assert pretrain(image_folder(per_class=12), run, ON_GPU | {"epochs": 12} | options) == 0
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    assert losses[-1] < losses[0]


def test_compiled_or_in_parts_is_the_same_run(image_folder, pretrain, tmp_path):
    images = image_folder(per_class=12)
    exact = ON_GPU | {"precision": "fp32", "compile": "off"}
    ways = {"plain": {}, "compiled": {"compile": "on"}, "parts": {"micro-batch-size": 3}}
    for name, options in ways.items():
        assert pretrain(images, tmp_path / name, exact | options) == 0
    plain = metrics(tmp_path / "plain")
    for name in ("compiled", "parts"):
        for ours, theirs in zip(metrics(tmp_path / name), plain, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_a_run_begun_on_a_gpu_goes_on_on_a_cpu(image_folder, pretrain, tmp_path):
    images, run = image_folder(per_class=12), tmp_path / "run"
    assert pretrain(images, run, ON_GPU | {"save-every-minutes": 0}) == 0
    last = run / "checkpoints" / "last.pt"
    last.unlink()  # the one before the end
    assert main(["pretrain", "--resume", "--out", str(run), "--device", "cpu"]) == 0
    assert metrics(run)[-1]["step"] == 12


def test_an_encoder_is_judged_and_embeds_on_a_gpu(image_folder, pretrain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = image_folder(per_class=12)
    assert pretrain(images, "run", ON_GPU) == 0
    assert main(["knn", "run", str(images), "--device", "cuda"]) == 0
    assert main(["embed", "run", str(images), "--device", "cuda", "--out", "e"]) == 0


@pytest.mark.parametrize("part", [slice(None), slice(1, 3)])
def test_views_reach_the_gpu_as_they_are_while_it_computes(part):
    device = torch.device("cuda", 0)
    busy = torch.randn(4096, 4096, device=device)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(256, (2, 5, 3, 64, 64), dtype=torch.uint8, generator=generator)
        busy = busy @ busy / 64
        found = move_rows(rows.pin_memory(), part, device)
        assert torch.equal(found.cpu(), rows[:, part].flatten(0, 1))


def test_the_batch_size_is_found_on_the_gpu(image_folder, pretrain, tmp_path):
    run = tmp_path / "run"
    assert pretrain(image_folder(per_class=40), run, ON_GPU | {"batch-size": "auto"}) == 0
    assert json.loads((run / "config.json").read_text())["batch_size"] == 16  # of 80 images


def test_a_dry_run_measures_the_gpu(image_folder, pretrain_command, capfd):
    words = pretrain_command(image_folder(per_class=12), "run", ON_GPU | {"dry-run": True})
    assert main(["--json", *words]) == 0
    line = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert 0 < line["memory_gib"] < 4
