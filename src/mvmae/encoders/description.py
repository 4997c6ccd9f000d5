"""What is known of an encoder: sizes, preprocessing and, of a run, how it came about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mvmae.config.model import ENCODERS
from mvmae.encoders import OpenedEncoder
from mvmae.method.vit import PLAIN
from mvmae.storage import results, run_folder


def describe_encoder(name: str, opened: OpenedEncoder) -> dict[str, Any]:
    """Everything that `show` prints and a model card says, as plain JSON.

    Args:
        name: As the user gave it.
        opened: The encoder.
    """
    encoder, preprocessing = opened.encoder, opened.preprocessing
    variant = encoder.variant._asdict()
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    folder = results.home(name, None)
    return {
        "encoder": name,
        "maker": opened.maker,
        "known_as": next((key for key, size in ENCODERS.items() if size == encoder.size), None),
        **encoder.size._asdict(),
        "patch_size": encoder.patch_size,
        "image_size": list(encoder.image_size),
        "grid": list(encoder.grid),
        "in_channels": encoder.in_channels,
        "parameters": parameters,
        "variant": {key: value for key, value in variant.items() if value != getattr(PLAIN, key)},
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "pool": opened.pool,
        "left_out": list(opened.left_out),
        "run": _run(folder) if run_folder.is_run(folder) else None,
        "results": _judgements(folder),
    }


def _run(folder: Path) -> dict[str, Any]:
    """How a run was trained; what its files do not say is None."""
    config, made = _object(folder / run_folder.CONFIG), _object(folder / "environment.json")
    health = _object(folder / "health.json")
    return {
        "folder": str(folder),
        "data": config.get("data"),
        "num_images": made.get("num_images"),
        "epochs": config.get("epochs"),
        "batch_size": config.get("batch_size"),
        "steps": _last_step(folder / "metrics.jsonl"),
        "health": health.get("status"),
        "sentence": health.get("sentence"),
        "config": config,
        "mvmae": made.get("mvmae"),
    }


def _last_step(metrics: Path) -> int | None:
    """The step of the last whole line."""
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
        return next(json.loads(line)["step"] for line in reversed(lines) if line.endswith("}"))
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def _judgements(folder: Path) -> list[dict[str, Any]]:
    """The figures that count of every result in the folder."""
    found = []
    for file in sorted((folder / "results").glob("*.json")):
        result = _object(file)
        headline = result.get("headline")
        if isinstance(headline, dict):
            config = result.get("config")
            data = config.get("data") if isinstance(config, dict) else None
            found.append(
                {"file": str(file), "verb": result.get("verb"), "data": data, "headline": headline}
            )
    return found


def _object(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none: a stranger's folder need not be whole."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def format_sizes(facts: dict[str, Any]) -> str:
    """Name, patch, width, depth, heads and parameters in a line."""
    name = f"{facts['known_as']}/{facts['patch_size']}, " if facts["known_as"] else ""
    return (
        f"{name}width {facts['width']}, {facts['depth']} blocks, {facts['num_heads']} heads, "
        f"{facts['parameters'] / 1e6:.1f} M parameters"
    )


def format_input(facts: dict[str, Any]) -> str:
    """What goes in, in a line."""
    height, width = facts["image_size"]
    rows, columns = facts["grid"]
    patch, channels = facts["patch_size"], facts["in_channels"]
    return (
        f"{height} x {width} pixels, {_counted(channels, 'channel')}, "
        f"{rows} x {columns} patches of {patch} x {patch}"
    )


def format_variant(variant: dict[str, Any]) -> str:
    """Where it differs from MAE's ViT, in a line."""
    said = []
    for name, value in variant.items():
        match name:
            case "cls_token":
                said.append("no class token")
            case "num_registers":
                said.append(_counted(value, "register"))
            case "layer_scale":
                said.append("layer scale")
            case "final_norm":
                said.append("no norm at the end")
            case "mlp_ratio":
                said.append(f"MLP {value:g} times as wide")
            case _:
                said.append(f"layer norms add {value:g}")
    return ", ".join(said)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def format_preprocessing(facts: dict[str, Any]) -> str:
    """How pixels are prepared, in a line."""
    mean, std = (", ".join(f"{value:.4g}" for value in facts[key]) for key in ("mean", "std"))
    return f"{facts['interpolation']}, mean {mean}, deviation {std} of values in [0, 1]"


def format_headline(headline: dict[str, Any]) -> str:
    """A result's figures, in a line."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in headline.items()
        if isinstance(value, str | int | float)
    )
