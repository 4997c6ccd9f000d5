"""The rows of the paper: each has its own recipe, and its arithmetic is counted by torch."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mvmae import recipes
from mvmae.ablate.tables import DECODER, LAMBDA, MASK
from mvmae.cli.main import main
from mvmae.config.model import ENCODERS
from mvmae.config.pretrain import PretrainConfig
from mvmae.dense.detect.model import DetectorShape, build_detector
from mvmae.dense.segment.model import Segmenter
from mvmae.evaluation.finetune.classifier import Classifier
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.vit import Encoder
from mvmae.recipes.paper import ROWS, TABLE_6

BY_RECIPE = {row.recipe: row for row in ROWS}
META = torch.device("meta")  # shapes alone: nothing is computed
REPRODUCE = Path(__file__).parents[3] / "docs" / "reproduce.md"


def gflop(work: Callable[[], object]) -> float:
    """Of products, forwards and backwards, as torch's own counter sees them."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops() / 1e9


def vit_base(side: int) -> Encoder:
    return Encoder(ENCODERS["vit_base"], image_size=(side, side), patch_size=16)


def images(side: int, count: int = 1) -> torch.Tensor:
    return zeros(count, 3, side, side)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device=META, requires_grad=True)


def count_image(config: PretrainConfig) -> float:
    with META:
        model = MaskedAutoencoder(config.model).train()
    views = images(224, config.views.num_views).detach()
    noise = zeros(len(views), config.model.num_patches).detach()

    def step() -> None:
        view = model(views, noise)
        (view.embedding.sum() + view.prediction.sum()).backward()

    return gflop(step)


# Recipes


def test_every_row_has_a_recipe_and_its_own_command():
    assert len(BY_RECIPE) == len(ROWS) == 24
    for row in ROWS:
        assert row.recipe in recipes.load_recipes(row.command)
        assert row.command_line.startswith(f"mvmae {row.command} ")
        assert f"--recipe {row.recipe}" in row.command_line
        assert row.choices


def test_the_cells_of_table_5_change_one_field_of_the_ablation():
    base = recipes.named("pretrain", "ablation")
    for value in MASK:
        config = recipes.named("pretrain", f"mask-{value:g}")
        assert config == replace(base, model=replace(base.model, mask_ratio=value))
    for value in (0.1, 0.5, 1.0, 1.5, 2.0):
        config = recipes.named("pretrain", f"lambda-{value:g}")
        weighted = replace(base.objective, contrastive_weight=value)
        assert config == replace(base, objective=weighted)
    for value in DECODER:
        config = recipes.named("pretrain", f"decoder-{value}")
        assert config == replace(base, model=replace(base.model, decoder_depth=value))
    for name in ("mask-0.8", "lambda-2", "decoder-4"):
        assert recipes.named("pretrain", name) == base


def test_figures_are_those_that_ablations_compare_with():
    figures = {f"mask-{v:g}": x for v, x in MASK.items()}
    figures |= {f"lambda-{v:g}": x for v, x in LAMBDA.items() if x is not None}
    figures |= {f"decoder-{v:g}": x for v, x in DECODER.items()}
    figures |= {"ablation": TABLE_6["ours"], "one-target": TABLE_6["one target"]}
    figures |= {"no-contrast": TABLE_6["no contrast"]}
    for name, figure in figures.items():
        assert BY_RECIPE[name].figure == f"{figure:.2f} after fine-tuning"


# Arithmetic


@pytest.mark.parametrize(
    "name", ["paper", "mask-0.5", "mask-0.75", "mask-0.9", "mask-0.95", "decoder-1", "decoder-12"]
)
def test_the_work_of_pretraining_is_what_the_counter_counts(name):
    assert count_image(recipes.named("pretrain", name)) == pytest.approx(
        BY_RECIPE[name].gflop, rel=1e-3
    )


def test_the_work_of_classification_is_what_the_counter_counts():
    encoder = vit_base(224)
    classifier = Classifier(encoder, 1000).to(META)
    work = gflop(lambda: classifier(images(224).detach()).sum().backward())
    assert work == pytest.approx(BY_RECIPE["paper-finetune"].gflop, rel=1e-3)
    encoder.to(META)
    with torch.no_grad():
        work = gflop(lambda: encoder(images(224)))
    assert work == pytest.approx(BY_RECIPE["paper-probe"].gflop, rel=1e-3)


def test_the_work_of_segmentation_is_what_the_counter_counts():
    config = recipes.named("segment", "paper-ade20k")
    widths = {"channels": config.channels, "auxiliary_channels": config.auxiliary_channels}
    model = Segmenter(vit_base(config.crop), 150, **widths).to(META)

    def step() -> None:
        scores = model(images(config.crop, 2).detach())
        (scores[0].sum() + scores[1].sum()).backward()

    row = BY_RECIPE["paper-ade20k"]
    assert gflop(step) / 2 == pytest.approx(row.gflop, rel=1e-3)
    assert row.images == config.iterations * config.batch_size


def test_the_work_of_detection_is_what_the_counter_counts():
    config = recipes.named("detect", "paper-coco")
    side = config.image_size
    model = build_detector(vit_base(side), DetectorShape(80, side)).train().to(META)
    with torch.no_grad():
        maps = [one.requires_grad_() for one in model.backbone(images(side)).values()]
    boxes, masks = zeros(config.samples, 256, 7, 7), zeros(config.samples // 4, 256, 14, 14)
    heads = model.roi_heads

    def backpropagate(outputs) -> None:
        sum(one.sum() for one in outputs).backward()

    parts = (
        gflop(lambda: backpropagate(model.backbone(images(side).detach()).values())),
        gflop(lambda: backpropagate([x for both in model.rpn.head(maps) for x in both])),
        gflop(lambda: backpropagate(heads.box_predictor(heads.box_head(boxes)))),
        gflop(lambda: backpropagate([heads.mask_predictor(heads.mask_head(masks))])),
    )
    assert sum(parts) == pytest.approx(BY_RECIPE["paper-coco"].gflop, rel=1e-3)
    said = "backbone {:,.0f}, proposals {:.0f}, 512 boxes {:.0f}, 128 masks {:.0f}"
    assert said.format(*parts) in REPRODUCE.read_text()


def test_hours_are_at_half_the_rate_of_an_h100():
    row = BY_RECIPE["paper"]
    assert row.hours == pytest.approx(73.89e9 * 1600 * 1_281_167 / 400e12 / 3600)


# What is printed


def test_the_page_has_the_command_the_figure_and_the_hours_of_each_row():
    lines = REPRODUCE.read_text().splitlines()
    for row in ROWS:
        (line,) = [one for one in lines if one.startswith(f"{row.command_line} ")]
        note = line.split("#")[1]
        assert note.endswith(f"{row.hours:.1f} h"), row.recipe
        numbers = set(re.findall(r"\d\d\.\d+", row.figure.split("from")[0]))
        if row.command == "pretrain" and row.recipe.startswith("paper"):
            continue  # the figure is beside the command that measures it
        assert numbers <= set(re.findall(r"\d\d\.\d+", note)), row.recipe


def test_a_recipe_is_told_with_its_figure_its_cost_and_its_choices(capsys):
    assert main(["recipes", "paper"]) == 0
    told = capsys.readouterr().out
    for words in (
        "mvmae pretrain imagenet/train --recipe paper",
        "84.3 after fine-tuning, 76.7 by linear probe. Not ours",
        "105.2 hours of an H100 at half of 800 TFLOP/s",
        "- the paper does not say what is contrasted: here the mean of the visible patch tokens",
    ):
        assert words in told


def test_a_recipe_of_two_commands_is_told_for_both(capsys):
    assert main(["recipes", "small", "demo"]) == 0
    told = capsys.readouterr().out
    assert [line.split(":")[0] for line in told.splitlines() if line] == [
        "small, of mvmae segment",
        "small, of mvmae detect",
        "demo, of mvmae pretrain",
    ]
