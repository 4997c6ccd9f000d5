"""Tables of ablations as plain data: what each row changes, and what the paper found.

The paper's figures are Ji, Han and Rhee's (2023), Tables 5 and 6: top-1 accuracy on ImageNet-1K
after 200 epochs of pre-training and 100 of fine-tuning a ViT-B/16. They are not ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from mvmae.config.pretrain import PretrainConfig
from mvmae.recipes.paper import DECODERS, LAMBDAS, MASKS, TABLE_6
from mvmae.recipes.pretrain import as_mae, with_one_target, without_contrast, without_reconstruction

BASE = "base"  # the recipe as it is
PAPER = "paper, not ours: ImageNet-1K, ViT-B/16, fine-tuned, top-1 in %"

Change = Callable[[PretrainConfig], PretrainConfig]


class Arm(NamedTuple):
    """A row of a table."""

    key: str
    """In names of folders."""

    name: str
    """In the table."""

    change: Change
    """Of the recipe, whatever it is."""

    paper: float | None = None
    """The paper's figure, if it has one."""


class Ablation(NamedTuple):
    """A table."""

    varies: str
    """What, in a sentence."""

    says: str
    """What the paper says of it, or why it says nothing."""

    arms: tuple[Arm, ...]

    source: str = ""
    """Where the paper's figures stand."""

    baseline: str = BASE
    """The row with which the others are compared."""

    axis: str = ""
    """What the rows' names are values of; none where they are names."""


def with_fields(config: PretrainConfig, changed: dict[str, Any]) -> PretrainConfig:
    """The config with some fields changed, at most one group deep: `model.mask_ratio`."""
    groups: dict[str, dict[str, Any]] = {}
    own: dict[str, Any] = {}
    for name, value in changed.items():
        group, _, field = name.rpartition(".")
        (groups.setdefault(group, {}) if group else own)[field] = value
    inner = {name: replace(getattr(config, name), **values) for name, values in groups.items()}
    return replace(config, **inner, **own)


def setting(**changed: Any) -> Change:
    """A change of fields, `__` in the place of a dot."""
    named = {name.replace("__", "."): value for name, value in changed.items()}
    return lambda config: with_fields(config, named)


def as_it_is(config: PretrainConfig) -> PretrainConfig:
    """The recipe itself."""
    return config


def as_mae_of_equal_steps(config: PretrainConfig) -> PretrainConfig:
    """MAE in as many epochs: equally many steps, half the views (the paper's own comparison)."""
    mae = as_mae(config)
    return replace(
        mae,
        epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        eval_every=config.eval_every,
    )


def as_mae_of_equal_steps_and_views(config: PretrainConfig) -> PretrainConfig:
    """MAE on batches of as many images as the recipe has views, at the recipe's learning rate."""
    times = max(2, config.views.num_views)
    mae, batch_size = as_mae(config), times * config.batch_size
    return replace(mae, batch_size=batch_size, base_lr=config.base_lr / times)


def with_lambda(weight: float) -> Change:
    """The weight of the contrast; without it a head has nothing to do."""
    if weight == 0:
        return without_contrast
    return setting(objective__contrastive_weight=weight)


def _arms(kind: str, change: Callable[[Any], Change], values: dict[Any, float | None]) -> tuple:
    """A row for each value, with the paper's figure."""
    return tuple(
        Arm(f"{kind}-{value:g}", f"{value:g}", change(value), paper)
        for value, paper in values.items()
    )


MASK: dict[Any, float | None] = {value: top1 for value, (top1, _) in MASKS.items()}
LAMBDA: dict[Any, float | None] = {0.0: None, **LAMBDAS, 4.0: None, 8.0: None}
"""The paper's best is at the edge of its grid."""
DECODER: dict[Any, float | None] = {value: top1 for value, (top1, _) in DECODERS.items()}

ABLATIONS: dict[str, Ablation] = {
    "table5-mask": Ablation(
        "The share of hidden patches.",
        "80 % is best, by 0.02 points; 50 to 90 % lie within 0.16, 95 % is a point lower.",
        _arms("mask", lambda value: setting(model__mask_ratio=value), MASK),
        source="Table 5, column Mask Ratio",
        axis="mask ratio",
    ),
    "table5-lambda": Ablation(
        "The weight of the contrast, also 0 and beyond the paper's 2.",
        "Flat from 0.1 to 1, then rising to the last value tried, 2.",
        _arms("lambda", with_lambda, LAMBDA),
        source="Table 5, column Loss Weight",
        axis="lambda",
    ),
    "table5-decoder": Ablation(
        "The blocks of the decoder.",
        "4 and 8 are best and equal; 1 costs 5 points.",
        _arms("decoder", lambda value: setting(model__decoder_depth=value), DECODER),
        source="Table 5, column Decoder Depth",
        axis="decoder blocks",
    ),
    "table6": Ablation(
        "The parts: two targets, contrast, reconstruction; and MAE, equal views or equal steps.",
        "All parts together are best: 1.23 above one target, 4.76 above no contrast, 2.61 above "
        "MAE of equal epochs, which has seen half the views.",
        (
            Arm(BASE, "the method", as_it_is, TABLE_6["ours"]),
            Arm("one-target", "one target", with_one_target, TABLE_6["one target"]),
            Arm("no-contrast", "no contrast", without_contrast, TABLE_6["no contrast"]),
            Arm("contrast-only", "contrast only", without_reconstruction),
            Arm("mae", "MAE, equal views", as_mae),
            Arm("mae-steps", "MAE, equal steps", as_mae_of_equal_steps, TABLE_6["baseline"]),
        ),
        source="Table 6",
        baseline="mae",
    ),
    "views": Ablation(
        "One view an image or two, without contrast and with, at equal views and equal steps.",
        "No figures at equal views: its MAE row has equal epochs, so half the views.",
        (
            Arm(BASE, "the method", as_it_is),
            Arm("no-contrast", "two views, no contrast", without_contrast),
            Arm("mae", "one view, equal views", as_mae),
            Arm("mae-steps", "one view, equal steps", as_mae_of_equal_steps),
            Arm("mae-both", "one view, equal both", as_mae_of_equal_steps_and_views),
        ),
        baseline="mae",
    ),
    "latent": Ablation(
        "What is contrasted, and then judged: the mean of the patch tokens, or the class token.",
        "Nothing: it names no token.",
        tuple(Arm(f"latent-{v}", v, setting(model__latent=v)) for v in ("mean", "cls")),
    ),
    "head": Ablation(
        "What the latent passes through before the contrast: nothing, or an MLP.",
        "No head, and no comparison.",
        tuple(Arm(f"head-{v}", v, setting(model__head=v)) for v in ("none", "mlp")),
    ),
    "temperature": Ablation(
        "The temperature of the contrast.",
        "0.07, and no comparison.",
        _arms(
            "tau",
            lambda value: setting(objective__temperature=value),
            dict.fromkeys((0.05, 0.07, 0.1, 0.2, 0.5)),
        ),
        axis="temperature",
    ),
    "norm-pix": Ablation(
        "Whether each target patch is normalised by its own mean and variance.",
        "Nothing.",
        (
            Arm("normalised", "normalised", setting(objective__normalize_targets=True)),
            Arm("plain", "plain pixels", setting(objective__normalize_targets=False)),
        ),
    ),
}
