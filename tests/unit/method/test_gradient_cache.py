"""A batch in parts has the losses and the gradient of the whole, contrast included."""

from dataclasses import replace

import pytest
import torch
from torch import Generator

from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.data.reading.loader import Batch
from mvmae.method.augmentations import draw_augmentations, stack_augmentations
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.pretrain import training_step

CPU = torch.device("cpu")
NO_CONTRAST = ObjectiveConfig(contrastive_weight=0.0)
BASE = PretrainConfig(
    model=ModelConfig(
        encoder="vit_pico", image_size=16, patch_size=4, decoder_dim=32, decoder_depth=1
    ),
    batch_size=7,
    device="cpu",
)
CONFIGS = {
    "both losses": BASE,
    "projection head": replace(BASE, model=replace(BASE.model, head="mlp")),
    "class token": replace(BASE, model=replace(BASE.model, latent="cls")),
    "one target": replace(BASE, views=ViewsConfig(targets="one")),
    "contrast only": replace(BASE, objective=ObjectiveConfig(reconstruction_weight=0.0)),
    "other weights": replace(
        BASE, objective=ObjectiveConfig(reconstruction_weight=0.3, contrastive_weight=5.0)
    ),
    "mae": replace(BASE, objective=NO_CONTRAST, views=ViewsConfig(num_views=1)),
    "two views without contrast": replace(BASE, objective=NO_CONTRAST),
    "all patches": replace(BASE, objective=ObjectiveConfig(reconstruct="all")),
    "groups": replace(BASE, group_regex="."),
    "clipped": replace(BASE, clip_grad=0.01),
    "three views": replace(BASE, views=ViewsConfig(num_views=3)),
    "one target in three views": replace(BASE, views=ViewsConfig(num_views=3, targets="one")),
    "half rebuilt": replace(BASE, model=replace(BASE.model, decoded_share=0.5)),
    "other colours": replace(BASE, views=ViewsConfig(color_jitter=1.0, grayscale=0.2)),
}


def make_batch(config: PretrainConfig) -> Batch:
    generator = Generator().manual_seed(1)
    shape = config.views.num_views, config.batch_size
    views = torch.randint(0, 256, (*shape, 3, 16, 16), generator=generator, dtype=torch.uint8)
    noise = torch.rand(*shape, config.model.num_patches, generator=generator)
    groups = torch.tensor([0, 0, 1, 2, 0, 3, 1]) if config.group_regex else None
    drawn = [draw_augmentations((place,), config.views) for place in range(shape[1])]
    stacked = stack_augmentations(drawn)
    return Batch(views, noise, [], is_whole=True, groups=groups, augmentations=stacked)


def step(config: PretrainConfig, micro_batch_size: int | None):
    """Losses, embeddings and gradients of one step."""
    config = replace(config, micro_batch_size=micro_batch_size)
    model = MaskedAutoencoder(config.model, Generator().manual_seed(0))
    if config.objective.rebuild == "none":
        model.freeze_decoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    view, losses = training_step(model, optimizer, make_batch(config), config, CPU)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, view.embedding, gradients


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(name, size):
    losses, embedding, gradients = step(CONFIGS[name], None)
    in_parts, embedding_of_parts, gradients_of_parts = step(CONFIGS[name], size)
    assert in_parts.keys() == losses.keys()
    torch.testing.assert_close(in_parts, losses, rtol=1e-6, atol=0)
    if CONFIGS[name].objective.contrastive_weight:
        torch.testing.assert_close(embedding_of_parts, embedding)
    assert gradients_of_parts.keys() == gradients.keys()
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()])
    parts = torch.cat([gradients_of_parts[key].flatten() for key in gradients])
    assert (parts - whole).norm() <= 1e-6 * whole.norm()


def test_losses_of_parts_alone_would_be_another_gradient():
    """What gradient accumulation as usually written would do."""
    _, _, gradients = step(BASE, None)
    model = MaskedAutoencoder(BASE.model, Generator().manual_seed(0))
    whole = make_batch(BASE)
    for part in (slice(0, 3), slice(3, 7)):
        share = replace(BASE, batch_size=part.stop - part.start)
        batch = Batch(whole.views[:, part], whole.noise[:, part], [], True)
        kept = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        training_step(model, torch.optim.SGD(model.parameters(), lr=0.0), batch, share, CPU)
        for name, parameter in model.named_parameters():
            parameter.grad *= share.batch_size / 7
            parameter.grad += kept.get(name, 0)
    ours = torch.cat([p.grad.flatten() for p in model.parameters()])
    exact = torch.cat([gradients[name].flatten() for name, _ in model.named_parameters()])
    assert (ours - exact).norm() > 0.05 * exact.norm()
