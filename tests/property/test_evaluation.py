import contextlib
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvmae.cli.parse import parse
from mvmae.config.evaluation import KnnConfig, LabelsConfig, ProbeConfig
from mvmae.config.files import command_line, from_json, to_json
from mvmae.errors import UserError
from mvmae.metrics.label_curve import labels_needed, stratified_draw

# A name that begins with a dash would be an option, `None` and numbers are what they say.
names = st.from_regex(r"[a-zé/._:$'\"*( ][a-zA-Z0-9é/._:$'\"*( \-]{0,12}", fullmatch=True)
paths = st.from_regex(r"[a-z./ ]{0,3}[a-z]{1,8}( x)?(/[a-z0-9_.'-]{1,8}[a-z])?", fullmatch=True)
positive = st.floats(1e-9, 1e9)
count = st.integers(1, 10**6)

SHARED = {
    "encoder": names,
    "data": names,
    "image_size": st.none() | count | st.tuples(count, count),
    "in_channels": st.sampled_from((None, 1, 3)),
    "pool": st.sampled_from([None, "mean", "cls"]),
    "max_train": st.none() | count,
    "max_test": st.none() | count,
    "baselines": st.booleans(),
    "batch_size": count,
    "device": st.sampled_from(["auto", "cpu", "cuda"]),
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
    "workers": st.none() | st.integers(0, 64),
    "seed": st.integers(0, 2**63 - 1),
    "out": st.none() | paths.map(Path),
}
costs = st.lists(positive, min_size=1, max_size=4, unique=True).map(tuple)
shares = st.lists(st.floats(1e-6, 1), max_size=4, unique=True).map(tuple)
counts = st.lists(count, max_size=3, unique=True).map(tuple)
KINDS: dict[str, tuple[Any, dict]] = {
    "knn": (
        KnnConfig,
        {
            "k": st.lists(count, min_size=1, max_size=4, unique=True).map(tuple),
            "temperature": positive,
        },
    ),
    "probe": (
        ProbeConfig,
        {
            "protocol": st.sampled_from(["cached", "mae"]),
            "costs": costs,
            "max_iterations": count,
            "epochs": st.integers(101, 10_000),
            "step_size": count,
            "base_lr": positive,
            "warmup_epochs": st.floats(0, 100),
            "crop_scale": st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple),
            "save_every_minutes": st.floats(0, 1e6),
        },
    ),
    "labels": (
        LabelsConfig,
        {
            "against": st.lists(names, max_size=3, unique=True).map(tuple),
            "shares": shares,
            "per_class": counts,
            "draws": count,
            "costs": costs,
            "max_iterations": count,
        },
    ),
}


@st.composite
def values(draw, command: str) -> dict[str, Any]:
    """What a command may be asked for; the config of it is made outside, for beartype draws too."""
    fields = SHARED | KINDS[command][1]
    chosen = draw(st.sets(st.sampled_from(sorted(fields)), max_size=8)) | {"encoder"}
    drawn = {name: draw(fields[name]) for name in sorted(chosen)}
    if "epochs" not in drawn:
        drawn.pop("warmup_epochs", None)
    if drawn.get("shares") == () and not drawn.get("per_class"):
        drawn.pop("shares")
    return drawn


@pytest.mark.parametrize("command", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_the_command_that_a_result_names_asks_for_the_same(command, data):
    config = KINDS[command][0](**data.draw(values(command)))
    program, said, *args = shlex.split(command_line(command, config))
    assert (program, said) == ("mvmae", command)
    assert parse(command, args) == config


@pytest.mark.parametrize("command", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_json_brings_back_any_evaluation(command, data):
    config = KINDS[command][0](**data.draw(values(command)))
    assert from_json(to_json(config), type(config), source="result.json") == config


labelled = st.lists(st.integers(0, 6), min_size=1, max_size=60)


@given(labelled, st.floats(1e-4, 1), st.integers(0, 99))
def test_a_share_is_drawn_of_every_class_alike(labels, share, seed):
    labels = np.array(labels)
    drawn = stratified_draw(labels, share, np.random.default_rng(seed))
    assert (np.diff(drawn) > 0).all()
    for label, size in zip(*np.unique(labels, return_counts=True), strict=True):
        taken = (labels[drawn] == label).sum()
        assert taken >= 1
        assert abs(taken - share * size) <= max(0.5, 1 - share * size)
        assert taken <= size


@given(labelled, st.integers(1, 20), st.integers(0, 99))
def test_a_number_is_drawn_of_every_class_or_all_there_is(labels, number, seed):
    labels = np.array(labels)
    drawn = stratified_draw(labels, number, np.random.default_rng(seed))
    assert (np.diff(drawn) > 0).all()
    for label, size in zip(*np.unique(labels, return_counts=True), strict=True):
        assert (labels[drawn] == label).sum() == min(number, size)


@given(
    st.lists(
        st.tuples(st.integers(1, 10**6), st.floats(0, 100)),
        min_size=1,
        max_size=6,
        unique_by=lambda point: point[0],
    ),
    st.floats(0, 100),
)
def test_labels_needed_lie_within_the_curve_or_nowhere(curve, target):
    numbers, accuracies = zip(*curve, strict=True)
    needed = labels_needed(numbers, accuracies, target)
    if needed is None:
        assert max(accuracies) < target
    else:
        assert min(numbers) * 0.999 <= needed <= max(numbers) * 1.001


@given(st.sampled_from(list(KINDS)), st.text(max_size=12), st.text(max_size=12))
def test_any_encoder_and_data_are_refused_by_nothing_but_a_user_error(command, encoder, data):
    with contextlib.suppress(UserError):
        config = KINDS[command][0](encoder=encoder, data=data)
        assert from_json(to_json(config), type(config), source="") == config
