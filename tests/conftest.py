"""What every test shares: one thread, a fixed seed, and small generated data."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # child processes inherit it

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import PretrainConfig

REPOSITORY = Path(__file__).parents[1]

# The same cases each time, on a machine of any speed.
settings.register_profile("mvmae", derandomize=True, deadline=None)
settings.load_profile("mvmae")

torch.set_num_threads(1)  # two cores, several test processes: more threads only get in the way


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens to."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def data_root() -> Path:
    """The folder of real images; the test is skipped where there is none."""
    root = Path(os.environ.get("MVMAE_TEST_DATA", REPOSITORY / "../shared/data"))
    if not root.is_dir():
        pytest.skip("no real images here: set MVMAE_TEST_DATA to their folder")
    return root


@pytest.fixture
def image_folder(tmp_path) -> Callable[..., Path]:
    """Makes folders CLASS/NUMBER.jpg of small noisy images, each class in a colour of its own."""

    def make(
        name: str = "images",
        *,
        classes: tuple[str, ...] = ("blue", "red"),
        per_class: int = 4,
        size: tuple[int, int] = (24, 20),
        suffix: str = ".jpg",
        seed: int = 0,
    ) -> Path:
        rng = np.random.default_rng(seed)
        for number, label in enumerate(classes):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            colour = np.random.default_rng(number).integers(40, 215, 3)
            for index in range(per_class):
                noise = rng.integers(-40, 41, (*size, 3))
                pixels = (colour + noise).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}{suffix}")
        return tmp_path / name

    return make


@pytest.fixture
def tiny(tmp_path) -> PretrainConfig:
    """A run of seconds: 16 patches of 4 x 4 pixels, 8 images in a batch."""
    return PretrainConfig(
        out=tmp_path / "run",
        model=ModelConfig(
            encoder="vit_pico", image_size=16, patch_size=4, decoder_dim=32, decoder_depth=1
        ),
        epochs=2,
        batch_size=8,
        warmup_epochs=0.0,
        workers=0,
        device="cpu",
    )
