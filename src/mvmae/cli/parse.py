"""Where a command's config begins: its recipe, the run it resumes, or what suits the machine.

tyro then reads the other arguments into it.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from mvmae import recipes
from mvmae.cli.cli_errors import one_line
from mvmae.cli.commands import COMMANDS
from mvmae.config.files import from_json
from mvmae.config.imaging import DataShowConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.errors import UserError, counted


class _Paper(io.StringIO):
    """A stand-in for stdout: tyro asks it whether to draw coloured boxes, or boxes at all."""

    encoding = "utf-8"


def parse_config(kind: type, default: Any, args: list[str], *, prog: str) -> Any:
    """Let tyro read the arguments, and put what it complains of into one line."""
    complaint = io.StringIO()
    options = {} if default is None else {"default": default}
    out = sys.stdout if {"-h", "--help"} & set(args) else _Paper()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=args, prog=prog, **options)
    except SystemExit as end:
        if end.code:
            raise UserError(one_line(complaint.getvalue(), prog)) from None
        return None


def default_of(command: str, args: list[str]) -> tuple[Any, list[str]]:
    """The config that the other arguments change, none for the class's defaults, and those.

    `--recipe` names it: a recipe of the command, a run's config.json, or the JSON of a result. A
    run to be resumed brings its own.
    """
    recipe, rest = _take_option(args, "--recipe")
    if recipe is not None:
        if _take_option(rest, "--recipe")[0] is not None:
            raise UserError("--recipe is given twice")
        return recipe_or_file(command, recipe), rest
    out = _take_option(rest, "--out")[0]
    can_resume = "resume" in COMMANDS[command].config.__dataclass_fields__
    if can_resume and "--resume" in rest and out and (Path(out) / "config.json").is_file():
        return recipe_or_file(command, str(Path(out) / "config.json")), rest
    return None, rest


def pretrain_default(command: str, args: list[str]) -> tuple[PretrainConfig, list[str]]:
    """As `default_of`, and never none.

    Without `--recipe` a run to be resumed brings its own, own images get `tiny-cpu` or, on a
    machine with CUDA, `vit-small-128`, and no images at all get `demo`.
    """
    recipe, rest = _take_option(args, "--recipe")
    if recipe is not None:
        if _take_option(rest, "--recipe")[0] is not None:
            raise UserError("--recipe is given twice: RECIPE+VARIANT joins two")
        return recipe_or_file(command, recipe), rest
    if "--resume" in rest:
        out = Path(_take_option(rest, "--out")[0] or PretrainConfig().out)
        if not (out / "config.json").is_file():
            raise UserError(f"no run in {out} to resume: leave out --resume to begin one")
        return recipe_or_file(command, str(out / "config.json")), rest
    demo = recipes.named("demo")
    if {"-h", "--help"} & set(rest):
        return demo, rest
    asked = parse_config(PretrainConfig, warmed_up_in_time(demo, rest), rest, prog="mvmae pretrain")
    if asked.data == demo.data:
        return demo, rest
    name = "vit-small-128" if _has_cuda() else "tiny-cpu"
    print(f"recipe: {name} ({recipes.RECIPES[name].summary} --recipe chooses another)")
    return recipes.named(name), rest


NOT_GIVEN = "ENCODER"
RECIPE_HELP = (  # above the options, which tyro lists
    "--recipe NAME|FILE.json begins from a recipe (`mvmae recipes` lists them), a run's\n"
    "config.json or the JSON of a result; the other options change that.\n"
    "--quiet says nothing but errors and warnings that matter; --json prints JSON only, an object\n"
    "a line, and the result last.\n"
)


BY_MACHINE = {  # recipes where none is named: on a CPU, and with CUDA
    "finetune": ("small-finetune", "paper-finetune"),
    "segment": ("small", "paper-ade20k"),
    "detect": ("small", "li2021"),
}


def supervised_default(command: str, args: list[str]) -> tuple[Any, list[str]]:
    """As `default_of`; without a recipe, the command's for this machine.

    The help shows the class's defaults, which are those of the recipe for a machine with CUDA.
    """
    given, rest = default_of(command, args)
    if given is not None or {"-h", "--help"} & set(rest):
        return given, rest
    name = BY_MACHINE[command][_has_cuda()]
    recipe, kind = recipes.BY_COMMAND[command][name], COMMANDS[command].config
    if "--resume" in rest:
        out = Path(_take_option(rest, "--out")[0] or recipe.config.out or f"runs/{command}")
        if not (out / "config.json").is_file():
            raise UserError(f"no run in {out} to resume: leave out --resume to begin one")
        return recipe_or_file(command, str(out / "config.json")), rest
    data = kind.__dataclass_fields__["data"].default
    chosen = replace(recipe.config, encoder=NOT_GIVEN, data=data)
    asked = parse_config(kind, warmed_up_in_time(chosen, rest), rest, prog=f"mvmae {command}")
    if asked.encoder == NOT_GIVEN:
        raise UserError(
            "no ENCODER: name a run folder, a checkpoint file, timm:NAME, hf:NAME or random:NAME"
        )
    if getattr(asked, "predict", None) is None:
        print(f"recipe: {name} ({recipe.summary} --recipe chooses another)")
    return chosen, rest


def own_recipe(_command: str, args: list[str]) -> tuple[None, list[str]]:
    """The command's --recipe is an option of its own: it is another command's recipe."""
    return None, args


def data_show_default(_command: str, args: list[str]) -> tuple[DataShowConfig, list[str]]:
    """Model and views of a recipe of pretrain; without one, of that for this machine."""
    recipe, rest = _take_option(args, "--recipe")
    if recipe is None:
        is_large = not {"-h", "--help"} & set(rest) and _has_cuda()
        recipe = "vit-small-128" if is_large else "tiny-cpu"
    config = recipe_or_file("pretrain", recipe)
    return DataShowConfig(model=config.model, views=config.views, seed=config.seed), rest


DEFAULTS = {
    "pretrain": pretrain_default,
    "data show": data_show_default,
    "ablate": own_recipe,
} | dict.fromkeys(BY_MACHINE, supervised_default)


def warmed_up_in_time(default: Any, args: list[str]) -> Any:
    """The default with a shorter warm-up, where a few `--epochs` would otherwise be all warm-up.

    Whoever names a warm-up gets that, or its refusal.
    """
    warmup = getattr(default, "warmup_epochs", None)
    named = any(re.match(r"--warmup[-_]epochs\b", word) for word in args)
    given = [word for word in _values_of(args, "--epochs") if word.isdecimal() and len(word) < 9]
    if warmup is None or named or not given:
        return default
    shorter = recipes.warmup_in_time(default, int(given[-1]))
    return default if shorter == warmup else replace(default, warmup_epochs=shorter)


def warm_up_in_words(default: Any, settings: Any) -> str:
    """That the warm-up of the settings is not the default's, and why."""
    return (
        f"warm-up: {settings.warmup_epochs:g} of {counted(settings.epochs, 'epoch')}, for the "
        f"recipe's {default.warmup_epochs:g} would be all (--warmup-epochs chooses another)"
    )


def _values_of(args: list[str], flag: str) -> list[str]:
    """All that a flag is given; the last counts."""
    pairs = zip(args, [*args[1:], ""], strict=False)
    return [
        word.partition("=")[2] if "=" in word else following
        for word, following in pairs
        if word.partition("=")[0] == flag
    ]


def recipe_or_file(command: str, recipe: str) -> Any:
    """The config that a recipe's name, a config.json or a result's JSON stands for.

    Raises:
        UserError: There is no such recipe or file, or it is of another command.
    """
    if not recipe.endswith(".json"):
        return recipes.of(command, recipe)
    try:
        content = json.loads(Path(recipe).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {recipe}: {error}") from error
    except ValueError as error:
        raise UserError(f"{recipe} is not a config: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("config"), dict):  # a result
        if content.get("command", command) != command:
            raise UserError(f"{recipe} is a result of mvmae {content['command']}, not of {command}")
        content = content["config"]
    if others := _commands_of(content, command):
        raise UserError(f"{recipe} is of mvmae {others[0]}, not of {command}")
    return from_json(json.dumps(content), COMMANDS[command].config, source=recipe)


def _commands_of(content: Any, command: str) -> list[str]:
    """Other commands whose config has all keys of one that this command's has not."""
    if not isinstance(content, dict):
        return []
    known = {name: set(one.config.__dataclass_fields__) for name, one in COMMANDS.items()}
    if content.keys() <= known[command]:
        return []
    return [name for name, fields in known.items() if content.keys() <= fields]


def _take_option(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of `flag VALUE` or `flag=VALUE`, and the arguments without it."""
    for at, word in enumerate(args):
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}="), args[:at] + args[at + 1 :]
        if word == flag:
            if at + 1 == len(args) or args[at + 1].startswith("-"):
                raise UserError(f"{flag} needs a value")
            return args[at + 1], args[:at] + args[at + 2 :]
    return None, args


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
