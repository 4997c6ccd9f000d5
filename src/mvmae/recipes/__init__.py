"""Named, complete configs: rows of the paper's tables, and runs for own images.

`paper.py` states for each row of the paper what it claims, what it costs and what it leaves open.

A recipe is a value, so one derives from another with `dataclasses.replace`. A variant changes the
method and leaves the rest of any recipe of `pretrain` alone: `demo+mae` is the demo trained as MAE.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

from mvmae.errors import UserError, suggest

HOMES = {  # modules, so that a command loads only what it needs
    "pretrain": "mvmae.recipes.pretrain",
    "finetune": "mvmae.recipes.supervised",
    "probe": "mvmae.recipes.supervised",
    "segment": "mvmae.recipes.supervised",
    "detect": "mvmae.recipes.supervised",
}


class Recipe(NamedTuple):
    """A complete config, and a sentence about its purpose."""

    summary: str
    config: Any


def load_recipes(command: str) -> Mapping[str, Recipe]:
    """Recipes of a command by name; empty for a command without any."""
    if command not in HOMES:
        return {}
    return getattr(import_module(HOMES[command]), command.upper())


def named(command: str, name: str) -> Any:
    """Config of a command's recipe, for `pretrain` also of `RECIPE+VARIANT`.

    Raises:
        UserError: The recipe or variant is unknown.
    """
    known = load_recipes(command)
    base, *variants = name.split("+") if command == "pretrain" else [name]
    if base not in known:
        lists = "`mvmae recipes` lists them; " if known else ""
        raise UserError(
            f"{command} has no recipe '{base}'{suggest(base, known)} ({lists}a run's config.json "
            "or the JSON of a result works too)"
        )
    config = known[base].config
    for variant in variants:
        from mvmae.recipes.pretrain import VARIANTS

        if variant not in VARIANTS:
            raise UserError(
                f"no variant '{variant}'{suggest(variant, VARIANTS)} "
                f"(there are: {', '.join(VARIANTS)})"
            )
        config = VARIANTS[variant](config)
    return config


def scale_warmup(config: Any, epochs: int) -> float:
    """Warm-up for a run of `epochs`, in epochs.

    The config's own; or, if that would be the whole run, the share that it has of the config's.
    """
    if not 0 < epochs <= config.warmup_epochs:
        return config.warmup_epochs
    return round(config.warmup_epochs / config.epochs * epochs, 3)
