"""What was run, how to use its encoder, and how to repeat it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from mvmae.config.files import command_line
from mvmae.config.pretrain import PretrainConfig
from mvmae.encoders import ENCODER_FILE
from mvmae.inspect.report.gather import JUDGED, RunFacts
from mvmae.inspect.report.html import Block, Code, Facts, Fold, Text
from mvmae.inspect.report.wording import count, one_line, share, short, without_home

MAIN = {  # fields of supervised runs that matter most, and their names
    "encoder": "initial encoder",
    "data": "labelled images",
    "protocol": "protocol",
    "image_size": "image size",
    "crop": "crop",
    "epochs": "epochs",
    "iterations": "iterations",
    "batch_size": "images per step",
    "base_lr": "learning rate (for 256 images)",
    "lr": "learning rate",
    "layer_decay": "layer decay",
    "weight_decay": "weight decay",
    "seed": "seed",
}
PREDICT = {  # commands whose product is a whole model
    "detect": "To detect objects in new images",
    "segment": "To segment new images",
}
PATHS = ("encoder", "data", "eval_data", "out")


def what_was_run(facts: RunFacts) -> Iterator[Block]:
    """Describe data, model and schedule, then machine and versions."""
    rows = list(_pretraining(facts)) if facts.pretraining else list(_supervised(facts))
    rows += list(_machine(facts))
    if rows:
        yield Facts(rows)
    else:
        yield Text(["The folder holds no settings."], "note")


def _pretraining(facts: RunFacts) -> Iterator[tuple[str, str]]:
    trained = facts.pretraining
    assert trained is not None
    model = trained.model
    height, width = model.height_width
    images = facts.environment.get("num_images")
    known = f": {count(images)} images" if isinstance(images, int) else ""
    yield "images", one_line(" ".join(short(name, 2) for name in trained.data)) + known
    yield "encoder", f"{model.encoder}, patches of {model.patch_size} x {model.patch_size} pixels"
    channels = "gray" if model.in_channels == 1 else f"{model.in_channels} channels"
    yield "input", f"{height} x {width} pixels, {channels}"
    yield (
        "hidden",
        (
            f"{share(model.mask_ratio)} of each crop: the encoder sees {model.num_visible} of "
            f"{model.num_patches} patches"
        ),
    )
    yield "crops", _views(trained)
    yield "learns by", _objective(trained)
    yield (
        "schedule",
        (
            f"{count(trained.epochs)} epochs, {count(trained.batch_size)} images a step, learning "
            f"rate {trained.lr:.3g} after {trained.warmup_epochs:g} "
            f"epoch{'' if trained.warmup_epochs == 1 else 's'} of warm-up"
        ),
    )
    yield "seed", str(trained.seed)


NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def _views(trained: PretrainConfig) -> str:
    low, high = trained.views.crop_scale
    number = NUMBERS[trained.views.num_views]
    which = "one crop" if trained.views.num_views == 1 else f"{number} crops"
    if trained.views.num_views > 1 and trained.views.targets == "one":
        which = f"one crop, hidden in {number} ways"
    views = trained.views
    changed = [
        *([f"flipped ({views.flip})"] if views.flip != "none" else []),
        *([f"colours changed (strength {views.color_jitter:g})"] if views.color_jitter else []),
        *([f"{share(views.grayscale)} gray"] if views.grayscale else []),
    ]
    of_its_area = f"{which} of each image, {share(low)} to {share(high)} of its area"
    return ", ".join([of_its_area, *changed])


def _objective(trained: PretrainConfig) -> str:
    goal = trained.objective
    terms = []
    if goal.reconstruction_weight > 0:
        terms.append(f"rebuilding what is hidden (weight {goal.reconstruction_weight:g})")
    if goal.contrastive_weight > 0:
        terms.append(
            f"telling images apart (weight {goal.contrastive_weight:g}, temperature "
            f"{goal.temperature:g})"
        )
    return " and ".join(terms)


def _supervised(facts: RunFacts) -> Iterator[tuple[str, str]]:
    for name, label in MAIN.items():
        value = facts.config.get(name)
        if value is not None:
            yield label, value_in_words(name, value)


def value_in_words(name: str, value: Any) -> str:
    """Write a setting's value; of paths only the last parts."""
    if isinstance(value, list):
        return " ".join(value_in_words(name, one) for one in value) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    text = str(value)
    return one_line(short(text, 2) if name.split(".")[-1] in PATHS else text)


def _machine(facts: RunFacts) -> Iterator[tuple[str, str]]:
    made = facts.environment
    device = made.get("device")
    if device:
        processes, threads = made.get("world_size"), made.get("threads")
        extra = f", {processes} processes" if isinstance(processes, int) and processes > 1 else ""
        if device == "cpu" and isinstance(threads, int):
            extra += f", {threads} thread{'s' if threads != 1 else ''}"
        yield "machine", one_line(f"{device}{extra}; {made.get('platform', '')}".rstrip("; "))
    versions = [
        f"{name} {made[key]}"
        for key, name in (("mvmae", "mvmae"), ("torch", "torch"), ("python", "Python"))
        if made.get(key)
    ]
    if versions:
        yield "software", one_line(", ".join(versions))
    if made.get("git_commit"):
        yield "code", one_line(f"commit {made['git_commit']}")


def how_to_repeat(facts: RunFacts) -> Iterator[Block]:
    """Show the commands that repeat the run, and its config and environment files."""
    if facts.command != JUDGED:
        folder = shlex.quote(str(facts.folder))
        again = f"mvmae {facts.command} --recipe {folder}/config.json --out runs/again"
        if not facts.finished:
            go_on = f"mvmae {facts.command} --resume --out {folder}"
            if facts.command != "pretrain":
                go_on = f"mvmae {facts.command} ENCODER --resume --out {folder}"
            yield Code(without_home(go_on), "To resume it")
        yield Code(without_home(again), "To run it again")
    if facts.parsed is not None:
        full = Code(without_home(command_line(facts.command, facts.parsed)), "Without config.json")
        yield Fold("The command in full", [full])
    if facts.config:
        yield Fold("config.json: every setting", [Code(_json(facts.config), "config.json")])
    if facts.environment:
        yield Fold(
            "environment.json: versions, machine, data",
            [Code(_json(facts.environment), "environment.json")],
        )


def _json(content: dict[str, Any]) -> str:
    return without_home(json.dumps(content, indent=2, ensure_ascii=False))


def how_to_use(facts: RunFacts) -> Iterator[Block]:
    """Show how to compute embeddings, in Python and on the command line."""
    folder = without_home(str(facts.folder))
    name = shlex.quote(folder)
    if facts.command in PREDICT and (facts.folder / "model.safetensors").exists():
        yield Code(
            f"mvmae {facts.command} {name} --predict IMAGES --out FOLDER", PREDICT[facts.command]
        )
    if not (facts.folder / ENCODER_FILE).exists():
        if facts.command not in PREDICT or not facts.finished:
            note = f"This folder holds no {ENCODER_FILE} yet: the run writes it at its end."
            yield Text([note], "note")
        return
    yield Code(
        "from mvmae import load_encoder\n\n"
        f"encoder = load_encoder({json.dumps(folder, ensure_ascii=False)})\n"
        "embeddings = encoder.embed(images)  # B x C x H x W, normalised as in encoder.json",
        "In Python",
    )
    yield Code(
        f"mvmae knn {name} LABELLED_IMAGES      # does it separate your classes?\n"
        f"mvmae embed {name} IMAGES             # an embedding of each image\n"
        f"mvmae export {name} --format timm hf onnx",
        "On the command line",
    )
