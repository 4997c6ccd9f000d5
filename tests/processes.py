"""Shared by tests of several processes: settings, batches, training, and starting gloo."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Generator, Tensor

from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.data.reading.loader import Batch
from mvmae.method.augmentations import draw_augmentations, stack_augmentations
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.parallel import parallelize
from mvmae.method.pretrain import training_step
from mvmae.training import distributed
from mvmae.training.optim import adamw

CPU = torch.device("cpu")
BASE = PretrainConfig(
    model=ModelConfig(
        encoder="vit_pico", image_size=16, patch_size=4, decoder_dim=32, decoder_depth=1
    ),
    batch_size=8,
    device="cpu",
)
NO_CONTRAST = ObjectiveConfig(contrastive_weight=0.0)
CONFIGS = {
    "both losses": BASE,
    "projection head": replace(BASE, model=replace(BASE.model, head="mlp")),
    "class token": replace(BASE, model=replace(BASE.model, latent="cls")),
    "one target": replace(BASE, views=ViewsConfig(targets="one")),
    "contrast only": replace(BASE, objective=ObjectiveConfig(reconstruction_weight=0.0)),
    "no contrast": replace(BASE, objective=NO_CONTRAST),
    "mae": replace(BASE, objective=NO_CONTRAST, views=ViewsConfig(num_views=1)),
    "all patches": replace(BASE, objective=ObjectiveConfig(reconstruct="all")),
    "clipped": replace(BASE, clip_grad=0.5),
    "groups": replace(BASE, group_regex="."),
    "in parts": replace(BASE, micro_batch_size=3),
    "in parts, without contrast": replace(BASE, objective=NO_CONTRAST, micro_batch_size=2),
    "recomputed": replace(BASE, recompute=True),
    "three views in parts": replace(
        BASE, views=ViewsConfig(num_views=3), micro_batch_size=3, group_regex="."
    ),
    "other colours": replace(BASE, views=ViewsConfig(color_jitter=1.0, grayscale=0.2)),
}
GROUPS = torch.tensor([0, 0, 1, 2, 0, 3, 3, 2])  # of several on different processes
OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "adamw": lambda model: adamw(model, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
}


def batch(config: PretrainConfig, step: int, rank: int = 0, world: int = 1) -> Batch:
    """Return this process's share of the batch of a step."""
    generator = Generator().manual_seed(step)
    shape = config.views.num_views, config.batch_size
    views = torch.randint(0, 256, (*shape, 3, 16, 16), generator=generator, dtype=torch.uint8)
    noise = torch.rand(*shape, config.model.num_patches, generator=generator)
    share = [part.chunk(world, dim=1)[rank] for part in (views, noise)]
    groups = GROUPS.chunk(world)[rank] if config.group_regex else None
    images = range(config.batch_size)[rank * len(share[0][0]) :][: len(share[0][0])]
    drawn = stack_augmentations([draw_augmentations((i,), config.views) for i in images])
    return Batch(*share, skipped=[], is_whole=True, groups=groups, augmentations=drawn)


def make_training(config: PretrainConfig, optimizer: str):
    """Make a model, its parallel form for these processes, and its optimiser."""
    generator = Generator().manual_seed(0)
    model = MaskedAutoencoder(config.model, generator, recompute=config.recompute)
    if config.objective.rebuild == "none":
        model.freeze_decoder()
    wrapped = parallelize(model, config, CPU)
    return model, wrapped, OPTIMIZERS[optimizer](model)


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, whole in every process."""
    return {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()
        for name, tensor in tensors.items()
    }


def train_two_steps(config: PretrainConfig, optimizer: str, rank: int = 0, world: int = 1):
    """Train two steps; return losses and weights."""
    model, wrapped, update = make_training(config, optimizer)
    losses = steps(range(2), config, wrapped, update, rank, world)
    return losses, whole(model.state_dict())


def steps(numbers: range, config, wrapped, update, rank: int = 0, world: int = 1) -> Tensor:
    """Take steps; their losses over all processes."""
    losses = []
    for step in numbers:
        _, terms = training_step(wrapped, update, batch(config, step, rank, world), config, CPU)
        mean = distributed.mean_over_processes(torch.stack(list(terms.values())).detach())
        losses.append(mean)
    return torch.stack(losses)


def on_processes(work: Callable[[int, int, Path], dict], world: int, folder: Path) -> list[dict]:
    """Return the results of `work(rank, world, folder)` on `world` gloo processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_run_in_group, (work, world, port, folder), nprocs=world)
    return [torch.load(folder / f"{rank}-of-{world}.pt") for rank in range(world)]


def _run_in_group(rank: int, work: Callable, world: int, port: int, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with distributed.process_group(CPU):
        results = work(rank, world, folder)
        distributed.barrier()
    results["after"] = (distributed.rank(), distributed.world_size())
    torch.save(results, folder / f"{rank}-of-{world}.pt")
