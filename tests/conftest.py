"""Shared by all tests: one thread, a fixed seed, type checks and small generated data."""

import gc
import inspect
import os
import socket
import typing
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # child processes inherit it
# Tests limit the size of files in child processes. Python would write bytecode cut off at that
# limit, which later imports cannot read.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

import jaxtyping
import numpy as np
import pytest
import torch
from beartype import beartype
from hypothesis import settings
from PIL import Image


def annotates_arrays(hint: object) -> bool:
    """Return whether a type hint contains a shape."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    return any(map(annotates_arrays, parts))


def has_shapes(function: Callable) -> bool:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # names that are imported for type checkers only
        return True
    return any(map(annotates_arrays, hints.values()))


def check_types(*, typechecker, check_shapes=jaxtyping.jaxtyped):
    """Replace `jaxtyping.jaxtyped`, which pytest applies to every function of mvmae.

    Its bookkeeping of shapes costs 14 microseconds per call, also without any shapes. Functions
    that annotate none are checked by beartype alone, in a fiftieth of the time.
    """

    def decorate(checked):
        if inspect.isfunction(checked) and not has_shapes(checked):
            return beartype(checked)
        return check_shapes(typechecker=typechecker)(checked)

    return decorate


jaxtyping.jaxtyped = check_types  # before the first import of mvmae

REPOSITORY = Path(__file__).parents[1]

# The same cases each time, on a machine of any speed.
settings.register_profile("mvmae", derandomize=True, deadline=None)
settings.load_profile("mvmae")

torch.set_num_threads(1)  # two cores, several test processes: more threads only get in the way


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collection, which would visit it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # extension modules complain at the end about what was never freed


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def free_port() -> int:
    """An unused port."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def data_root() -> Path:
    """The folder of real images; without it the test is skipped."""
    root = Path(os.environ.get("MVMAE_TEST_DATA", REPOSITORY / "../shared/data"))
    if not root.is_dir():
        pytest.skip("no real images here: set MVMAE_TEST_DATA to their folder")
    return root


@pytest.fixture
def image_folder(tmp_path) -> Callable[..., Path]:
    """Makes folders CLASS/NUMBER.jpg of small noisy images, one colour per class."""

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
def tiny(tmp_path):
    """A run of seconds: 16 patches of 4 x 4 pixels, 8 images in a batch."""
    from mvmae.config.model import ModelConfig
    from mvmae.config.pretrain import PretrainConfig

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
