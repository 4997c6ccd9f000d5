"""Two gloo processes give the losses, the gradients and the weights of one with both halves."""

import os
import socket
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp
from torch import Generator, Tensor

from mvmae.config import ModelConfig, ObjectiveConfig, PretrainConfig, ViewsConfig
from mvmae.data.loader import Batch
from mvmae.engine import distributed
from mvmae.engine.optim import adamw
from mvmae.models.mae import MaskedAutoencoder
from mvmae.objectives import nt_xent
from mvmae.tasks.pretrain import training_step

WORLD = 2
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
}
GROUPS = torch.tensor([0, 0, 1, 2, 0, 3, 3, 2])  # two of them on both processes
OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "adamw": lambda model: adamw(model, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
}


def embeddings() -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(0)
    return torch.randn(6, 8, generator=generator), torch.randn(6, 8, generator=generator)


def batch(config: PretrainConfig, step: int, rank: int = 0, world: int = 1) -> Batch:
    """This process's share of the batch of a step."""
    generator = Generator().manual_seed(step)
    shape = config.views.num_views, config.batch_size
    views = torch.randint(0, 256, (*shape, 3, 16, 16), generator=generator, dtype=torch.uint8)
    noise = torch.rand(*shape, config.model.num_patches, generator=generator)
    share = [part.chunk(world, dim=1)[rank] for part in (views, noise)]
    groups = GROUPS.chunk(world)[rank] if config.group_regex else None
    return Batch(*share, skipped=[], is_whole=True, groups=groups)


def trained(config: PretrainConfig, optimizer: str, rank: int = 0, world: int = 1):
    """Losses and weights after two steps."""
    model = MaskedAutoencoder(config.model, Generator().manual_seed(0))
    if config.objective.reconstruction_weight == 0:
        for parameter in model.decoder_parameters():
            parameter.requires_grad_(False)
    update = OPTIMIZERS[optimizer](model)
    wrapped = distributed.wrap(model, CPU)
    losses = []
    for step in range(2):
        _, terms = training_step(wrapped, update, batch(config, step, rank, world), config, CPU)
        mean = distributed.mean_over_processes(torch.stack(list(terms.values())).detach())
        losses.append(mean)
    return torch.stack(losses), model.state_dict()


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with distributed.process_group(CPU):
        z1, z2 = (z.chunk(WORLD)[rank].clone().requires_grad_() for z in embeddings())
        gathered = distributed.gather_rows(z1), distributed.gather_rows(z2)
        loss = nt_xent(z1, z2, gathered=gathered, offset=rank * len(z1))
        loss.backward()
        results = {
            "loss": loss.detach(),
            "gradients": (z1.grad, z2.grad),
            "rank": distributed.rank(),
            "local rank": distributed.local_rank(),
            "world": distributed.world_size(),
            "announced": distributed.announced_world_size(),
            "main": distributed.is_main(),
            "mean": distributed.mean_over_processes(torch.tensor([float(rank), 4.0])),
            "largest": distributed.largest(10 - rank, CPU),
            "objects": distributed.gather_objects([("from", rank)] * (rank + 1)),
        }
        for name, config in CONFIGS.items():
            for optimizer in OPTIMIZERS:
                results[name, optimizer] = trained(config, optimizer, rank, WORLD)
        distributed.barrier()
    results["after"] = (distributed.rank(), distributed.world_size())
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """What each process came to."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, (port, str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_gathered_nt_xent_is_the_loss_of_one_process(results):
    expected = nt_xent(*embeddings())
    torch.testing.assert_close(torch.stack([part["loss"] for part in results]).mean(), expected)


def test_gathered_nt_xent_has_the_gradients_of_one_process(results):
    z1, z2 = (z.requires_grad_() for z in embeddings())
    nt_xent(z1, z2).backward()
    for at, z in enumerate((z1, z2)):
        gathered = torch.cat([part["gradients"][at] for part in results])
        # Averaged over processes like every gradient, each process's sum is WORLD times too large.
        torch.testing.assert_close(gathered / WORLD, z.grad)


def test_nt_xent_without_the_others_is_another_loss(results):
    """The test above would otherwise pass if nothing were gathered."""
    z1, z2 = embeddings()
    halves = [nt_xent(*half) for half in zip(z1.chunk(WORLD), z2.chunk(WORLD), strict=True)]
    gathered = torch.stack([part["loss"] for part in results]).mean()
    assert (torch.stack(halves).mean() - gathered).abs() > 0.1


@pytest.mark.parametrize("name", list(CONFIGS))
def test_two_processes_have_the_losses_of_one(results, name):
    losses, _ = trained(CONFIGS[name], "sgd")
    for part in results:
        torch.testing.assert_close(part[name, "sgd"][0], losses, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_two_processes_train_the_weights_of_one(results, name):
    """By plain gradient descent, which shows the gradients as they are."""
    _, weights = trained(CONFIGS[name], "sgd")
    for part in results:
        torch.testing.assert_close(part[name, "sgd"][1], weights, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_two_processes_train_the_weights_of_one_by_adamw(results, name):
    """But for a few, whose gradient is rounding: AdamW makes a whole step even of that."""
    _, weights = trained(CONFIGS[name], "adamw")
    ours = torch.cat([tensor.flatten() for tensor in weights.values()])
    for part in results:
        theirs = torch.cat([tensor.flatten() for tensor in part[name, "adamw"][1].values()])
        apart = (ours - theirs).abs()
        assert (apart > 1e-6).float().mean() < 0.005
        assert apart.max() < 4e-3  # two steps of 1e-3, either way


@pytest.mark.parametrize("name", list(CONFIGS))
def test_both_processes_have_the_same_weights_to_the_bit(results, name):
    (_, first), (_, second) = (part[name, "adamw"] for part in results)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_two_steps_change_the_weights():
    """The comparison of weights would otherwise pass if nothing were trained."""
    before = MaskedAutoencoder(BASE.model, Generator().manual_seed(0)).state_dict()
    _, after = trained(BASE, "adamw")
    changed = [key for key in before if (after[key] - before[key]).abs().max() > 1e-4]
    assert set(before) - set(changed) == {"pos_embed", "decoder_pos_embed"}


def test_processes_know_each_other(results):
    assert [part["rank"] for part in results] == [0, 1]
    assert [part["local rank"] for part in results] == [0, 1]
    assert [part["world"] for part in results] == [2, 2]
    assert [part["announced"] for part in results] == [2, 2]
    assert [part["main"] for part in results] == [True, False]
    assert [part["after"] for part in results] == [(0, 1), (0, 1)]


def test_numbers_and_objects_of_all_processes(results):
    for part in results:
        assert part["mean"].tolist() == [0.5, 4.0]
        assert part["largest"] == 10
    assert results[0]["objects"] == [("from", 0), ("from", 1), ("from", 1)]
    assert results[1]["objects"] == []


def test_single_process_needs_no_group():
    rows = torch.randn(3, 2)
    assert distributed.gather_rows(rows) is rows
    assert distributed.mean_over_processes(rows) is rows
    assert distributed.largest(3, CPU) == 3
    assert distributed.gather_objects([1]) == [1]
    assert distributed.is_main()
    model = torch.nn.Linear(1, 1)
    assert distributed.wrap(model, CPU) is model
    with distributed.process_group(CPU):
        assert distributed.world_size() == 1
    distributed.barrier()
