"""The tables as data, from a table's name to runs, and the words of both."""

import json
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import mvmae
from mvmae.ablate import run
from mvmae.ablate.cells import fill_from_run
from mvmae.ablate.plan import command_line, make_plan, with_values
from mvmae.ablate.tables import ABLATIONS, BASE, DECODER, LAMBDA, MASK
from mvmae.cli.main import main
from mvmae.cli.parse import parse
from mvmae.config.ablate import AblateConfig
from mvmae.config.files import arguments
from mvmae.config.views import ViewsConfig
from mvmae.errors import UserError
from mvmae.recipes import named
from mvmae.recipes.paper import TABLE_6

pretraining = partial(named, "pretrain")

# Ji, Han and Rhee (2023), Table 5, as printed: three pairs of columns
PAPER_5 = {
    "table5-mask": {0.5: 79.22, 0.75: 79.09, 0.8: 79.25, 0.9: 79.23, 0.95: 78.30},
    "table5-lambda": {0.1: 78.10, 0.5: 78.09, 1: 78.09, 1.5: 79.31, 2.0: 79.64},
    "table5-decoder": {1: 74.89, 2: 78.56, 4: 80.03, 8: 80.03, 12: 79.11},
}
# ... and Table 6: ours, w/o two different targets, w/o contrastive loss, baseline
PAPER_6 = (79.09, 77.86, 74.33, 76.48)


def make_config(table: str, **other) -> AblateConfig:
    return AblateConfig(**{"table": table, "device": "cpu", "workers": 0, **other})


@pytest.mark.parametrize("table", PAPER_5)
def test_the_figures_of_table_5_are_the_papers(table):
    ours = {float(arm.name): arm.paper for arm in ABLATIONS[table].arms if arm.paper is not None}
    assert ours == PAPER_5[table]


def test_the_figures_of_table_6_are_the_papers():
    ours = {arm.name: arm.paper for arm in ABLATIONS["table6"].arms if arm.paper is not None}
    rows = ("the method", "one target", "no contrast", "MAE, equal steps")
    assert ours == dict(zip(rows, PAPER_6, strict=True))


def test_what_is_said_of_the_paper_follows_from_its_figures():
    ours, one, none, base = PAPER_6
    assert [f"{ours - other:.2f}" for other in (one, none, base)] == ["1.23", "4.76", "2.61"]
    assert all(word in ABLATIONS["table6"].says for word in ("1.23", "4.76", "2.61"))
    best, second, *_ = sorted(MASK.values(), reverse=True)
    assert MASK[0.8] == best
    assert f"best, by {best - second:.2f} points" in ABLATIONS["table5-mask"].says
    within = [value for share, value in MASK.items() if share <= 0.9]
    assert f"within {max(within) - min(within):.2f}" in ABLATIONS["table5-mask"].says
    assert list(LAMBDA) == sorted(LAMBDA)
    figures = [value for value in LAMBDA.values() if value is not None]
    assert figures[-1] == max(figures)
    assert DECODER[4] == DECODER[8] == max(DECODER.values())


def test_the_papers_figures_stand_in_one_file():
    figures = {f"{v:.2f}" for table in PAPER_5.values() for v in table.values()}
    figures |= {f"{value:.2f}" for value in PAPER_6}
    source = Path(mvmae.__file__).parent
    holders = {
        str(file.relative_to(source))
        for file in source.rglob("*.py")
        if any(figure in file.read_text(encoding="utf-8") for figure in figures)
    }
    assert holders == {"recipes/paper.py"}


@pytest.mark.parametrize("recipe", ["paper", "ablation", "vit-small-128", "tiny-cpu", "demo"])
@pytest.mark.parametrize("table", ABLATIONS)
def test_every_table_can_be_planned_from_every_recipe(table, recipe):
    plan = make_plan(make_config(table, recipe=recipe))
    folders = [cell.folder for cell in [*plan.training_cells(), *plan.controls()]]
    assert len(set(folders)) == len(folders)
    configs = [row.config for row in plan.rows]
    assert all(one != other for at, one in enumerate(configs) for other in configs[:at])
    assert plan.baseline in [row.arm.key for row in plan.rows]
    for cell in plan.training_cells():
        assert cell.config is not None
        assert (cell.config.seed, cell.config.out) == (cell.seed, cell.folder)
        assert cell.config.data == ("photos",)


def test_a_row_that_is_the_recipe_itself_is_one_run_in_all_tables():
    for table in ("table5-mask", "table5-lambda", "latent", "head", "temperature", "norm-pix"):
        plan = make_plan(make_config(table, recipe="demo"))
        (base,) = [row for row in plan.rows if row.arm.key == BASE]
        assert base.config == plan.recipe_config == plan.baseline_config


def test_a_value_that_no_row_has_gets_a_row_to_compare_with():
    plan = make_plan(
        make_config("table5-decoder", recipe="tiny-cpu", set=(("model.decoder-depth", "3"),))
    )
    assert [row.arm.name for row in plan.rows] == ["as the recipe", "1", "2", "4", "8", "12"]
    assert plan.baseline_config.model.decoder_depth == 3


def views_and_steps(table: str, recipe: str) -> dict[str, tuple[int, int]]:
    """Views and steps of each row, of 1,024 images."""
    found = {}
    for arm, config in make_plan(make_config(table, recipe=recipe)).rows:
        steps = config.epochs * (1024 // config.batch_size)
        found[arm.key] = steps * config.batch_size * config.views.num_views, steps
    return found


@pytest.mark.parametrize("recipe", ["demo", "tiny-cpu", "ablation"])
def test_rows_that_promise_equal_views_or_steps_have_them(recipe):
    rows = views_and_steps("views", recipe)
    views, steps = rows["base"]
    assert rows == {
        "base": (views, steps),
        "no-contrast": (views, steps),
        "mae": (views, 2 * steps),
        "mae-steps": (views // 2, steps),
        "mae-both": (views, steps),
    }
    rows = views_and_steps("table6", recipe)
    assert rows["one-target"] == rows["contrast-only"] == rows["base"] == (views, steps)
    assert rows["mae"] == (views, 2 * steps)
    assert rows["mae-steps"] == (views // 2, steps)


def test_mae_of_equal_steps_and_views_has_the_learning_rate_of_the_recipe():
    plan = make_plan(make_config("views", recipe="demo"))
    rates = {row.arm.key: row.config.lr for row in plan.rows}
    assert rates["mae-both"] == rates["base"]


def test_the_rows_change_nothing_but_what_they_say():
    plan = make_plan(make_config("table5-mask", recipe="tiny-cpu"))
    for row in plan.rows:
        share = float(row.arm.name)
        assert row.config == replace(
            plan.recipe_config, model=replace(plan.recipe_config.model, mask_ratio=share)
        )


def test_without_contrast_a_head_is_left_out():
    plan = make_plan(make_config("table5-lambda", recipe="demo", set=(("model.head", "mlp"),)))
    heads = {row.arm.name: row.config.model.head for row in plan.rows}
    assert heads["0"] == "none"
    assert {heads[name] for name in heads if name != "0"} == {"mlp"}


# Grids


def test_a_grid_has_all_combinations():
    settings = (("model.mask-ratio", "0.6", "0.75"), ("--objective.temperature", "0.1", "0.2"))
    plan = make_plan(make_config("grid", recipe="demo", set=(*settings, ("epochs", "5"))))
    found = {
        row.arm.name: (row.config.model.mask_ratio, row.config.objective.temperature)
        for row in plan.rows[1:]
    }
    assert found == {
        f"mask-ratio {ratio}, temperature {tau}": (ratio, tau)
        for ratio in (0.6, 0.75)
        for tau in (0.1, 0.2)
    }
    assert plan.rows[0].arm.name == "as the recipe"
    assert {row.config.epochs for row in plan.rows} == {5}
    assert plan.rows[1].arm.key == "mask-ratio-0.6-temperature-0.1"


def test_a_grid_of_one_field_is_a_curve_and_knows_the_recipes_own_value():
    plan = make_plan(make_config("grid", recipe="demo", set=(("model.mask-ratio", "0.6", "0.8"),)))
    assert [(row.arm.key, row.arm.name) for row in plan.rows] == [
        ("mask-ratio-0.6", "0.6"),
        (BASE, "0.8"),
    ]
    assert plan.ablation.axis == "mask-ratio"


def test_values_that_only_go_together_are_set_together():
    settings = (("model.image-size", "20"), ("model.patch-size", "5"))
    plan = make_plan(make_config("head", recipe="demo", set=settings))
    assert {row.config.model.grid for row in plan.rows} == {(4, 4)}


def test_more_runs_than_anybody_means_are_refused_at_once():
    values = tuple(f"0.{number}" for number in range(100, 200))
    fields = ("base-lr", "weight-decay", "model.mask-ratio", "objective.temperature")
    settings = tuple((field, *values) for field in fields)
    with pytest.raises(UserError, match="200000000 runs are more than 1000"):
        make_plan(make_config("grid", recipe="demo", seeds=(0, 1), set=settings))


# Words to values and back


def test_values_are_read_as_the_field_wants_them():
    config = with_values(
        pretraining("demo"),
        {
            "epochs": "3",
            "base-lr": "1e-3",
            "betas": "0.9,0.99",
            "views.crop-scale": "0.5,1",
            "views.mean": "0.5,0.5,0.5",
            "model.latent": "cls",
            "objective.normalize_targets": "False",
            "clip-grad": "none",
            "log": "tensorboard",
        },
    )
    assert (config.epochs, config.base_lr, config.betas) == (3, 1e-3, (0.9, 0.99))
    assert config.views == ViewsConfig(crop_scale=(0.5, 1.0), mean=(0.5, 0.5, 0.5))
    assert (config.model.latent, config.objective.normalize_targets) == ("cls", False)
    assert (config.clip_grad, config.log) == (None, ("tensorboard",))


def test_few_epochs_keep_the_share_of_the_warm_up_as_in_pretrain():
    assert with_values(pretraining("tiny-cpu"), {"epochs": "1"}).warmup_epochs == pytest.approx(0.1)
    assert with_values(pretraining("tiny-cpu"), {"epochs": "3"}).warmup_epochs == 2
    named_too = {"epochs": "1", "warmup-epochs": "0.5"}
    assert with_values(pretraining("tiny-cpu"), named_too).warmup_epochs == 0.5
    plan = make_plan(make_config("grid", recipe="demo", set=(("epochs", "1", "2"),)))
    assert {row.config.epochs: row.config.warmup_epochs for row in plan.rows} == {
        8: 1,
        1: 0.125,
        2: 1,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model.head", "none", "foo"), "--set model.head foo: foo is not one of 'none', 'mlp'"),
        (("views.crop-scale", "0.2", "0.6"), "write a list as 0.2,1"),
        (("views.num-views", "two", "one"), "'two' is not a whole number"),
        (("base-lr", "much", "little"), "'much' is not a number"),
        (
            ("views.color-jitter", "0", "0.0"),
            "the same config, so there is nothing to compare",
        ),
    ],
)
def test_values_that_cannot_be_are_refused_in_plain_words(words, message):
    with pytest.raises(UserError, match=message):
        make_plan(make_config("grid", recipe="demo", set=(words,)))


def test_grids_in_one_folder_have_names_of_their_own():
    sets = [
        (("views.crop-scale", "0.2,1", "0.6,1"),),
        (("views.crop-scale", "0.2,1", "0.8,1"),),
        (("--model.head", "none", "mlp"), ("base-lr", "1e-3", "2e-3")),
    ]
    names = [make_plan(make_config("grid", recipe="demo", set=one)).name for one in sets]
    assert names == [
        "grid-views.crop-scale-0.2-1-0.6-1",
        "grid-views.crop-scale-0.2-1-0.8-1",
        "grid-model.head-none-mlp-base-lr-1e-3-2e-3",
    ]
    assert make_plan(make_config("table6", recipe="demo")).name == "table6"


def test_none_and_numbers_are_words_where_the_field_takes_words():
    plan = make_plan(make_config("grid", recipe="demo", set=(("model.head", "none", "mlp"),)))
    assert [row.config.model.head for row in plan.rows] == ["none", "mlp"]
    config = with_values(pretraining("demo"), {"views.flip": "none", "views.depth": "8"})
    assert (config.views.flip, config.views.depth) == ("none", "8")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            {"epohcs": "3"},
            "--set epohcs: pretrain has no field of this name: did you mean 'epochs'",
        ),
        ({"model": "3"}, "--set model: pretrain has no field of this name"),
        ({"epochs": "many"}, "^--set epochs many: 'many' is not a whole number$"),
        ({"epochs": "4", "model.mask-ratio": "2"}, "^--set model.mask-ratio 2: mask_ratio must"),
        ({"betas": "0.9"}, "--set betas 0.9: "),
        ({"seed": "3"}, "ablate sets seed for each run itself"),
        ({"out": "x"}, "ablate sets out for each run itself"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_field(words, says):
    with pytest.raises(UserError, match=says):
        with_values(pretraining("demo"), words)


@pytest.mark.parametrize(
    "config",
    [
        make_config("table6"),
        make_config("grid", set=(("epochs", "4"), ("model.mask-ratio", "0.6", "0.8")), seeds=(3,)),
        make_config("table6", data=("a b", "c"), eval_data="d'e", recipe="tiny-cpu", seeds=(0, 5)),
        make_config("head", out=Path("my runs"), probe="none", baseline="mlp", only_table=True),
        make_config("head", jobs=3, recipe="runs/x/config.json", probe="mae"),
    ],
)
def test_the_command_that_is_told_gives_the_same_config(config):
    words = arguments(config)
    assert parse("ablate", words) == config
    assert shlex.split(command_line(config)) == ["mvmae", "ablate", *words]


def test_the_list_says_what_each_table_varies_and_is_there_for_programs(capsys):
    assert main(["ablate", "--list", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tables"]
    assert found.keys() == ABLATIONS.keys()
    assert found["table6"]["rows"]["one target"] == TABLE_6["one target"]
    said = run.list_tables()
    for name, ablation in ABLATIONS.items():
        assert f"{name}: {ablation.varies}" in said
    assert "paper, not ours" in said


# What a run inferred from its images


def test_a_run_is_compared_with_what_it_inferred():
    plain = pretraining("demo")
    found = replace(plain, views=replace(plain.views, depth="16", mean=(0.1,) * 3, std=(0.2,) * 3))
    assert fill_from_run(plain, found) == found
    given = replace(plain, views=replace(plain.views, depth="8", mean=(0.5,) * 3))
    assert fill_from_run(given, found).views == replace(given.views, std=(0.2,) * 3)
