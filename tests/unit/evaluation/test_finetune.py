"""The parts of fine-tuning: loss, classifier, layer groups, schedule and recipes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from mvmae.config.files import command_line, from_json, to_json
from mvmae.config.finetune import FinetuneConfig
from mvmae.config.model import ENCODERS
from mvmae.evaluation.finetune.classifier import Classifier, timm_keys
from mvmae.method.vit import PLAIN, Encoder, initialize
from mvmae.recipes.supervised import FINETUNE
from mvmae.training.optim import adamw, layer_groups, set_lr
from mvmae.training.plan import warmup_cosine


def build_encoder(**variant) -> Encoder:
    encoder = Encoder(
        ENCODERS["vit_pico"],
        image_size=(16, 16),
        patch_size=4,
        variant=PLAIN._replace(**variant),
    )
    initialize(encoder, Generator().manual_seed(0))
    return encoder


# Loss


def test_smoothing_of_shares_is_the_mixture_of_smoothed_labels():
    """As in timm: labels are smoothed first, then mixed."""
    scores = torch.randn(4, 5, dtype=torch.float64)
    labels, share, smoothing = torch.tensor([0, 1, 2, 4]), 0.3, 0.1
    off = smoothing / 5
    smooth = F.one_hot(labels, 5).double() * (1 - smoothing) + off
    target = share * smooth + (1 - share) * smooth.flip(0)
    expected = -(target * scores.log_softmax(dim=1)).sum(dim=1).mean()
    hard = F.one_hot(labels, 5).double()
    shares = share * hard + (1 - share) * hard.flip(0)
    torch.testing.assert_close(F.cross_entropy(scores, shares, label_smoothing=smoothing), expected)


# The classifier


@pytest.mark.parametrize(
    "variant",
    [{}, {"cls_token": False}, {"num_registers": 2}, {"layer_scale": True}, {"final_norm": False}],
)
def test_any_encoder_becomes_a_classifier(variant):
    encoder = build_encoder(**variant)
    model = Classifier(encoder, 7).eval()
    images = torch.randn(2, 3, 16, 16)
    assert model(images).shape == (2, 7)
    own = {k: v for k, v in encoder.state_dict().items() if not k.startswith("norm.")}
    body = model.encoder.state_dict()
    assert body.keys() == own.keys()
    assert all(torch.equal(body[key], own[key]) for key in own)
    keys = timm_keys(model.state_dict()).keys()
    assert keys >= {"pos_embed", "fc_norm.weight", "head.bias", "blocks.0.attn.qkv.weight"}
    assert not any(key.startswith(("norm.", "encoder.")) for key in keys)


def test_patch_tokens_are_averaged_before_the_norm():
    model = Classifier(build_encoder(), 3).eval()
    images = torch.randn(2, 3, 16, 16)
    (last,) = model.encoder.forward_intermediates(images, [3])
    mean = F.layer_norm(last.mean(dim=(2, 3)), (64,), eps=1e-6)
    torch.testing.assert_close(model(images), mean @ model.head.weight.T + model.head.bias)


def test_everything_is_trained_and_the_encoder_given_stays_as_it_is():
    encoder = build_encoder()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    model = Classifier(encoder, 3, drop_path=0.2)
    optimizer = adamw(model, lr=0.1, betas=(0.9, 0.999), weight_decay=0.05, layer_decay=0.65)
    torch.nn.init.normal_(model.head.weight)  # or hardly a gradient gets past it
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    loss = F.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    optimizer.step()
    assert [n for n, p in model.named_parameters() if torch.equal(p, start[n])] == []
    assert "encoder.pos_embed" in start
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_first_predictions_are_even():
    model = Classifier(build_encoder(), 10, generator=Generator().manual_seed(1)).eval()
    shares = model(torch.randn(4, 3, 16, 16)).softmax(dim=1)
    assert shares.max().item() == pytest.approx(0.1, abs=1e-3)
    assert 0 < model.head.weight.std().item() < 4e-5
    again = Classifier(build_encoder(), 10, generator=Generator().manual_seed(1))
    assert torch.equal(again.head.weight, model.head.weight)


def test_drop_path_rises_in_a_line_from_0_and_acts_only_in_training():
    model = Classifier(build_encoder(), 2, drop_path=0.3)
    assert [b.drop_path for b in model.encoder.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(8, 3, 16, 16)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


# Layers


def test_each_layer_learns_slower_than_the_one_above():
    model = Classifier(build_encoder(num_registers=1), 3)
    groups = layer_groups(model, weight_decay=0.05, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale, decay = {}, {}
    for group in groups:
        for parameter in group["params"]:
            scale[names[id(parameter)]] = group["lr_scale"]
            decay[names[id(parameter)]] = group["weight_decay"]
    assert scale.keys() == set(names.values())
    for name in ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight"):
        assert scale[f"encoder.{name}"] == 0.5**5
    for block in range(4):
        assert scale[f"encoder.blocks.{block}.mlp.fc1.weight"] == 0.5 ** (4 - block)
    assert scale["fc_norm.weight"] == scale["head.weight"] == 1
    undecayed = {name for name, value in decay.items() if value == 0}
    assert {"encoder.cls_token", "encoder.reg_token", "encoder.pos_embed"} <= undecayed
    assert "head.bias" in undecayed
    assert {"head.weight", "encoder.patch_embed.proj.weight"} <= decay.keys() - undecayed


def test_rate_of_a_group_is_its_share():
    model = Classifier(build_encoder(), 3)
    optimizer = adamw(model, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0, layer_decay=0.5)
    set_lr(optimizer, 0.25)
    for group in optimizer.param_groups:
        assert group["lr"] == 0.25 * group["lr_scale"]


def test_frozen_parameters_have_no_layer():
    model = Classifier(build_encoder(), 3)
    model.encoder.cls_token.requires_grad_(False)
    groups = layer_groups(model, weight_decay=0.0, layer_decay=0.5)
    assert all(model.encoder.cls_token is not p for group in groups for p in group["params"])


# Schedule


def test_the_rate_ends_at_its_final_value():
    rates = [
        warmup_cosine(step, peak=1.0, warmup_steps=5, total_steps=25, final=0.1)
        for step in range(26)
    ]
    assert rates[0] == 0
    assert rates[5] == 1
    assert rates[15] == pytest.approx(0.55)
    assert rates[25] == pytest.approx(0.1)
    assert min(rates[5:]) == rates[25]


def test_rate_is_that_of_maes_code():
    """`lr * epoch / warmup`, then `min + (lr - min) * (1 + cos(pi * share)) / 2`."""
    per_epoch, epochs, warmup, peak, low = 7, 10, 2, 1e-3, 1e-6
    for step in range(per_epoch * epochs):
        epoch = step / per_epoch
        if epoch < warmup:
            expected = peak * epoch / warmup
        else:
            share = (epoch - warmup) / (epochs - warmup)
            expected = low + (peak - low) * 0.5 * (1 + math.cos(math.pi * share))
        ours = warmup_cosine(
            step,
            peak=peak,
            warmup_steps=warmup * per_epoch,
            total_steps=epochs * per_epoch,
            final=low,
        )
        assert ours == pytest.approx(expected, rel=1e-12)


# Config and recipes


def test_paper_recipe_is_maes_with_the_papers_batch():
    config = FINETUNE["paper-finetune"].config
    assert (config.epochs, config.batch_size, config.warmup_epochs) == (100, 512, 5)
    assert (config.base_lr, config.min_lr, config.layer_decay) == (5e-4, 1e-6, 0.65)
    assert config.lr == pytest.approx(1e-3)
    assert (config.weight_decay, config.betas, config.clip_grad) == (0.05, (0.9, 0.999), None)
    assert (config.mixup, config.cutmix, config.label_smoothing) == (0.8, 1.0, 0.1)
    assert (config.drop_path, config.erasing, config.rand_augment) == (0.1, 0.25, 9)
    assert (config.crop_scale, config.test_share, config.ema) == ((0.08, 1.0), 0.875, None)


def test_defaults_are_those_of_the_paper_recipe():
    """The help shows them, and a result's command relies on them."""
    paper = FINETUNE["paper-finetune"].config
    assert FinetuneConfig(encoder=paper.encoder, data=paper.data) == paper
    assert command_line("finetune", paper) == "mvmae finetune runs/pretrain imagenet"


@pytest.mark.parametrize("name", FINETUNE)
def test_recipes_survive_json(name):
    config = FINETUNE[name].config
    assert from_json(to_json(config), FinetuneConfig, source=name) == config
