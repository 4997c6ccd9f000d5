"""The seed alone decides which image is in which step, wherever and whenever a run starts."""

from itertools import chain
from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mvmae.data.reading.loader import StepSampler, epoch_order

seeds = st.integers(0, 2**32)


class Run(NamedTuple):
    num_images: int
    batch_size: int
    seed: int
    num_steps: int
    world_size: int

    @property
    def per_epoch(self) -> int:
        return self.num_images // self.batch_size

    def steps(self, steps: range, rank: int = 0, world_size: int = 1) -> StepSampler:
        order = self.seed, self.batch_size
        return StepSampler(self.num_images, *order, steps, rank, world_size)


@st.composite
def runs(draw) -> Run:
    """A world size that shares the batch, and at least one batch of images."""
    world_size = draw(st.integers(1, 4))
    batch_size = world_size * draw(st.integers(1, 6))
    num_images = draw(st.integers(batch_size, 60))
    num_steps = draw(st.integers(1, 4 * (num_images // batch_size) + 1))
    return Run(num_images, batch_size, draw(seeds), num_steps, world_size)


@given(runs())
def test_no_image_is_seen_twice_in_an_epoch(run):
    seen = [pair for step in run.steps(range(run.num_steps)) for pair in step]
    assert len(set(seen)) == len(seen)
    assert all(0 <= index < run.num_images for _, index in seen)


@given(runs())
def test_every_image_of_the_kept_part_is_seen_once_in_an_epoch(run):
    for epoch in range(3):
        steps = range(epoch * run.per_epoch, (epoch + 1) * run.per_epoch)
        pairs = [pair for step in run.steps(steps) for pair in step]
        kept = epoch_order(run.seed, epoch, run.num_images)[: run.per_epoch * run.batch_size]
        assert pairs == [(epoch, index) for index in kept.tolist()]


@given(runs())
def test_shares_of_all_processes_are_the_batch_of_one(run):
    steps, world_size = range(run.num_steps), run.world_size
    shares = [list(run.steps(steps, rank, world_size)) for rank in range(world_size)]
    together = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
    assert together == list(run.steps(steps))
    assert {len(part) for parts in shares for part in parts} == {run.batch_size // world_size}


@given(runs(), st.data())
def test_start_at_any_step_is_never_having_stopped(run, data):
    start = data.draw(st.integers(0, run.num_steps))
    rank = data.draw(st.integers(0, run.world_size - 1))
    whole = list(run.steps(range(run.num_steps), rank, run.world_size))
    rest = list(run.steps(range(start, run.num_steps), rank, run.world_size))
    assert rest == whole[start:]


@given(runs())
def test_sampler_can_be_read_again_and_knows_its_length(run):
    sampler = run.steps(range(run.num_steps))
    first, second = list(sampler), list(sampler)
    assert first == second
    assert len(sampler) == len(first) == run.num_steps


@given(seeds, st.integers(0, 1000), st.integers(1, 200))
def test_order_of_an_epoch_is_every_image_once(seed, epoch, num_images):
    assert np.array_equal(np.sort(epoch_order(seed, epoch, num_images)), np.arange(num_images))


@given(seeds, st.integers(0, 1000))
def test_order_changes_with_the_epoch_and_with_the_seed(seed, epoch):
    order = epoch_order(seed, epoch, 100)
    assert not np.array_equal(order, epoch_order(seed, epoch + 1, 100))
    assert not np.array_equal(order, epoch_order(seed + 1, epoch, 100))
