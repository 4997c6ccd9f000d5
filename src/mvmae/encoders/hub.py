"""Encoders from timm and from transformers' folders, on this machine or on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from mvmae.config.views import ViewsConfig
from mvmae.encoders.encoder_json import Preprocessing
from mvmae.encoders.formats import FoundEncoder, Hints, find_encoder
from mvmae.errors import UserError, nearest
from mvmae.training import checkpoint

SUPPORTED_MODELS = (
    "vit",
    "vit_mae",
    "deit",
    "dinov2",
    "dinov2_with_registers",
)  # transformers' names
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
PREPROCESSOR_FILE = "preprocessor_config.json"
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as transformers keeps them


def from_timm(name: str) -> tuple[FoundEncoder, Preprocessing]:
    """A pre-trained encoder of timm, downloaded or from its cache.

    Raises:
        UserError: timm is not installed, has no such model, cannot get it, or it is no plain ViT.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError("timm:NAME needs: pip install 'mvmae[timm]'") from error
    known = timm.list_models(module="vision_transformer")
    if not timm.is_model(name):
        raise UserError(
            f"timm has no model '{name}'{nearest(name, known)} "
            "(timm.list_models('vit*') lists them)"
        )
    try:
        model: Any = timm.create_model(
            name, pretrained=True, num_classes=0, pretrained_cfg_overlay=_weights_of_timm(name)
        ).eval()
    except Exception as error:  # no network, no weights, no such file: of many classes
        raise UserError(f"timm cannot give {name}: {_first_line(error)}") from error
    _require_plain(model, name)
    facts: dict[str, Any] = model.pretrained_cfg
    block = model.blocks[0]
    hints = Hints(block.attn.num_heads, block.norm1.eps, tuple(model.patch_embed.img_size))
    found = find_encoder(model.state_dict(), source=f"timm:{name}", hints=hints)
    preprocessing = Preprocessing(
        tuple(facts["mean"]), tuple(facts["std"]), _known_mode(facts.get("interpolation"))
    )
    return found._replace(maker="timm"), preprocessing


def _weights_of_timm(name: str) -> dict[str, Any]:
    """Where timm finds the weights: a file from the hub, or nothing to say.

    Without a network timm itself would ask for a minute, and say so ten times.
    """
    import timm

    facts = timm.models.get_pretrained_cfg(name)
    if facts is None or not facts.hf_hub_id:
        return {}
    names = (facts.hf_hub_filename,) if facts.hf_hub_filename else WEIGHT_FILES
    folder = _snapshot(facts.hf_hub_id, names, ())
    file = next((folder / name for name in names if (folder / name).exists()), None)
    # `custom_load` is for the Jax files that these weights once were.
    return {"file": str(file), "custom_load": False} if file else {}


def _snapshot(name: str, weights: Sequence[str], others: Sequence[str]) -> Path:
    """A model's folder in the hub's cache, with one of the files of weights: the first there is."""
    from huggingface_hub import snapshot_download

    for file in weights:
        folder = Path(snapshot_download(name, allow_patterns=[file, *others]))
        if (folder / file).exists():
            break
    return folder


def _require_plain(model: Any, name: str) -> None:
    """Refuse what the state dict does not tell: other activations."""
    if type(model).__name__ != "VisionTransformer":
        raise UserError(
            f"timm:{name} is a {type(model).__name__}, not a plain Vision Transformer: "
            "timm.list_models('vit*') lists those"
        )
    activation = model.blocks[0].mlp.act
    exact = isinstance(activation, nn.GELU) and activation.approximate == "none"
    if not exact:
        raise UserError(
            f"timm:{name} has the activation {type(activation).__name__}, mvmae's encoder GELU"
        )


def _known_mode(interpolation: str | None) -> str:
    return interpolation if interpolation in ("bicubic", "bilinear") else "bicubic"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder is one that transformers' `save_pretrained` wrote."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def local_folder(name: str) -> Path:
    """The folder of a model: one here, or a download (or its cache) from the Hugging Face hub.

    Raises:
        UserError: It cannot be had.
    """
    if Path(name).is_dir():
        return Path(name)
    if find_spec("huggingface_hub") is None:
        raise UserError(f"no folder {name}, and the hub needs: pip install 'mvmae[hf]'")
    try:
        return _snapshot(name, WEIGHT_FILES, ("config.json", PREPROCESSOR_FILE))
    except Exception as error:  # no network, no such model, no right to it: of many classes
        raise UserError(
            f"hf:{name} is no folder here, and the hub does not give it: {_first_line(error)}"
        ) from error


def from_transformers(folder: Path) -> tuple[FoundEncoder, Preprocessing]:
    """An encoder from a folder that transformers wrote.

    Raises:
        UserError: A file is missing or damaged, or the model is no plain ViT.
    """
    facts = read_json(folder / "config.json")
    kind = facts.get("model_type")
    if kind not in SUPPORTED_MODELS:
        raise UserError(
            f"{folder} is a '{kind}' of transformers: mvmae reads {', '.join(SUPPORTED_MODELS)}"
        )
    if (activation := facts.get("hidden_act", "gelu")) != "gelu":
        raise UserError(f"{folder} has the activation {activation}, mvmae's encoder GELU")
    hints = Hints(
        facts.get("num_attention_heads"),
        facts.get("layer_norm_eps"),
        _sides(facts["image_size"]) if "image_size" in facts else None,
    )
    return (
        find_encoder(_weights(folder), source=str(folder), hints=hints),
        _preprocessing(folder, facts),
    )


def _weights(folder: Path) -> dict[str, Any]:
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if file is None:
        raise UserError(f"{folder} holds neither {' nor '.join(WEIGHT_FILES)}")
    return checkpoint.tensors_of(file) if file.suffix == ".safetensors" else checkpoint.load(file)


def _sides(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _preprocessing(folder: Path, facts: dict[str, Any]) -> Preprocessing:
    """What the preprocessor's file says; without one, ImageNet's mean and deviation."""
    said = read_json(folder / PREPROCESSOR_FILE) if (folder / PREPROCESSOR_FILE).exists() else {}
    channels = facts.get("num_channels", 3)
    mean, std = ViewsConfig().pixel_statistics(channels)
    return Preprocessing(
        tuple(said.get("image_mean") or mean),
        tuple(said.get("image_std") or std),
        RESAMPLING.get(said.get("resample", 3), "bicubic"),
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: It cannot be read or is none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds a {type(content).__name__}")
    return content
