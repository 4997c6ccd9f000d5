"""Encoders of other makers' files compute here what they compute there.

timm and transformers build the models and compute the reference; files of research code (MAE,
MoCo v3, DINO, DINOv2, DeiT, CAE) are generated with exactly the keys that it writes.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Generator, Tensor, nn

from mvmae.encoders import OpenedEncoder, load_encoder, open_encoder
from mvmae.encoders.resize import adapt_patch_weight, resample_positions
from mvmae.method.vit import positions_with_cls

pytestmark = pytest.mark.parity
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
HF = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
IMAGES = torch.randn(2, 3, 32, 32, generator=Generator().manual_seed(1))


def shaken(model: nn.Module) -> nn.Module:
    """A model whose every weight counts, positions and prefix tokens too."""
    generator = Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def timms(**changes) -> nn.Module:
    """timm's ViT at a small size; no head."""
    return shaken(timm.models.VisionTransformer(**SIZES | {"num_classes": 0} | changes))


def same(opened: OpenedEncoder, expected: Tensor, images: Tensor = IMAGES) -> None:
    torch.testing.assert_close(opened.encoder(images), expected, rtol=1e-5, atol=1e-5)


def save(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


# timm

KINDS = {
    "plain": {},
    "registers": {"reg_tokens": 3},
    "registers without positions": {"reg_tokens": 4, "no_embed_class": True},
    "registers alone": {"reg_tokens": 2, "class_token": False, "global_pool": "avg"},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "layer scale": {"init_values": 1e-5},
    "DeiT III": {"no_embed_class": True, "init_values": 1e-6},
    "DINOv2": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True, "num_heads": 2},
    "no final norm": {"global_pool": "avg", "fc_norm": True},
    "no bias of queries": {"qkv_bias": False},
    "wide MLP": {"mlp_ratio": 3.0},
    "one channel": {"in_chans": 1},
    "head": {"num_classes": 10},
    "attention pooling": {"global_pool": "map"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_timms_vit_computes_the_same_here(tmp_path, kind):
    theirs = timms(**KINDS[kind])
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    images = torch.randn(2, KINDS[kind].get("in_chans", 3), 32, 32)
    with torch.no_grad():
        expected = theirs.forward_features(images)
    opened = open_encoder(tmp_path / "model.safetensors")
    same(opened, expected, images)
    assert opened.encoder.num_prefix == theirs.num_prefix_tokens
    beside = [key for key in theirs.state_dict() if key.startswith(("head", "fc_", "attn_pool"))]
    assert opened.left_out == tuple(sorted(beside))


def test_a_named_vit_of_timm_is_read_from_a_file(tmp_path):
    theirs = shaken(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5))
    opened = open_encoder(save(tmp_path, theirs.state_dict()))
    with torch.no_grad():
        same(opened, theirs.forward_features(IMAGES))
    assert opened.encoder.size == (192, 12, 3)
    assert opened.left_out == ("head.bias", "head.weight")


OFFLINE = """
import contextlib, io, sys
import timm, torch
from mvmae.cli.main import main
from mvmae.encoders import open_encoder
name, *missing = sys.argv[1:]
opened = open_encoder("timm:" + name)
model = timm.create_model(name, pretrained=True, num_classes=0).eval()
images = torch.rand(1, 3, 224, 224)
with torch.no_grad():
    torch.testing.assert_close(opened.encoder(images), model.forward_features(images))
print(opened.maker, opened.preprocessing.mean, opened.pool)
for source in missing:
    with contextlib.redirect_stderr(io.StringIO()) as told:
        assert main(["show", source]) == 2
    print(told.getvalue(), end="")
"""


@pytest.mark.slow
def test_timms_weights_come_from_the_hubs_cache_and_missing_ones_are_one_plain_line(tmp_path):
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    snapshot = tmp_path / f"models--timm--{name}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    theirs = shaken(timm.create_model(name))
    safetensors.torch.save_file(theirs.state_dict(), snapshot / "model.safetensors")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    missing = ["timm:vit_base_patch16_224", "hf:facebook/vit-mae-base"]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, name, *missing],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, no_timm, no_hub = done.stdout.splitlines()
    assert first == "timm (0.5, 0.5, 0.5) cls"
    assert no_timm.startswith("mvmae: timm cannot load vit_base_patch16_224: ")
    assert no_hub.startswith("mvmae: hf:facebook/vit-mae-base is not a local folder, and the hub ")


# transformers


def vit(kind: str, **changes) -> nn.Module:
    classes = {
        "ViT": (transformers.ViTConfig, transformers.ViTModel, {"intermediate_size": 256}),
        "ViT with a classifier": (
            transformers.ViTConfig,
            transformers.ViTForImageClassification,
            {"intermediate_size": 256, "layer_norm_eps": 1e-3},
        ),
        "DeiT": (transformers.DeiTConfig, transformers.DeiTModel, {"intermediate_size": 256}),
        "ViTMAE": (
            transformers.ViTMAEConfig,
            transformers.ViTMAEForPreTraining,
            {
                "intermediate_size": 256,
                "decoder_hidden_size": 64,
                "decoder_num_hidden_layers": 1,
                "decoder_num_attention_heads": 2,
                "decoder_intermediate_size": 128,
            },
        ),
        "ViTMAE's encoder": (
            transformers.ViTMAEConfig,
            transformers.ViTMAEModel,
            {"intermediate_size": 256},
        ),
        "DINOv2": (transformers.Dinov2Config, transformers.Dinov2Model, {"mlp_ratio": 2}),
        "DINOv2 with registers": (
            transformers.Dinov2WithRegistersConfig,
            transformers.Dinov2WithRegistersModel,
            {"mlp_ratio": 2, "num_register_tokens": 3},
        ),
    }
    config, model, more = classes[kind]
    return shaken(model(config(**HF | more | changes)))


MODELS = [
    *("ViT", "ViT with a classifier", "DeiT", "ViTMAE", "ViTMAE's encoder", "DINOv2"),
    "DINOv2 with registers",
]


@torch.no_grad()
def hidden_tokens(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    """All tokens of a model of transformers, in the order of the image."""
    base = getattr(model, "vit", model)
    if "MAE" not in type(model).__name__:
        return base(pixel_values=images).last_hidden_state
    base.config.mask_ratio = 0.0
    noise = torch.arange(16.0).expand(len(images), -1)
    return base(pixel_values=images, noise=noise).last_hidden_state


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_transformers_compute_the_same_here(tmp_path, kind):
    model = vit(kind)
    model.save_pretrained(tmp_path / "model")
    expected = hidden_tokens(model)
    for source in (tmp_path / "model", f"hf:{tmp_path / 'model'}"):
        same(open_encoder(source), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_the_state_of_a_model_of_transformers_is_read_as_it_is_in_memory(tmp_path, kind):
    eps = 1e-6 if "DINO" in kind else 1e-12  # the defaults: tensors do not say
    model = vit(kind, num_attention_heads=2, layer_norm_eps=eps)
    same(open_encoder(save(tmp_path, model.state_dict())), hidden_tokens(model))


CLASSIC = (  # the hub's spelling since 2020, from that of transformers 5 in memory
    ("vit.layers.", "vit.encoder.layer."),
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)


def test_the_hubs_classic_spelling_is_read(tmp_path):
    model = vit("ViTMAE")
    state = {}
    for key, tensor in model.state_dict().items():
        for new, classic in CLASSIC:
            key = key.replace(new, classic)
        state[key] = tensor.contiguous()
    assert "vit.encoder.layer.0.attention.attention.query.weight" in state
    assert "decoder.decoder_layers.0.output.dense.bias" in state
    model.config.save_pretrained(tmp_path)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    opened = open_encoder(tmp_path)
    same(opened, hidden_tokens(model))
    assert all(key.startswith("decoder.") for key in opened.left_out)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    same(open_encoder(tmp_path), hidden_tokens(model))


def test_a_folder_says_what_tensors_do_not(tmp_path):
    model = vit("ViT", image_size=(16, 64), num_channels=1, layer_norm_eps=1e-2)
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(
        image_mean=[0.3], image_std=[0.2], resample=2, size={"height": 16, "width": 64}
    ).save_pretrained(tmp_path)
    opened = open_encoder(tmp_path)
    images = torch.randn(2, 1, 16, 64)
    same(opened, hidden_tokens(model, images), images)
    assert opened.encoder.size.num_heads == 4
    assert opened.preprocessing == ((0.3,), (0.2,), "bilinear")


# Research code: keys as its scripts write them, values from timm's models


def mae_state(theirs: nn.Module, *, decoder: bool) -> dict[str, Tensor]:
    """MAE's official state dict: fixed positions are parameters, and it has a decoder."""
    state = dict(theirs.state_dict())
    if decoder:
        other = timms(embed_dim=64, depth=1).state_dict()
        state |= {f"decoder_{key}": value for key, value in other.items() if "blocks" in key}
        state |= {f"decoder_norm.{end}": torch.ones(64) for end in ("weight", "bias")}
        state |= {
            "mask_token": torch.zeros(1, 1, 64),
            "decoder_pos_embed": positions_with_cls(64, (4, 4)),
            "decoder_embed.weight": torch.randn(64, 128),
            "decoder_embed.bias": torch.randn(64),
            "decoder_pred.weight": torch.randn(192, 64),
            "decoder_pred.bias": torch.randn(192),
        }
    return state


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_maes_checkpoints_are_read(tmp_path, decoder, whole):
    theirs = timms()
    content: dict = {"model": mae_state(theirs, decoder=decoder)}
    if whole:  # as main_pretrain.py saves it
        optimizer = torch.optim.AdamW(theirs.parameters()).state_dict()
        args = argparse.Namespace(model="mae_vit_base_patch16", mask_ratio=0.75)
        content |= {"optimizer": optimizer, "epoch": 799, "scaler": {}, "args": args}
    opened = open_encoder(save(tmp_path, content))
    with torch.no_grad():
        same(opened, theirs.forward_features(IMAGES))
    assert opened.maker == ("MAE" if decoder else "ViT with timm's keys")
    assert len(opened.left_out) == (20 if decoder else 0)


@pytest.mark.parametrize(("width", "heads"), [(128, 2), (384, 12)])
def test_moco_v3s_checkpoints_are_read(tmp_path, width, heads):
    base = timms(embed_dim=width, num_heads=heads)
    momentum = timms(embed_dim=width, num_heads=heads, init_values=None)
    shaken(momentum)
    state = {}
    for name, model in (("base_encoder", base), ("momentum_encoder", momentum)):
        state |= {f"module.{name}.{key}": value for key, value in model.state_dict().items()}
        state |= {f"module.{name}.head.0.weight": torch.randn(64, width)}
        state |= {f"module.{name}.head.1.running_mean": torch.zeros(64)}
        state |= {f"module.{name}.head.1.num_batches_tracked": torch.tensor(7)}
    state |= {f"module.predictor.{at}.weight": torch.randn(8, 8) for at in (0, 3)}
    content = {
        "epoch": 300,
        "arch": "vit_small",
        "state_dict": state,
        "optimizer": {},
        "scaler": {},
    }
    opened = open_encoder(save(tmp_path, content))
    with torch.no_grad():
        same(opened, base.forward_features(IMAGES))
    assert opened.maker == "MoCo v3"
    assert opened.encoder.size.num_heads == heads


def test_dinos_backbone_is_read(tmp_path):
    theirs = timms()
    opened = open_encoder(save(tmp_path, theirs.state_dict()))
    with torch.no_grad():
        same(opened, theirs.forward_features(IMAGES))
    assert opened.pool == "cls"


def test_of_dinos_whole_checkpoint_the_teacher_is_read(tmp_path):
    student, teacher = timms(), shaken(timms())
    head = {"mlp.0.weight": torch.randn(8, 128), "last_layer.weight_g": torch.ones(9, 1)}
    content = {
        "student": {f"module.backbone.{k}": v for k, v in student.state_dict().items()}
        | {f"module.head.{key}": value for key, value in head.items()},
        "teacher": {f"backbone.{key}": value for key, value in teacher.state_dict().items()}
        | {f"head.{key}": value for key, value in head.items()},
        "optimizer": torch.optim.AdamW(student.parameters()).state_dict(),
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=8),
        "dino_loss": {"center": torch.zeros(1, 9)},
    }
    opened = open_encoder(save(tmp_path, content))
    with torch.no_grad():
        same(opened, teacher.forward_features(IMAGES))
    assert opened.maker == "DINO"
    assert opened.left_out == ("head.last_layer.weight_g", "head.mlp.0.weight")
    del content["teacher"]
    with torch.no_grad():
        same(open_encoder(save(tmp_path, content)), student.forward_features(IMAGES))


def test_dinov2s_own_keys_are_read(tmp_path):
    theirs = timms(init_values=1.0, reg_tokens=4, no_embed_class=True)
    state = dict(theirs.state_dict())
    # There the class token's position is a row of pos_embed, and registers have none.
    position = torch.randn(1, 1, 128)
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - position
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, 128)
    assert "blocks.0.ls1.gamma" in state
    opened = open_encoder(save(tmp_path, state))
    with torch.no_grad():
        same(opened, theirs.forward_features(IMAGES))
    assert opened.left_out == ("mask_token",)


def test_deits_distillation_token_is_read_with_its_position(tmp_path):
    from timm.models.deit import VisionTransformerDistilled

    theirs = shaken(VisionTransformerDistilled(**SIZES, num_classes=5))
    opened = open_encoder(save(tmp_path, {"model": theirs.state_dict()}))
    with torch.no_grad():
        same(opened, theirs.forward_features(IMAGES))
    assert set(opened.left_out) == {
        *("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
    }


def cae_state(theirs: nn.Module) -> dict[str, Tensor]:
    """CAE's and BEiT's spelling: biases of queries and values alone, gammas beside the block."""
    state = {}
    for key, value in theirs.state_dict().items():
        if key.endswith("attn.qkv.bias"):
            query, _, third = value.chunk(3)
            state[key.replace("qkv.bias", "q_bias")] = query
            state[key.replace("qkv.bias", "v_bias")] = third
        else:
            state[key.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2")] = value
    return state


def test_caes_checkpoint_without_a_relative_position_bias_is_read(tmp_path):
    theirs = timms(init_values=0.1)
    for block in theirs.blocks:
        block.attn.qkv.bias.data[128:256] = 0  # it has no bias of keys
    opened = open_encoder(save(tmp_path, {"model": cae_state(theirs)}))
    with torch.no_grad():
        same(opened, theirs.forward_features(IMAGES))


# Another size, another number of channels


@pytest.mark.parametrize("size", [(48, 48), (16, 64), (24, 40)])
def test_positions_are_resampled_as_timm_does(size):
    from timm.layers import resample_abs_pos_embed

    positions = torch.randn(1, 17, 128)
    grid = (size[0] // 8, size[1] // 8)
    expected = resample_abs_pos_embed(positions, list(grid), [4, 4], antialias=False)
    torch.testing.assert_close(
        resample_positions(positions, (4, 4), grid), expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("size", [(48, 48), (16, 64)])
def test_an_encoder_of_another_size_computes_what_timms_does(tmp_path, size):
    theirs = timms(dynamic_img_size=True, class_token=False, global_pool="avg")
    other = timms(img_size=size, class_token=False, global_pool="avg")
    state = dict(theirs.state_dict())
    wanted = resample_positions(
        state["pos_embed"], (4, 4), (size[0] // 8, size[1] // 8), has_cls=False
    )
    other.load_state_dict(state | {"pos_embed": wanted})
    encoder = load_encoder(save(tmp_path, state), size)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = other.forward_features(images)
    torch.testing.assert_close(encoder(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_channels_are_adapted_as_timm_does(channels):
    from timm.models import adapt_input_conv

    weight = torch.randn(128, 3, 8, 8)
    expected = adapt_input_conv(channels, weight)
    torch.testing.assert_close(adapt_patch_weight(weight, channels), expected, rtol=1e-6, atol=1e-6)


def test_a_gray_image_gives_what_its_colour_copy_gave(tmp_path):
    theirs = timms()
    file = save(tmp_path, theirs.state_dict())
    gray = torch.randn(2, 1, 32, 32)
    colour, plain = load_encoder(file), load_encoder(file, in_channels=1)
    expected = colour(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(plain(gray), expected, rtol=1e-5, atol=1e-5)
