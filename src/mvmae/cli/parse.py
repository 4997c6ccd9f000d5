"""From the arguments of a command to its config.

A config begins as a recipe, as the config of the run to resume, or as the recipe for this machine;
tyro then reads the other arguments into it.
"""

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
from mvmae.cli.commands import COMMANDS
from mvmae.errors import UserError, pluralize

RECIPE_HELP = (  # printed above the options, which tyro lists
    "--recipe NAME|FILE.json starts from a recipe (`mvmae recipes` lists them), a run's\n"
    "config.json or the JSON of a result; the other options change that.\n"
    "--quiet prints only errors and warnings that matter; --json prints JSON only, one object\n"
    "per line, and the result last.\n"
)
DEFAULT_RECIPES = {  # where none is named: on a CPU, and with CUDA
    "pretrain": ("tiny-cpu", "vit-small-128"),
    "finetune": ("small-finetune", "paper-finetune"),
    "segment": ("small", "paper-ade20k"),
    "detect": ("small", "li2021"),
}
MISSING_ENCODER = "ENCODER"


def parse(command: str, args: list[str]) -> Any:
    """Turn the arguments of a command into its config; None after printing the help.

    Raises:
        UserError: An option or a value is wrong.
    """
    if _wants_help(args):
        print(RECIPE_HELP)
    default, args = default_config(command, args)
    shortened = with_short_warmup(default, args)
    config = parse_config(COMMANDS[command].config, shortened, args, prog=f"mvmae {command}")
    if config and shortened is not default:
        print(
            f"warm-up: {config.warmup_epochs:g} of {pluralize(config.epochs, 'epoch')}, for the "
            f"recipe's {default.warmup_epochs:g} would be all (--warmup-epochs chooses another)"
        )
    return config


class _PlainStream(io.StringIO):
    """Replacement of stdout, which tyro asks for its encoding before it draws a box."""

    encoding = "utf-8"


def parse_config(kind: type, default: Any, args: list[str], *, prog: str) -> Any:
    """Let tyro read the arguments; None after printing the help.

    Args:
        kind: Class of the config.
        default: Config that the arguments change; None: the defaults of the class.
        args: Without the command.
        prog: The command, for messages.

    Raises:
        UserError: An option or a value is wrong; one line.
    """
    box = io.StringIO()
    options = {} if default is None else {"default": default}
    out = sys.stdout if _wants_help(args) else _PlainStream()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(box):
            return tyro.cli(kind, args=args, prog=prog, **options)
    except SystemExit as end:
        if end.code:
            from mvmae.cli.cli_errors import one_line

            raise UserError(one_line(box.getvalue(), prog)) from None
        return None


def default_config(command: str, args: list[str]) -> tuple[Any, list[str]]:
    """Config that the other arguments change (None: the defaults of the class), and those.

    `--recipe` names a recipe of the command, a run's config.json, or the JSON of a result. Without
    it, a run to be resumed brings its own config, and commands that train get the recipe for this
    machine; `pretrain` without own images gets `demo`.
    """
    if command == "ablate":  # its --recipe is an option like others: the recipe of its runs
        return None, args
    if command == "data show":
        return _default_to_show(args)
    recipe, rest = _take_option(args, "--recipe")
    if recipe is not None:
        if _take_option(rest, "--recipe")[0] is not None:
            joined = ": RECIPE+VARIANT joins two" if command == "pretrain" else ""
            raise UserError(f"--recipe is given twice{joined}")
        return recipe_or_file(command, recipe), rest
    if command not in DEFAULT_RECIPES:
        return None, rest
    if _wants_help(rest):  # other commands show the class's defaults: the recipe for CUDA
        return (recipes.named("pretrain", "demo") if command == "pretrain" else None), rest
    if "--resume" in rest:
        out = Path(_take_option(rest, "--out")[0] or f"runs/{command}")
        if not (out / "config.json").is_file():
            raise UserError(f"no run in {out} to resume: leave out --resume to begin one")
        return recipe_or_file(command, str(out / "config.json")), rest
    return _machine_default(command, rest), rest


def _machine_default(command: str, args: list[str]) -> Any:
    """Recipe for this machine; reads the arguments once to know what they name."""
    kind, name = COMMANDS[command].config, DEFAULT_RECIPES[command][_has_cuda()]
    recipe = recipes.load_recipes(command)[name]
    if command == "pretrain":
        default = recipes.named("pretrain", "demo")
    else:
        data = kind.__dataclass_fields__["data"].default
        default = replace(recipe.config, encoder=MISSING_ENCODER, data=data)
    given = parse_config(kind, with_short_warmup(default, args), args, prog=f"mvmae {command}")
    if command == "pretrain":
        if given.data == default.data:
            return default
        default = recipe.config
    elif given.encoder == MISSING_ENCODER:
        raise UserError(
            "no ENCODER: name a run folder, a checkpoint file, timm:NAME, hf:NAME or random:NAME"
        )
    if getattr(given, "predict", None) is None:
        print(f"recipe: {name} ({recipe.summary} --recipe chooses another)")
    return default


def _default_to_show(args: list[str]) -> tuple[Any, list[str]]:
    """Model and views of a recipe of `pretrain`; by default of the one for this machine."""
    recipe, rest = _take_option(args, "--recipe")
    if recipe is None:
        recipe = DEFAULT_RECIPES["pretrain"][not _wants_help(args) and _has_cuda()]
    config = recipe_or_file("pretrain", recipe)
    kind = COMMANDS["data show"].config
    return kind(model=config.model, views=config.views, seed=config.seed), rest


def with_short_warmup(default: Any, args: list[str]) -> Any:
    """Shorten the warm-up of a default where a small `--epochs` would otherwise be all warm-up.

    A warm-up given by the user stays as given, and is refused if it is too long.
    """
    warmup = getattr(default, "warmup_epochs", None)
    is_given = any(re.match(r"--warmup[-_]epochs\b", word) for word in args)
    # the value is checked by tyro later: here only what can be a number of epochs counts
    epochs = [word for word in _find_values(args, "--epochs") if word.isdecimal() and len(word) < 9]
    if warmup is None or is_given or not epochs:
        return default
    shorter = recipes.scale_warmup(default, int(epochs[-1]))
    return default if shorter == warmup else replace(default, warmup_epochs=shorter)


def recipe_or_file(command: str, recipe: str) -> Any:
    """Config that a recipe's name, a config.json or the JSON of a result stands for.

    Raises:
        UserError: The recipe or file is unknown, or belongs to another command.
    """
    if not recipe.endswith(".json"):
        return recipes.named(command, recipe)
    from mvmae.config.files import from_json, read_json

    content = read_json(recipe)
    if isinstance(content, dict) and isinstance(content.get("config"), dict):  # a result
        if content.get("command", command) != command:
            raise UserError(f"{recipe} is a result of mvmae {content['command']}, not of {command}")
        content = content["config"]
    kind, keys = COMMANDS[command].config, set(content) if isinstance(content, dict) else set()
    if keys - kind.__dataclass_fields__.keys():  # only then is the file perhaps another command's
        for name, other in COMMANDS.items():
            if keys <= other.config.__dataclass_fields__.keys():
                raise UserError(f"{recipe} is a config of mvmae {name}, not of {command}")
    return from_json(json.dumps(content), kind, source=recipe)


def _find_values(args: list[str], flag: str) -> list[str]:
    """Every value that a flag is given; the last one counts."""
    pairs = zip(args, [*args[1:], ""], strict=False)
    return [
        word.partition("=")[2] if "=" in word else following
        for word, following in pairs
        if word.partition("=")[0] == flag
    ]


def _take_option(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Value of `flag VALUE` or `flag=VALUE`, and the arguments without it."""
    for at, word in enumerate(args):
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}="), args[:at] + args[at + 1 :]
        if word == flag:
            if at + 1 == len(args) or args[at + 1].startswith("-"):
                raise UserError(f"{flag} needs a value")
            return args[at + 1], args[:at] + args[at + 2 :]
    return None, args


def _wants_help(args: list[str]) -> bool:
    return bool({"-h", "--help"} & set(args))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
