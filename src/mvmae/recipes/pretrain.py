"""Recipes of `pretrain`, and variants of the method for any of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.recipes import Recipe


def as_mae(config: PretrainConfig) -> PretrainConfig:
    """One view, no contrast, 75 % masked, twice the epochs: equally many views are seen.

    Twice the epochs are also twice the optimiser steps, which favours MAE in a comparison. (Of a
    recipe with more than two views so many times the epochs.)
    """
    times = max(2, config.views.num_views)
    return replace(
        config,
        model=replace(config.model, mask_ratio=0.75, head="none"),
        views=replace(config.views, num_views=1),
        objective=replace(config.objective, contrastive_weight=0.0),
        epochs=times * config.epochs,
        warmup_epochs=times * config.warmup_epochs,
        eval_every=times * config.eval_every,
    )


def with_group(config: PretrainConfig, group: str, **changed: Any) -> PretrainConfig:
    """Change options of one group: `model`, `views` or `objective`."""
    return replace(config, **{group: replace(getattr(config, group), **changed)})


def without_contrast(config: PretrainConfig) -> PretrainConfig:
    """Two views, each only reconstructed (Table 6, "w/o contrastive")."""
    # Without contrast a config refuses a projection head, which only serves the contrast.
    return with_group(with_group(config, "model", head="none"), "objective", contrastive_weight=0.0)


def with_one_target(config: PretrainConfig) -> PretrainConfig:
    """One crop of each image, masked twice (Table 6, "w/o two target views")."""
    return with_group(config, "views", targets="one")


def without_reconstruction(config: PretrainConfig) -> PretrainConfig:
    """Two masked views, only contrasted; the row that the paper's tables lack."""
    return with_group(config, "objective", reconstruction_weight=0.0)


# The first line of each docstring is what `mvmae recipes` prints.
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
BEST_TINY_CPU = with_group(TINY_CPU, "views", grayscale=0.2)  # docs/results.md
DEMO = PretrainConfig(
    data=("photos",),
    model=ModelConfig(
        encoder="vit_pico", image_size=32, patch_size=4, decoder_depth=1, decoder_dim=64
    ),
    objective=ObjectiveConfig(contrastive_weight=1.0),
    epochs=8,
    batch_size=128,
    base_lr=2e-3,
    warmup_epochs=1.0,
)


TABLE_5 = {
    **{
        f"mask-{ratio:g}": Recipe(
            f"Table 5: {100 * ratio:g} % of the patches hidden.",
            with_group(ABLATION, "model", mask_ratio=ratio),
        )
        for ratio in (0.5, 0.75, 0.8, 0.9, 0.95)
    },
    **{
        f"lambda-{weight:g}": Recipe(
            f"Table 5: lambda {weight:g}.",
            with_group(ABLATION, "objective", contrastive_weight=weight),
        )
        for weight in (0.1, 0.5, 1.0, 1.5, 2.0)
    },
    **{
        f"decoder-{depth}": Recipe(
            f"Table 5: decoder of depth {depth}.",
            with_group(ABLATION, "model", decoder_depth=depth),
        )
        for depth in (1, 2, 4, 8, 12)
    },
}

PRETRAIN: dict[str, Recipe] = {
    "demo": Recipe("The built-in photographs, in about a minute on two cores.", DEMO),
    "tiny-cpu": Recipe("Own images on a laptop: a ViT of 0.8 M parameters at 64.", TINY_CPU),
    "best-tiny-cpu": Recipe(
        "Ours, not the paper's: tiny-cpu, one view in five gray; for photographs.",
        BEST_TINY_CPU,
    ),
    "vit-small-128": Recipe("Own photographs on one GPU: ViT-S/8 at 128.", VIT_SMALL_128),
    "paper": Recipe("Table 1: ViT-B/16 at 224, 1600 epochs of ImageNet-1K, batch 256.", PAPER),
    "paper-800": Recipe("Table 1's shorter row: 800 epochs.", replace(PAPER, epochs=800)),
    "mae": Recipe("MAE itself: one view, 75 % masked, decoder of 8 blocks, batch 4096.", MAE),
    "ablation": Recipe("Tables 5 and 6: 200 epochs, batch 512.", ABLATION),
    "no-contrast": Recipe("Table 6: two views, no contrast.", without_contrast(ABLATION)),
    "one-target": Recipe("Table 6: one crop masked twice.", with_one_target(ABLATION)),
    "contrast-only": Recipe(
        "What Table 6 lacks: contrast without reconstruction.", without_reconstruction(ABLATION)
    ),
    **TABLE_5,
}
