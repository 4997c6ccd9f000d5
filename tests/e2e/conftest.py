"""The command line as a user types it, on runs of a second."""

from collections.abc import Callable
from pathlib import Path

import pytest

A_SECOND = {  # 3 of 16 patches visible, 8 images in a batch
    "recipe": "demo",
    "model.image-size": 16,
    "model.decoder-dim": 32,
    "batch-size": 8,
    "epochs": 4,
    "warmup-epochs": 0,
    "log-every": 2,
    "device": "cpu",
    "workers": 0,
}


@pytest.fixture
def pretrain_command() -> Callable[..., list[str]]:
    """Makes the arguments of `mvmae pretrain` for data and a run folder.

    Further options are given by name: `{"base-lr": 0.1}`; None leaves one of `A_SECOND` out.
    """

    def make(data: Path | str, out: Path | str, options: dict | None = None) -> list[str]:
        words = ["pretrain", str(data), "--out", str(out)]
        for name, value in (A_SECOND | (options or {})).items():
            if value is None:
                continue
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [f"--{name}", *map(str, values)]
        return words

    return make
