"""Peak memory of a piece of work, and how training's memory grows with its batch."""

import sys
from dataclasses import replace

import pytest
import torch

from mvmae import recipes
from mvmae.config.model import ModelConfig
from mvmae.method.preflight.measured_step import (
    CpuMemory,
    Trial,
    make_step,
    measure_cpu_memory,
    power_of_two,
    random_views,
)
from mvmae.method.pretrain import training_step
from mvmae.training import memory

CPU = torch.device("cpu")


def test_memory_of_work_is_what_its_tensors_take_at_most():
    kept = []

    def work() -> None:
        kept.append(torch.empty(250_000))  # a million bytes, which stay
        first = torch.empty(500_000)
        del first
        torch.empty(750_000).add_(1)

    assert memory.peak_on_cpu(work) == pytest.approx(3_000_000, abs=1000)


def test_what_the_profiler_says_does_not_reach_the_user(capfd):
    memory.peak_on_cpu(lambda: torch.empty(10))
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_a_process_knows_what_it_holds():
    before = memory.resident()
    held = bytearray(b"x" * (200 * 2**20))
    now = memory.resident()
    assert before is not None
    assert now is not None
    assert (now - before) / 2**20 == pytest.approx(200, abs=20)
    assert len(held) < now < memory.total(CPU)


def test_a_container_s_limit_counts(monkeypatch, tmp_path):
    assert memory.total(CPU) > 2**28
    (tmp_path / "memory.max").write_text("268435456\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    assert memory.total(CPU) == 2**28
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.total(CPU) > 2**28


def test_need_grows_with_images_once_they_outweigh_the_gradients():
    need = CpuMemory(process=100, weights=1000, per_image=10.0)
    assert need.peak_bytes(1) == need.peak_bytes(100) == 100 + 4 * 1000
    assert need.peak_bytes(300) == 100 + 3 * 1000 + 3000
    assert need.images_within(100.0 + 3 * 1000 + 3000) == 300
    assert need.images_within(100.0 + 4 * 1000) == 100
    assert need.images_within(100.0 + 4 * 1000 - 1) == 0


@pytest.mark.parametrize("recompute", [False, True])
def test_need_found_with_few_images_holds_for_many(recompute):
    model = ModelConfig(encoder="vit_nano", image_size=64, patch_size=8, decoder_dim=64)
    config = replace(recipes.named("pretrain", "tiny-cpu"), model=model, recompute=recompute)
    trial = Trial(config, CPU, training_step, random_views(config))
    need = measure_cpu_memory(trial, 4)
    assert need is not None
    step = make_step(trial, 128)
    step()
    beyond = memory.peak_on_cpu(step)
    assert need.peak_bytes(128) - need.process - 4 * need.weights == pytest.approx(beyond, rel=0.15)


def test_random_pixels_are_of_the_depth_that_the_run_has():
    config = recipes.named("pretrain", "tiny-cpu")
    assert random_views(config).dtype == torch.uint8
    deep = replace(
        config,
        model=replace(config.model, in_channels=5),
        views=replace(config.views, depth="float", mean=(0.0,) * 5, std=(1.0,) * 5),
    )
    views = random_views(deep)
    assert views.dtype == torch.float32
    assert views.shape == (2, 1, 5, 64, 64)


def test_powers_of_two():
    assert [power_of_two(size) for size in (1, 2, 3, 4, 1023, 1024)] == [1, 2, 2, 4, 512, 1024]
