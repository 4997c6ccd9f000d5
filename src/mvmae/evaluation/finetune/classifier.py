"""A Vision Transformer that names classes: an encoder, a norm and a linear layer.

Shapes: B images, C channels, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mvmae.encoders.open import finetuning_copy
from mvmae.method.vit import Encoder

HEAD_STD = 2e-5  # MAE: so small that the first predictions are even
ENCODER_PREFIX = "encoder."  # before the body's keys in the state dict


class Classifier(nn.Module):
    """MAE's fine-tuned model: patch tokens are averaged, normalised and classified.

    The encoder's last norm gives way to one after the averaging, as in MAE, and its positions are
    trained.

    Args:
        encoder: Its weights are copied.
        num_classes: K.
        drop_path: Probability of skipping a branch of the last block; rises in a line from 0.
        generator: Draws the head.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        drop_path: float = 0.0,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder = finetuning_copy(encoder)
        self.fc_norm = nn.LayerNorm(encoder.embed_dim, eps=encoder.variant.norm_eps)
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD, generator=generator)
        nn.init.zeros_(self.head.bias)
        rates = torch.linspace(0, drop_path, encoder.size.depth).tolist()
        for block, rate in zip(self.encoder.blocks, rates, strict=True):
            block.drop_path = rate

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """A score for each class."""
        return self.head(self.fc_norm(self.encoder.embed(images, "mean")))


def timm_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `Classifier` under the names of timm's ViT with global_pool="avg"."""
    return {key.removeprefix(ENCODER_PREFIX): tensor for key, tensor in state.items()}
