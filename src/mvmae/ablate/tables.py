"""The ablation tables as plain data: what each row changes, and what the paper reports.

The paper's figures are from Ji, Han and Rhee (2023), Tables 5 and 6: top-1 accuracy on ImageNet-1K
after 200 epochs of pre-training and 100 of fine-tuning a ViT-B/16. They are not ours.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from mvmae.config.pretrain import PretrainConfig
from mvmae.recipes.paper import DECODERS, LAMBDAS, MASKS, TABLE_6
from mvmae.recipes.pretrain import (
    as_mae,
    with_group,
    with_one_target,
    without_contrast,
    without_reconstruction,
)

BASE = "base"  # key of the row that is the recipe itself
PAPER = "paper, not ours: ImageNet-1K, ViT-B/16, fine-tuned, top-1 in %"

Change = Callable[[PretrainConfig], PretrainConfig]


class Arm(NamedTuple):
    """A row of a table."""

    key: str
    """Part of the names of its folders."""

    name: str
    """Name in the table."""

    change: Change
    """What it changes in any recipe."""

    paper: float | None = None
    """The paper's figure, if there is one."""


class Ablation(NamedTuple):
    """A table."""

    varies: str
    """What the rows vary, in a sentence."""

    says: str
    """The paper's finding, or why it has none."""

    arms: tuple[Arm, ...]

    source: str = ""
    """Where the paper gives its figures."""

    baseline: str = BASE
    """Key of the row with which the others are compared."""

    axis: str = ""
    """Name of the quantity that the rows' names are values of; empty if they are words."""


def change(group: str, **changed: Any) -> Change:
    """A change of options in one group of the config: `model`, `views` or `objective`."""
    return lambda config: with_group(config, group, **changed)


def keep(config: PretrainConfig) -> PretrainConfig:
    """The recipe itself."""
    return config


def mae_with_equal_steps(config: PretrainConfig) -> PretrainConfig:
    """MAE for the same epochs: equal steps, half the views (the paper's own comparison)."""
    mae = as_mae(config)
    return replace(
        mae,
        epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        eval_every=config.eval_every,
    )


def mae_with_equal_steps_and_views(config: PretrainConfig) -> PretrainConfig:
    """MAE with as many images per batch as the recipe has views, at the recipe's learning rate."""
    times = max(2, config.views.num_views)
    mae, batch_size = as_mae(config), times * config.batch_size
    return replace(mae, batch_size=batch_size, base_lr=config.base_lr / times)


def with_lambda(weight: float) -> Change:
    """Set the weight of the contrastive loss; at 0, remove the projection head as well."""
    if weight == 0:
        return without_contrast
    return change("objective", contrastive_weight=weight)


def _arms(kind: str, changes: Callable[[Any], Change], values: dict[Any, float | None]) -> tuple:
    """Build a row for each value, with the paper's figure."""
    return tuple(
        Arm(f"{kind}-{value:g}", f"{value:g}", changes(value), paper)
        for value, paper in values.items()
    )


MASK: dict[Any, float | None] = {value: top1 for value, (top1, _) in MASKS.items()}
LAMBDA: dict[Any, float | None] = {0.0: None, **LAMBDAS, 4.0: None, 8.0: None}
"""The paper's best is at the edge of its grid."""
DECODER: dict[Any, float | None] = {value: top1 for value, (top1, _) in DECODERS.items()}

ABLATIONS: dict[str, Ablation] = {
    "table5-mask": Ablation(
        "The share of masked patches.",
        "80 % is best, by 0.02 points; 50 to 90 % are within 0.16 points, 95 % is a point lower.",
        _arms("mask", lambda value: change("model", mask_ratio=value), MASK),
        source="Table 5, column Mask Ratio",
        axis="mask ratio",
    ),
    "table5-lambda": Ablation(
        "The weight of the contrastive loss, including 0 and values beyond the paper's 2.",
        "Flat from 0.1 to 1, then rising to the last value tried, 2.",
        _arms("lambda", with_lambda, LAMBDA),
        source="Table 5, column Loss Weight",
        axis="lambda",
    ),
    "table5-decoder": Ablation(
        "The number of decoder blocks.",
        "4 and 8 are best and equal; 1 costs 5 points.",
        _arms("decoder", lambda value: change("model", decoder_depth=value), DECODER),
        source="Table 5, column Decoder Depth",
        axis="decoder blocks",
    ),
    "table6": Ablation(
        "The components: two targets, contrast, reconstruction; and MAE at equal views or steps.",
        "All components together are best: 1.23 points above one target, 4.76 above no contrast, "
        "2.61 above MAE with equal epochs, which has seen half the views.",
        (
            Arm(BASE, "the method", keep, TABLE_6["ours"]),
            Arm("one-target", "one target", with_one_target, TABLE_6["one target"]),
            Arm("no-contrast", "no contrast", without_contrast, TABLE_6["no contrast"]),
            Arm("contrast-only", "contrast only", without_reconstruction),
            Arm("mae", "MAE, equal views", as_mae),
            Arm("mae-steps", "MAE, equal steps", mae_with_equal_steps, TABLE_6["baseline"]),
        ),
        source="Table 6",
        baseline="mae",
    ),
    "views": Ablation(
        "One or two views per image, with and without contrast, at equal views and equal steps.",
        "No figures at equal views: its MAE row has equal epochs and therefore half the views.",
        (
            Arm(BASE, "the method", keep),
            Arm("no-contrast", "two views, no contrast", without_contrast),
            Arm("mae", "one view, equal views", as_mae),
            Arm("mae-steps", "one view, equal steps", mae_with_equal_steps),
            Arm("mae-both", "one view, equal both", mae_with_equal_steps_and_views),
        ),
        baseline="mae",
    ),
    "latent": Ablation(
        "The latent that is contrasted and evaluated: mean of patch tokens, or class token.",
        "Nothing: it does not say which token.",
        tuple(Arm(f"latent-{v}", v, change("model", latent=v)) for v in ("mean", "cls")),
    ),
    "head": Ablation(
        "The projection head before the contrastive loss: none, or an MLP.",
        "It uses no head and reports no comparison.",
        tuple(Arm(f"head-{v}", v, change("model", head=v)) for v in ("none", "mlp")),
    ),
    "temperature": Ablation(
        "The temperature of the contrastive loss.",
        "It uses 0.07 and reports no comparison.",
        _arms(
            "tau",
            lambda value: change("objective", temperature=value),
            dict.fromkeys((0.05, 0.07, 0.1, 0.2, 0.5)),
        ),
        axis="temperature",
    ),
    "norm-pix": Ablation(
        "Whether each target patch is normalised by its own mean and variance.",
        "Nothing.",
        (
            Arm("normalised", "normalised", change("objective", normalize_targets=True)),
            Arm("plain", "plain pixels", change("objective", normalize_targets=False)),
        ),
    ),
}
