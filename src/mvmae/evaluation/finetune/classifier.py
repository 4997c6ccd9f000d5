"""A classifier for fine-tuning: an encoder, a norm and a linear layer, as in MAE.

Shapes: B images, C channels, D width, K classes.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mvmae.encoders.open import finetuning_copy
from mvmae.method.vit import Encoder

HEAD_STD = 2e-5  # as in MAE: near zero, so that the first predictions are uniform
ENCODER_PREFIX = "encoder."  # of the encoder's keys in the state dict


class Classifier(nn.Module):
    """Average the patch tokens, normalise and classify them, as in MAE's fine-tuning.

    As in MAE, the encoder's final norm is replaced by one after the average, and the position
    embeddings are trained.

    Args:
        encoder: Its weights are copied.
        num_classes: K.
        drop_path: Probability of skipping a branch of the last block; it rises linearly from 0.
        generator: Draws the head's weights.
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
        """Compute a score for each class."""
        return self.head(self.fc_norm(self.encoder.embed(images, "mean")))


def timm_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a `Classifier`'s state dict to the keys of timm's ViT with global_pool="avg"."""
    return {key.removeprefix(ENCODER_PREFIX): tensor for key, tensor in state.items()}
