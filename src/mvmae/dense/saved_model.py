"""Trained models of `detect` and `segment` on disk: model.safetensors with its model.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from mvmae import recipes
from mvmae.config.detect import DetectConfig
from mvmae.config.files import from_json
from mvmae.config.finetune import FinetuneConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.segment import SegmentConfig
from mvmae.encoders import OpenedEncoder
from mvmae.encoders.encoder_json import encoder_from_metadata
from mvmae.errors import UserError
from mvmae.storage import run_folder
from mvmae.training import checkpoint

FILE = "model.safetensors"
FORMAT = 1  # version of model.json
RUN_COMMANDS = {  # commands that leave a run folder
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "segment": SegmentConfig,
    "detect": DetectConfig,
}

T = TypeVar("T")


class Predictor(NamedTuple):
    """Model, during or after its training, with the settings for applying it to whole images."""

    model: nn.Module
    opened: OpenedEncoder
    """Patch size and preprocessing of the images."""

    config: Any
    """`DetectConfig` or `SegmentConfig`."""

    device: torch.device


def save_model(folder: Path, command: str, facts: Mapping[str, Any], model: nn.Module) -> None:
    """Write model.safetensors and model.json into a run folder."""
    metadata = {"format": FORMAT, "task": command, **facts}
    checkpoint.save_tensors(folder / FILE, model.state_dict(), metadata)


def open_model(
    source: str, command: str, noun: str, build: Callable[[Mapping[str, Any], OpenedEncoder], T]
) -> T:
    """Open a trained model for inference.

    Args:
        source: Finished run folder, or its model.safetensors.
        command: Command that trained it.
        noun: Kind of model, for error messages.
        build: Function that returns an object with the `model`, without its weights, from the facts
            in model.json and the encoder.

    Raises:
        UserError: The run has not finished, is of another command, or its files are damaged.
    """
    path = Path(source)
    run_folder.require_format(path)
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        hint, trained_by = "", command_of_run(path)
        if trained_by == command:
            hint = " (the run has not finished: continue it with --resume)"
        elif trained_by:
            hint = f" (it is a run of mvmae {trained_by})"
        raise UserError(
            f"{source} is not a finished run of mvmae {command}: {file} does not exist{hint}"
        )
    tensors, facts = checkpoint.load_tensors(file)
    if facts.get("task") != command:
        raise UserError(f"{file} is not a {noun}: its .json does not describe one")
    try:
        opened: Any = build(facts, encoder_from_metadata(facts["encoder"], source=str(file)))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file}: its .json does not describe a {noun}: {error!r}") from error
    checkpoint.load_weights(opened.model, tensors, source=str(file))
    opened.model.eval()
    return opened


def command_of_run(folder: Path) -> str:
    """Return the command whose run is in a folder, or an empty string if it is not known."""
    file = folder / run_folder.CONFIG
    with suppress(OSError, UnicodeDecodeError):
        text = file.read_text(encoding="utf-8")
        # config.json does not name its command, but each command rejects the others' options.
        for command, kind in RUN_COMMANDS.items():
            with suppress(UserError):
                from_json(text, kind, source=str(file))
                return command
    return ""


def saved_predictor(saved: Any, command: str, config: Any, device: torch.device) -> Predictor:
    """Apply a saved model with the settings that training has fixed, and the others of `config`.

    Other values of fixed settings are rejected, since they would be silently ignored. Values that a
    recipe sets are accepted, since the user did not ask for them.

    Args:
        saved: Result of `open_model`: `model`, `opened`, and `fixed_settings`, the trained model's
            values by field of the config.
        command: Command whose recipes count.
        config: Options of the command.
        device: Device to compute on.

    Raises:
        UserError: A field differs from the trained model's value, the default and every recipe.
    """
    defaults = {field.name: field.default for field in fields(config)}
    for name, trained in saved.fixed_settings.items():
        value = getattr(config, name)
        recipe_values = [getattr(one.config, name) for one in recipes.recipes_of(command).values()]
        if value not in (trained, defaults[name], *recipe_values):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} {value} has no effect on a trained model, which uses {trained}: "
                f"leave {flag} out"
            )
    config = replace(config, **saved.fixed_settings)
    return Predictor(saved.model.to(device), saved.opened, config, device)
