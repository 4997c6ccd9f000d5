"""Named, complete runs: rows of the paper's tables, and runs for own images.

`paper.py` says of each row of the paper what it claims, costs and leaves open.

A recipe is a value, so one derives from another with `dataclasses.replace`. A variant changes what
the method is and leaves the rest of any recipe alone: `demo+mae` is the demo trained as MAE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from mvmae.config.detect import DetectConfig
from mvmae.config.evaluation import ProbeConfig
from mvmae.config.finetune import FinetuneConfig
from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.config.segment import SegmentConfig
from mvmae.config.views import ViewsConfig
from mvmae.errors import UserError, nearest


class Recipe(NamedTuple):
    """A complete config, and the sentence that says what it is for."""

    summary: str
    config: Any


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
BEST_TINY_CPU = replace(TINY_CPU, views=replace(TINY_CPU.views, grayscale=0.2))  # docs/results.md
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


def with_mask(ratio: float) -> PretrainConfig:
    """A cell of Table 5: another share of hidden patches."""
    return replace(ABLATION, model=replace(ABLATION.model, mask_ratio=ratio))


def with_lambda(weight: float) -> PretrainConfig:
    """A cell of Table 5: another weight of the contrast."""
    return replace(ABLATION, objective=replace(ABLATION.objective, contrastive_weight=weight))


def with_decoder(depth: int) -> PretrainConfig:
    """A cell of Table 5: another number of decoder blocks."""
    return replace(ABLATION, model=replace(ABLATION.model, decoder_depth=depth))


TABLE_5 = {
    **{
        f"mask-{ratio:g}": Recipe(
            f"Table 5: {100 * ratio:g} % of the patches hidden.", with_mask(ratio)
        )
        for ratio in (0.5, 0.75, 0.8, 0.9, 0.95)
    },
    **{
        f"lambda-{weight:g}": Recipe(f"Table 5: lambda {weight:g}.", with_lambda(weight))
        for weight in (0.1, 0.5, 1.0, 1.5, 2.0)
    },
    **{
        f"decoder-{depth}": Recipe(f"Table 5: decoder of depth {depth}.", with_decoder(depth))
        for depth in (1, 2, 4, 8, 12)
    },
}

RECIPES: dict[str, Recipe] = {
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


PAPER_FINETUNE = FinetuneConfig(encoder="runs/pretrain", data="imagenet")
SMALL_FINETUNE = replace(
    PAPER_FINETUNE,
    epochs=20,
    batch_size=32,
    base_lr=1.6e-2,
    layer_decay=0.75,
    warmup_epochs=2.0,
    drop_path=0.0,
    mixup=0.0,
    cutmix=0.0,
    erasing=0.0,
    rand_augment=0.0,
    crop_scale=(0.35, 1.0),
    save_every_minutes=2.0,
)

FINETUNE: dict[str, Recipe] = {
    "paper-finetune": Recipe(
        "Table 1: MAE's recipe, 100 epochs at batch 512; the paper 84.3 %, MAE 83.6 %.",
        PAPER_FINETUNE,
    ),
    "small-finetune": Recipe(
        "Some thousand images on a laptop: 20 epochs, light augmentation.", SMALL_FINETUNE
    ),
}


PAPER_ADE20K = SegmentConfig(encoder="runs/pretrain")
SMALL_SEGMENT = replace(
    PAPER_ADE20K,
    crop=128,
    short_side=176,
    jitter=(0.75, 2.0),
    channels=64,
    auxiliary_channels=64,
    drop_path=0.0,
    iterations=2000,
    batch_size=8,
    lr=3e-3,
    layer_decay=0.8,
    warmup_iterations=100,
    eval_every=500,
    log_every=20,
    save_every_minutes=2.0,
)

PROBE: dict[str, Recipe] = {
    "paper-probe": Recipe(
        "Table 2: MAE's probe, 100 epochs at batch 1024; the paper 76.7 %, MAE 68.0 %.",
        ProbeConfig(encoder="runs/pretrain", data="imagenet", protocol="mae"),
    ),
}

SEGMENT: dict[str, Recipe] = {
    "paper-ade20k": Recipe(
        "Table 4: UperNet, ADE20K, 160,000 steps of batch 16; paper 50.2 mIoU, MAE 48.1.",
        PAPER_ADE20K,
    ),
    "small": Recipe("Some hundred images on a laptop: crops of 128, 2,000 steps.", SMALL_SEGMENT),
}


LI2021 = DetectConfig(encoder="runs/pretrain")
VITDET = replace(
    LI2021,
    window=14,
    pyramid="simple",
    norm="layer",
    lr=1e-4,
    layer_decay=0.7,
    schedule="steps",
    warmup_steps=250,
)
SMALL_DETECT = replace(
    LI2021,
    image_size=256,
    window=None,
    relative_positions=False,
    norm="layer",
    channels=64,
    hidden=256,
    proposals=1000,
    samples=128,
    epochs=30,
    batch_size=8,
    lr=1e-3,
    layer_decay=0.8,
    warmup_epochs=1.0,
    weight_decay=0.05,
    drop_path=0.0,
    scale_jitter=(0.6, 1.6),
    eval_every=10,
    save_every_minutes=2.0,
)

DETECT: dict[str, Recipe] = {
    "paper-coco": Recipe(
        "Table 3 on COCO: li2021; the paper 51.3 AP box, 45.6 AP mask; days of a large GPU.",
        LI2021,
    ),
    "li2021": Recipe(
        "Mask R-CNN of Li et al. 2021 at 1024, 100 epochs at batch 64; MAE 50.3 and 44.9.", LI2021
    ),
    "vitdet": Recipe(
        "ViTDet: simple pyramid, layer-wise decay, learning rate in steps; MAE 51.6, 45.9.",
        VITDET,
    ),
    "small": Recipe("Some hundred images on a laptop: 256 pixels, 30 epochs.", SMALL_DETECT),
}


def warmup_in_time(config: Any, epochs: int) -> float:
    """Epochs of warm-up of a config that is to train so many: its share, where all would be."""
    if not 0 < epochs <= config.warmup_epochs:
        return config.warmup_epochs
    return round(config.warmup_epochs / config.epochs * epochs, 3)


BY_COMMAND: dict[str, Mapping[str, Recipe]] = {
    "pretrain": RECIPES,
    "finetune": FINETUNE,
    "probe": PROBE,
    "segment": SEGMENT,
    "detect": DETECT,
}


def of(command: str, name: str) -> Any:
    """The config of a command's recipe.

    Raises:
        UserError: The command has no such recipe.
    """
    if command == "pretrain":
        return named(name)
    known = BY_COMMAND.get(command, {})
    if name not in known:
        here = f"there are: {', '.join(known)}; " if known else ""
        raise UserError(
            f"{command} has no recipe '{name}'{nearest(name, known)} ({here}"
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
