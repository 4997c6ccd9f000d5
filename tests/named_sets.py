"""Data sets as torchvision keeps them, made of noise."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, per_batch: int = 4) -> None:
    """CIFAR-10 in torchvision's folder, which mvmae then looks into.

    torchvision compares the files with its checksums, which are replaced by those of these files.
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    for name in names:
        images = rng.integers(0, 256, (per_batch, 3072)).astype(np.uint8)
        given = [int(label) for label in rng.integers(0, 10, per_batch)]
        (folder / name).write_bytes(pickle.dumps({"data": images, "labels": given}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums["batches.meta"]})
    monkeypatch.setenv("MVMAE_TORCHVISION", str(root))
