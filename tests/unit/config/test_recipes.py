from dataclasses import replace

import pytest

from mvmae import recipes
from mvmae.config.files import from_json, to_json
from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.errors import UserError
from mvmae.recipes import RECIPES, VARIANTS, named

PAIRS = [(base, variant) for base in RECIPES for variant in VARIANTS]


def nothing_is_left(base: str, variant: str) -> bool:
    """Whether the variant takes away the one loss that the recipe has."""
    objective = named(base).objective
    if variant == "contrast-only":
        return objective.contrastive_weight == 0
    return variant in ("mae", "no-contrast") and objective.reconstruction_weight == 0


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_whole_config_with_a_sentence(name):
    recipe = RECIPES[name]
    assert named(name) is recipe.config
    assert isinstance(recipe.config, PretrainConfig)
    assert recipe.summary.endswith(".")
    assert len(recipe.summary) < 80


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name):
    assert from_json(to_json(named(name)), PretrainConfig, source=name) == named(name)


def test_the_paper_is_what_a_config_is_by_default():
    assert named("paper") == PretrainConfig(data=("imagenet/train",))
    assert named("paper-800") == replace(named("paper"), epochs=800)


def test_the_ablations_are_shorter_with_a_larger_batch():
    assert named("ablation") == replace(named("paper"), epochs=200, batch_size=512)
    for name in ("no-contrast", "one-target", "contrast-only"):
        assert named(name) == named(f"ablation+{name}")


def test_what_is_named_best_differs_from_the_paper_only_in_what_was_measured():
    best, plain = named("best-tiny-cpu"), named("tiny-cpu")
    assert best.views.grayscale == 0.2
    assert replace(best, views=replace(best.views, grayscale=0.0)) == plain
    for name in ("paper", "tiny-cpu", "demo"):  # and the method's own recipes change no colour
        assert (named(name).views.grayscale, named(name).views.color_jitter) == (0, 0)


def test_the_mae_recipe_is_maes_own_setting():
    config = named("mae")
    assert config.model == ModelConfig(mask_ratio=0.75, decoder_depth=8)
    assert config.model.num_visible == 49
    assert config.views.num_views == 1
    assert config.objective.contrastive_weight == 0
    assert (config.epochs, config.warmup_epochs, config.batch_size) == (1600, 40, 4096)
    assert config.lr == pytest.approx(2.4e-3)


@pytest.mark.parametrize("base", ["paper", "vit-small-128", "tiny-cpu", "demo"])
def test_the_mae_variant_sees_as_many_views_and_changes_only_the_method(base):
    before, after = named(base), named(f"{base}+mae")
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
    demo = named("demo")
    objective = demo.objective
    assert named("demo+no-contrast") == replace(
        demo, objective=replace(objective, contrastive_weight=0.0)
    )
    assert named("demo+one-target") == replace(demo, views=replace(demo.views, targets="one"))
    assert named("demo+contrast-only") == replace(
        demo, objective=replace(objective, reconstruction_weight=0.0)
    )


@pytest.mark.parametrize("variant", ["mae", "no-contrast"])
def test_a_variant_without_contrast_drops_the_head(variant):
    with_head = replace(named("demo"), model=replace(named("demo").model, head="mlp"))
    assert VARIANTS[variant](with_head).model.head == "none"


@pytest.mark.parametrize(("base", "variant"), PAIRS)
def test_every_variant_of_every_recipe_works_or_says_that_nothing_is_left(base, variant):
    if nothing_is_left(base, variant):
        with pytest.raises(UserError, match="both losses have weight 0"):
            named(f"{base}+{variant}")
    else:
        assert isinstance(named(f"{base}+{variant}"), PretrainConfig)


def test_variants_add_up_from_left_to_right():
    both = named("demo+one-target+contrast-only")
    assert both == recipes.without_reconstruction(recipes.with_one_target(named("demo")))


WRONG = [
    ("papr", "no recipe 'papr': did you mean 'paper'?"),
    ("qqq", "no recipe 'qqq' (`mvmae recipes` lists them; a config.json works too)"),
    ("", "no recipe ''"),
    ("demo+ma", "no variant 'ma': did you mean 'mae'?"),
    ("demo+", "no variant ''"),
    ("demo+qqq", "there are: mae, no-contrast, one-target, contrast-only"),
]


@pytest.mark.parametrize(("name", "message"), WRONG)
def test_a_wrong_name_gets_the_nearest_right_one(name, message):
    with pytest.raises(UserError) as caught:
        named(name)
    assert message in str(caught.value)
