"""Encoders recognised in other projects' files, and refusals that name the reason."""

import argparse
import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mvmae.encoders import open_encoder
from mvmae.encoders.formats import Hints, find_encoder, unwrap_tensors
from mvmae.errors import UserError
from mvmae.method.vit import PLAIN, Variant


def plain(width: int = 64, depth: int = 1, grid: int = 2, patch: int = 4) -> dict[str, Tensor]:
    """The state dict of a ViT under timm's keys."""
    state = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, 1 + grid * grid, width),
        "patch_embed.proj.weight": torch.randn(width, 3, patch, patch),
        "patch_embed.proj.bias": torch.randn(width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    for block in range(depth):
        shapes = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }
        state |= {f"blocks.{block}.{key}": torch.randn(shape) for key, shape in shapes.items()}
    return state


def without(state: dict, *keys: str) -> dict:
    return {key: value for key, value in state.items() if key not in keys}


def complaint(tmp_path: Path, content: object, name: str = "w.pth") -> str:
    """The one line by which a file is refused."""
    torch.save(content, tmp_path / name)
    with pytest.raises(UserError) as caught:
        open_encoder(tmp_path / name)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


# What is found


def test_sizes_are_read_from_the_tensors():
    found = find_encoder(plain(width=128, depth=3, grid=5, patch=8), source="file")
    assert found.encoder.size == (128, 3, 2)
    assert found.encoder.patch_size == 8
    assert found.encoder.image_size == (40, 40)
    assert found.encoder.in_channels == 3
    assert found.encoder.variant == PLAIN
    assert found.left_out == ()


def test_a_known_size_has_its_own_heads_and_others_heads_of_64():
    for width, depth, heads in ((64, 4, 2), (64, 1, 1), (192, 12, 3), (640, 1, 10)):
        assert find_encoder(plain(width, depth), source="file").encoder.size.num_heads == heads


def test_hints_say_what_tensors_do_not():
    found = find_encoder(plain(grid=4), source="file", hints=Hints(4, 1e-3, (8, 32)))
    assert found.encoder.size.num_heads == 4
    assert found.encoder.image_size == (8, 32)
    assert found.encoder.variant == Variant(norm_eps=1e-3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state},
        lambda state: {"state_dict": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"epoch": 3, "args": argparse.Namespace(lr=1), "model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"module.encoder.{key}": value for key, value in state.items()},
        lambda state: {"model_ema": state, "model": plain(width=128)},
    ],
)
def test_an_encoder_is_found_in_whatever_is_around_it(wrap):
    state = plain()
    found = find_encoder(wrap(state), source="file")
    assert torch.equal(found.encoder.cls_token, state["cls_token"])
    assert found.encoder.state_dict().keys() == state.keys()


def test_one_number_beside_does_not_hide_the_model(tmp_path):
    state = plain()
    content = {"model": state, "step": torch.tensor(5), "loss": torch.zeros(())}
    torch.save(content, tmp_path / "w.pth")
    assert torch.equal(open_encoder(tmp_path / "w.pth").encoder.cls_token, state["cls_token"])


def test_half_precision_files_become_single_precision(tmp_path):
    state = {key: value.half() for key, value in plain().items()}
    safetensors.torch.save_file(state, tmp_path / "half.safetensors")
    encoder = open_encoder(tmp_path / "half.safetensors").encoder
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32}
    assert encoder(torch.randn(1, 3, 8, 8)).isfinite().all()


def test_only_tensors_count():
    state = plain()
    assert unwrap_tensors({"model": {**state, "version": 3}}).keys() == state.keys()


# What is refused, and by which name

STRANGE = {
    "BEiT": (
        {"blocks.0.attn.relative_position_bias_table": torch.zeros(9, 2)},
        "relative position",
    ),
    "BEiT's shared bias": (
        {"rel_pos_bias.relative_position_bias_table": torch.zeros(9)},
        "relative",
    ),
    "CLIP of timm": ({"norm_pre.weight": torch.zeros(64)}, "CLIP"),
    "SwiGLU of DINOv2": ({"blocks.0.mlp.w12.weight": torch.zeros(8, 64)}, "SwiGLU"),
    "rotary": ({"rope.periods": torch.zeros(16)}, "rotary"),
    "normalised queries": ({"blocks.0.attn.q_norm.weight": torch.zeros(64)}, "queries and keys"),
    "hybrid": ({"patch_embed.backbone.stem.conv.weight": torch.zeros(8, 3, 3, 3)}, "convolutional"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_networks_of_other_kinds_are_refused_by_what_they_have(tmp_path, kind):
    more, says = STRANGE[kind]
    text = complaint(tmp_path, plain() | more)
    assert says in text
    assert "w.pth" in text


def test_cae_with_its_relative_position_bias_is_refused_by_name(tmp_path):
    state = without(plain(), "blocks.0.attn.qkv.bias")
    state |= {f"blocks.0.attn.{name}_bias": torch.zeros(64) for name in "qv"}
    state |= {f"blocks.0.gamma_{number}": torch.ones(64) for number in (1, 2)}
    find_encoder(state, source="file")
    state["blocks.0.attn.relative_position_bias_table"] = torch.zeros(9, 1)
    assert "relative position bias (BEiT, SimMIM" in complaint(tmp_path, state)


def test_simmim_with_its_encoder_beside_a_decoder_is_refused(tmp_path):
    state = {f"encoder.{key}": value for key, value in plain().items()}
    state["encoder.blocks.0.attn.relative_position_index"] = torch.zeros(9, 9)
    state |= {"decoder.0.weight": torch.zeros(3, 3), "encoder.mask_token": torch.zeros(1, 1, 64)}
    assert "SimMIM" in complaint(tmp_path, {"model": state})


def test_swin_is_refused(tmp_path):
    state = {
        "patch_embed.proj.weight": torch.zeros(96, 3, 4, 4),
        "patch_embed.norm.weight": torch.zeros(96),
        "layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(169, 3),
    }
    assert "Swin" in complaint(tmp_path, state)


@pytest.mark.parametrize(
    "state",
    [
        {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64)},
        {"visual.conv1.weight": torch.zeros(768, 3, 32, 32), "logit_scale": torch.zeros(())},
        {},
        {"model": {}},
        {"epoch": 3},
    ],
    ids=["ResNet", "CLIP of OpenAI", "empty", "an empty model", "no tensors"],
)
def test_what_has_no_vision_transformer_is_refused(tmp_path, state):
    assert "holds no Vision Transformer that mvmae knows" in complaint(tmp_path, state)


def test_a_list_is_no_checkpoint(tmp_path):
    assert "it holds a list" in complaint(tmp_path, [plain()])


def test_missing_and_unknown_keys_are_listed(tmp_path):
    text = complaint(tmp_path, without(plain(), "blocks.0.norm1.bias"))
    assert "missing keys: blocks.0.norm1.bias" in text
    text = complaint(tmp_path, plain() | {"blocks.0.gate.weight": torch.zeros(3)})
    assert "unknown keys: blocks.0.gate.weight" in text
    more = {f"extra.{number}": torch.zeros(1) for number in range(30)}
    assert "and 20 more" in complaint(tmp_path, plain() | more)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (without(plain(), "pos_embed"), "lacks pos_embed"),
        (without(plain(), "blocks.0.mlp.fc1.weight"), "lacks blocks.0.mlp.fc1.weight"),
        (plain() | {"pos_embed": torch.zeros(1, 8, 64)}, "8 positions, which do not form a square"),
        (plain() | {"pos_embed": torch.zeros(64)}, "positions of shape"),
        (plain() | {"patch_embed.proj.weight": torch.zeros(64, 3, 4, 8)}, "must be square"),
        (plain() | {"patch_embed.proj.weight": torch.zeros(64, 48)}, "must be square"),
        (plain() | {"norm.bias": torch.zeros(3)}, "norm.bias has shape [3], in the model [64]"),
        (plain() | {"cls_token": torch.zeros(1, 1, 32)}, "cls_token"),
        (plain() | {"reg_token": torch.zeros(64)}, "registers of shape [64]"),
        (plain(width=96, depth=2), "does not give its number of attention heads, and its width 96"),
        (plain() | {"blocks.5.norm1.bias": torch.zeros(64)}, "blocks.5"),
        (
            without(plain(), "blocks.0.attn.qkv.weight")
            | {"blocks.0.attn.query.weight": torch.zeros(64, 64)},
            "lacks the k weight of block 0",
        ),
        (plain() | {"blocks.0.attn.q_bias": torch.zeros(64)}, "lacks the v bias of block 0"),
    ],
)
def test_a_damaged_model_is_refused_by_what_is_wrong(tmp_path, state, says):
    assert says in complaint(tmp_path, state)


QUERIES = {
    f"blocks.0.attn.{name}.weight": torch.randn(64, 64) for name in ("query", "key", "value")
}
FAMILIES = {
    "plain": plain(),
    "registers": plain() | {"reg_token": torch.randn(1, 2, 64)},
    "DeiT": plain() | {"dist_token": torch.randn(1, 1, 64), "pos_embed": torch.randn(1, 6, 64)},
    "apart": without(plain(), "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias") | QUERIES,
    "CAE": without(plain(), "blocks.0.attn.qkv.bias")
    | {f"blocks.0.attn.{name}_bias": torch.randn(64) for name in "qv"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_of_any_other_shape_is_the_files_fault(tmp_path, family):
    state = FAMILIES[family]
    find_encoder(state, source="file")
    for key in state:
        for shape in ((), (3,), (0,), (5, 7), (2, 5, 64), (2, 2, 2, 2), (1, 1, 1, 1, 1)):
            if shape == tuple(state[key].shape):
                continue
            torch.save(state | {key: torch.zeros(shape)}, tmp_path / "w.pth")
            with pytest.raises(UserError):
                open_encoder(tmp_path / "w.pth")


# Files that are not checkpoints


class Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("by_torch", [True, False])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path, by_torch):
    marker = tmp_path / "marker"
    content = {"model": plain(), "trap": Trap(marker)}
    if by_torch:
        torch.save(content, tmp_path / "w.pth")
    else:
        (tmp_path / "w.pth").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        open_encoder(tmp_path / "w.pth")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists()  # the trap works


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 7, 100, 0.5, -1])
def test_a_file_that_was_cut_is_refused(tmp_path, suffix, kept):
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(plain(), file)
    else:
        torch.save(plain(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=re.escape(f"{file} is damaged")):
        open_encoder(file)


def test_a_text_file_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("weights\n" * 99)
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        open_encoder(tmp_path / "notes.txt")
