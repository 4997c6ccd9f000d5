import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvmae.config.files import from_json, to_json
from mvmae.config.model import ENCODERS, ModelConfig
from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.errors import UserError

words = st.text(min_size=1, max_size=20)
paths = st.from_regex(r"[a-z]{1,8}(/[a-z0-9 _.]{1,8}[a-z])?", fullmatch=True)


@st.composite
def model_values(draw) -> dict[str, Any]:
    patch = draw(st.integers(1, 16))
    sides = [patch * draw(st.integers(3, 20)) for _ in range(2)]
    return {
        "encoder": draw(st.sampled_from(list(ENCODERS))),
        "image_size": draw(st.sampled_from([tuple(sides), sides[0]])),
        "patch_size": patch,
        "in_channels": draw(st.integers(1, 4)),
        "mask_ratio": draw(st.floats(0.2, 0.85)),
        "decoder_depth": draw(st.integers(1, 12)),
        "decoder_dim": 32 * draw(st.integers(1, 16)),
        "latent": draw(st.sampled_from(["mean", "cls"])),
    }


@st.composite
def values(draw) -> dict[str, Any]:
    """What any pre-training may be asked for; `make_config` makes a config of it."""
    model = draw(model_values())
    shares = st.floats(0.01, 1)
    statistic = st.none() | st.tuples(*[shares] * model["in_channels"])
    contrast = draw(st.just(0.0) | st.floats(0.01, 10))
    numbers_in_a_patch = model["patch_size"] ** 2 * model["in_channels"]
    epochs = draw(st.integers(1, 10_000))
    return {
        "data": draw(st.lists(words, min_size=1, max_size=3).map(tuple)),
        "out": Path(draw(paths)),
        "model": model,
        "views": {
            "num_views": 2 if contrast else draw(st.sampled_from([1, 2])),
            "targets": draw(st.sampled_from(["two", "one"])),
            "crop_scale": tuple(sorted(draw(st.tuples(shares, shares)))),
            "flip": draw(st.sampled_from(["none", "horizontal"])),
            "mean": draw(statistic),
            "std": draw(statistic),
        },
        "objective": {
            "reconstruction_weight": draw(st.floats(0.01, 10)),
            "contrastive_weight": contrast,
            "temperature": draw(st.floats(1e-3, 10)),
            "reconstruct": draw(st.sampled_from(["masked", "all"])),
            # One number has no variance, so such patches cannot be normalised.
            "normalize_targets": numbers_in_a_patch > 1 and draw(st.booleans()),
        },
        "epochs": epochs,
        "batch_size": draw(st.integers(2, 4096)),
        "base_lr": draw(st.floats(1e-8, 1)),
        "warmup_epochs": draw(st.floats(0, epochs, exclude_max=True)),
        "betas": draw(st.tuples(st.floats(0, 0.999), st.floats(0, 0.999))),
        "clip_grad": draw(st.none() | st.floats(1e-3, 100)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "eval_data": draw(st.none() | words),
        "workers": draw(st.none() | st.integers(0, 64)),
        "log": draw(st.sampled_from([(), ("tensorboard",)])),
        "resume": draw(st.booleans()),
    }


def make_config(values: dict[str, Any]) -> PretrainConfig:
    parts = {"model": ModelConfig, "views": ViewsConfig, "objective": ObjectiveConfig}
    return PretrainConfig(**values | {name: kind(**values[name]) for name, kind in parts.items()})


@given(values())
def test_json_brings_back_any_config(values):
    config = make_config(values)
    text = to_json(config)
    again = from_json(text, PretrainConfig, source="config.json")
    assert again == config
    assert to_json(again) == text


@given(st.sampled_from(["", "model", "views", "objective"]), words)
def test_a_key_that_no_config_has_is_refused(part, key):
    plain = json.loads(to_json(PretrainConfig()))
    owner = plain[part] if part else plain
    if key not in owner:
        owner[key] = 1
        with pytest.raises(UserError, match="unknown key"):
            from_json(json.dumps(plain), PretrainConfig, source="config.json")


@given(model_values())
def test_a_model_that_is_accepted_shows_and_hides_a_patch(values):
    model = ModelConfig(**values)
    rows, columns = model.grid
    assert (rows * model.patch_size, columns * model.patch_size) == model.height_width
    assert model.num_patches == rows * columns
    assert 0 < model.num_visible < model.num_patches


@given(st.integers(-5, 300), st.integers(-5, 20), st.floats(), st.integers(-40, 200))
def test_a_model_is_refused_by_nothing_but_a_user_error(image, patch, ratio, dim):
    with contextlib.suppress(UserError):
        model = ModelConfig(image_size=image, patch_size=patch, mask_ratio=ratio, decoder_dim=dim)
        assert image % patch == dim % 32 == 0
        assert 0 < model.num_visible < model.num_patches
