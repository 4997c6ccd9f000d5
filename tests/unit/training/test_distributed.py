"""Two gloo processes give the losses, the gradients and the weights of one with both halves."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import BASE, CONFIGS, CPU, on_processes, train_two_steps
from torch import Generator, Tensor

from mvmae.config.pretrain import PretrainConfig
from mvmae.method.losses import nt_xent
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.parallel import parallelize
from mvmae.training import distributed

WORLD = 2
OF_FOUR = {
    name: CONFIGS[name]
    for name in ("both losses", "projection head", "contrast only", "clipped", "groups")
} | {"in parts": replace(BASE, micro_batch_size=1)}
BF16 = replace(BASE, reduce_dtype="bf16")


def embeddings() -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(0)
    return torch.randn(6, 8, generator=generator), torch.randn(6, 8, generator=generator)


def work(rank: int, world: int, folder: Path) -> dict:
    z1, z2 = (z.chunk(world)[rank].clone().requires_grad_() for z in embeddings())
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
        "largest": distributed.max_over_processes(10 - rank, CPU),
        "objects": distributed.gather_objects([("from", rank)] * (rank + 1)),
        "static": {name: is_static(config) for name, config in CONFIGS.items()},
        "bf16": train_two_steps(BF16, "sgd", rank, world),
    }
    for name, config in CONFIGS.items():
        for optimizer in ("sgd", "adamw"):
            results[name, optimizer] = train_two_steps(config, optimizer, rank, world)
    return results


def is_static(config: PretrainConfig) -> bool:
    return parallelize(MaskedAutoencoder(config.model), config, CPU).static_graph


def work_of_four(rank: int, world: int, folder: Path) -> dict:
    return {
        name: train_two_steps(config, "sgd", rank, world) for name, config in OF_FOUR.items()
    } | {"adamw": train_two_steps(BASE, "adamw", rank, world)[1]}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """What each process came to."""
    return on_processes(work, WORLD, tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def results_of_four(tmp_path_factory) -> list[dict]:
    """The same steps by four processes."""
    return on_processes(work_of_four, 4, tmp_path_factory.mktemp("four"))


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
    losses, _ = train_two_steps(CONFIGS[name], "sgd")
    for part in results:
        torch.testing.assert_close(part[name, "sgd"][0], losses, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_two_processes_train_the_weights_of_one(results, name):
    """By plain gradient descent, which shows the gradients as they are."""
    _, weights = train_two_steps(CONFIGS[name], "sgd")
    for part in results:
        torch.testing.assert_close(part[name, "sgd"][1], weights, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_two_processes_train_the_weights_of_one_by_adamw(results, name):
    """But for a few, whose gradient is rounding: AdamW makes a whole step even of that."""
    assert_close_by_adamw([part[name, "adamw"][1] for part in results], CONFIGS[name])


def assert_close_by_adamw(found: list[dict[str, Tensor]], config: PretrainConfig) -> None:
    _, weights = train_two_steps(config, "adamw")
    ours = torch.cat([tensor.flatten() for tensor in weights.values()])
    for part in found:
        theirs = torch.cat([tensor.flatten() for tensor in part.values()])
        apart = (ours - theirs).abs()
        assert (apart > 1e-6).float().mean() < 0.005
        assert apart.max() < 4e-3  # two steps of 1e-3, either way


@pytest.mark.parametrize("name", list(CONFIGS))
def test_both_processes_have_the_same_weights_to_the_bit(results, name):
    (_, first), (_, second) = (part[name, "adamw"] for part in results)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OF_FOUR))
def test_four_processes_are_one(results_of_four, name):
    losses, weights = train_two_steps(OF_FOUR[name], "sgd")
    for part in results_of_four:
        torch.testing.assert_close(part[name][0], losses, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(part[name][1], weights, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_four_processes_are_one_by_adamw(results_of_four):
    assert_close_by_adamw([part["adamw"] for part in results_of_four], BASE)


def test_graph_is_static_unless_gradients_wait_for_the_last_part(results):
    for part in results:
        assert {name for name, static in part["static"].items() if not static} == {
            "in parts",
            "in parts, without contrast",
            "three views in parts",
        }


def test_gradients_summed_in_bf16_are_rounded_and_no_more(results):
    losses, weights = train_two_steps(BASE, "sgd")
    for part in results:
        rounded_losses, rounded = part["bf16"]
        torch.testing.assert_close(rounded_losses[0], losses[0], atol=1e-6, rtol=1e-6)
        apart = torch.cat([(rounded[key] - weights[key]).flatten() for key in weights])
        assert 1e-5 < apart.abs().max() < 5e-3
    first, second = (part["bf16"][1] for part in results)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_two_steps_change_the_weights():
    """The comparison of weights would otherwise pass if nothing were trained."""
    before = MaskedAutoencoder(BASE.model, Generator().manual_seed(0)).state_dict()
    _, after = train_two_steps(BASE, "adamw")
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
    assert distributed.max_over_processes(3, CPU) == 3
    assert distributed.gather_objects([1]) == [1]
    assert distributed.is_main()
    model = torch.nn.Linear(1, 1)
    assert distributed.wrap(model, CPU, reduce_dtype="bf16") is model
    with distributed.process_group(CPU):
        assert distributed.world_size() == 1
    distributed.barrier()
