"""Plain `torch.distributed`, in the few calls that this project makes.

Every function works in a single process too, so no caller asks whether it is distributed.
Shapes: B rows of this process, G rows of all, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from os import environ
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from mvmae.config.pretrain import ReduceDtype
from mvmae.training import process_store


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that `torchrun` announces, if any, and leave it at the end.

    If several processes fail within, one of them prints one line: see `process_store`.
    """
    if "RANK" not in environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with process_store.connect():
            yield
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """Rank of this process on its machine, which is also the index of its GPU."""
    return int(environ.get("LOCAL_RANK", "0"))


def processes_here() -> int:
    """Number of processes of this command on this machine."""
    return int(environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def rank() -> int:
    """Rank of this process; 0 without `torchrun` and within `apart`."""
    return dist.get_rank() if dist.is_initialized() and not _apart.get() else 0


def world_size() -> int:
    """Number of processes; 1 without `torchrun` and within `apart`."""
    return dist.get_world_size() if dist.is_initialized() and not _apart.get() else 1


_apart: ContextVar[bool] = ContextVar("apart", default=False)


@contextmanager
def apart() -> Iterator[None]:
    """Let each process act as if it were the only one, while it takes measurements alone."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def is_main() -> bool:
    """Whether this process writes the files and prints."""
    return rank() == 0


def announced_world_size() -> int:
    """Number of processes that `torchrun` started, known before they join."""
    return int(environ.get("WORLD_SIZE", "1"))


def wrap(
    model: nn.Module,
    device: torch.device,
    *,
    static_graph: bool = False,
    reduce_dtype: ReduceDtype = "fp32",
) -> nn.Module:
    """Wrap the model so that its gradients are averaged over processes.

    Args:
        model: The same in every process.
        device: Where it computes.
        static_graph: Whether each step uses the same parameters once, which lets torch plan ahead.
            Not with `without_averaging` or compiled models: torch 2.15 supports neither.
        reduce_dtype: Arithmetic in which gradients are summed.
    """
    if world_size() == 1:
        return model
    ids = [device] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(model, device_ids=ids, static_graph=static_graph)
    if reduce_dtype == "bf16":
        # A lambda, because torch refuses this hook by its name if it has no CUDA, although gloo
        # can sum bf16 too.
        wrapped.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))
    return wrapped


def without_averaging(model: nn.Module, *, unless: bool) -> AbstractContextManager:
    """Accumulate gradients in this process without averaging them over processes yet.

    The next backward pass outside of this block averages the sum.

    Args:
        model: What `wrap` returned.
        unless: Average as usual, because this is the last part of a batch.
    """
    if unless or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


class _GatherWithGradient(torch.autograd.Function):
    """All-gather whose backward sums every process's gradient for this process's rows.

    `torch.distributed.nn.functional.all_gather` does this too and is deprecated since torch 2.14.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        gathered = local.new_empty(world_size() * len(local), *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def gather_rows(local: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "G ..."]:
    """Stack the rows of every process, in rank order; gradients flow back to their owners.

    All processes must have the same number of rows; see `gather_unequal_rows`.
    """
    return _GatherWithGradient.apply(local) if world_size() > 1 else local


def gather_unequal_rows(
    local: Shaped[Tensor, "B ..."], sizes: Sequence[int]
) -> Shaped[Tensor, "G ..."]:
    """Stack the rows of every process, in rank order, without gradients.

    Args:
        local: Rows of this process.
        sizes: How many rows each process has.
    """
    if world_size() == 1:
        return local
    padded = local.new_zeros(max(sizes), *local.shape[1:])
    padded[: len(local)] = local
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[:size] for rows, size in zip(gathered, sizes, strict=True)])


def mean_over_processes(values: Tensor) -> Tensor:
    """Average a tensor over all processes, element by element."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= world_size()
    return values


def max_over_processes(value: int, device: torch.device) -> int:
    """Return the largest of the processes' numbers to all of them; exchanged on `device`."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def gather_objects(items: list) -> list:
    """Join the lists of all processes in rank order, on the main process; empty elsewhere."""
    if world_size() == 1:
        return items
    lists: list[list] | None = [[] for _ in range(world_size())] if is_main() else None
    dist.gather_object(items, lists)
    return [item for one in lists or [] for item in one]


def from_main(value: Any) -> Any:
    """Send plain data of the main process to all; each call returns its value.

    Through the store and not by a collective, which would time out while the others wait for hours
    and would hang if the main process died. If it fails, the others stop waiting and end too.
    """
    return process_store.current().from_main(value) if world_size() > 1 else value


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers, such as batch norm's running means."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def barrier() -> None:
    """Wait for every process."""
    if world_size() > 1:
        dist.barrier()
