"""Weights sharded over gloo processes (FSDP2) train as whole ones do; to disk and back."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import BASE, CONFIGS, CPU, make_training, on_processes, steps, train_two_steps, whole
from torch import Tensor

from mvmae.config.pretrain import PretrainConfig
from mvmae.method.parallel import gather_encoder
from mvmae.training import sharded_checkpoint, sharding

CONTENT = {"step": 3, "words": ["one", "two"]}
NAMES = ("both losses", "class token", "contrast only", "clipped", "in parts", "recomputed")


def shard_config(config: PretrainConfig) -> PretrainConfig:
    return replace(config, sharding="full")


def work(rank: int, world: int, folder: Path, names: tuple[str, ...] = NAMES) -> dict:
    results = {
        name: train_two_steps(shard_config(CONFIGS[name]), "sgd", rank, world) for name in names
    }
    results["bf16"] = train_two_steps(
        replace(shard_config(BASE), reduce_dtype="bf16"), "sgd", rank, world
    )

    model, wrapped, update = make_training(shard_config(BASE), "adamw")
    results["begun"] = whole(model.state_dict())
    results["share"] = shares(model)
    steps(range(2), BASE, wrapped, update, rank, world)
    tensors = sharding.training_tensors(model, update)
    sharded_checkpoint.save(folder / f"by-{world}", tensors, CONTENT)
    results["saved"] = whole(tensors)
    results["product"] = gather_encoder(model, CPU).state_dict()
    results["never stopped"] = steps(range(2, 4), BASE, wrapped, update, rank, world)
    results["end"] = whole(sharding.training_tensors(model, update))

    for by in sorted({world, *(int(path.name[3:]) for path in folder.glob("by-*"))}):
        results[f"from {by}"] = gone_on(folder / f"by-{by}", rank, world)
    return results


def gone_on(folder: Path, rank: int = 0, world: int = 1) -> dict:
    """What a checkpoint holds, and two steps from there."""
    model, wrapped, update = make_training(shard_config(BASE), "adamw")
    tensors = sharding.training_tensors(model, update)
    facts, path = sharded_checkpoint.load_newest(folder)
    sharded_checkpoint.fill(tensors, path)
    filled = whole(tensors)
    losses = steps(range(2, 4), BASE, wrapped, update, rank, world)
    end = whole(sharding.training_tensors(model, update))
    return {"facts": facts, "tensors": filled, "losses": losses, "end": end}


def work_of_four(rank: int, world: int, folder: Path) -> dict:
    return work(rank, world, folder, ("both losses", "contrast only"))


def shares(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Numbers that this process holds of each parameter, and all."""
    local = {name: getattr(p, "_local_tensor", p) for name, p in model.named_parameters()}
    return {name: (local[name].numel(), p.numel()) for name, p in model.named_parameters()}


def alone(folder: Path) -> dict[str, Tensor]:
    """A checkpoint by a single process after two steps; what it holds."""
    model, wrapped, update = make_training(shard_config(BASE), "adamw")
    steps(range(2), BASE, wrapped, update)
    tensors = sharding.training_tensors(model, update)
    sharded_checkpoint.save(folder, tensors, CONTENT)
    return whole(tensors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def saved_by_one(folder) -> dict[str, Tensor]:
    return alone(folder / "by-1")


@pytest.fixture(scope="module")
def results(folder, saved_by_one) -> list[dict]:
    return on_processes(work, 2, folder)


@pytest.fixture(scope="module")
def results_of_four(folder, results) -> list[dict]:
    return on_processes(work_of_four, 4, folder)


@pytest.fixture(scope="module")
def results_after_four(folder, results_of_four) -> list[dict]:
    """Two processes again, which find what four left."""
    return on_processes(work, 2, folder)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def assert_as_one_process(results: list[dict], name: str) -> None:
    losses, weights = train_two_steps(CONFIGS[name], "sgd")
    for part in results:
        torch.testing.assert_close(part[name][0], losses, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(part[name][1], weights, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_two_shares_train_as_one_whole(results, name):
    assert_as_one_process(results, name)


def test_each_process_holds_half(results):
    for part in results:
        held, of = map(sum, zip(*part["share"].values(), strict=True))
        assert held < 0.51 * of
    assert_equal(results[0]["begun"], results[1]["begun"])


def test_gradients_summed_in_bf16_are_rounded_and_no_more(results):
    losses, weights = train_two_steps(BASE, "sgd")
    for part in results:
        rounded_losses, rounded = part["bf16"]
        torch.testing.assert_close(rounded_losses[0], losses[0], atol=1e-6, rtol=1e-6)
        apart = torch.cat([(rounded[key] - weights[key]).flatten() for key in weights])
        assert 1e-5 < apart.abs().max() < 5e-3


def test_the_main_process_gathers_the_gather_encoder(results):
    product = results[0]["product"]
    saved = {name.removeprefix("model."): part for name, part in results[0]["saved"].items()}
    assert_equal(product, {name: saved[name] for name in product})
    assert {"pos_embed", "cls_token", "blocks.3.mlp.fc2.bias"} <= product.keys()


def assert_goes_on(part: dict, saved: dict[str, Tensor], by: int) -> None:
    """Exactly what was saved was read, whoever wrote it, and what follows is what followed."""
    read = part[f"from {by}"]
    assert_equal(read["tensors"], saved)
    assert {name: read["facts"][name] for name in CONTENT} == CONTENT
    torch.testing.assert_close(read["losses"], part["never stopped"], atol=1e-5, rtol=1e-5)


def test_two_processes_go_on_to_the_bit(results):
    for part in results:
        assert_goes_on(part, part["saved"], 2)
        assert torch.equal(part["from 2"]["losses"], part["never stopped"])
        assert_equal(part["from 2"]["end"], part["end"])


def test_two_processes_go_on_from_one(results, saved_by_one):
    for part in results:
        assert_goes_on(part, saved_by_one, 1)


def test_one_process_goes_on_from_two(results, folder):
    part = {"never stopped": results[0]["never stopped"], "from 2": gone_on(folder / "by-2")}
    assert_goes_on(part, results[0]["saved"], 2)


def test_one_process_goes_on_to_the_bit(saved_by_one, folder):
    model, wrapped, update = make_training(shard_config(BASE), "adamw")
    steps(range(4), BASE, wrapped, update)
    assert_equal(gone_on(folder / "by-1")["end"], sharding.training_tensors(model, update))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both losses", "contrast only"])
def test_four_shares_train_as_one_whole(results_of_four, name):
    assert_as_one_process(results_of_four, name)


@pytest.mark.slow
def test_four_processes_go_on_from_one_two_and_four(results_of_four, results, saved_by_one):
    for part in results_of_four:
        assert_goes_on(part, saved_by_one, 1)
        assert_goes_on(part, results[0]["saved"], 2)
        assert_goes_on(part, part["saved"], 4)


@pytest.mark.slow
def test_two_processes_and_one_go_on_from_four(results_after_four, results_of_four, folder):
    saved = results_of_four[0]["saved"]
    for part in results_after_four:
        assert_goes_on(part, saved, 4)
    never = {"never stopped": results_of_four[0]["never stopped"]}
    assert_goes_on(never | {"from 4": gone_on(folder / "by-4")}, saved, 4)


# on the disk


@pytest.fixture
def saved_folder(results, folder, tmp_path) -> Path:
    """A folder with the checkpoint of two processes as its last, to be changed at will."""
    shutil.copytree(folder / "by-2" / "last", tmp_path / "last")
    return tmp_path


def shards(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def test_a_checkpoint_holds_no_pickle_that_runs(saved_folder):
    names = {path.name for path in (saved_folder / "last").iterdir()}
    assert names == {
        sharded_checkpoint.STATE,
        *(path.name for path in shards(saved_folder / "last")),
    }
    assert len(shards(saved_folder / "last")) == 2
    torch.load(saved_folder / "last" / sharded_checkpoint.STATE, weights_only=True)


def test_whole_weights_are_read_by_one_process(saved_folder, results):
    state = sharded_checkpoint.load(saved_folder / "last")
    saved = {k[6:]: v for k, v in results[0]["saved"].items() if k.startswith("model.")}
    assert_equal(state["model"], saved)
    assert {name: state[name] for name in CONTENT} == CONTENT
