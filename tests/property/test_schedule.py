import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvmae.training.plan import warmup_cosine

peaks = st.floats(1e-6, 10)


@st.composite
def lengths(draw) -> dict[str, int]:
    """A run and a shorter warm-up, none at all too."""
    total = draw(st.integers(1, 1000))
    return {"warmup_steps": draw(st.integers(0, total - 1)), "total_steps": total}


@given(lengths(), peaks, st.integers(0, 2000))
def test_the_rate_stays_between_nothing_and_its_peak(length, peak, step):
    assert 0 <= warmup_cosine(step, peak=peak, **length) <= peak


@given(lengths(), peaks)
def test_the_rate_rises_to_its_peak_and_then_falls_to_nothing(length, peak):
    warmup, total = length["warmup_steps"], length["total_steps"]
    rates = [warmup_cosine(step, peak=peak, **length) for step in range(total + 1)]
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == peak
    assert rates[-1] == pytest.approx(0, abs=1e-12 * peak)
    assert warmup_cosine(total + 1, peak=peak, **length) == rates[-1]


@given(lengths(), peaks)
def test_the_rate_never_jumps(length, peak):
    warmup, total = length["warmup_steps"], length["total_steps"]
    rates = [warmup_cosine(step, peak=peak, **length) for step in range(total + 1)]
    for step, (before, after) in enumerate(itertools.pairwise(rates)):
        steepest = 1 / warmup if step < warmup else math.pi / 2 / (total - warmup)
        assert abs(after - before) <= peak * steepest * (1 + 1e-9)


@given(lengths(), peaks, st.integers(0, 1000))
def test_the_rate_is_proportional_to_its_peak(length, peak, step):
    once = warmup_cosine(step, peak=peak, **length)
    assert warmup_cosine(step, peak=2 * peak, **length) == pytest.approx(2 * once)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 300))
def test_the_cosine_is_symmetric_about_its_middle(warmup, half, step):
    length = {"peak": 1.0, "warmup_steps": warmup, "total_steps": warmup + 2 * half}
    step = min(step, half)
    early = warmup_cosine(warmup + step, **length)
    late = warmup_cosine(warmup + 2 * half - step, **length)
    assert early + late == pytest.approx(1)
