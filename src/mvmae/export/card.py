"""Model card of an export: what the encoder is, how it was trained, how to load it."""

from __future__ import annotations

from typing import Any

from mvmae.config.export import ExportFormat
from mvmae.encoders.description import (
    POOLED,
    format_headline,
    format_input,
    format_preprocessing,
    format_sizes,
    format_training,
    format_variant,
)
from mvmae.version import __version__

WHAT = {
    "timm": "Weights for timm's VisionTransformer. Images in, pooled features out.",
    "hf": "A folder for transformers' ViTModel without a pooler.",
    "hf-mae": "A folder for transformers' ViTMAEForPreTraining: encoder and decoder.",
    "onnx": "An ONNX file for any number of images: `images` (float32, B x C x H x W, normalised) "
    "in, `pooled` (B x D) and `patches` (B x N x D) out.",
    "pt2": "A torch.export program for any number of images (float32, B x C x H x W, normalised) "
    "in, pooled features (B x D) and patch features (B x N x D) out.",
    "safetensors": "Weights and sizes as mvmae stores them.",
}


def write_card(facts: dict[str, Any], name: ExportFormat, loading: str) -> str:
    """Write a model card in Markdown.

    Args:
        facts: Description of the encoder, from `describe_encoder`.
        name: The format.
        loading: Python code that loads the export.
    """
    pooled = POOLED[facts["pool"]]
    if facts["variant"].get("final_norm", True):
        pooled += " after the last norm"
    lines = [
        f"- {format_sizes(facts)}",
        f"- input: {format_input(facts)}",
        f"- preprocessing: the largest centred crop of the right shape, resized "
        f"{format_preprocessing(facts)}",
        f"- pooled features: {pooled}",
        f"- weights from: {facts['maker']} ({facts['encoder']})",
    ]
    if facts["variant"]:
        lines.append(f"- differs from MAE's ViT: {format_variant(facts['variant'])}")
    parts = ["# Vision Transformer encoder", WHAT[name], "\n".join(lines)]
    parts += ["## Loading", "From inside this folder:", f"```python\n{loading}\n```"]
    if facts["run"]:
        training = [f"- {label}: {text}" for label, text in format_training(facts["run"]).items()]
        training += [
            f"- {part}: " + ", ".join(f"{key} {value}" for key, value in settings.items())
            for part in ("model", "objective", "views")
            if isinstance(settings := facts["run"]["config"].get(part), dict)
        ]
        parts += ["## Training", "\n".join(training)]
    if facts["results"]:
        rows = [
            f"- {one['command']} on {one['data']}: {format_headline(one['headline'])}"
            for one in facts["results"]
        ]
        parts += ["## Results", "\n".join(rows)]
    parts.append(f"Written by mvmae {__version__}.")
    return "\n\n".join(parts) + "\n"
