"""Where the time of a training step goes, by torch's profiler.

The model's modules and the two losses run inside named ranges. The forward time of a part is the
time of its ranges. Its backward time is that of the graph nodes that its operators created, which
autograd numbers. A GPU's time is that of its kernels. Time outside of all parts is the rest, so the
sum is the step's time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from mvmae.method import losses
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.vit import Block
from mvmae.training.memory import silence_stderr

MARK = "part of a step: "
MIN_GFLOP = 0.005  # less is not shown
OPTIMISER = "Optimizer.step#"  # torch's own name of a range around `step`
BACKWARD = "autograd::engine::evaluate_function: "  # and around each node
ORDER = (
    "masks, gathers",
    "patch embedding",
    "encoder attention",
    "encoder MLP",
    "encoder norms, sums",
    "into the decoder",
    "decoder attention",
    "decoder MLP",
    "decoder norms, sums",
    "prediction",
    "reconstruction loss",
    "contrast",
    "optimiser",
    "rest",
)
KINDS = {  # of operators, by what their names contain; the first that fits
    "matrix products": ("mm", "bmm", "linear", "convolution"),
    "attention kernel": ("attention",),
    "softmax": ("softmax",),
    "layer norm": ("layer_norm",),
    "GELU": ("gelu",),
    "copies, casts": ("copy", "cat", "clone", "index", "gather", "scatter", "fill", "zero"),
    "AdamW": ("adam",),
    "sums": ("add", "sum", "mul"),
}

Step = Callable[[], Any]


def parts_of_step(step: Step, model: MaskedAutoencoder, device: torch.device) -> dict[str, Any]:
    """Return milliseconds of a step by part and by kind of operator; parts add up to `total`."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with (
        ranges(model),
        silence_stderr(),
        profile(activities=activities, acc_events=True) as profiler,
    ):
        _wait(device)
        began = time.perf_counter()
        step()
        _wait(device)
        total = (time.perf_counter() - began) * 1e3
    events = [event for event in profiler.events() or () if event.device_type == DeviceType.CPU]
    clock = "device_time_total" if device.type == "cuda" else "cpu_time_total"
    forward, backward = time_by_part(events, clock)
    forward["rest"] = total - sum(forward.values()) - sum(backward.values())
    return {
        "total": round(total, 3),
        "parts": {
            name: {"forward": round(forward[name], 3), "backward": round(backward[name], 3)}
            for name in ORDER
            if name in forward
        },
        "operators": time_by_kind(events, f"self_{clock}"),
    }


def time_by_part(events: list[Any], clock: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return milliseconds forward and backward by part, from the profiler's events.

    A node of the graph has the number of the operator that made it. Operators that make no node
    have the number of the next one that does, so the last operator with a number made the node.
    """
    forward: dict[str, float] = defaultdict(float)
    backward: dict[str, float] = defaultdict(float)
    part_of_node: dict[int, str] = {}
    nodes = []
    for event in sorted(events, key=lambda event: event.time_range.start):
        milliseconds = getattr(event, clock) / 1e3
        if event.name.startswith(BACKWARD):
            nodes.append((event.sequence_nr, milliseconds))
        elif event.name.startswith(OPTIMISER):
            forward["optimiser"] += milliseconds
        elif event.name.startswith(MARK):
            forward[event.name.removeprefix(MARK)] += milliseconds
            if (outer := part_around(event.cpu_parent)) is not None:
                forward[outer] -= milliseconds
        elif event.sequence_nr >= 0 and not is_backward(event):
            part_of_node[event.sequence_nr] = part_around(event) or "rest"
    for number, milliseconds in nodes:
        part = part_of_node.get(number, "rest")
        if part != "rest":
            backward[part] += milliseconds
    return forward, backward


def part_around(event: Any) -> str | None:
    """Return the innermost part whose range contains an event, or the event's own part."""
    while event is not None:
        if event.name.startswith(MARK):
            return event.name.removeprefix(MARK)
        event = event.cpu_parent
    return None


def is_backward(event: Any) -> bool:
    """Return whether an operator runs in a node of the graph."""
    while event is not None:
        if event.name.startswith(BACKWARD):
            return True
        event = event.cpu_parent
    return False


def time_by_kind(events: list[Any], clock: str) -> dict[str, float]:
    """Return milliseconds by kind of operator, forward and backward: operators' own time."""
    sums: dict[str, float] = defaultdict(float)
    for event in events:
        name = event.name.lower()
        if name.startswith("aten::"):
            fits = (kind for kind, words in KINDS.items() if any(word in name for word in words))
            sums[next(fits, "other operators")] += getattr(event, clock) / 1e3
    return {kind: round(value, 3) for kind, value in sorted(sums.items(), key=lambda kv: -kv[1])}


@contextmanager
def ranges(model: MaskedAutoencoder) -> Iterator[None]:
    """Name the model's modules and the losses for the profiler inside the block."""
    with ExitStack() as stack:
        for module, part in parts_of_model(model):
            stack.enter_context(named_module(module, part))
        stack.enter_context(named(losses, "reconstruction_loss", "reconstruction loss"))
        stack.enter_context(named(losses, "nt_xent", "contrast"))
        yield


def parts_of_model(model: MaskedAutoencoder) -> Iterator[tuple[nn.Module, str]]:
    """Yield modules with their part. A module inside another one has its own part."""
    yield model, "masks, gathers"
    yield model.encoder.patch_embed, "patch embedding"
    yield model.encoder.norm, "encoder norms, sums"
    yield model.decoder_embed, "into the decoder"
    yield model.decoder_norm, "decoder norms, sums"
    yield model.decoder_pred, "prediction"
    for stack, blocks in (("encoder", model.encoder.blocks), ("decoder", model.decoder_blocks)):
        for block in blocks:
            assert isinstance(block, Block)
            yield block, f"{stack} norms, sums"
            yield block.attn, f"{stack} attention"
            yield block.mlp, f"{stack} MLP"


@contextmanager
def named_module(module: nn.Module, part: str) -> Iterator[None]:
    """Run a module in a range."""
    opened: list[record_function] = []

    def enter(_module: nn.Module, _args: Any) -> None:
        opened.append(record_function(MARK + part))
        opened[-1].__enter__()

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        opened.pop().__exit__(None, None, None)

    with module.register_forward_pre_hook(enter), module.register_forward_hook(leave):
        yield


@contextmanager
def named(module: ModuleType, function: str, part: str) -> Iterator[None]:
    """Run a function of a module in a range."""
    plain = getattr(module, function)

    def inside(*args: Any, **options: Any) -> Any:
        with record_function(MARK + part):
            return plain(*args, **options)

    setattr(module, function, inside)
    try:
        yield
    finally:
        setattr(module, function, plain)


def gflop_by_part(counts: Mapping[str, Mapping[Any, int]]) -> dict[str, float]:
    """Return GFLOP of a step by part, from the counts of `FlopCounterMode` for each module."""
    sums: dict[str, float] = defaultdict(float)
    for name, operators in counts.items():
        if (part := _part_of_name(name)) is not None:
            sums[part] += sum(operators.values()) / 1e9
    sums["contrast"] = sum(counts["Global"].values()) / 1e9 - sum(sums.values())
    return {name: round(sums[name], 4) for name in ORDER if name in sums}


def _part_of_name(name: str) -> str | None:
    """Return the part of a module that multiplies matrices, from its name within the model."""
    outer = {
        "encoder.patch_embed": "patch embedding",
        "decoder_embed": "into the decoder",
        "decoder_pred": "prediction",
    }
    _, _, inner = name.partition(".")
    if inner in outer:
        return outer[inner]
    stack = "decoder" if inner.startswith("decoder_blocks") else "encoder"
    words = inner.split(".")
    if "blocks" in inner and words[-1] in ("attn", "mlp"):
        return f"{stack} {'attention' if words[-1] == 'attn' else 'MLP'}"
    return None


def _wait(device: torch.device) -> None:
    """Wait until a GPU has finished: its calls return earlier."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_table(result: dict[str, Any]) -> Table:
    """Make the table of our step, with a row for each part."""
    profiled, gflop = result["profile"], result["profile"]["gflop"]
    table = Table(title="our step by part", title_justify="left", title_style="bold")
    table.add_column("")
    for column in ("forward ms", "backward ms", "share", "GFLOP", "GFLOP/s"):
        table.add_column(column, justify="right")
    for name, spent in profiled["parts"].items():
        both = spent["forward"] + spent["backward"]
        counted = gflop.get(name, 0.0)
        table.add_row(
            name,
            f"{spent['forward']:.1f}",
            f"{spent['backward']:.1f}" if spent["backward"] else "",
            f"{both / profiled['total']:.1%}",
            f"{counted:.2f}" if counted >= MIN_GFLOP else "",
            f"{counted / both * 1e3:.0f}" if counted >= MIN_GFLOP and both > 0 else "",
        )
    table.add_section()
    table.add_row(
        "the step", f"{profiled['total']:.1f}", "", "100.0%", f"{sum(gflop.values()):.2f}"
    )
    return table
