"""A training step of ours against the plain one, timed in turn in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from math import ceil
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mvmae.config import BenchConfig, PretrainConfig
from mvmae.data.loader import Batch
from mvmae.data.views import normalized
from mvmae.engine import precision
from mvmae.engine.optim import adamw
from mvmae.errors import UserError
from mvmae.models.mae import MaskedAutoencoder
from mvmae.tasks.benching.plain import Attention, PlainBatch, PlainStep
from mvmae.tasks.pretrain import training_step

MIN_SECONDS = 0.5  # of one timing: shorter steps are repeated
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
MATMUL_TRIES = 3  # in each round; the best of all counts

Step = Callable[[], Tensor]  # updates the weights once and returns the loss


class Cost(NamedTuple):
    """What is known of a side before it is timed."""

    first_loss: float
    """Of the first step, from equal weights on an equal batch."""

    gflop: float
    """Of a step, forward and backward; a multiply-add is two."""

    memory_gib: float | None
    """See `step_memory`."""


def measure(config: BenchConfig, device: torch.device) -> dict[str, Any]:
    """Time both sides; returns what goes into the JSON.

    Raises:
        UserError: transformers is not installed, or has no such model.
    """
    training = training_config(config)
    steps = both_steps(training, device, config.attention)
    costs = [cost_of(step, device) for step in steps]  # these steps also warm up
    repeats = max(1, ceil(MIN_SECONDS / min(seconds_of(step, device) for step in steps)))
    ours, plain = [], []
    matmul = 0.0
    for _ in range(config.rounds):
        ours.append(seconds_of(steps[0], device, repeats))
        plain.append(seconds_of(steps[1], device, repeats))
        matmul = max(matmul, matmul_rate(device, config.precision))
    sides = [
        summary(cost, seconds, training.batch_size, matmul)
        for cost, seconds in zip(costs, (ours, plain), strict=True)
    ]
    return {
        "ours": sides[0],
        "plain": sides[1] | {"transformers": version("transformers")},
        "ratio": round(sides[0]["images_per_second"] / sides[1]["images_per_second"], 4),
        "ratio_of_rounds": [round(p / o, 4) for o, p in zip(ours, plain, strict=True)],
        "matmul_gflop_per_second": round(matmul, 1),
        "dtype": str(compute_dtype(device, config.precision)).removeprefix("torch."),
        "steps_per_timing": repeats,
    }


def training_config(config: BenchConfig) -> PretrainConfig:
    """The run that the steps belong to, with the paper's objective.

    Raises:
        UserError: transformers has no such model, or the batch is too small to contrast.
    """
    model = config.step_model
    if model.height_width[0] != model.height_width[1]:
        raise UserError(
            "transformers' ViTMAE takes square images only: give one --model.image-size"
        )
    if model.latent != "mean" or model.head != "none":
        raise UserError(
            "the plain step contrasts the mean token: leave out --model.latent and --model.head"
        )
    return PretrainConfig(
        model=model,
        batch_size=config.batch_size,
        device=config.device,
        precision=config.precision,
    )


def both_steps(
    training: PretrainConfig, device: torch.device, attention: Attention
) -> tuple[Step, Step]:
    """Our step and the plain one: equal weights, equal pixels, equal noise."""
    plain = PlainStep(training, device, attention)
    model = MaskedAutoencoder(training.model, Generator().manual_seed(0)).to(device).train()
    plain.load(model.state_dict())
    decay = training.weight_decay
    optimizer = adamw(model, lr=training.lr, betas=training.betas, weight_decay=decay)
    batch = random_batch(training, pinned=device.type == "cuda")
    plain_batch = as_plain(batch, training)

    def ours() -> Tensor:
        _, losses = training_step(model, optimizer, batch, training, device)
        return losses["loss"].detach()

    return ours, lambda: plain(plain_batch)


def random_batch(training: PretrainConfig, *, pinned: bool) -> Batch:
    """A batch as our loader makes it, of random pixels."""
    generator = Generator().manual_seed(0)
    model = training.model
    shape = (2, training.batch_size, model.in_channels, *model.height_width)
    views = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    noise = torch.rand(2, training.batch_size, model.num_patches, generator=generator)
    if pinned:
        views, noise = views.pin_memory(), noise.pin_memory()
    return Batch(views, noise, [], True)


def as_plain(batch: Batch, training: PretrainConfig) -> PlainBatch:
    """The same batch as torchvision's transforms hand it over: normalised already."""
    mean, std = training.pixel_statistics
    images = normalized(batch.views.flatten(0, 1), mean, std, torch.device("cpu"))
    images = images.pin_memory() if batch.views.is_pinned() else images
    first, second = images.chunk(2)
    return PlainBatch((first, second), (batch.noise[0], batch.noise[1]))


def cost_of(step: Step, device: torch.device) -> Cost:
    """Take a few steps, of which the first is from equal weights."""
    return Cost(float(step()), gflop_of(step), step_memory(step, device))


def gflop_of(step: Step) -> float:
    """GFLOP of the matrix products and convolutions of a step.

    Attention is counted as plain products: the counter would add what a fused kernel computes
    twice.
    """
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops() / 1e9


def step_memory(step: Step, device: torch.device) -> float | None:
    """GiB on the GPU at the peak of a step, beyond what stays between steps.

    What stays, weights, gradients and AdamW's averages, is the same for both sides. None on a CPU,
    where the two share a process and nothing counts for each.
    """
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**30, 3)


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int = 1) -> float:
    """Seconds of one call, as the mean of so many."""
    _wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - begin) / repeats


def _wait(device: torch.device) -> None:
    """A GPU works on after a call has returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compute_dtype(device: torch.device, precision_name: str) -> torch.dtype:
    """Of the matrix products of both sides."""
    with precision.autocast(device, precision_name):
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
    return torch.float32


def matmul_rate(device: torch.device, precision_name: str) -> float:
    """GFLOP/s of a product of large square matrices: what the machine gives just now."""
    side = MATMUL_SIDE[device.type]
    dtype = compute_dtype(device, precision_name)
    left, right = torch.randn(2, side, side, device=device, dtype=dtype)
    seconds = min(seconds_of(lambda: left @ right, device) for _ in range(MATMUL_TRIES))
    return 2 * side**3 / seconds / 1e9


def summary(cost: Cost, seconds: list[float], batch_size: int, matmul: float) -> dict[str, Any]:
    """One side for the JSON; rates are by the median round."""
    rate = cost.gflop / median(seconds)
    return {
        "images_per_second": round(batch_size / median(seconds), 4),
        "seconds_per_step": [round(value, 5) for value in seconds],
        "gflop_per_step": round(cost.gflop, 2),
        "gflop_per_second": round(rate, 1),
        "share_of_matmul": round(rate / matmul, 4),
        "step_memory_gib": cost.memory_gib,
        "first_loss": cost.first_loss,
    }


def table_of(result: dict[str, Any], config: BenchConfig) -> Table:
    """Both sides, a row each."""
    model = config.step_model
    table = Table(
        title=f"training step, {model.encoder} at {model.image_size}, batch {config.batch_size}, "
        f"two views, {result['dtype']}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("")
    has_memory = result["ours"]["step_memory_gib"] is not None
    columns = ["images/s", "ratio", "GFLOP a step", "GFLOP/s", "of matmul"]
    for column in columns + ["GiB"] * has_memory:
        table.add_column(column, justify="right")
    for name, side, ratio in (
        ("mvmae", result["ours"], result["ratio"]),
        ("transformers", result["plain"], 1.0),
    ):
        cells = [
            f"{side['images_per_second']:.2f}",
            f"{ratio:.2f}",
            f"{side['gflop_per_step']:.1f}",
            f"{side['gflop_per_second']:.0f}",
            f"{side['share_of_matmul']:.0%}",
        ]
        table.add_row(name, *cells, *([str(side["step_memory_gib"])] * has_memory))
    return table


def notes_of(result: dict[str, Any], config: BenchConfig) -> list[str]:
    """What the table does not say."""
    rounds = result["ratio_of_rounds"]
    return [
        f"transformers {result['plain']['transformers']}: ViTMAE, {config.attention} attention, "
        "one pass a view, AdamW as it comes",
        f"medians of {config.rounds} rounds in turn, {result['steps_per_timing']} steps each; "
        f"the ratio was {min(rounds):.2f} to {max(rounds):.2f} by round",
        f"matmul of the same type in the same run: {result['matmul_gflop_per_second']:.0f} GFLOP/s",
        "loss of the first step from equal weights: "
        f"{result['ours']['first_loss']:.5f} and {result['plain']['first_loss']:.5f}",
    ]
