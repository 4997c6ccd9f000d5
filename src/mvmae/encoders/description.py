"""Describe an encoder for `show` and model cards: sizes, preprocessing, training and results."""

from pathlib import Path
from typing import Any

from mvmae.config.model import ENCODERS
from mvmae.encoders.encoder_json import OpenedEncoder
from mvmae.errors import pluralize
from mvmae.method.vit import PLAIN
from mvmae.storage import metrics_file, results, run_folder
from mvmae.storage.atomic import read_object

POOLED = {"mean": "the mean of the patch tokens", "cls": "the class token"}


def describe_encoder(name: str, opened: OpenedEncoder) -> dict[str, Any]:
    """Collect what `show` prints and a model card contains, as plain JSON.

    Args:
        name: The encoder's name as the user gave it.
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
        "run": _describe_run(folder) if run_folder.is_run(folder) else None,
        "results": _headlines(folder),
    }


def _describe_run(folder: Path) -> dict[str, Any]:
    """Describe how a run was trained; None for what its files do not record."""
    config = read_object(folder / run_folder.CONFIG)
    environment = read_object(folder / run_folder.ENVIRONMENT)
    health = read_object(folder / "health.json")
    records = metrics_file.read(folder)
    return {
        "folder": str(folder),
        **{name: config.get(name) for name in ("data", "epochs", "batch_size")},
        **{name: environment.get(name) for name in ("num_images", "mvmae")},
        "steps": records[-1]["step"] if records else None,
        "health": health.get("status"),
        "sentence": health.get("sentence"),
        "config": config,
    }


def _headlines(folder: Path) -> list[dict[str, Any]]:
    """The headline figures of every result in the folder."""
    headlines = []
    for file in sorted((folder / "results").glob("*.json")):
        result = read_object(file)
        config = result.get("config")
        if isinstance(headline := result.get("headline"), dict):
            headlines.append(
                {
                    "file": str(file),
                    "command": result.get("command"),
                    "data": config.get("data") if isinstance(config, dict) else None,
                    "headline": headline,
                }
            )
    return headlines


def format_training(run: dict[str, Any]) -> dict[str, str]:
    """Format how a run was trained, as one line for each label."""
    data = run["data"]
    names = " ".join(data) if isinstance(data, list) else str(data)
    count = f", {run['num_images']} images" if run["num_images"] else ""
    steps = "unknown" if run["steps"] is None else run["steps"]
    lines = {
        "trained on": f"{names}{count}",
        "steps": f"{steps} of {run['batch_size']} images, {run['epochs']} epochs planned",
    }
    return lines | ({"health": f"{run['health']}. {run['sentence']}."} if run["health"] else {})


def format_sizes(facts: dict[str, Any]) -> str:
    """Format name, patch size, width, depth, heads and parameters as one line."""
    name = f"{facts['known_as']}/{facts['patch_size']}, " if facts["known_as"] else ""
    return (
        f"{name}width {facts['width']}, {facts['depth']} blocks, {facts['num_heads']} heads, "
        f"{facts['parameters'] / 1e6:.1f} M parameters"
    )


def format_encoder(facts: dict[str, Any]) -> dict[str, str]:
    """Format what the encoder is as one line for each label."""
    height, width = facts["image_size"]
    rows, columns = facts["grid"]
    patch, variant = facts["patch_size"], facts["variant"]
    mean, std = (", ".join(f"{value:.4g}" for value in facts[key]) for key in ("mean", "std"))
    words = {
        "cls_token": "no class token",
        "num_registers": pluralize(variant.get("num_registers", 0), "register"),
        "layer_scale": "layer scale",
        "final_norm": "no final norm",
        "mlp_ratio": f"MLP ratio {variant.get('mlp_ratio', 0):g}",
        "norm_eps": f"layer norm epsilon {variant.get('norm_eps', 0):g}",
    }
    lines = {
        "size": format_sizes(facts),
        "input": f"{height} x {width} pixels, {pluralize(facts['in_channels'], 'channel')}, "
        f"{rows} x {columns} patches of {patch} x {patch}",
        "unlike MAE's": ", ".join(words[name] for name in variant),
        "preprocessing": f"{facts['interpolation']}, mean {mean}, deviation {std} of values in "
        "[0, 1]",
    }
    return {label: text for label, text in lines.items() if text}


def format_headline(headline: dict[str, Any]) -> str:
    """Format a result's figures as one line."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in headline.items()
        if isinstance(value, str | int | float)
    )
