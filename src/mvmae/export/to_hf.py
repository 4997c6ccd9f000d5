"""Export encoders and autoencoders as transformers' ViTModel and ViTMAEForPreTraining.

Weights are written under the keys that files on the Hugging Face hub have had since 2020
(`encoder.layer.0.attention.attention.query.weight`), which every version of transformers reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mvmae import encoders
from mvmae.config.model import DECODER_HEAD_WIDTH
from mvmae.encoders import OpenedAutoencoder, OpenedEncoder
from mvmae.errors import UserError
from mvmae.method.losses import normalize_patches, reconstruction_loss
from mvmae.method.patches import masking_from_noise
from mvmae.method.views import mask_noise
from mvmae.method.vit import PLAIN, Encoder
from mvmae.storage import atomic

Outputs = tuple[Tensor, ...]
FILE = "model.safetensors"
POOL = "mvmae_pool"  # config key: mean or cls; transformers keeps keys it does not know
RESAMPLING = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers, as in transformers' configs
RENAMES = tuple(  # mvmae's keys to those of the hub; order matters
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^decoder_blocks\.", "decoder.decoder_layers."),
        (r"^(decoder_|mask_token)", r"decoder.\1"),
        (r"^blocks\.", "encoder.layer."),
        (r"^(cls_token)$", r"embeddings.\1"),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"^norm\.", "layernorm."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    )
)


def rename_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to the hub's keys, and split queries, keys and values."""
    renamed = {}
    for key, tensor in state.items():
        name = key
        for pattern, new in RENAMES:
            name = pattern.sub(new, name)
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = third
        else:
            renamed[name] = tensor
    return {key: tensor.detach().clone().contiguous() for key, tensor in renamed.items()}


def require_plain(encoder: Encoder, source: str) -> None:
    """Refuse an encoder with parts that ViTModel does not have.

    Raises:
        UserError: It has such parts.
    """
    variant = encoder.variant
    unsupported = [
        part
        for part, is_present in (
            ("no class token", not variant.cls_token),
            ("registers", variant.num_registers > 0),
            ("layer scale", variant.layer_scale),
            ("no norm at the end", not variant.final_norm),
        )
        if is_present
    ]
    if unsupported:
        raise UserError(
            f"{source} has {' and '.join(unsupported)}, which transformers' ViTModel cannot hold: "
            "choose --format timm, onnx, pt2 or safetensors"
        )


def require_decoder(opened: OpenedAutoencoder, source: str) -> None:
    """Refuse an autoencoder that ViTMAEForPreTraining cannot represent.

    Raises:
        UserError: It has no trained decoder, or its images are not square.
    """
    if opened.config.objective.reconstruction_weight == 0:
        raise UserError(
            f"{source} was trained without reconstruction, so it has no decoder: choose --format hf"
        )
    height, width = opened.config.model.height_width
    if height != width:
        raise UserError(
            f"{source} takes images of {height} x {width}, but transformers' ViTMAEForPreTraining "
            "takes squares only: choose --format hf"
        )


def _write(
    folder: Path, facts: dict[str, Any], tensors: dict[str, Tensor], opened: OpenedEncoder
) -> None:
    """Write the files of a model; `facts` are the entries that only its config has."""
    encoder, size = opened.encoder, opened.encoder.size
    height, width = encoder.image_size
    shared = {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.num_heads,
        "intermediate_size": round(size.width * encoder.variant.mlp_ratio),
        "hidden_act": "gelu",  # the exact one, as in mvmae
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": encoder.variant.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": encoder.patch_size,
        "num_channels": encoder.in_channels,
        "qkv_bias": True,
        POOL: opened.pool,
        "dtype": "float32",
        "torch_dtype": "float32",  # the key of older versions
    }
    atomic.write_json(folder / "config.json", facts | shared)
    atomic.write_json(folder / "preprocessor_config.json", processor(opened))
    atomic.write_bytes(folder / FILE, safetensors.torch.save(tensors, metadata={"format": "pt"}))


def processor(opened: OpenedEncoder) -> dict[str, Any]:
    """Config of transformers' image processor.

    For square inputs it resizes the largest centred square, as mvmae does. No processor crops
    another shape, so for other inputs it squeezes the whole image.
    """
    (height, width), preprocessing = opened.encoder.image_size, opened.preprocessing
    sides = {"height": height, "width": width}
    shape = (
        {"size": {"shortest_edge": height}, "do_center_crop": True, "crop_size": sides}
        if height == width
        else {"size": sides, "do_center_crop": False}
    )
    return {
        "image_processor_type": "BitImageProcessor" if height == width else "ViTImageProcessor",
        "do_convert_rgb": len(preprocessing.mean) == 3,
        "do_resize": True,
        **shape,
        "resample": RESAMPLING[preprocessing.interpolation],
        "do_rescale": opened.depth != "float",
        "rescale_factor": {"8": 1 / 255, "16": 1 / 65535, "float": 1.0}[opened.depth],
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def write(folder: Path, opened: OpenedEncoder) -> None:
    """Write a folder for ViTModel."""
    facts = {"architectures": ["ViTModel"], "model_type": "vit"}
    _write(folder, facts, rename_keys(opened.encoder.state_dict()), opened)


def snippet(
    folder: Path, _opened: object, model: str = "ViTModel", options: str = "add_pooling_layer=False"
) -> str:
    """Python code that loads it."""
    arguments = ", ".join(filter(None, (repr(str(folder)), options)))
    return (
        f"from transformers import AutoImageProcessor, {model}\n"
        f"model = {model}.from_pretrained({arguments})\n"
        f"processor = AutoImageProcessor.from_pretrained({str(folder)!r})"
    )


mae_snippet = partial(snippet, model="ViTMAEForPreTraining", options="")


def write_mae(folder: Path, autoencoder: OpenedAutoencoder) -> None:
    """Write a folder for ViTMAEForPreTraining; a projection head is left out."""
    model, config = autoencoder
    dim, ratio = config.model.decoder_dim, config.model.mask_ratio
    if int(config.model.num_patches * (1 - ratio)) != config.model.num_visible:
        ratio -= 1e-6  # transformers truncates where mvmae rounds; it must show as many patches
    facts = {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": dim,
        "decoder_num_hidden_layers": config.model.decoder_depth,
        "decoder_num_attention_heads": dim // DECODER_HEAD_WIDTH,
        "decoder_intermediate_size": round(dim * PLAIN.mlp_ratio),
        "mask_ratio": ratio,
        "norm_pix_loss": config.objective.normalize_targets,
    }
    state = model.state_dict()
    kept = {key: value for key, value in state.items() if not key.startswith("projection_head")}
    tensors = {
        key if key.startswith("decoder.") else f"vit.{key}": tensor
        for key, tensor in rename_keys(kept).items()
    }
    _write(folder, facts, tensors, encoders.attach_preprocessing(model.encoder, config))


def load(folder: Path, opened: OpenedEncoder) -> Callable[[Tensor], Outputs]:
    """Load the folder in transformers, which computes pooled and patch features.

    Raises:
        RuntimeError: A key is missing or unexpected.
    """
    from transformers import ViTModel

    model = _load_model(ViTModel, folder, add_pooling_layer=False)

    def compute(images: Tensor) -> Outputs:
        tokens = model(pixel_values=images).last_hidden_state
        return opened.encoder.pool(tokens, opened.pool), tokens[:, 1:]

    return compute


def load_mae(folder: Path, _opened: OpenedAutoencoder) -> Callable[[Tensor], Outputs]:
    """Load the folder in transformers, which computes the decoder's prediction and the loss.

    Raises:
        RuntimeError: A key is missing or unexpected.
    """
    from transformers import ViTMAEForPreTraining

    model = _load_model(ViTMAEForPreTraining, folder)

    def compute(images: Tensor) -> Outputs:
        num_patches = model.vit.embeddings.patch_embeddings.num_patches
        outputs = model(pixel_values=images, noise=_noise(len(images), num_patches))
        return outputs.logits, outputs.loss

    return compute


def mae_outputs(autoencoder: OpenedAutoencoder, images: Tensor) -> Outputs:
    """The decoder's prediction, and MAE's loss over the hidden patches."""
    model, config = autoencoder
    # transformers accepts the noise of the mask, so both sides hide the same patches.
    noise = _noise(len(images), config.model.num_patches)
    view = model(images, noise, rebuild="all")
    target = normalize_patches(view.target) if config.objective.normalize_targets else view.target
    mask = masking_from_noise(noise, config.model.num_visible).mask
    return view.prediction, reconstruction_loss(view.prediction, target, mask)


def _noise(count: int, num_patches: int) -> Tensor:
    return mask_noise(np.random.default_rng(0), count, num_patches)


def _load_model(kind: Any, folder: Path, **options: Any) -> Any:
    """Load a model, and check that every key was found."""
    # Loading initialises at random first, which would otherwise change the caller's generator.
    with _quiet(), torch.random.fork_rng(devices=[]):
        model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    # transformers only warns of missing keys, and draws their weights at random.
    problems = {key: sorted(map(str, names)) for key, names in report.items() if names}
    if problems:
        raise RuntimeError(f"transformers does not load every tensor of {folder}: {problems}")
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off transformers' progress bars and messages."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
