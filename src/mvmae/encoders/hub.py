"""Load encoders of timm and transformers, from this machine or from the Hugging Face hub."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from mvmae.encoders.encoder_json import OpenedEncoder, Preprocessing
from mvmae.encoders.formats import Hints, find_encoder
from mvmae.errors import UserError, suggest
from mvmae.training import checkpoint

# Plain ViTs. BEiT, Swin and others share key names with them but compute something else.
SUPPORTED_MODELS = ("vit", "vit_mae", "deit", "dinov2", "dinov2_with_registers")  # model_type
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in order of preference
PREPROCESSOR_FILE = "preprocessor_config.json"
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's constants, as transformers stores them


def from_timm(name: str) -> OpenedEncoder:
    """Load a pre-trained encoder from timm, downloaded or from its cache.

    Raises:
        UserError: timm is not installed, does not know the model or cannot download it, or the
            model is not a plain ViT.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError("timm:NAME needs timm: pip install 'mvmae[timm]'") from error
    if not timm.is_model(name):
        known = timm.list_models(module="vision_transformer")
        raise UserError(
            f"timm has no model '{name}'{suggest(name, known)} "
            "(timm.list_models('vit*') lists them)"
        )
    try:
        model: Any = timm.create_model(
            name, pretrained=True, num_classes=0, pretrained_cfg_overlay=_weight_file_of_timm(name)
        ).eval()
    except Exception as error:  # no network, weights or file: timm raises many classes
        raise UserError(f"timm cannot load {name}: {_first_line(error)}") from error
    # By its exact class: timm's subclasses add parts that leave no trace in the weights.
    if type(model).__name__ != "VisionTransformer":
        raise UserError(
            f"timm:{name} is a {type(model).__name__}, not a plain Vision Transformer: "
            "timm.list_models('vit*') lists those"
        )
    # An activation has no weights: another one, or GELU's approximation, would go unnoticed.
    activation = model.blocks[0].mlp.act
    is_exact = isinstance(activation, nn.GELU) and activation.approximate == "none"
    _require_gelu(f"timm:{name}", "gelu" if is_exact else type(activation).__name__)
    facts: dict[str, Any] = model.pretrained_cfg
    block = model.blocks[0]
    # timm knows what a state dict does not show; then the tensors are treated like any file's.
    hints = Hints(block.attn.num_heads, block.norm1.eps, tuple(model.patch_embed.img_size))
    found = find_encoder(model.state_dict(), source=f"timm:{name}", hints=hints)
    interpolation = "bilinear" if facts.get("interpolation") == "bilinear" else "bicubic"
    preprocessing = Preprocessing(tuple(facts["mean"]), tuple(facts["std"]), interpolation)
    return found._replace(maker="timm", preprocessing=preprocessing)


def _weight_file_of_timm(name: str) -> dict[str, Any]:
    """Download the weights and tell timm their path; empty if they are not on the hub.

    Without a network, timm's own download retries for a minute and warns ten times.
    """
    import timm

    facts = timm.models.get_pretrained_cfg(name)
    if facts is None or not facts.hf_hub_id:
        return {}
    names = (facts.hf_hub_filename,) if facts.hf_hub_filename else WEIGHT_FILES
    file = _first_file(_snapshot(facts.hf_hub_id, names, ()), names)
    # `custom_load` is for weights in JAX's layout; the files on the hub are converted.
    return {"file": str(file), "custom_load": False} if file else {}


def _snapshot(name: str, weight_files: Sequence[str], others: Sequence[str]) -> Path:
    """Download a model into the hub's cache, with the first of the weight files that exists."""
    from huggingface_hub import snapshot_download

    # One pattern after the other: both files hold the same weights, and may be gigabytes.
    for file in weight_files:
        folder = Path(snapshot_download(name, allow_patterns=[file, *others]))
        if (folder / file).exists():
            break
    return folder


def _first_file(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _require_gelu(source: str, activation: str) -> None:
    """Reject other activations, which the weights do not show."""
    if activation != "gelu":
        raise UserError(
            f"{source} uses the activation {activation}; mvmae's encoder has exact GELU: choose "
            "another model"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def local_folder(name: str) -> Path:
    """Return a model's folder: a local one, or a download (or its cache) from the hub.

    Raises:
        UserError: The model is neither here nor on the hub, or the hub cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    # A folder wins over a model of that name, so that a local copy is used without a network.
    if find_spec("huggingface_hub") is None:
        raise UserError(f"no folder {name}, and the hub needs: pip install 'mvmae[hf]'")
    try:
        return _snapshot(name, WEIGHT_FILES, ("config.json", PREPROCESSOR_FILE))
    except Exception as error:  # no network, model or permission: the hub raises many classes
        raise UserError(
            f"hf:{name} is not a local folder, and the hub does not provide it: "
            f"{_first_line(error)}"
        ) from error


def from_transformers(folder: Path) -> OpenedEncoder:
    """Load an encoder from a transformers folder, perhaps one that `mvmae export` wrote.

    Raises:
        UserError: A file is missing or damaged, or the model is not a plain ViT.
    """
    facts = _read_json(folder / "config.json")
    model_type = facts.get("model_type")
    if model_type not in SUPPORTED_MODELS:
        raise UserError(
            f"{folder} holds a '{model_type}' of transformers: mvmae reads "
            f"{', '.join(SUPPORTED_MODELS)}"
        )
    _require_gelu(str(folder), facts.get("hidden_act", "gelu"))
    size = facts.get("image_size")
    hints = Hints(
        facts.get("num_attention_heads"),
        facts.get("layer_norm_eps"),
        (size, size) if isinstance(size, int) else size and (size[0], size[1]),
    )
    if (file := _first_file(folder, WEIGHT_FILES)) is None:
        raise UserError(f"{folder} holds neither {' nor '.join(WEIGHT_FILES)}")
    is_tensors = file.suffix == ".safetensors"
    weights = checkpoint.read_tensors(file) if is_tensors else checkpoint.load(file)
    found = find_encoder(weights, source=str(folder), hints=hints)
    file = folder / PREPROCESSOR_FILE
    content = _read_json(file) if file.exists() else {}
    preprocessing = Preprocessing(
        tuple(content.get("image_mean") or found.preprocessing.mean),
        tuple(content.get("image_std") or found.preprocessing.std),
        RESAMPLING.get(content.get("resample", 3), "bicubic"),
    )
    pool = facts.get("mvmae_pool")  # written by `mvmae export`
    return found._replace(
        preprocessing=preprocessing, pool=pool if pool in ("mean", "cls") else found.pool
    )


def _read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        UserError: The file cannot be read or does not hold an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{file} is damaged: it holds a {type(content).__name__}, not a JSON object"
        )
    return content
