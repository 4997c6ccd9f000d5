"""Named, complete runs: rows of the paper's tables, and runs for own images.

A recipe is a value, so one derives from another with `dataclasses.replace`. A variant changes what
the method is and leaves the rest of any recipe alone: `demo+mae` is the demo trained as MAE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from mvmae.config import ModelConfig, ObjectiveConfig, PretrainConfig, ViewsConfig
from mvmae.errors import UserError, nearest


class Recipe(NamedTuple):
    """A complete config, and the sentence that says what it is for."""

    summary: str
    config: Any


def as_mae(config: PretrainConfig) -> PretrainConfig:
    """One view, no contrast, 75 % masked, twice the epochs: equally many views are seen.

    Twice the epochs are also twice the optimiser steps, which favours MAE in a comparison.
    """
    return replace(
        config,
        model=replace(config.model, mask_ratio=0.75, head="none"),
        views=replace(config.views, num_views=1),
        objective=replace(config.objective, contrastive_weight=0.0),
        epochs=2 * config.epochs,
        warmup_epochs=2 * config.warmup_epochs,
        eval_every=2 * config.eval_every,
    )


def without_contrast(config: PretrainConfig) -> PretrainConfig:
    """Two views, each only reconstructed (Table 6, "w/o contrastive")."""
    return replace(
        config,
        model=replace(config.model, head="none"),
        objective=replace(config.objective, contrastive_weight=0.0),
    )


def with_one_target(config: PretrainConfig) -> PretrainConfig:
    """One crop of each image, masked twice (Table 6, "w/o two target views")."""
    return replace(config, views=replace(config.views, targets="one"))


def without_reconstruction(config: PretrainConfig) -> PretrainConfig:
    """Two masked views, only contrasted; the row that the paper's tables lack."""
    return replace(config, objective=replace(config.objective, reconstruction_weight=0.0))


VARIANTS: dict[str, Callable[[PretrainConfig], PretrainConfig]] = {
    "mae": as_mae,
    "no-contrast": without_contrast,
    "one-target": with_one_target,
    "contrast-only": without_reconstruction,
}

PAPER = PretrainConfig(data=("imagenet/train",))
ABLATION = replace(PAPER, epochs=200, batch_size=512)
MAE = replace(
    as_mae(PAPER),
    model=ModelConfig(mask_ratio=0.75, decoder_depth=8),
    epochs=1600,
    warmup_epochs=40.0,
    batch_size=4096,
    eval_every=10,
)
VIT_SMALL_128 = PretrainConfig(
    data=("images",),
    model=ModelConfig(encoder="vit_small", image_size=128, patch_size=8, decoder_dim=256),
    epochs=400,
)
TINY_CPU = PretrainConfig(
    data=("images",),
    model=ModelConfig(
        encoder="vit_nano", image_size=64, patch_size=8, decoder_depth=1, decoder_dim=64
    ),
    epochs=20,
    batch_size=128,
    base_lr=2e-3,
    warmup_epochs=2.0,
    save_every_minutes=2.0,
)
DEMO = PretrainConfig(
    data=("photos",),
    model=ModelConfig(
        encoder="vit_pico", image_size=32, patch_size=4, decoder_depth=1, decoder_dim=64
    ),
    views=ViewsConfig(),
    objective=ObjectiveConfig(contrastive_weight=1.0),
    epochs=8,
    batch_size=128,
    base_lr=2e-3,
    warmup_epochs=1.0,
)

RECIPES: dict[str, Recipe] = {
    "paper": Recipe("Table 1: ViT-B/16 at 224, 1600 epochs of ImageNet-1K, batch 256.", PAPER),
    "paper-800": Recipe("Table 1's shorter row: 800 epochs.", replace(PAPER, epochs=800)),
    "ablation": Recipe("Tables 5 and 6: 200 epochs, batch 512.", ABLATION),
    "mae": Recipe("MAE itself: one view, 75 % masked, decoder of 8 blocks, batch 4096.", MAE),
    "no-contrast": Recipe("Table 6: two views, no contrast.", without_contrast(ABLATION)),
    "one-target": Recipe("Table 6: one crop masked twice.", with_one_target(ABLATION)),
    "contrast-only": Recipe(
        "What Table 6 lacks: contrast without reconstruction.", without_reconstruction(ABLATION)
    ),
    "vit-small-128": Recipe("Own photographs on one GPU: ViT-S/8 at 128.", VIT_SMALL_128),
    "tiny-cpu": Recipe("Own images on a laptop: a ViT of 0.8 M parameters at 64.", TINY_CPU),
    "demo": Recipe("The built-in photographs, in about a minute on two cores.", DEMO),
}


BY_VERB: dict[str, Mapping[str, Recipe]] = {"pretrain": RECIPES}


def of(verb: str, name: str) -> Any:
    """The config of a verb's recipe.

    Raises:
        UserError: The verb has no such recipe.
    """
    if verb == "pretrain":
        return named(name)
    known = BY_VERB.get(verb, {})
    if name not in known:
        here = f"there are: {', '.join(known)}; " if known else ""
        raise UserError(
            f"{verb} has no recipe '{name}'{nearest(name, known)} ({here}"
            "a config.json or the JSON of a result works too)"
        )
    return known[name].config


def named(name: str) -> PretrainConfig:
    """The config of a recipe, or of `RECIPE+VARIANT`.

    Raises:
        UserError: There is no such recipe or variant.
    """
    base, *variants = name.split("+")
    if base not in RECIPES:
        raise UserError(
            f"no recipe '{base}'{nearest(base, RECIPES)} (`mvmae recipes` lists them; "
            "a config.json works too)"
        )
    config = RECIPES[base].config
    for variant in variants:
        if variant not in VARIANTS:
            raise UserError(
                f"no variant '{variant}'{nearest(variant, VARIANTS)} (there are: "
                f"{', '.join(VARIANTS)})"
            )
        config = VARIANTS[variant](config)
    return config
