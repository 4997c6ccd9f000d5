"""Encoders and autoencoders as transformers' ViTModel and ViTMAEForPreTraining.

Weights are written under the keys that the Hugging Face hub's files have had since 2020
(`encoder.layer.0.attention.attention.query.weight`): every version of transformers reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mvmae import encoders
from mvmae.config.model import DECODER_HEAD_WIDTH, ModelConfig
from mvmae.config.views import Depth
from mvmae.encoders import OpenedAutoencoder, OpenedEncoder, Preprocessing
from mvmae.errors import UserError
from mvmae.method.losses import normalize_patches, reconstruction_loss
from mvmae.method.patches import masking_from_noise
from mvmae.method.views import mask_noise
from mvmae.method.vit import PLAIN, Encoder
from mvmae.storage import run_folder
from mvmae.training.checkpoint import write_whole

Outputs = tuple[Tensor, ...]
FILE = "model.safetensors"
POOL = "mvmae_pool"  # mean or cls: what counts as the features; transformers keeps unknown keys
RESAMPLING = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers, as transformers keeps them
RENAMES = tuple(  # mvmae's keys to the hub's; order matters
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


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the hub's keys, queries, keys and values apart."""
    found = {}
    for key, tensor in state.items():
        name = key
        for pattern, new in RENAMES:
            name = pattern.sub(new, name)
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = third
        else:
            found[name] = tensor
    return {key: tensor.detach().clone().contiguous() for key, tensor in found.items()}


def require_plain(encoder: Encoder, source: str) -> None:
    """Refuse what ViTModel has not.

    Raises:
        UserError: The encoder has it.
    """
    variant = encoder.variant
    odd = [
        what
        for what, is_so in (
            ("no class token", not variant.cls_token),
            ("registers", variant.num_registers > 0),
            ("layer scale", variant.layer_scale),
            ("no norm at the end", not variant.final_norm),
        )
        if is_so
    ]
    if odd:
        raise UserError(
            f"{source} has {' and '.join(odd)}, which transformers' ViTModel cannot have: "
            "--format timm, onnx, pt2 and safetensors can"
        )


def require_decoder(whole: OpenedAutoencoder, source: str) -> None:
    """Refuse what ViTMAEForPreTraining cannot be or do.

    Raises:
        UserError: There is no trained decoder, or the images are not squares.
    """
    if whole.config.objective.reconstruction_weight == 0:
        raise UserError(f"{source} was trained without reconstruction: it has no decoder")
    height, width = whole.config.model.height_width
    if height != width:
        raise UserError(
            f"{source} takes images of {height} x {width}, and transformers' ViTMAEForPreTraining "
            "squares only: --format hf can"
        )


def _encoder_facts(encoder: Encoder) -> dict[str, Any]:
    """What the configs of both models say."""
    height, width = encoder.image_size
    size = encoder.size
    return {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.num_heads,
        "intermediate_size": round(size.width * encoder.variant.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": encoder.variant.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": encoder.patch_size,
        "num_channels": encoder.in_channels,
        "qkv_bias": True,
    }


def _write(
    folder: Path,
    facts: dict[str, Any],
    tensors: dict[str, Tensor],
    image_size: tuple[int, int],
    preprocessing: Preprocessing,
    depth: Depth,
) -> None:
    run_folder.write_json(
        folder / "config.json", facts | {"dtype": "float32", "torch_dtype": "float32"}
    )
    run_folder.write_json(
        folder / "preprocessor_config.json", processor(image_size, preprocessing, depth)
    )
    content = safetensors.torch.save(tensors, metadata={"format": "pt"})
    write_whole(folder / FILE, lambda stream: stream.write(content))


def processor(
    image_size: tuple[int, int], preprocessing: Preprocessing, depth: Depth = "8"
) -> dict[str, Any]:
    """What transformers' image processor is told.

    For squares: the largest square in the middle, resized, as mvmae does. No processor cuts out
    another shape, so other images are squeezed into it.
    """
    height, width = image_size
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
        "do_rescale": depth != "float",
        "rescale_factor": {"8": 1 / 255, "16": 1 / 65535, "float": 1.0}[depth],
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def write(folder: Path, opened: OpenedEncoder) -> None:
    """Write a folder for ViTModel."""
    facts = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        **_encoder_facts(opened.encoder),
        POOL: opened.pool,
    }
    tensors = renamed(opened.encoder.state_dict())
    _write(folder, facts, tensors, opened.encoder.image_size, opened.preprocessing, opened.depth)


def lines(folder: Path) -> str:
    """Python that loads it."""
    return (
        "from transformers import AutoImageProcessor, ViTModel\n"
        f"model = ViTModel.from_pretrained({str(folder)!r}, add_pooling_layer=False)\n"
        f"processor = AutoImageProcessor.from_pretrained({str(folder)!r})"
    )


def write_mae(folder: Path, whole: OpenedAutoencoder) -> None:
    """Write a folder for ViTMAEForPreTraining; a projection head is left out."""
    model, config = whole
    encoder, dim = model.encoder, config.model.decoder_dim
    opened = encoders.attach_preprocessing(encoder, config)
    facts = {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        **_encoder_facts(encoder),
        "decoder_hidden_size": dim,
        "decoder_num_hidden_layers": config.model.decoder_depth,
        "decoder_num_attention_heads": dim // DECODER_HEAD_WIDTH,
        "decoder_intermediate_size": round(dim * PLAIN.mlp_ratio),
        "mask_ratio": _mask_ratio(config.model),
        "norm_pix_loss": config.objective.normalize_targets,
        POOL: opened.pool,
    }
    state = model.state_dict()
    kept = {key: value for key, value in state.items() if not key.startswith("projection_head")}
    tensors = {
        key if key.startswith("decoder.") else f"vit.{key}": tensor
        for key, tensor in renamed(kept).items()
    }
    _write(folder, facts, tensors, encoder.image_size, opened.preprocessing, opened.depth)


def _mask_ratio(model: ModelConfig) -> float:
    """A ratio by which transformers, which cuts off, shows as many patches as mvmae."""
    ratio = model.mask_ratio
    same = int(model.num_patches * (1 - ratio)) == model.num_visible
    return ratio if same else ratio - 1e-6


def lines_mae(folder: Path) -> str:
    """Python that loads it."""
    return (
        "from transformers import AutoImageProcessor, ViTMAEForPreTraining\n"
        f"model = ViTMAEForPreTraining.from_pretrained({str(folder)!r})\n"
        f"processor = AutoImageProcessor.from_pretrained({str(folder)!r})"
    )


def load(folder: Path, opened: OpenedEncoder) -> Callable[[Tensor], Outputs]:
    """What computes pooled and patch features as transformers does from the folder.

    Raises:
        RuntimeError: A key is missing or not expected.
    """
    from transformers import ViTModel

    model = _loaded(ViTModel, folder, add_pooling_layer=False)

    def computed(images: Tensor) -> Outputs:
        tokens = model(pixel_values=images).last_hidden_state
        return opened.encoder.pooled(tokens, opened.pool), tokens[:, 1:]

    return computed


def load_mae(folder: Path) -> Callable[[Tensor], Outputs]:
    """What computes the decoder's prediction and the loss as transformers does from the folder.

    Raises:
        RuntimeError: A key is missing or not expected.
    """
    from transformers import ViTMAEForPreTraining

    model = _loaded(ViTMAEForPreTraining, folder)

    def computed(images: Tensor) -> Outputs:
        num_patches = model.vit.embeddings.patch_embeddings.num_patches
        outputs = model(pixel_values=images, noise=_noise(len(images), num_patches))
        return outputs.logits, outputs.loss

    return computed


def expected_mae(whole: OpenedAutoencoder, images: Tensor) -> Outputs:
    """What `load_mae` should give: the prediction, and MAE's loss over the hidden patches."""
    model, config = whole
    noise = _noise(len(images), config.model.num_patches)
    view = model(images, noise, rebuild="all")
    target = normalize_patches(view.target) if config.objective.normalize_targets else view.target
    mask = masking_from_noise(noise, config.model.num_visible).mask
    return view.prediction, reconstruction_loss(view.prediction, target, mask)


def _noise(count: int, num_patches: int) -> Tensor:
    return mask_noise(np.random.default_rng(0), count, num_patches)


def _loaded(kind: Any, folder: Path, **options: Any) -> Any:
    """A model from the folder, every key in its place."""
    with _quiet(), torch.random.fork_rng(devices=[]):
        model, told = kind.from_pretrained(folder, output_loading_info=True, **options)
    odd = {key: sorted(map(str, names)) for key, names in told.items() if names}
    if odd:
        raise RuntimeError(f"transformers does not take every tensor of {folder}: {odd}")
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports."""
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
