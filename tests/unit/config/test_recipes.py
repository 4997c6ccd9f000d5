from dataclasses import replace
from functools import partial

import pytest

from mvmae.config.files import from_json, to_json
from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.errors import UserError
from mvmae.recipes import named, pretrain
from mvmae.recipes.pretrain import PRETRAIN, VARIANTS

pretraining = partial(named, "pretrain")

PAIRS = [(base, variant) for base in PRETRAIN for variant in VARIANTS]


def nothing_is_left(base: str, variant: str) -> bool:
    """Whether the variant takes away the one loss that the recipe has."""
    objective = pretraining(base).objective
    if variant == "contrast-only":
        return objective.contrastive_weight == 0
    return variant in ("mae", "no-contrast") and objective.reconstruction_weight == 0


@pytest.mark.parametrize("name", PRETRAIN)
def test_every_recipe_is_a_whole_config_with_a_sentence(name):
    recipe = PRETRAIN[name]
    assert pretraining(name) is recipe.config
    assert isinstance(recipe.config, PretrainConfig)
    assert recipe.summary.endswith(".")
    assert len(recipe.summary) < 80


@pytest.mark.parametrize("name", PRETRAIN)
def test_every_recipe_survives_json(name):
    assert from_json(to_json(pretraining(name)), PretrainConfig, source=name) == named(
        "pretrain", name
    )


def test_the_paper_is_what_a_config_is_by_default():
    assert pretraining("paper") == PretrainConfig(data=("imagenet/train",))
    assert pretraining("paper-800") == replace(pretraining("paper"), epochs=800)


def test_the_ablations_are_shorter_with_a_larger_batch():
    assert pretraining("ablation") == replace(pretraining("paper"), epochs=200, batch_size=512)
    for name in ("no-contrast", "one-target", "contrast-only"):
        assert pretraining(name) == pretraining(f"ablation+{name}")


def test_what_is_named_best_differs_from_the_paper_only_in_what_was_measured():
    best, plain = pretraining("best-tiny-cpu"), pretraining("tiny-cpu")
    assert best.views.grayscale == 0.2
    assert replace(best, views=replace(best.views, grayscale=0.0)) == plain
    for name in ("paper", "tiny-cpu", "demo"):  # and the method's own recipes change no colour
        assert (
            pretraining(name).views.grayscale,
            pretraining(name).views.color_jitter,
        ) == (0, 0)


def test_the_mae_recipe_is_maes_own_setting():
    config = pretraining("mae")
    assert config.model == ModelConfig(mask_ratio=0.75, decoder_depth=8)
    assert config.model.num_visible == 49
    assert config.views.num_views == 1
    assert config.objective.contrastive_weight == 0
    assert (config.epochs, config.warmup_epochs, config.batch_size) == (1600, 40, 4096)
    assert config.lr == pytest.approx(2.4e-3)


@pytest.mark.parametrize("base", ["paper", "vit-small-128", "tiny-cpu", "demo"])
def test_the_mae_variant_sees_as_many_views_and_changes_only_the_method(base):
    before, after = pretraining(base), pretraining(f"{base}+mae")
    assert after.epochs * after.views.num_views == before.epochs * before.views.num_views
    assert after.warmup_epochs / after.epochs == before.warmup_epochs / before.epochs
    assert after.epochs / after.eval_every == before.epochs / before.eval_every
    assert (after.model.mask_ratio, after.views.num_views) == (0.75, 1)
    assert after.objective.contrastive_weight == 0
    undone = replace(
        after,
        model=replace(after.model, mask_ratio=before.model.mask_ratio),
        views=before.views,
        objective=before.objective,
        epochs=before.epochs,
        warmup_epochs=before.warmup_epochs,
        eval_every=before.eval_every,
    )
    assert undone == before


def test_the_other_variants_change_one_thing_each():
    demo = pretraining("demo")
    objective = demo.objective
    assert pretraining("demo+no-contrast") == replace(
        demo, objective=replace(objective, contrastive_weight=0.0)
    )
    assert pretraining("demo+one-target") == replace(demo, views=replace(demo.views, targets="one"))
    assert pretraining("demo+contrast-only") == replace(
        demo, objective=replace(objective, reconstruction_weight=0.0)
    )


@pytest.mark.parametrize("variant", ["mae", "no-contrast"])
def test_a_variant_without_contrast_drops_the_head(variant):
    with_head = replace(pretraining("demo"), model=replace(pretraining("demo").model, head="mlp"))
    assert VARIANTS[variant](with_head).model.head == "none"


@pytest.mark.parametrize(("base", "variant"), PAIRS)
def test_every_variant_of_every_recipe_works_or_says_that_nothing_is_left(base, variant):
    if nothing_is_left(base, variant):
        with pytest.raises(UserError, match="both losses have weight 0"):
            pretraining(f"{base}+{variant}")
    else:
        assert isinstance(pretraining(f"{base}+{variant}"), PretrainConfig)


def test_variants_add_up_from_left_to_right():
    both = pretraining("demo+one-target+contrast-only")
    assert both == pretrain.without_reconstruction(pretrain.with_one_target(pretraining("demo")))


WRONG = [
    ("papr", "no recipe 'papr': did you mean 'paper'?"),
    ("qqq", "no recipe 'qqq' (`mvmae recipes` lists them; a run's config.json or"),
    ("", "no recipe ''"),
    ("demo+ma", "no variant 'ma': did you mean 'mae'?"),
    ("demo+", "no variant ''"),
    ("demo+qqq", "there are: mae, no-contrast, one-target, contrast-only"),
]


@pytest.mark.parametrize(("name", "message"), WRONG)
def test_a_wrong_name_gets_the_nearest_right_one(name, message):
    with pytest.raises(UserError) as caught:
        pretraining(name)
    assert message in str(caught.value)
