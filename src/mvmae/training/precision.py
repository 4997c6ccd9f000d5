"""Device and number format of a run."""

from contextlib import AbstractContextManager, nullcontext
from shutil import which

import torch
from torch import nn

from mvmae.errors import UserError
from mvmae.training import distributed


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; each of several processes gets its own GPU.

    Raises:
        UserError: CUDA was asked for and is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("no CUDA device found: use --device cpu, or auto")
    device = torch.device("cuda", distributed.local_rank())
    torch.cuda.set_device(device)
    return device


def compile_model(model: nn.Module, choice: str, device: torch.device) -> nn.Module:
    """Compile the model in place if `choice` (`auto`, `on`, `off`) and the device allow it.

    Compile around `DistributedDataParallel`, not inside it, so that gradients are sent while the
    rest of the backward pass is computed.

    Raises:
        UserError: Compiling was asked for, and there is no compiler.
    """
    if not compiles(choice, device):
        return model
    if device.type == "cpu" and not (which("g++") or which("clang++")):
        raise UserError("--compile on needs a C++ compiler here: install g++, or leave it out")
    model.compile()
    return model


def compiles(choice: str, device: torch.device) -> bool:
    """Whether a choice of `auto`, `on` or `off` compiles models on a device."""
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Context for the number format of the networks.

    `auto` is bf16 on CUDA and fp32 on a CPU, where bf16 doubles the speed of ViT-B and halves that
    of tiny models. fp16 is not offered: its overflows are among the most reported problems.
    """
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
