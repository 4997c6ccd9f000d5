"""State is on the disk whole or not at all, and what is read never runs."""

import contextlib
import io
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from mvmae.errors import UserError
from mvmae.storage import atomic
from mvmae.training import checkpoint


class WritesAFile:
    """An object whose unpickling makes a file: what a hostile checkpoint would hold."""

    def __init__(self, marker) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def state(step: int) -> dict:
    return {"step": step, "weights": torch.arange(1000.0) + step}


def save_states(folder, count: int = 1):
    """Save states 1 to `count`; return `last.pt`."""
    for step in range(1, count + 1):
        checkpoint.save(folder, state(step))
    return folder / "last.pt"


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


# writing


def test_file_is_written_whole(tmp_path):
    atomic.write_whole(tmp_path / "a", lambda stream: stream.write(b"new"))
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == {"a"}


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    def fails(stream):
        stream.write(b"half")
        raise RuntimeError("the disk is full")

    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="disk is full"):
        atomic.write_whole(tmp_path / "a", fails)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == {"a"}


def test_failed_first_write_leaves_nothing(tmp_path):
    def fails(stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write_whole(tmp_path / "a", fails)
    assert names(tmp_path) == set()


def test_old_file_is_whole_while_the_new_one_is_written(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    seen = []

    def write(stream):
        stream.write(b"new" * 10_000)
        stream.flush()
        seen.append((tmp_path / "a").read_bytes())

    atomic.write_whole(tmp_path / "a", write)
    assert seen == [b"old"]
    assert (tmp_path / "a").read_bytes() == b"new" * 10_000


def test_reader_of_the_old_file_reads_it_to_its_end(tmp_path):
    """The new file takes the old one's name, and does not overwrite it in place."""
    (tmp_path / "a").write_bytes(b"old")
    with (tmp_path / "a").open("rb") as reader:
        atomic.write_whole(tmp_path / "a", lambda stream: stream.write(b"new"))
        assert reader.read() == b"old"


def test_text_is_written_as_utf8(tmp_path):
    atomic.write_text(tmp_path / "a.txt", "Größe\n")
    assert (tmp_path / "a.txt").read_bytes() == "Größe\n".encode()


# last and previous


def test_first_save_makes_last(tmp_path):
    file = save_states(tmp_path / "checkpoints")
    assert names(tmp_path / "checkpoints") == {"last.pt"}
    loaded = checkpoint.load(file)
    assert loaded["step"] == 1
    assert torch.equal(loaded["weights"], state(1)["weights"])


def test_second_save_keeps_the_one_before(tmp_path):
    save_states(tmp_path, 3)
    assert names(tmp_path) == {"last.pt", "previous.pt"}
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 3
    assert checkpoint.load(tmp_path / "previous.pt")["step"] == 2


def test_failed_save_keeps_both(tmp_path):
    save_states(tmp_path, 2)
    with pytest.raises(TypeError, match="plain data, not function"):
        checkpoint.save(tmp_path, {"step": 3, "a function": lambda: None})
    assert names(tmp_path) == {"last.pt", "previous.pt"}
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2
    assert checkpoint.load(tmp_path / "previous.pt")["step"] == 1


def test_there_is_a_last_checkpoint_at_every_moment(tmp_path, monkeypatch):
    """As seen when the process is killed just before any of the renames."""
    save_states(tmp_path, 2)
    path_type = type(tmp_path)
    rename = path_type.replace

    def look_then_rename(self, target):
        assert (tmp_path / "last.pt").exists()
        return rename(self, target)

    monkeypatch.setattr(path_type, "replace", look_then_rename)
    checkpoint.save(tmp_path, state(3))


# reading what is damaged


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_checkpoint_is_refused_and_the_one_before_taken(tmp_path, share):
    file = save_states(tmp_path, 2)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        checkpoint.load(file)
    state, source = checkpoint.load_newest(tmp_path)
    assert source == tmp_path / "previous.pt"
    assert state["step"] == 1


def test_newest_is_the_last_where_it_is_whole_and_has_no_checksum_left_in_it(tmp_path):
    save_states(tmp_path, 3)
    read, source = checkpoint.load_newest(tmp_path)
    assert source == tmp_path / "last.pt"
    assert read.keys() == state(2).keys()
    assert read["step"] == 3


def test_damaged_checkpoint_without_an_older_one_promises_nothing(tmp_path):
    file = save_states(tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        checkpoint.load_newest(tmp_path)
    assert "previous" not in str(caught.value)


def test_two_damaged_checkpoints_are_both_named(tmp_path):
    save_states(tmp_path, 2)
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"last\.pt is damaged .*; .*previous\.pt is damaged"):
        checkpoint.load_newest(tmp_path)


def test_damaged_last_never_becomes_the_previous(tmp_path):
    file = save_states(tmp_path, 2)
    file.write_bytes(b"garbage")
    checkpoint.set_aside(tmp_path / "last.pt")
    checkpoint.save(tmp_path, state(7))
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 7
    assert checkpoint.load(tmp_path / "previous.pt")["step"] == 1


def test_checkpoint_of_ours_without_its_checksum_is_not_gone_on_from(tmp_path):
    torch.save(state(1), tmp_path / "last.pt")
    with pytest.raises(UserError, match="no checksum"):
        checkpoint.load_newest(tmp_path)


def test_every_flipped_bit_of_the_weights_is_noticed(tmp_path):
    """torch itself reads such a file silently."""
    weights = torch.arange(1000, dtype=torch.float32)
    checkpoint.save(tmp_path, {"weights": weights, "step": 1})
    file = tmp_path / "last.pt"
    content = bytearray(file.read_bytes())
    at = bytes(content).index(weights.numpy().tobytes()) + 2001
    content[at] ^= 1
    file.write_bytes(content)
    assert not torch.equal(torch.load(file, weights_only=True)["weights"], weights)
    with pytest.raises(UserError, match="does not match its checksum"):
        checkpoint.load(file)


@pytest.mark.parametrize("seed", range(8))
def test_checkpoint_with_random_damage_is_refused_or_equal(tmp_path, seed):
    original = {"weights": torch.randn(50, 4), "count": {"a": 1}, "words": ["x", None, 0.5]}
    checkpoint.save(tmp_path, original)
    file, rng = tmp_path / "last.pt", np.random.default_rng(seed)
    whole = file.read_bytes()
    for _ in range(25):
        content = bytearray(whole)
        for at in rng.integers(len(content), size=rng.integers(1, 4)):
            content[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        with contextlib.suppress(UserError):  # anything else is a failure
            read, _ = checkpoint.load_newest(tmp_path)
            assert atomic.digest(read) == atomic.digest(original)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(2, 3), "b": [1, 2.0]},
        {"a": torch.zeros(3, 2).double(), "b": [1, 2.0]},
        {"a": torch.ones(3, 2), "b": [1, 2.0]},
        {"a": torch.zeros(3, 2), "b": [1, 2]},
        {"a": torch.zeros(3, 2), "b": (1, 2.0)},
        {"a": torch.zeros(3, 2), "b": [12.0]},
        {"a": torch.zeros(3, 2), "b": [1, [2.0]]},
        {"a": torch.zeros(3, 2), "c": [1, 2.0]},
        {"a": torch.zeros(3, 2), "b": [True, 2.0]},
        {"a": torch.zeros(3, 2)},
    ],
)
def test_digest_tells_states_apart(other):
    whole = {"a": torch.zeros(3, 2), "b": [1, 2.0]}
    assert atomic.digest(whole) == atomic.digest({"a": torch.zeros(3, 2), "b": [1, 2.0]})
    assert atomic.digest(whole) != atomic.digest(other)


def test_digest_takes_scalars_slices_and_half_precision_and_nothing_but_data():
    half = torch.randn(4, 6).bfloat16()
    assert atomic.digest(half[:, ::2]) == atomic.digest(half[:, ::2].clone())
    assert atomic.digest(torch.tensor(1.0)) != atomic.digest(torch.tensor(2.0))
    with pytest.raises(TypeError, match="not object"):
        atomic.digest({"a": object()})


def test_kept_checkpoint_outlives_the_next_ones(tmp_path):
    save_states(tmp_path, 1)
    checkpoint.keep(tmp_path / "last.pt", "epoch-1.pt")
    save_states(tmp_path, 3)
    assert checkpoint.load(tmp_path / "epoch-1.pt")["step"] == 1
    assert names(tmp_path) == {"last.pt", "previous.pt", "epoch-1.pt"}


@pytest.mark.parametrize("content", [b"garbage", b"\x80\x02", b"PK\x03\x04", b"\0" * 5000])
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"last\.pt is damaged or not a checkpoint") as caught:
        checkpoint.load(tmp_path / "last.pt")
    assert "\n" not in str(caught.value)


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint .*last\.pt"):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(2), "text", 7])
def test_checkpoint_that_is_no_dictionary_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "last.pt")
    with pytest.raises(UserError, match=f"it holds a {type(value).__name__}"):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path, zipped):
    marker = tmp_path / "marker"
    content = {"step": 1, "model": WritesAFile(marker)}
    torch.save(content, tmp_path / "last.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        checkpoint.load(tmp_path / "last.pt")
    assert not marker.exists()


def test_code_in_a_bare_pickle_is_refused_and_never_runs(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "last.pt").write_bytes(pickle.dumps(WritesAFile(marker)))
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        checkpoint.load(tmp_path / "last.pt")
    assert not marker.exists()


def test_the_code_of_these_tests_does_run_where_pickles_are_trusted(tmp_path):
    marker = tmp_path / "marker"
    buffer = io.BytesIO()
    torch.save({"model": WritesAFile(marker)}, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=False)["model"].close()
    assert marker.exists()


# tensors


def test_tensors_and_facts_come_back(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(6).reshape(2, 3).T}
    checkpoint.save_tensors(tmp_path / "e.safetensors", tensors, {"width": 4})
    loaded, facts = checkpoint.load_tensors(tmp_path / "e.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert facts == {"width": 4}
    assert names(tmp_path) == {"e.safetensors", "e.json"}


@pytest.mark.parametrize("gone", ["e.safetensors", "e.json"])
def test_missing_half_of_the_product_is_named(tmp_path, gone):
    checkpoint.save_tensors(tmp_path / "e.safetensors", {"a": torch.zeros(1)}, {})
    (tmp_path / gone).unlink()
    with pytest.raises(UserError, match=f"no such file: .*{gone}"):
        checkpoint.load_tensors(tmp_path / "e.safetensors")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("e.safetensors", b""),
        ("e.safetensors", b"\xff" * 64),
        ("e.json", b""),
        ("e.json", b"{"),
        ("e.json", b"\xff\xfe"),
    ],
)
def test_damaged_half_of_the_product_is_refused(tmp_path, name, content):
    checkpoint.save_tensors(tmp_path / "e.safetensors", {"a": torch.zeros(1)}, {})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load_tensors(tmp_path / "e.safetensors")


def test_truncated_product_is_refused(tmp_path):
    file = tmp_path / "e.safetensors"
    checkpoint.save_tensors(file, {"a": torch.zeros(1000)}, {})
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load_tensors(file)


def test_facts_are_json_for_other_programs(tmp_path):
    checkpoint.save_tensors(tmp_path / "e.safetensors", {}, {"mean": [0.5]})
    assert json.loads((tmp_path / "e.json").read_text()) == {"mean": [0.5]}


# weights


def test_weights_that_fit_are_taken(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpoint.load_weights(model, other.state_dict(), source="f.pt")
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bias"), "f.pt does not fit the model: missing keys: bias"),
        (lambda s: s.update(odd=s["bias"]), "f.pt does not fit the model: unknown keys: odd"),
        (
            lambda s: s.update(odd=s.pop("bias")),
            "missing keys: bias; unknown keys: odd",
        ),
        (
            lambda s: s.update(weight=torch.zeros(3, 3)),
            r"f.pt does not fit the model: weight has shape \[3, 3\], in the model \[2, 3\]",
        ),
    ],
    ids=["missing", "extra", "both", "shape"],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(change, message):
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    weights = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    change(weights)
    with pytest.raises(UserError, match=message):
        checkpoint.load_weights(model, weights, source="f.pt")
    assert torch.equal(model.weight, before)
