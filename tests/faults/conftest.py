"""The small run that these tests disturb."""

import sys
from pathlib import Path

import pytest

OPTIONS = {
    "model.image-size": 16,
    "model.decoder-dim": 32,
    "batch-size": 60,
    "epochs": 1,
    "warmup-epochs": 0,
    "log-every": 5,
    "device": "cpu",
    "workers": 1,
    "save-every-minutes": 0,
}


@pytest.fixture
def command(tmp_path):
    """Makes `mvmae pretrain` on the built-in photographs: 60 steps, a checkpoint every 5."""

    def make(out: Path, **options) -> list[str]:
        words = [sys.executable, "-m", "mvmae", "pretrain", "photos", "--recipe", "demo"]
        for name, value in (OPTIONS | options).items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        return [*words, "--out", str(out)]

    return make
