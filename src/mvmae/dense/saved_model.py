"""Finished runs of `detect` and `segment`: the model on the disk, and how it is opened again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import nn

from mvmae import encoders, recipes
from mvmae.config.detect import DetectConfig
from mvmae.config.files import from_json
from mvmae.config.finetune import FinetuneConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.segment import SegmentConfig
from mvmae.encoders import OpenedEncoder
from mvmae.encoders.encoder_json import encoder_from_metadata
from mvmae.errors import UserError
from mvmae.storage import metrics_file, run_folder
from mvmae.training import checkpoint

FILE = "model.safetensors"
FORMAT = 1  # of model.json
RUNS = {  # commands that leave a run folder
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "segment": SegmentConfig,
    "detect": DetectConfig,
}


@runtime_checkable
class TrainedModel(Protocol):
    """A trained model with what one must know to use it."""

    @property
    def model(self) -> nn.Module:
        """Its weights are not set before `open_product` returns it."""
        ...


T = TypeVar("T", bound=TrainedModel)
Build = Callable[[Mapping[str, Any], OpenedEncoder], T]


def save_model(out: Path, command: str, facts: Mapping[str, Any], model: nn.Module) -> None:
    """Write model.safetensors and model.json into a run folder."""
    whole = {"format": FORMAT, "task": command, **facts}
    checkpoint.save_tensors(out / FILE, model.state_dict(), whole)


def open_model(source: str, command: str, noun: str, build: Build[T]) -> T:
    """A trained model, ready to be used.

    Args:
        source: A finished run folder, or its model.safetensors.
        command: That made it.
        noun: What the model is.
        build: Makes the model of the facts in model.json and its encoder, without weights.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = Path(source)
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        raise UserError(
            f"{source} is no finished run of mvmae {command}: there is no {file}"
            f"{_hint(path, command)}"
        )
    tensors, facts = checkpoint.load_tensors(file)
    if facts.get("task") != command:
        raise UserError(f"{file} is no {noun}: its .json says nothing of one")
    try:
        made = build(facts, encoder_from_metadata(facts["encoder"], source=str(file)))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file}: its .json does not describe a {noun}: {error!r}") from error
    checkpoint.load_weights(made.model, tensors, source=str(file))
    made.model.eval()
    return made


def _hint(path: Path, command: str) -> str:
    """What a folder without a model is."""
    made_by = command_of_run(path)
    if made_by == command:
        return " (it has not finished: --resume it)"
    return f" (it is a run of mvmae {made_by})" if made_by else ""


def command_of_run(folder: Path) -> str:
    """The command whose run lies in a folder; empty where there is none, or none that is known."""
    file = folder / run_folder.CONFIG
    with suppress(OSError, UnicodeDecodeError):
        text = file.read_text(encoding="utf-8")
        for command, kind in RUNS.items():
            with suppress(UserError):
                from_json(text, kind, source=str(file))
                return command
    return ""


def refuse_fixed_settings(config: Any, command: str, of_run: Mapping[str, Any]) -> None:
    """A trained model looks at images as it learnt to; asking for another way must not pass.

    What a recipe says, nobody asked for: such a value passes.

    Args:
        config: What was asked.
        command: Whose recipes count.
        of_run: How the model looks, by the config's fields.

    Raises:
        UserError: A field has a value that is neither the run's nor of a recipe.
    """
    for name, own in of_run.items():
        value = getattr(config, name)
        usual = [getattr(recipe.config, name) for recipe in recipes.BY_COMMAND[command].values()]
        if value not in (own, type(config).__dataclass_fields__[name].default, *usual):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} {value} changes nothing here, the run has {own}: leave {flag} out"
            )


def has_metric(out: Path, step: int, figure: str) -> bool:
    """Whether metrics.jsonl has the figure of a step: a run may be killed right after it."""
    records = metrics_file.read(out)
    return any(record["step"] == step and figure in record for record in records[-2:])


def load_initial_encoder(config: Any) -> OpenedEncoder:
    """The encoder of a run; of one that is resumed its shape and its preprocessing alone.

    Its weights are in the checkpoint, so ENCODER may be gone by then, or be another: what the run
    began with is in its environment.json.

    Raises:
        UserError: There is none.
    """
    file, facts = config.out / "environment.json", None
    if config.resume:
        with suppress(OSError, ValueError, AttributeError):
            facts = json.loads(file.read_text(encoding="utf-8")).get("encoder")
    if isinstance(facts, dict):
        return encoder_from_metadata(facts, source=str(file))
    return require_8_bit(encoders.open_encoder(config.encoder), config.encoder)


def require_8_bit(opened: OpenedEncoder, name: str) -> OpenedEncoder:
    """The encoder itself, if boxes and masks can be learnt with it: their readers know 8 bit.

    Jitter of colours, padding and pictures would want to know what is white in deeper images.

    Raises:
        UserError: It was trained on other pixels.
    """
    channels, depth = opened.encoder.in_channels, opened.depth
    if depth == "8" and channels in (1, 3):
        return opened
    kind = {"8": "8 bit", "16": "16 bit", "float": "floating-point values"}[depth]
    raise UserError(
        f"{name} was trained on images of {kind} and {channels} channel{'s' * (channels > 1)}: "
        "boxes and masks are learnt on gray or colour of 8 bit, with an encoder of such images"
    )
