"""The scripts under examples/ do what they say, on a run of a second and images of two colours."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from mvmae import load_encoder
from mvmae.cli.main import main
from mvmae.embed.storage import read_embeddings
from mvmae.encoders import open_encoder

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(name: str) -> ModuleType:
    """A script, read but not run."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def here(tmp_path, monkeypatch, image_folder, pretrain) -> Path:
    """A folder with images of two classes, and a run."""
    monkeypatch.chdir(tmp_path)
    image_folder("images", per_class=10)
    assert pretrain("images", "run", {"epochs": 2}) == 0
    return tmp_path


def test_features_of_a_folder_serve_scikit_learn(here, capsys):
    capsys.readouterr()
    script("features").main("run", "images")
    first, neighbours, regression = capsys.readouterr().out.splitlines()
    assert first == "20 images of 2 classes, 64 numbers"
    assert neighbours == "nearest neighbours: 100.0 ±0.0 %"  # the classes differ in colour
    assert regression == "logistic regression: 100.0 ±0.0 %"


def test_features_are_those_of_the_embed_command(here):
    features = script("features")
    opened = open_encoder("run")
    images = ImageFolder("images", features.make_transform(opened))
    vectors, _ = features.compute_features(opened, images)
    embed = "embed run images --out embeddings --format npz --device cpu --workers 0"
    assert main(embed.split()) == 0
    (part,) = read_embeddings("embeddings")
    ours = dict(zip(part.paths, np.asarray(part.embeddings), strict=True))
    for (path, _), vector in zip(images.samples, vectors, strict=True):
        (name,) = [one for one in ours if path.endswith(one) or one.endswith(path)]
        similar = ours[name] @ vector / np.linalg.norm(vector) / np.linalg.norm(ours[name])
        assert similar > 0.99  # Pillow resizes a little otherwise


def test_an_exported_file_is_fine_tuned_by_timm_alone(here, capsys, monkeypatch):
    assert main(["export", "run", "--format", "timm"]) == 0
    finetune = script("finetune_timm")
    monkeypatch.setattr(finetune, "EPOCHS", 3)
    capsys.readouterr()
    finetune.main("run/export/timm/model.safetensors", "images")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[-1] == "epoch 3: 100.0 % of 4 test images"


def test_the_exported_network_computes_the_encoders_features(here):
    assert main(["export", "run", "--format", "timm"]) == 0
    model, facts = script("finetune_timm").load_model("run/export/timm/model.safetensors", 2)
    model.reset_classifier(0)
    images = torch.randn(2, 3, *facts["image_size"])
    with torch.no_grad():
        ours, theirs = load_encoder("run").embed(images), model.eval()(images)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["features", "finetune_timm", "duplicates"])
def test_without_arguments_a_script_says_how_it_is_called(name, monkeypatch):
    file = str(EXAMPLES / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [file])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(file, run_name="__main__")
    assert f"python examples/{name}.py" in str(end.value)


def test_copies_are_found_among_embeddings(here, capsys):
    Image.open("images/red/3.jpg").save("images/blue/copy.png")
    embed = "embed run images --out embeddings --format npz --device cpu --workers 0"
    assert main(embed.split()) == 0
    capsys.readouterr()
    script("duplicates").main("embeddings", "0.9999")
    *pairs, last = capsys.readouterr().out.splitlines()
    assert last == f"{len(pairs)} pairs among 21 images"
    found = [set(re.findall(r"(?:red|blue)/\w+\.\w+", line)) for line in pairs]
    assert {"red/3.jpg", "blue/copy.png"} in found
