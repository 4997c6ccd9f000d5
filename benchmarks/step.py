"""Our training step against those of other packages, timed in turn in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from math import ceil
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import parts
from benchmarks.config import BenchConfig
from benchmarks.peers import about, peer_steps
from benchmarks.plain import PlainBatch
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.loader import Batch
from mvmae.errors import UserError
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.pretrain import training_step
from mvmae.method.views import normalize
from mvmae.training import precision
from mvmae.training.memory import peak_on_cpu
from mvmae.training.optim import adamw

GIB = 2**30
COMPILED = "ours_compiled"
MIN_SECONDS = 0.5  # of one timing: shorter steps are repeated
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
MATMUL_TRIES = 3  # in each round; the best of all counts

Step = Callable[[], Tensor]  # updates the weights once and returns the loss


class Cost(NamedTuple):
    """Facts about a side, known before it is timed."""

    first_loss: float
    """Of the first step, from equal weights on an equal batch."""

    gflop: float
    """Of a step, forward and backward; a multiply-add is two."""

    memory_gib: float
    """See `step_memory`."""


class Sides(NamedTuple):
    """The steps that are compared: equal weights, equal pixels, equal noise."""

    model: MaskedAutoencoder
    steps: dict[str, Step]
    """Ours first, then one a peer."""

    left_out: dict[str, str]
    """Peers that are left out, and why."""


def measure(config: BenchConfig, device: torch.device) -> dict[str, Any]:
    """Time every side and return the result for the JSON.

    Raises:
        UserError: A version of a package names its weights in an unknown way, the packages do not
            have this model, or there is nothing to compile with.
    """
    training = training_config(config)
    model, steps, left_out = make_sides(config, training, device)
    costs = measure_costs(steps, device)  # these steps also warm up
    times = seconds_in_turn(steps, device, config)
    seconds = times.seconds
    sides = {
        name: summary(costs[name], seconds[name], training.batch_size, times.matmul)
        for name in steps
    }
    ours, faster = sides.pop("ours"), sides.pop(COMPILED, None)
    for name, side in sides.items():
        side |= against(ours, seconds["ours"], side, seconds[name]) | {"version": version(name)}
    if faster is not None:
        faster |= against(faster, seconds[COMPILED], ours, seconds["ours"])
    return {
        "ours": ours,
        **({} if faster is None else {COMPILED: faster}),
        "peers": sides,
        "peers_left_out": left_out,
        "profile": profile_step(steps["ours"], model, device),
        "matmul_gflop_per_second": round(times.matmul, 1),
        "dtype": str(compute_dtype(device, config.precision)).removeprefix("torch."),
        "steps_per_timing": times.repeats,
    }


class Times(NamedTuple):
    """Times of the rounds."""

    seconds: dict[str, list[float]]
    """Seconds of a step, for each side and round."""

    matmul: float
    """GFLOP/s of the best large product."""

    repeats: int
    """Steps in a round."""


def seconds_in_turn(steps: dict[str, Step], device: torch.device, config: BenchConfig) -> Times:
    """Time all sides, one after the other in every round."""
    repeats = max(1, ceil(MIN_SECONDS / time_calls(steps["ours"], device)))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    matmul = 0.0
    for _ in range(config.num_rounds):
        for name, step in steps.items():
            seconds[name].append(time_calls(step, device, repeats))
        matmul = max(matmul, matmul_rate(device, config.precision))
    return Times(seconds, matmul, repeats)


def measure_costs(steps: dict[str, Step], device: torch.device) -> dict[str, Cost]:
    """Measure the cost of each side; the counter sees no products in compiled code."""
    costs = {"ours": measure_cost(steps["ours"], device)}
    for name, step in steps.items():
        if name != "ours":
            gflop = costs["ours"].gflop if name == COMPILED else None
            costs[name] = measure_cost(step, device, gflop)
    return costs


def against(
    ours: dict[str, Any], our_seconds: list[float], side: dict[str, Any], seconds: list[float]
) -> dict[str, Any]:
    """Return how many times as fast as another side we are, by the medians and by round."""
    rounds = zip(our_seconds, seconds, strict=True)
    return {
        "ratio": round(ours["images_per_second"] / side["images_per_second"], 4),
        "ratio_of_rounds": [round(theirs / mine, 4) for mine, theirs in rounds],
    }


def profile_step(step: Step, model: MaskedAutoencoder, device: torch.device) -> dict[str, Any]:
    """Return time and products of our step by part."""
    counter = count_products(step)
    gflop = parts.gflop_by_part(counter.get_flop_counts())
    return parts.parts_of_step(step, model, device) | {"gflop": gflop}


def training_config(config: BenchConfig) -> PretrainConfig:
    """Return the config of the run that the steps belong to, with the paper's objective.

    Raises:
        UserError: The packages do not have this model, or the batch is too small to contrast.
    """
    model = config.step_model
    if model.height_width[0] != model.height_width[1]:
        raise UserError(
            "transformers' ViTMAE and lightly take square images only: give one --model.image-size"
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


def make_sides(config: BenchConfig, training: PretrainConfig, device: torch.device) -> Sides:
    """Make our step, the same compiled if requested, and the peers' steps.

    Raises:
        UserError: A version of a package names its weights in an unknown way, or there is nothing
            to compile with.
    """
    peers, left_out = peer_steps(config, training, device)
    batch = random_batch(training, pinned=device.type == "cuda")
    plain_batch = as_plain(batch, training)
    model = new_model(training, device)
    for peer in peers.values():
        peer.load(model.state_dict())
    steps: dict[str, Step] = {"ours": our_step(model, training, batch, device)}
    if config.compile == "on" or (config.compile == "auto" and device.type == "cuda"):
        faster = precision.compile_model(new_model(training, device), "on", device)
        steps[COMPILED] = our_step(faster, training, batch, device)
    steps |= {name: partial(peer, plain_batch) for name, peer in peers.items()}
    return Sides(model, steps, left_out)


def new_model(training: PretrainConfig, device: torch.device) -> MaskedAutoencoder:
    """Make our model, always with the same weights."""
    return MaskedAutoencoder(training.model, Generator().manual_seed(0)).to(device).train()


def our_step(
    model: nn.Module, training: PretrainConfig, batch: Batch, device: torch.device
) -> Step:
    """Make the step of `pretrain`."""
    decay = training.weight_decay
    optimizer = adamw(model, lr=training.lr, betas=training.betas, weight_decay=decay)

    def step() -> Tensor:
        _, losses = training_step(model, optimizer, batch, training, device)
        return losses["loss"].detach()

    return step


def random_batch(training: PretrainConfig, *, pinned: bool) -> Batch:
    """Make a batch of random pixels, in the form of our loader."""
    generator = Generator().manual_seed(0)
    model = training.model
    shape = (2, training.batch_size, model.in_channels, *model.height_width)
    views = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    noise = torch.rand(2, training.batch_size, model.num_patches, generator=generator)
    if pinned:
        views, noise = views.pin_memory(), noise.pin_memory()
    return Batch(views, noise, [], True)


def as_plain(batch: Batch, training: PretrainConfig) -> PlainBatch:
    """Return the same batch as torchvision's transforms would: already normalised."""
    mean, std = training.pixel_statistics
    images = normalize(batch.views.flatten(0, 1), mean, std, torch.device("cpu"))
    images = images.pin_memory() if batch.views.is_pinned() else images
    first, second = images.chunk(2)
    return PlainBatch((first, second), (batch.noise[0], batch.noise[1]))


def measure_cost(step: Step, device: torch.device, gflop: float | None = None) -> Cost:
    """Take a few steps, the first from equal weights.

    Args:
        step: Step of one side.
        device: Device that computes.
        gflop: Products of a step, if known; otherwise they are counted.
    """
    first = float(step())
    return Cost(first, count_gflop(step) if gflop is None else gflop, step_memory(step, device))


def count_gflop(step: Step) -> float:
    """Return GFLOP of the matrix products and convolutions of a step."""
    return count_products(step).get_total_flops() / 1e9


def count_products(step: Step) -> FlopCounterMode:
    """Count the products of a step, also by module.

    Attention runs as plain products here: with a fused kernel, the counter would count its products
    twice.
    """
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter


def step_memory(step: Step, device: torch.device) -> float:
    """Return GiB of tensors at the peak of a step, beyond those that stay between steps.

    Those that stay (weights, gradients and AdamW's averages) are the same for all sides.
    """
    if device.type != "cuda":
        return round(peak_on_cpu(step) / GIB, 3)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return round((torch.cuda.max_memory_allocated(device) - before) / GIB, 3)


def time_calls(work: Callable[[], Any], device: torch.device, repeats: int = 1) -> float:
    """Return the seconds of one call, as the mean of several."""
    _wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - begin) / repeats


def _wait(device: torch.device) -> None:
    """Wait until a GPU has finished: its calls return earlier."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compute_dtype(device: torch.device, precision_name: str) -> torch.dtype:
    """Return the type of the matrix products of both sides."""
    with precision.autocast(device, precision_name):
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
    return torch.float32


def matmul_rate(device: torch.device, precision_name: str) -> float:
    """Return GFLOP/s of a product of large square matrices: the machine's present speed."""
    side = MATMUL_SIDE[device.type]
    dtype = compute_dtype(device, precision_name)
    left, right = torch.randn(2, side, side, device=device, dtype=dtype)
    seconds = min(time_calls(lambda: left @ right, device) for _ in range(MATMUL_TRIES))
    return 2 * side**3 / seconds / 1e9


def summary(cost: Cost, seconds: list[float], batch_size: int, matmul: float) -> dict[str, Any]:
    """Return one side for the JSON; rates are by the median round."""
    rate = cost.gflop / median(seconds)
    return {
        "images_per_second": round(batch_size / median(seconds), 4),
        "seconds_per_step": [round(value, 5) for value in seconds],
        "gflop_per_step": round(cost.gflop, 4),
        "gflop_per_second": round(rate, 1),
        "share_of_matmul": round(rate / matmul, 4),
        "step_memory_gib": cost.memory_gib,
        "first_loss": cost.first_loss,
    }


def make_tables(result: dict[str, Any], config: BenchConfig) -> list[Table]:
    """Make the table of all sides and the table of our step by part."""
    return [sides_table(result, config), parts.make_table(result)]


def sides_table(result: dict[str, Any], config: BenchConfig) -> Table:
    """Make the table of all sides, a row each; the ratio is our speed to theirs."""
    model = config.step_model
    table = Table(
        title=f"training step, {model.encoder} at {model.image_size}, batch {config.batch_size}, "
        f"two views, {result['dtype']}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("")
    columns = ("images/s", "ratio", "GFLOP", "GFLOP/s", "of matmul", "GiB")
    for column in columns:
        table.add_column(column, justify="right")
    ours = {"mvmae": result["ours"]}
    if COMPILED in result:
        ours["mvmae, compiled"] = result[COMPILED]
    for name, side in (ours | result["peers"]).items():
        table.add_row(
            name,
            f"{side['images_per_second']:.2f}",
            f"{side['ratio']:.2f}" if name in result["peers"] else "",
            f"{side['gflop_per_step']:.1f}",
            f"{side['gflop_per_second']:.0f}",
            f"{side['share_of_matmul']:.0%}",
            f"{side['step_memory_gib']:.2f}",
        )
    return table


def make_notes(result: dict[str, Any], config: BenchConfig) -> list[str]:
    """Make the notes below the tables."""
    peers, ours = result["peers"], result["ours"]
    profiled, seconds = result["profile"], median(ours["seconds_per_step"])
    losses = ", ".join(f"{side['first_loss']:.5f}" for side in (ours, *peers.values()))
    ratios = {name: side["ratio_of_rounds"] for name, side in peers.items()}
    operators = list(profiled["operators"].items())[:5]
    return [
        *(f"{about(name)}, {config.attention} attention, AdamW as it comes" for name in peers),
        *compiled_notes(result),
        *(f"left out: {why}; pip install {name}" for name, why in result["peers_left_out"].items()),
        f"medians of {config.num_rounds} rounds in turn, {result['steps_per_timing']} steps each",
        *(
            f"ratio to {name} by round: {min(rounds):.2f} to {max(rounds):.2f}"
            for name, rounds in ratios.items()
        ),
        f"matmul of the same type in the same run: {result['matmul_gflop_per_second']:.0f} GFLOP/s",
        f"loss of the first step from equal weights: {losses}",
        f"by part: one step under the profiler, {profiled['total'] / 1e3 / seconds:.2f} times a "
        "step without it; rest: pixels to floats, gradients to their places, and the time between",
        "by operator: "
        + ", ".join(f"{kind} {spent / profiled['total']:.0%}" for kind, spent in operators),
        "GiB: tensors at the peak of a step, beyond weights, gradients and AdamW's averages",
    ]


def compiled_notes(result: dict[str, Any]) -> list[str]:
    """Make the notes on compiling, if it was timed."""
    if COMPILED not in result:
        return []
    side = result[COMPILED]
    low, high = min(side["ratio_of_rounds"]), max(side["ratio_of_rounds"])
    return [
        f"compiled: {side['ratio']:.2f} times as fast as without ({low:.2f} to {high:.2f} by "
        "round); GFLOP are those without; ratios and parts are of the step without"
    ]
