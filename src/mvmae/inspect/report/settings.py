"""Settings of a run, how to use its encoder, and how to repeat it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import docstring_parser

from mvmae.config.files import command_line
from mvmae.encoders import ENCODER_FILE
from mvmae.inspect.report.gather import JUDGED, KINDS, RunFacts
from mvmae.inspect.report.html import Block, Code, Facts, Fold, Text, short

MAIN = (  # settings that matter most, of all commands
    *("encoder", "data", "protocol", "image_size", "crop", "model.encoder", "model.image_size"),
    *("model.patch_size", "model.in_channels", "model.mask_ratio", "views.num_views"),
    *("views.crop_scale", "views.flip", "objective.reconstruction_weight"),
    *("objective.contrastive_weight", "objective.temperature", "epochs", "iterations"),
    *("batch_size", "base_lr", "lr", "warmup_epochs", "layer_decay", "seed"),
)
ENVIRONMENT = {  # keys of environment.json
    "images": ("num_images", "data_fingerprint"),
    "machine": ("device", "world_size", "threads", "platform"),
    "software": ("mvmae", "torch", "python", "git_commit"),
}
PATHS = ("encoder", "data", "eval_data", "out")


def what_was_run(facts: RunFacts) -> Iterator[Block]:
    """Describe the settings by the help texts of their options, then machine and versions."""
    known = _help_texts(KINDS[facts.command]) if facts.command in KINDS else {}
    rows = {
        name: (name, value_in_words(name, value), meaning(known.get(name, ""), value))
        for name, value in flatten(facts.config).items()
    }
    main = [rows.pop(name) for name in MAIN if name in rows]
    for label, names in ENVIRONMENT.items():
        found = {name: facts.environment[name] for name in names if facts.environment.get(name)}
        words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.items())
        main += [(label, words, "")] if words else []
    yield Facts(main) if main else Text(["The folder holds no settings."], "note")
    if rows:
        yield Fold("All other settings", [Facts(list(rows.values()))])


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of a config; those of a group as `views.flip`."""
    found = {}
    for name, value in content.items():
        inner = flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {}
        found |= inner or {f"{prefix}{name}": value}
    return found


def _help_texts(kind: type, prefix: str = "") -> dict[str, str]:
    """Return the help text of each option of a config: the docstring of its attribute."""
    found = {
        f"{prefix}{option.arg_name}": option.description or ""
        for base in reversed(kind.__mro__[:-1])  # a class overrides the texts of its bases
        for option in docstring_parser.parse_from_object(base).params
    }
    for field in fields(kind):
        if is_dataclass(field.default_factory):
            found |= _help_texts(field.default_factory, f"{prefix}{field.name}.")
    return found


def meaning(text: str, value: Any) -> str:
    """Return what a help text says of a value: its sentences without those on other values.

    A sentence that begins with a word and a colon, such as "horizontal: left to right.", is about
    that value alone; a text that has no other sentences, such as "predict: smallest score.", names
    the use of the option by the word.
    """
    text = " ".join(text.split())
    kept = [
        sentence
        for sentence in re.split(r"(?<=\.) ", text)
        if not re.match(r"\w+: ", sentence) or sentence.startswith(f"{value}: ")
    ]
    return " ".join(kept) or text


def value_in_words(name: str, value: Any) -> str:
    """Write a setting's value; of paths only the last parts."""
    if isinstance(value, list):
        return " ".join(value_in_words(name, one) for one in value) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return short(str(value), 2) if name.split(".")[-1] in PATHS else str(value)


def how_to_repeat(facts: RunFacts) -> Iterator[Block]:
    """Show the commands that repeat the run, and its config and environment files."""
    if facts.command != JUDGED:
        folder, command = shlex.quote(str(facts.folder)), f"mvmae {facts.command}"
        if not facts.finished:
            encoder = "" if facts.command == "pretrain" else "ENCODER "
            yield Code(f"{command} {encoder}--resume --out {folder}", "To resume it")
        again = f"{command} --recipe {folder}/config.json --out runs/again"
        yield Code(again, "To run it again")
    if facts.options is not None:
        full = Code(command_line(facts.command, facts.options), "Without config.json")
        yield Fold("The command in full", [full])
    for name, title, content in (
        ("config.json", "every setting", facts.config),
        ("environment.json", "versions, machine, data", facts.environment),
    ):
        if content:
            text = json.dumps(content, indent=2, ensure_ascii=False)
            yield Fold(f"{name}: {title}", [Code(text, name)])


def how_to_use(facts: RunFacts) -> Iterator[Block]:
    """Show how to compute embeddings, in Python and on the command line."""
    name = shlex.quote(str(facts.folder))
    is_whole_model = facts.command in ("detect", "segment")
    if is_whole_model and (facts.folder / "model.safetensors").exists():
        task = "detect objects in" if facts.command == "detect" else "segment"
        command = f"mvmae {facts.command} {name} --predict IMAGES --out FOLDER"
        yield Code(command, f"To {task} new images")
    if not (facts.folder / ENCODER_FILE).exists():
        if not is_whole_model or not facts.finished:
            note = f"This folder holds no {ENCODER_FILE} yet: the run writes it at its end."
            yield Text([note], "note")
        return
    yield Code(
        "from mvmae import load_encoder\n\n"
        f"encoder = load_encoder({json.dumps(str(facts.folder), ensure_ascii=False)})\n"
        "embeddings = encoder.embed(images)  # B x C x H x W, normalised as in encoder.json",
        "In Python",
    )
    yield Code(
        f"mvmae knn {name} LABELLED_IMAGES      # does it separate your classes?\n"
        f"mvmae embed {name} IMAGES             # an embedding of each image\n"
        f"mvmae export {name} --format timm hf onnx",
        "On the command line",
    )
