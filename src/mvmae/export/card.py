"""Model card of an export: what the encoder is, how it was trained, how to load it."""

from typing import Any

from mvmae.config.export import ExportFormat
from mvmae.encoders.description import POOLED, format_encoder, format_headline, format_training
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
    lines = format_encoder(facts) | {
        "crop": "the largest centred one of the input's shape, before it is resized",
        "pooled features": pooled,
        "weights from": f"{facts['maker']} ({facts['encoder']})",
    }
    parts = ["# Vision Transformer encoder", WHAT[name], _bullets(lines)]
    parts += ["## Loading", "From inside this folder:", f"```python\n{loading}\n```"]
    if facts["run"]:
        # Only what shapes the features; the folder of the run has the other settings.
        settings = {
            part: ", ".join(f"{key} {value}" for key, value in content.items())
            for part in ("model", "objective", "views")
            if isinstance(content := facts["run"]["config"].get(part), dict)
        }
        parts += ["## Training", _bullets(format_training(facts["run"]) | settings)]
    if facts["results"]:
        rows = [
            f"- {one['command']} on {one['data']}: {format_headline(one['headline'])}"
            for one in facts["results"]
        ]
        parts += ["## Results", "\n".join(rows)]
    parts.append(f"Written by mvmae {__version__}.")
    return "\n\n".join(parts) + "\n"


def _bullets(lines: dict[str, str]) -> str:
    return "\n".join(f"- {label}: {text}" for label, text in lines.items())
