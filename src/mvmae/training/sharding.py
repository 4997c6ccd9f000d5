"""Weights, gradients and optimiser state split across processes (FSDP2).

As ZeRO's third stage (Rajbhandari et al. 2020, arXiv 1910.02054): each process holds a shard of
every parameter, and a block's parameters are whole only while it computes. In a single process
everything here leaves a model as it is.
"""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mvmae.config.pretrain import ReduceDtype
from mvmae.training import distributed


def shard(
    model: nn.Module, blocks: Iterable[nn.Module], device: torch.device, reduce_dtype: ReduceDtype
) -> None:
    """Split a model's parameters across the processes, in place; make its optimiser afterwards.

    Args:
        model: The same in every process. Everything outside of blocks is one unit.
        blocks: Its parts that are made whole one at a time.
        device: Where it computes.
        reduce_dtype: Arithmetic in which gradients are summed.
    """
    if distributed.world_size() == 1:
        return
    # Imported here, because they take a second to load.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # About the class token's embedding, which is a view. That would matter only if the losses
    # changed it in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if reduce_dtype == "bf16" else None)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def gather(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gather whole tensors on the main process; all take part, and the others get none."""
    kept = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if distributed.is_main():
            kept[name] = full
    return kept


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Collect every tensor of a run by name, sharing memory, to save it or to fill it.

    An AdamW that has not stepped yet gets zeros, to be filled from a checkpoint.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        moments = optimizer.state[parameter]
        if not moments:
            moments["step"] = torch.zeros((), device=parameter.device)
            moments |= {kind: torch.zeros_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}
        tensors |= {f"optimizer.{kind}.{name}": moment for kind, moment in moments.items()}
    return tensors
